"""The image filter: on for every real base, never a black picture, never a figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.bases import checker as checkers
from pipelines.bases.checker import ImageFilter
from pipelines.bases.loading import load_family
from pipelines.bases.registry import BASES, find_base
from pipelines.core.device import Device
from pipelines.core.records import COLUMNS, PhotoSet, Sampling, UserError
from pipelines.core.run import run_at
from pipelines.generation.draw import REFUSED
from pipelines.generation.generator import Generator
from pipelines.reports.findings import Findings, ScoredRender, absent
from pipelines.reports.page import refusals
from pipelines.reports.tables import to_json
from pipelines.runs.compare import perform
from pipelines.runs.jobspec import JobSpec
from pipelines.training.loop import train
from tests.tiny import add_checker, make_checker, tiny_data, tiny_family, tiny_folder, tiny_recipe

EXACT = Device("cpu", "float32", "exact in tests")
LOOKS = tuple(Sampling("portrait of {subject}", steps=2, seed=seed) for seed in (1, 2))


def filtered_base(folder: Path, flags: bool, variant: str | None = None) -> Path:
    shutil.copytree(tiny_folder("sd15"), folder)
    add_checker(folder, flags, variant=variant)
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Nothing may ask the hub, and its cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SPACE_ID", raising=False)


def test_what_is_refused_is_no_picture_and_the_others_go_on(monkeypatch):
    family = tiny_family("sd15")

    class Every:
        checker = None  # nothing of it can wait elsewhere

        def refused(self, frames):
            return [index % 2 == 0 for index in range(len(frames))]

    plain = [image for _, image in Generator(family.row, family=family).render(LOOKS, None, class_word="man")]
    monkeypatch.setattr(family, "_filter", Every())
    drawn = list(Generator(family.row, family=family).render(LOOKS, None, class_word="man"))
    assert [sampling for sampling, _ in drawn] == list(LOOKS)
    assert drawn[0][1] is None and np.array_equal(drawn[1][1], plain[1])


def test_a_base_brings_its_filter_and_a_passed_picture_is_untouched(tmp_path):
    open_family = tiny_family("sd15")
    for flags in (True, False):
        family = load_family(find_base(str(filtered_base(tmp_path / str(flags), flags))), EXACT)
        assert family.unfiltered is None
        images = [image for _, image in Generator(family.row, family=family).render(LOOKS, None, class_word="man")]
        bare = Generator(open_family.row, family=open_family).render(LOOKS, None, class_word="man")
        expected = [image for _, image in bare]
        if flags:
            assert images == [None, None]
        else:
            assert all(np.array_equal(one, other) for one, other in zip(images, expected, strict=True))


def test_it_refuses_what_the_stock_pipeline_refuses():
    """At a threshold between the pictures: the same preparation, the same verdicts."""
    import torch
    from diffusers import StableDiffusionPipeline

    checker, extractor = make_checker(False)
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    seen = extractor([Image.fromarray(frame) for frame in frames], return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(seen)[1])
        cosines = torch.nn.functional.cosine_similarity(embeds, checker.concept_embeds[:1])
    low, high = sorted(cosines.tolist())[2:4]
    checker.concept_embeds_weights.data[0] = (low + high) / 2
    parts = tiny_family("sd15").pipeline().components | {"safety_checker": checker, "feature_extractor": extractor}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=True)
    painted, stock = pipeline.run_safety_checker(frames.astype(np.float32) / 255, "cpu", torch.float32)
    ours = ImageFilter(checker, extractor, EXACT).refused(frames)
    assert ours == list(stock) and 0 < sum(ours) < 6
    assert not painted[ours.index(True)].any(), "what the stock pipeline shows instead is black"


def test_a_job_says_which_pictures_were_refused_and_does_not_draw_them_again(tmp_path, monkeypatch):
    base = filtered_base(tmp_path / "base", True)
    run = run_at(tmp_path / "run")
    spec = JobSpec("generate", str(base), "man", ("none",), "draft", samplings=LOOKS, device="cpu")
    events = list(perform(run, spec))
    refused = [event for event in events if event.kind == "refused"]
    assert [event.data.seed for event in refused] == [1, 2]
    assert all(event.text == REFUSED and event.path is None for event in refused)
    assert not [event for event in events if event.kind in ("render", "failed")]
    assert events[-1].kind == "done" and events[-1].text == "0 pictures are ready; the image filter refused 2 others"
    assert not list(run.folder.rglob("*.png"))

    asked = []
    render = Generator.render

    def noted(self, samplings, *args, **options):
        asked.extend(samplings)
        return render(self, samplings, *args, **options)

    monkeypatch.setattr(Generator, "render", noted)
    again = list(perform(run, spec))
    assert asked == [] and len([event for event in again if event.kind == "refused"]) == 2
    with (run.folder / "refused.jsonl").open("a") as file:
        file.write('{"column": "none"')  # a worker was killed while it wrote
    other = JobSpec("generate", str(base), "man", ("none",), "draft", samplings=LOOKS[:1], device="cpu")
    assert len([event for event in perform(run, other) if event.kind == "refused"]) == 1


def test_a_refused_preview_is_not_shown(tmp_path):
    family = load_family(find_base(str(filtered_base(tmp_path / "base", True))), EXACT)
    recipe = tiny_recipe("sd15", "lora", base=family.row.name, preview_every_s=1e-9, steps=2)
    events = list(train(recipe, tiny_data("sd15"), tmp_path / "out", family=family))
    assert events[-1].kind == "done"
    said = [event for event in events if event.kind == "note" and "refused a preview" in (event.text or "")]
    assert len(said) == 2 and {event.method for event in said} == {"lora"}
    assert not list((tmp_path / "out").glob("*.png")) and not any(event.kind == "preview" for event in events)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_dreambooth_export_keeps_the_filter_for_stock_pipelines(tmp_path, variant):
    from diffusers import StableDiffusionPipeline

    family = load_family(find_base(str(filtered_base(tmp_path / "base", True, variant))), EXACT)
    recipe = tiny_recipe("sd15", "dreambooth", base=family.row.name, steps=1)
    out = tmp_path / "out"
    assert list(train(recipe, tiny_data("sd15"), out, family=family))[-1].kind == "done"
    index = json.loads((out / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"] and index["requires_safety_checker"]
    stock = StableDiffusionPipeline.from_pretrained(out)
    stock.set_progress_bar_config(disable=True)
    drawn = stock("portrait of man", num_inference_steps=2)
    assert drawn.nsfw_content_detected == [True]


def test_a_filter_without_all_its_weights_is_no_filter(tmp_path):
    base = filtered_base(tmp_path / "base", True)
    file = base / "safety_checker" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("concept_embeds_weights")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of its weights"):
        load_family(find_base(str(base)), EXACT)
    file.write_bytes(b"half")
    with pytest.raises(UserError, match="image filter can't be loaded"):
        load_family(find_base(str(base)), EXACT)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_local_base_without_a_filter_says_so_and_is_not_hosted(kind, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def answer(repo, **options):
        asked.append(options["local_files_only"])
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    row, told = find_base(str(tiny_folder(kind))), []
    family = load_family(row, EXACT, progress=lambda text, share: told.append(text))
    assert family.unfiltered in told and "only prompts are filtered" in family.unfiltered
    assert BASES["sd15"].revision in family.unfiltered
    assert family.refused(np.zeros((1, 64, 64, 3), np.uint8)) == [False]
    assert asked == [True], "nothing is downloaded that nobody asked for"
    monkeypatch.setenv("SPACE_ID", "somebody/likeness")
    with pytest.raises(UserError, match="hosted page does not draw without one"):
        load_family(row, EXACT)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_local_base_without_one_uses_what_the_cache_holds(kind, tmp_path):
    lender = BASES["sd15"]
    lent = tmp_path / "no-hub" / f"models--{lender.repo.replace('/', '--')}" / "snapshots" / lender.revision
    lent.mkdir(parents=True)
    (lent / "model_index.json").write_text("{}")
    add_checker(lent, True, variant="fp16")
    family = load_family(find_base(str(tiny_folder(kind))), EXACT)
    assert family.unfiltered is None and family.refused(np.zeros((1, 64, 64, 3), np.uint8)) == [True]
    assert family.pipeline().components.get("safety_checker") is None, "it is lent, not part of the base"


def test_the_hub_base_is_not_whole_without_its_filter(tmp_path):
    from diffusers import DiffusionPipeline

    row = BASES["sd15"]
    snapshot = tmp_path / "no-hub" / f"models--{row.repo.replace('/', '--')}" / "snapshots" / row.revision
    DiffusionPipeline.from_pretrained(tiny_folder("sd15")).save_pretrained(snapshot, variant="fp16")
    assert not checkers.has_checker(snapshot)
    with pytest.raises(UserError, match="not on this machine and the hub did not answer"):
        load_family(row, EXACT)


def test_the_embedded_base_needs_none():
    family = tiny_family("portrait")
    assert family.unfiltered is None and not family.architecture.filtered


def test_the_report_counts_them_and_averages_over_the_others():
    from pipelines.core.records import Score
    from pipelines.evaluation.scale import Scale

    def cell(column, sampling, value):
        return ScoredRender(column, sampling, f"renders/{column}/{sampling.seed}.png", (Score("", "dlib", value),))

    looks = tuple(Sampling("portrait of {subject}", seed=seed) for seed in range(4))
    cells = [cell("none", each, 0.1) for each in looks] + [cell("lora", each, 0.5) for each in looks[1:]]

    marks = Scale("dlib", 0.2, 0.1, 0.8, 0.9, 0.8, 0.95, 0.3, 4)
    findings = Findings(
        base="sd15", title="SD", class_word="man", quality="draft", seed=0, wall_s=1.0,
        photo_set=PhotoSet((), (), ()), columns=("none", "lora"), cells=tuple(cells), marks={"dlib": marks},
        subjects={}, refused=(("lora", looks[0]),),
    )  # fmt: skip
    rows = to_json(findings)["methods"]
    assert (rows["lora"]["refused"], rows["none"]["refused"]) == (1, 0)
    assert rows["lora"]["identity"]["dlib"]["mean"] == 0.5, "a refused picture is no zero"
    gain = findings.against_base("lora", "dlib")
    assert gain is not None and gain.difference == pytest.approx(0.4)
    assert refusals(findings) == "LoRA 1"
    assert absent(findings, "lora", looks[0]) == "refused"
    assert set(findings.columns) <= set(COLUMNS)
