"""Laws of the memory plan: nothing is paid for where memory is enough, what is chosen is said, small GPUs get a way."""

from __future__ import annotations

import math

import pytest

from pipelines import presets, runtime
from pipelines.bases.registry import BASES
from pipelines.estimates import estimate, memory_needs, too_large
from pipelines.runtime import MemoryNeeds, memory_plan
from pipelines.schema import UserError

NEEDS = MemoryNeeds(4.0, 2.0, 10.0, 1.0, 2.0, denoiser_gb=3.0, vae_gb=0.3)


def plan_of(base, method, free_gb, *, quality="good", wish="auto", **changes):
    recipe = presets.recipe(base, method, quality, class_word="man").replaced(**changes)
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
    row, recipe = BASES["sd15"], presets.recipe("sd15", "lora", "good", class_word="man")

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
    recipes = {m: presets.recipe("sdxl", m, "good", class_word="man") for m in BASES["sdxl"].usual}
    found = estimate(BASES["sdxl"], recipes, {}, free_gb=12.0)
    assert "Gradient checkpointing is on" in found.memory and 0 < found.memory_mb < 12_000
    roomy = estimate(BASES["sdxl"], recipes, {}, free_gb=141.0)
    assert "memory is enough" in roomy.memory and roomy.memory_mb > found.memory_mb
    assert estimate(BASES["portrait-128"], {}, {}).memory == ""


def test_a_method_that_cannot_fit_is_told_and_does_not_count():
    row = BASES["sdxl"]
    recipes = {m: presets.recipe("sdxl", m, "good", class_word="man") for m in row.methods}
    small = estimate(row, {m: recipe for m, recipe in recipes.items() if m != "dreambooth"}, {}, free_gb=12.0)
    found = estimate(row, recipes, {}, free_gb=12.0)
    assert found.memory_mb == small.memory_mb and found.memory.endswith(small.memory)
    assert found.memory.startswith("Left out, dreambooth: it needs about 51 GB of the GPU's memory on Stable Diffusion")
    large = recipes["dreambooth"]
    assert "or the optimizer adamw8bit (35 GB)" in str(too_large(row, large, 40.0))
    assert "adamw8bit" not in str(too_large(row, large, 24.0))
    for free in (None, 47.5, 80.0, 141.0):  # nearly enough is tried
        assert too_large(row, large, free) is None
    assert too_large(row, large.replaced(optimizer="adamw8bit"), 40.0) is None
    for base, method in (("sd15", "dreambooth"), ("portrait-128", "dreambooth")):
        recipe = presets.recipe(base, method, "good", class_word="man")
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
    assert runtime.free_memory_gb() == (pytest.approx(free) if free is not None else None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert runtime.free_memory_gb() is None
    assert runtime.free_memory_gb(runtime.Device("cpu", "float32", "test")) is None
