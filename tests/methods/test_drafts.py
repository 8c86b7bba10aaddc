"""Drafts: a distilled LoRA that lies on this machine is put on top for as long as a draft is drawn, and never else."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from pipelines.bases.family import Family
from pipelines.bases.loading import load_family
from pipelines.bases.registry import BASES
from pipelines.cli.generate import samplings_of
from pipelines.cli.parser import parser
from pipelines.core.device import Device
from pipelines.core.inscription import Inscription
from pipelines.core.records import Sampling, UserError, sampling_fields
from pipelines.evaluation.facts import is_counted
from pipelines.generation.generator import Generator, read_settings, save_render
from pipelines.methods import drafts, lora_files, lora_names
from pipelines.methods import method as find_method
from pipelines.training.loop import train
from pipelines.training.previews import PREVIEW_STEPS
from pipelines.training.subjects import load_subject
from tests.tiny import add_checker, tiny_data, tiny_folder, tiny_recipe, tiny_subject

EXACT = Device("cpu", "float32", "exact in tests")


def distilled_file(file, row, *, rank=2, seed=0):
    """A random LCM-LoRA as the real ones are written: kohya's names, every kernel and matrix of the denoiser."""
    layout, generator = lora_names.layout(row), torch.Generator().manual_seed(seed)
    layers = {}
    for path, shape in layout.weights.items():
        if path.startswith("unet."):
            down = 0.2 * torch.randn((rank, *shape[1:]), generator=generator)
            up = 0.2 * torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator)
            layers[path] = lora_files.Layer(down, up, alpha=1.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora_files.to_kohya(layers, layout), str(file))
    return file


def snapshot(cache, repo, revision):
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision


@pytest.fixture(params=["sd15", "sdxl"])
def hub(request, tmp_path, monkeypatch):
    """(row, the cache's folder): a tiny base of the hub in the hub's own layout; its LCM-LoRA is not there yet."""
    from huggingface_hub import constants

    row = replace(BASES[request.param], resolution_px=64, buckets=(), footprint=None)
    monkeypatch.setitem(BASES, row.name, row)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder(row.name))
    pipeline.save_pretrained(snapshot(tmp_path / "hub", row.repo, row.revision), variant="fp16")
    lender = snapshot(tmp_path / "hub", BASES["sd15"].repo, BASES["sd15"].revision)
    lender.mkdir(parents=True, exist_ok=True)
    if not (lender / "model_index.json").exists():
        (lender / "model_index.json").write_text("{}")
    add_checker(lender, False, variant="fp16")
    return row, tmp_path / "hub"


@pytest.fixture
def there(hub):
    row, cache = hub
    distilled_file(snapshot(cache, *row.draft_lora) / drafts.FILE, row)
    return row


@pytest.fixture
def asked(monkeypatch):
    """What the denoiser is asked: True for each call where something is put on top."""
    calls = []
    predict = Family.predict

    def counted(self, unet, *args):
        calls.append(any(module._forward_hooks for module in unet.modules()))
        return predict(self, unet, *args)

    monkeypatch.setattr(Family, "predict", counted)
    return calls


def test_both_are_pinned():
    for name in ("sd15", "sdxl"):
        repo, revision = BASES[name].draft_lora
        assert repo.startswith("latent-consistency/lcm-lora-sd") and len(revision) == 40
    assert BASES["portrait-128"].draft_lora is None and BASES["z-image"].draft_lora is None
    assert drafts.find(BASES["portrait-128"]) is None and drafts.load(BASES["portrait-128"]) is None
    with pytest.raises(UserError, match="no drafts in 4 steps for Portrait 128"):
        raise drafts.missing(BASES["portrait-128"])


def test_it_is_found_in_the_hubs_cache_and_in_a_folder(hub, tmp_path):
    row, cache = hub
    assert drafts.find(row) is None and drafts.load(row) is None
    assert f"hf download {row.draft_lora[0]} " in str(drafts.missing(row)) and row.draft_lora[1] in str(
        drafts.missing(row)
    )
    file = distilled_file(snapshot(cache, *row.draft_lora) / drafts.FILE, row)
    assert drafts.find(row) == file and drafts.load(row)
    local = replace(row, repo=None, path=str(tmp_path / "local"))
    assert drafts.find(local) == file, "made for the family"
    own = distilled_file(tmp_path / "local" / "lcm_lora" / drafts.FILE, row)
    assert drafts.find(local) == own, "a folder's own comes first"
    single = replace(local, path=str(tmp_path / "local.safetensors"))
    assert drafts.find(single) == own


def test_what_does_not_fit_is_a_sentence_and_no_preview(hub):
    row, cache = hub
    file = snapshot(cache, *row.draft_lora) / drafts.FILE
    file.parent.mkdir(parents=True)
    save_file({"lora_unet_nothing.lora_down.weight": torch.zeros(2, 3)}, str(file))
    with pytest.raises(UserError, match="does not fit"):
        drafts.load(row)
    assert drafts.load_quietly(row) is None


@pytest.mark.parametrize("what", ["applied", "live"])
def test_on_top_is_what_merging_gives(there, what, tmp_path):
    """On a subject's merged LoRA and on one that is being learned; afterwards everything is as it was."""
    family = load_family(there, EXACT)
    recipe = tiny_recipe(there.name, "lora", targets="all")
    folder = tiny_subject(there.name, "lora")
    modules = find_method("lora").apply(family, folder, load_subject(folder).recipe)
    unet = modules.unet
    if what == "live":
        learner = find_method("lora").learner(family, recipe)
        learner.start_from(folder)
        unet = learner.modules.unet
    layers = drafts.load(there)
    merged = copy.deepcopy(modules.unet)
    lora_files.merge({"unet": merged}, layers)
    told = modules.text.encode(modules.text.ids(["portrait of man"]))
    noisy, when = (
        torch.randn(1, *family.latent_shape(), generator=torch.Generator().manual_seed(0)),
        torch.tensor([500]),
    )
    with torch.no_grad():
        before = family.predict(unet, noisy, when, told)
        with drafts.distilled(family, unet, layers):
            on_top = family.predict(unet, noisy, when, told)
        after, wanted = family.predict(unet, noisy, when, told), family.predict(merged, noisy, when, told)
    assert torch.equal(before, after) and not torch.allclose(before, wanted, atol=0.02)
    assert torch.allclose(on_top, wanted, atol=1e-3 if what == "applied" else 5e-3)  # a file holds float16
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_draft_takes_four_calls_and_says_so(there, asked, tmp_path):
    family, folder = load_family(there, EXACT), tmp_path / "lora"
    recipe = tiny_recipe(there.name, "lora", steps=2).replaced(base=there.name)
    list(train(recipe, tiny_data(there.name), folder, family=family))
    asked.clear()
    generator = Generator(there, family=family)
    options = parser().parse_args(["generate", "run", "--prompt", "portrait of {subject}", "--draft", "--number", "2"])
    plan = samplings_of(options, there.name)
    usual = replace(plan[0], draft=False)
    pictures = list(generator.render([*plan, usual], folder, class_word="man"))
    assert asked == [True] * 4 + [False] * 4, "two drafts at once, and no guidance doubles them"
    assert [each.draft for each, _ in pictures] == [True, True, False] and pictures[0][1] != pictures[2][1]
    save_render(pictures[0][1], Inscription(plan[0], there.name), tmp_path / "a.png", method="lora")
    found = read_settings(tmp_path / "a.png")
    assert found == plan[0] and (found.steps, found.guidance, found.scheduler, found.draft) == (4, 1.0, "lcm", True)
    assert not is_counted(found) and is_counted(usual)


def test_one_can_say_how_a_draft_is_drawn(there):
    options = parser().parse_args(
        ["generate", "r", "--draft", "--steps", "6", "--guidance", "1.5", "--scheduler", "tcd"]
    )
    (found,) = samplings_of(options, there.name)
    assert (found.steps, found.guidance, found.scheduler, found.draft) == (6, 1.5, "tcd", True)
    assert "draft" not in sampling_fields(Sampling("portrait of {subject}")), "old pictures keep their names"


def test_without_it_a_draft_is_a_sentence(hub):
    row, _ = hub
    options = parser().parse_args(["generate", "run", "--draft"])
    with pytest.raises(UserError, match="is not on this machine.*hf download"):
        samplings_of(options, row.name)
    generator = Generator(row, family=load_family(row, EXACT))
    with pytest.raises(UserError, match="is not on this machine.*hf download"):
        list(generator.render([Sampling("portrait of man", draft=True)], None, class_word="man"))


@pytest.mark.parametrize("is_there", [True, False])
def test_previews_are_drafts_and_what_is_kept_is_not(hub, asked, is_there, tmp_path):
    row, cache = hub
    if is_there:
        distilled_file(snapshot(cache, *row.draft_lora) / drafts.FILE, row)
    recipe = tiny_recipe(row.name, "lora").replaced(base=row.name, steps=3, preview_every_s=1e-9)
    family = load_family(row, EXACT)
    events = list(train(recipe, tiny_data(row.name), tmp_path / "run", family=family))
    assert [event.kind for event in events].count("preview") == 3 and events[-1].kind == "done"
    previews = 2  # while it learns; the third is the one that is kept
    answers = PREVIEW_STEPS * 2 + 3  # the live picture and the reloaded one; three times the same noise
    assert asked.count(True) == (previews * drafts.STEPS if is_there else 0)
    assert asked.count(False) == 3 + answers + (0 if is_there else previews * PREVIEW_STEPS)


def test_previews_leave_no_trace(there, tmp_path):
    """The same is learned, whether anybody looks or not."""
    family = load_family(there, EXACT)
    learned = []
    for name, every_s in (("shown", 1e-9), ("not", 0.0)):
        recipe = tiny_recipe(there.name, "lora").replaced(base=there.name, steps=3, preview_every_s=every_s)
        list(train(recipe, tiny_data(there.name), tmp_path / name, family=family))
        learned.append(load_subject(tmp_path / name).sha256)
    assert learned[0] == learned[1]
