"""Laws of the memory plan: nothing is paid for where memory is enough, what is chosen is said, small GPUs get a way,
and no more lies on a GPU together than was planned.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pipelines.bases import family as family_module
from pipelines.bases import memory
from pipelines.bases.loading import load_family
from pipelines.bases.memory import MemoryNeeds, memory_needs, memory_plan, roomy_gb, too_large
from pipelines.bases.registry import BASES, Footprint, find_base
from pipelines.core import presets
from pipelines.core.device import Device, free_memory_gb, gpu_dtype
from pipelines.core.records import Look, Sampling, UserError, Watch
from pipelines.generation.generator import Generator
from pipelines.methods import method as find_method
from pipelines.training import loop
from pipelines.training.estimates import estimate
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from tests.cases import quick_are
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe

NEEDS = MemoryNeeds(4.0, 2.0, 10.0, 1.0, 2.0, denoiser_gb=3.0, vae_gb=0.3)


def plan_of(base, method, free_gb, *, quality="good", wish="auto", **changes):
    recipe = presets.recipe(find_base(base), method, quality, class_word="man").replaced(**changes)
    return memory_plan(memory_needs(BASES[base], recipe), free_gb, wish)


@pytest.mark.parametrize(
    ("free", "checkpointing", "offload"),
    [(80.0, False, False), (17.0, False, True), (15.0, True, False), (9.2, True, False), (7.2, True, True)],
)
def test_the_cheapest_way_that_fits_is_chosen(free, checkpointing, offload):
    plan = memory_plan(NEEDS, free)
    assert (plan.checkpointing, plan.offload) == (checkpointing, offload)
    assert plan.peak_gb == NEEDS.peak_gb(checkpointing=checkpointing, offload=offload) <= 0.95 * free
    assert f"{free:.1f} GB are free" in plan.reason and plan.reason.endswith(".")
    assert ("waits outside the GPU" in plan.reason) == offload
    assert ("is on: without it" in plan.reason) == checkpointing


def test_less_memory_never_asks_for_more():
    peaks = [memory_plan(NEEDS, 0.5 * free).peak_gb for free in range(1, 60)]
    assert peaks == sorted(peaks)


def test_what_the_person_says_is_done_and_what_does_not_fit_is_said():
    on, off = (memory_plan(NEEDS, 80.0, wish) for wish in ("on", "off"))
    assert on.checkpointing and "on as asked" in on.reason and not off.checkpointing and "off as asked" in off.reason
    tight = memory_plan(NEEDS, 10.0, "off")
    assert not tight.checkpointing and tight.offload and "probably not fit" in tight.reason
    assert "probably not fit" in memory_plan(NEEDS, 1.0).reason
    with pytest.raises(UserError, match="one of auto, on, off, not perhaps"):
        memory_plan(NEEDS, 1.0, "perhaps")


@pytest.mark.parametrize("wish", ["auto", "on", "off"])
def test_elsewhere_nothing_moves(wish):
    for needs, free in ((NEEDS, None), (None, None), (None, 8.0)):
        plan = memory_plan(needs, free, wish)
        assert not plan.offload and plan.checkpointing == (wish == "on") and plan.reason.endswith(".")


@pytest.mark.parametrize("quality", ["draft", "good", "best"])
@pytest.mark.parametrize(
    ("base", "method", "free"),
    [("sd15", "lora", 6.0), ("sdxl", "lora", 12.0), ("sd15", "textual_inversion", 6.0), ("sd15", "pivotal", 6.0)],
)
def test_the_small_methods_fit_small_gpus(base, method, free, quality):
    plan = plan_of(base, method, free, quality=quality)
    assert plan.peak_gb <= 0.95 * free and "probably not" not in plan.reason, plan.reason


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_a_large_gpu_pays_for_nothing(base):
    for method in BASES[base].offered:
        plan = plan_of(base, method, 141.0)
        assert (plan.checkpointing, plan.offload) == (False, False), (base, method)


def test_what_costs_memory_costs_it_in_the_plan():
    row, recipe = BASES["sd15"], presets.recipe(find_base("sd15"), "lora", "good", class_word="man")

    def peak(**changes):
        needs = memory_needs(row, recipe.replaced(**changes))
        return needs.peak_gb(checkpointing=False, offload=False)

    usual = peak()
    for more in ({"batch": 8}, {"rank": 128}, {"prior_weight": 1.0}, {"ema": 0.99}, {"optimizer": "prodigy"},
                 {"method": "dreambooth"}):  # fmt: skip
        assert peak(**more) > usual, more
    assert peak(optimizer="adamw8bit") < usual and peak(text_learning_rate=0.0) < usual
    assert math.isfinite(usual) and memory_needs(BASES["portrait-128"], recipe) is None


def test_the_estimate_says_it_before_anything_starts():
    recipes = {m: presets.recipe(find_base("sdxl"), m, "good", class_word="man") for m in BASES["sdxl"].usual}
    found = estimate(BASES["sdxl"], recipes, {}, free_gb=12.0)
    assert "Gradient checkpointing is on" in found.memory and 0 < found.memory_mb < 12_000
    roomy = estimate(BASES["sdxl"], recipes, {}, free_gb=141.0)
    assert "memory is enough" in roomy.memory and roomy.memory_mb > found.memory_mb
    assert estimate(BASES["portrait-128"], {}, {}).memory == ""


def test_a_method_that_cannot_fit_is_told_and_does_not_count():
    row = BASES["sdxl"]
    recipes = {m: presets.recipe(find_base("sdxl"), m, "good", class_word="man") for m in row.methods}
    small = estimate(row, {m: recipe for m, recipe in recipes.items() if m != "dreambooth"}, {}, free_gb=12.0)
    found = estimate(row, recipes, {}, free_gb=12.0)
    assert found.memory_mb == small.memory_mb and found.memory.endswith(small.memory)
    assert found.memory.startswith("Left out, dreambooth: it needs about 50 GB of the GPU's memory on Stable Diffusion")
    large = recipes["dreambooth"]
    assert "or the optimizer adamw8bit (35 GB)" in str(too_large(row, large, 40.0))
    assert "adamw8bit" not in str(too_large(row, large, 24.0))
    for free in (None, 47.5, 80.0, 141.0):  # nearly enough is tried
        assert too_large(row, large, free) is None
    assert too_large(row, large.replaced(optimizer="adamw8bit"), 40.0) is None
    for base, method in (("sd15", "dreambooth"), ("portrait-128", "dreambooth")):
        recipe = presets.recipe(find_base(base), method, "good", class_word="man")
        assert (too_large(BASES[base], recipe, 8.0) is None) == (base == "portrait-128")
        assert too_large(BASES[base], recipe, 24.0) is None


@pytest.mark.parametrize(
    ("said", "free"), [("8000\n", 8.388608), ("1000\n9000\n", 1.048576), ("[N/A]\n", None), ("", None)]
)
def test_free_memory_without_torch_is_what_the_driver_says(said, free, monkeypatch):
    import shutil
    import subprocess

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 0, said))
    assert free_memory_gb() == (pytest.approx(free) if free is not None else None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert free_memory_gb() is None
    assert free_memory_gb(Device("cpu", "float32", "test")) is None


def test_a_card_without_bfloat16_needs_twice_as_much_for_what_does_not_learn():
    for base, method in (("sd15", "lora"), ("sdxl", "textual_inversion"), ("z-image", "lora")):
        recipe = presets.recipe(find_base(base), method, "good", class_word="man").replaced(text_learning_rate=0.0)
        half, whole = (memory_needs(BASES[base], recipe, dtype) for dtype in ("bfloat16", "float32"))
        assert whole.denoiser_gb == 2 * half.denoiser_gb and whole.activations_gb == 2 * half.activations_gb
        assert whole.resident_gb - half.resident_gb >= half.denoiser_gb - 1e-9
        size = BASES[base].footprint
        assert roomy_gb(size, "float32", text_learns=True) > roomy_gb(size, "bfloat16", text_learns=True)
    recipes = {"lora": presets.recipe(find_base("sd15"), "lora", "good", class_word="man")}
    peaks = [
        estimate(BASES["sd15"], recipes, {}, free_gb=40.0, dtype=dtype).memory_mb for dtype in ("bfloat16", "float32")
    ]
    assert peaks[1] > 1.4 * peaks[0]


@pytest.mark.parametrize(("said", "dtype"), [("7.5\n", "float32"), ("8.9\n9.0\n", "bfloat16"), ("[N/A]\n", "bfloat16")])
def test_the_format_without_torch_is_what_the_driver_says(said, dtype, monkeypatch):
    import shutil
    import subprocess

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 0, said))
    assert gpu_dtype() == dtype


# -- what lies on a card together ------------------------------------------------------------------------------------

NETWORKS = ("UNet2DConditionModel", "CLIPTextModel", "CLIPTextModelWithProjection", "AutoencoderKL")
CARD = "cpu:0"  # its name; "cpu" is where parked networks wait


class Card(Device):
    """A GPU as far as the code knows. The arithmetic happens on the CPU; what is moved where is noted."""

    @property
    def kind(self) -> str:
        return "cuda"


class Ledger:
    """Which networks lie on the card and how many bytes that is, with gradients and moments, whenever one runs."""

    def __init__(self, monkeypatch):
        self.places = weakref.WeakKeyDictionary()
        self.optimizers = weakref.WeakSet()
        self.moves = 0
        self.forget()
        to, make = torch.nn.Module.to, loop.optimizers.make

        def moved(module, *args, **options):
            done = to(module, *args, **options)
            where = next((each for each in args if isinstance(each, str)), None)
            if where is not None and type(module).__name__ in NETWORKS:
                self.moves += 1
                self.places[module] = where
                self.look()
            return done

        def made(*args):
            optimizer = make(*args)
            self.optimizers.add(optimizer)
            return optimizer

        monkeypatch.setattr(torch.nn.Module, "to", moved)
        monkeypatch.setattr(loop.optimizers, "make", made)

    def forget(self):
        self.most_bytes = self.most_denoisers = self.decoded_beside = 0

    def on_card(self):
        return [module for module, place in self.places.items() if place == CARD]

    def denoisers(self):
        return sum(type(module).__name__ == "UNet2DConditionModel" for module in self.on_card())

    def bytes_on_card(self):
        held = {id(each): each for module in self.on_card() for each in module.parameters()}
        tensors = [*held.values(), *(each.grad for each in held.values() if each.grad is not None)]
        for optimizer in self.optimizers:
            tensors += [each for state in optimizer.state.values() for each in state.values()]
        return sum(each.nbytes for each in tensors)

    def look(self):
        self.most_bytes = max(self.most_bytes, self.bytes_on_card())
        self.most_denoisers = max(self.most_denoisers, self.denoisers())

    def running(self, module, _args):
        name = type(module).__name__
        if name not in (*NETWORKS, "Encoder", "Decoder"):
            return
        self.look()
        for each, place in self.places.items():
            if module is each or module in (getattr(each, "encoder", None), getattr(each, "decoder", None)):
                assert place == CARD, f"{type(each).__name__} computes while it waits elsewhere"
        if name == "Decoder":
            self.decoded_beside = max(self.decoded_beside, self.denoisers())


@pytest.fixture
def card(monkeypatch):
    """(a ledger, a function that loads the tiny base of a kind onto a card with so many GB free)."""
    monkeypatch.setattr(memory, "CHECKER_M", 0)  # tiny bases have none
    monkeypatch.setattr(memory, "CONTEXT_GB", 0.0)
    ledger = Ledger(monkeypatch)

    def load(kind, free_gb):
        for module in (family_module, loop):
            monkeypatch.setattr(module, "free_memory_gb", lambda device: free_gb)
        monkeypatch.setattr(loop, "too_large", lambda *_: None)  # tiny cards are tried all the same
        return load_family(counted(kind), Card(CARD, "float32", "a stand-in"))

    handle = register_module_forward_pre_hook(ledger.running)
    yield ledger, load
    handle.remove()


def counted(kind):
    """The row of a tiny base with its true sizes; what is not a weight counts nothing."""
    family, recipe = tiny_family(kind), tiny_recipe(kind, "lora")
    learner = find_method("lora").learner(family, recipe)
    text = sum(millions(each) for each in family.text.encoders)
    rank = sum(each.numel() for each in learner.tensors().values()) / 1e6 / recipe.rank
    size = Footprint(millions(family.shared().unet), text, millions(family.vae), rank, 0, 0, 0, 0)
    return dataclasses.replace(find_base(str(tiny_folder(kind))), footprint=size)


def millions(module):
    return sum(each.numel() for each in module.parameters()) / 1e6


def whole_training(family, method, out):
    """With all that may lie on a card: class pictures, previews, looks, validation, checkpoints."""
    recipe = tiny_recipe(
        "sdxl", method, steps=3, prior_weight=1.0, prior_images=2, preview_every_s=1e-9, watch_every=2,
        text_learning_rate=0.0 if method == "textual_inversion" else 1e-4,
    )  # fmt: skip
    watch = Watch("nobody", ("portrait of {subject}",), lambda frames: Look(1.0, 1.0, None, 1.0))
    apart = []
    for event in train(recipe, tiny_data("sdxl", validation=1), out, family=family, watch=watch):
        apart += [family.parked] if event.kind == "step" else []
    assert event.kind == "done", event
    return memory_needs(family.row, recipe, "float32"), apart


@pytest.mark.parametrize("method", quick_are(["textual_inversion", "dreambooth", "lora", "pivotal"], "dreambooth"))
def test_no_more_lies_on_a_card_than_was_planned(card, method, tmp_path):
    ledger, load = card
    learned, pictures = [], []
    for name, free_gb, offload in (("small", 1e-6, True), ("large", 1e3, False)):
        family = load("sdxl", free_gb)
        generator = Generator(family.row, family=family)
        list(generator.render([Sampling("portrait of {subject}", steps=1)], None, class_word="man"))
        assert ledger.denoisers() == 1, "left by who drew before"
        ledger.forget()
        needs, apart = whole_training(family, method, tmp_path / name)
        assert family.short == family.parked == offload and apart == [offload] * 3
        assert ledger.most_bytes <= 1.02e9 * needs.peak_gb(checkpointing=False, offload=offload)
        assert ledger.most_denoisers == 1, "one at a time, read back too"
        assert ledger.decoded_beside == (0 if offload else 1)
        folder = tmp_path / name
        learned.append(load_subject(folder).sha256)
        ledger.forget()
        asked = [Sampling("portrait of {subject}", steps=2, strength=strength) for strength in (1.0, 0.5)]
        for column in (None, folder, None):
            pictures += [np.asarray(image) for _, image in generator.render(asked, column, class_word="man")]
        own = method != "textual_inversion"
        assert ledger.most_denoisers == (2 if own and not offload else 1)
        assert ledger.decoded_beside == (0 if offload else ledger.most_denoisers)
        family.decode(family.encode_images(tiny_data("sdxl").frames).latents(None))  # as the report does
        assert ledger.decoded_beside == (0 if offload else ledger.most_denoisers)
    assert learned[0] == learned[1], "where things lie changes nothing that is learned"
    half = len(pictures) // 2
    assert all(np.array_equal(one, other) for one, other in zip(pictures[:half], pictures[half:], strict=True))


def test_what_fails_after_the_last_step_repeats_no_step(card, tmp_path, monkeypatch):
    """Reading back does not fit: a sentence, the memory is free again, and the next start only reads back."""
    ledger, load = card
    family, data = load("sdxl", 1e-6), tiny_data("sdxl")
    recipe = tiny_recipe("sdxl", "dreambooth", steps=3)
    list(train(recipe, data, tmp_path / "whole", family=family))

    def full(*_args, **_options):
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(type(find_method("dreambooth")), "apply", full)
        with pytest.raises(UserError, match="The GPU's memory is not enough for DreamBooth") as told:
            list(train(recipe, data, tmp_path / "part", family=family))
        assert ledger.denoisers() == 0 and not ledger.optimizers, "nothing is left, though the error is"
        del told
    told = list(train(recipe, data, tmp_path / "part", family=family))
    assert told[0].step == 3 and told[-1].kind == "done" and not any(event.kind == "step" for event in told)
    whole, part = (load_subject(tmp_path / each) for each in ("whole", "part"))
    assert whole.sha256 == part.sha256 and not (tmp_path / "part" / "checkpoint.safetensors").exists()


def test_the_plan_counts_as_many_pictures_as_are_drawn_together():
    from pipelines.generation.draw import LARGE_BASE_BATCH

    assert max(LARGE_BASE_BATCH, len(presets.prompts("validation"))) <= memory.DRAWN_TOGETHER


def test_an_imported_lora_is_merged_off_a_small_card_and_drawn_in_the_cards_format(card, monkeypatch):
    from pipelines.methods import imports
    from pipelines.methods.lora_files import Layer
    from pipelines.methods.lora_names import path_of

    ledger, load = card
    load("sdxl", 1e-6)
    family = load_family(counted("sdxl"), Card(CARD, "bfloat16", "a stand-in"))
    for name, ending in (("unet", "to_q.weight"), ("text_encoder", "q_proj.weight")):
        module = family.shared().unet if name == "unet" else family.text.encoders[0]
        weight, shape = next((each, value.shape) for each, value in module.named_parameters() if each.endswith(ending))
        del module
        layer = Layer(torch.ones(1, shape[1]), torch.ones(shape[0], 1), 1.0, None, False)
        layers = {path_of(name, weight.removesuffix(".weight")): layer}
        monkeypatch.setattr(imports, "_layers", lambda folder, layers=layers: layers)
        ledger.forget()
        applied = imports.ImportedLoRA().apply(family, Path("nowhere"), tiny_recipe("sdxl", "lora"))
        assert ledger.most_denoisers == 1, "the shared one left before"
        assert ledger.most_bytes == ledger.bytes_on_card(), "the float32 copies never lay there"
        modules = (applied.unet, *applied.text.encoders)
        assert all(each.dtype == torch.bfloat16 for module in modules for each in module.parameters())
        assert (applied.text is family.text) == (name == "unet"), "encoders are copied only where they change"
        del applied, modules


def test_a_lora_is_merged_off_a_small_card(card, tmp_path):
    ledger, load = card
    load("sdxl", 1e-6)
    family, recipe = load_family(counted("sdxl"), Card(CARD, "bfloat16", "a stand-in")), tiny_recipe("sdxl", "lora")
    find_method("lora").learner(family, recipe).export(tmp_path)
    ledger.forget()
    applied = find_method("lora").apply(family, tmp_path, recipe)
    assert ledger.most_denoisers == 1 and ledger.most_bytes == ledger.bytes_on_card() > 0
    assert applied.text is family.text, "encoders that did not learn are the base's"
