"""How long a training will take and how much memory it needs, before anything starts.

In: a base and how many steps each method takes. Out: an `Estimate` that says what it rests on: what this machine took
before, else what a reference machine took (`presets/paces.json`, written by `benchmarks/measure_paces.py`), scaled by
how fast both multiply matrices; memory on a GPU comes from the registry's arithmetic. Never guessed. Light: no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.bases.registry import BaseRow, Footprint
from pipelines.core.presets import PRESETS
from pipelines.core.runtime import CONTEXT_GB, MemoryNeeds, MemoryPlan, memory_plan
from pipelines.core.schema import COMPOSED, Recipe

SPEED = "gflops"  # among the paces of this machine
REFERENCE = PRESETS / "paces.json"
UNTIMED = "from arithmetic; nothing was timed on this machine yet, seconds left appear with the first steps"


@dataclass(frozen=True)
class Pace:
    """What one method took on one base."""

    step_s: float
    batch: int
    memory_mb: float | None = None  # peak of the process that trained


@dataclass(frozen=True)
class Estimate:
    seconds: float | None  # None: nothing to go by
    memory_mb: float | None
    basis: str  # one clause: what it rests on
    memory: str = ""  # one sentence: how the method that needs most fits into the GPU's memory


HEADROOM = (
    1.5  # activations are counted in bfloat16; autocast keeps norms in float32, and blocks are never filled whole
)
BYTES = {"adamw": 16, "adamw8bit": 10, "prodigy": 24}  # per learned parameter: weight, gradient and moments
FROZEN_BYTES = {"bfloat16": 2, "float32": 4}  # per parameter that does not learn, by the format that is computed in
CHECKER_M = 304  # parameters of the image filter, in float16
DRAWN_TOGETHER = 4  # pictures at most, each with and without its prompt


def roomy_gb(size: Footprint, dtype: str, *, text_learns: bool) -> float:
    """What a GPU has to hold so that nothing ever has to leave it while portraits are drawn: the base, its denoiser and
    encoders once more with somebody's likeness (`text_learns`: also the encoders), and the float32 copies that are
    merged before.
    """
    each, text_m = FROZEN_BYTES[dtype], size.text_m if text_learns else 0.0
    base = each * (size.denoiser_m + size.text_m) + 4 * size.vae_m + 2 * CHECKER_M
    merged = 4 * (size.denoiser_m + text_m)
    drawn = each * size.denoiser_m + 4 * text_m + 1e3 * max(size.decode_gb, _drawing_gb(size, dtype, DRAWN_TOGETHER))
    return CONTEXT_GB + (base + max(merged, drawn)) / 1e3


def _drawing_gb(size: Footprint, dtype: str, pictures: int) -> float:
    return HEADROOM * 2 * pictures * size.drawing_gb * FROZEN_BYTES[dtype] / 2


def memory_needs(row: BaseRow, recipe: Recipe, dtype: str = "bfloat16") -> MemoryNeeds | None:
    """What a training keeps on a GPU that computes in `dtype`; None where nobody counted the base. Arithmetic, no
    measure: LoRA counts as if on attention and feed-forward layers.
    """
    size = row.footprint
    if size is None:
        return None
    frozen = FROZEN_BYTES[dtype]
    parts = COMPOSED.get(recipe.method, (recipe.method,))
    full, adapters = "dreambooth" in parts, "lora" in parts
    text_learns = recipe.text_learning_rate > 0 and (full or adapters)
    words = "textual_inversion" in parts
    each = BYTES[recipe.optimizer] + (4 if recipe.ema > 0 else 0)
    learned_m = size.denoiser_m if full else size.lora_m_per_rank * recipe.rank if adapters else 0.0
    denoiser = 0.0 if full else frozen * size.denoiser_m
    if full:  # autocast's copies in half the size live through a step
        learned_m, denoiser = 0.0, (each + (2 if frozen == 2 else 0)) * size.denoiser_m
    text = 0.0
    if text_learns:
        text = (each if full else 4) * size.text_m
    elif words:
        text = frozen * size.text_m
    rows = recipe.batch + (max(1, recipe.batch // 2) if recipe.prior_weight > 0 else 0)
    frozen_text = 0.0 if words and not text_learns else frozen * size.text_m
    looks = recipe.watch_every > 0 or recipe.choose_strength
    together = max(DRAWN_TOGETHER if looks else 1, recipe.batch if recipe.prior_weight > 0 else 1)
    return MemoryNeeds(
        resident_gb=(denoiser + each * learned_m + text) / 1e3,
        leaving_gb=(4 * size.vae_m + frozen_text + 2 * CHECKER_M) / 1e3,
        activations_gb=HEADROOM * rows * size.activations_gb * frozen / 2,
        checkpointed_gb=HEADROOM * rows * size.checkpointed_gb * frozen / 2,
        decode_gb=size.decode_gb,
        denoiser_gb=(4 if full else frozen) * size.denoiser_m / 1e3,
        vae_gb=4 * size.vae_m / 1e3,
        visiting_gb=max(frozen_text, 2 * CHECKER_M) / 1e3,
        drawing_gb=_drawing_gb(size, dtype, together),
    )


# The arithmetic is no measure: what exceeds the free memory by less than a tenth is said and tried.
TRIED_UP_TO = 1.1


def too_large(row: BaseRow, recipe: Recipe, free_gb: float | None, dtype: str = "bfloat16") -> str | None:
    """Why a training can't fit into the GPU's free memory however that is spared, in a sentence; else None."""

    def least(tried: Recipe) -> float:
        return memory_plan(memory_needs(row, tried, dtype), free_gb).peak_gb or 0.0

    if free_gb is None or (peak := least(recipe)) <= TRIED_UP_TO * free_gb:
        return None
    smaller = recipe.replaced(optimizer="adamw8bit")
    instead = f", or the optimizer adamw8bit ({found:.0f} GB)" if (found := least(smaller)) <= free_gb else ""
    return (
        f"it needs about {peak:.0f} GB of the GPU's memory on {row.title}, and {free_gb:.1f} GB are free. Choose "
        f"another method or a smaller base{instead}."
    )


def key(row: BaseRow, method: str) -> str:
    return f"{row.name}/{method}"


def pace_of(saved: object) -> Pace | None:
    """A pace as `paces.json` holds it; None for anything else."""
    try:
        pace = Pace(**saved)  # type: ignore[arg-type]
        return pace if pace.step_s > 0 and pace.batch >= 1 else None
    except TypeError:
        return None


def estimate(
    row: BaseRow,
    recipes: Mapping[str, Recipe],
    here: Mapping[str, object],
    *,
    free_gb: float | None = None,
    dtype: str = "bfloat16",
) -> Estimate:
    """For teaching `recipes` one after another. `here`: key -> `Pace` as JSON, measured on this machine. `free_gb`: of
    the GPU, None without one; `dtype`: what it computes in.
    """
    left_out = {
        name: why for name, recipe in recipes.items() if (why := too_large(row, recipe, free_gb, dtype)) is not None
    }
    taught = {name: recipe for name, recipe in recipes.items() if name not in left_out}
    plan = None if free_gb is None else _largest_plan(row, taught, free_gb, dtype)
    said = [f"Left out, {name.replace('_', ' ')}: {why}" for name, why in left_out.items()]
    said += [plan.reason] if plan is not None else []
    return replace(_estimate(row, taught, here, plan), memory=" ".join(said))


def _largest_plan(row: BaseRow, recipes: Mapping[str, Recipe], free_gb: float, dtype: str) -> MemoryPlan | None:
    """Of the recipe that needs most; None where nothing is known."""
    plans = [
        memory_plan(needs, free_gb, recipe.gradient_checkpointing)
        for recipe in recipes.values()
        if (needs := memory_needs(row, recipe, dtype)) is not None
    ]
    return max(plans, key=lambda plan: plan.peak_gb or 0.0, default=None)


def _estimate(
    row: BaseRow, recipes: Mapping[str, Recipe], here: Mapping[str, object], plan: MemoryPlan | None
) -> Estimate:
    own = {method: pace_of(here.get(key(row, method))) for method in recipes}
    known = {method: pace for method, pace in own.items() if pace is not None}
    if recipes and len(known) == len(recipes):
        return Estimate(_total(recipes, known, 1.0), _memory(row, known), "as measured on this machine")
    reference = _reference()
    there = {m: pace for m in recipes if (pace := _pace_there(reference.get("paces", {}), row, m)) is not None}
    if recipes and len(there) == len(recipes) and row.folder is not None:
        slower = float(reference["gflops"]) / fastest(here)
        basis = f"reckoned from {reference['machine']}; nothing was timed on this machine yet"
        return Estimate(_total(recipes, there, slower), _memory(row, there), basis)
    return Estimate(
        None,
        1e3 * plan.peak_gb if plan is not None and plan.peak_gb is not None else 1e3 * row.vram_gb,
        UNTIMED,
    )


def _pace_there(paces: Mapping[str, object], row: BaseRow, method: str) -> Pace | None:
    """As it was timed; of a method made of others that was not, its slowest part's."""
    if (pace := pace_of(paces.get(key(row, method)))) is not None:
        return pace
    parts = [pace_of(paces.get(key(row, part))) for part in COMPOSED.get(method, ())]
    known = [each for each in parts if each is not None]
    return max(known, key=lambda each: each.step_s / each.batch) if known and len(known) == len(parts) else None


def _total(recipes: Mapping[str, Recipe], paces: Mapping[str, Pace], slower: float) -> float:
    return slower * sum(
        recipe.steps * paces[method].step_s * recipe.batch / paces[method].batch for method, recipe in recipes.items()
    )


def _memory(row: BaseRow, paces: Mapping[str, Pace]) -> float | None:
    return max((pace.memory_mb for pace in paces.values() if pace.memory_mb), default=1e3 * row.vram_gb)


def _reference() -> dict[str, Any]:
    try:
        saved = json.loads(Path(REFERENCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) and saved.get("gflops", 0) > 0 else {}


def fastest(here: Mapping[str, object]) -> float:
    """`gflops`, or what was found on this machine before when it was less busy."""
    before = here.get(SPEED)
    return max(gflops(), float(before) if isinstance(before, int | float) else 0.0)


@lru_cache(maxsize=1)
def gflops() -> float:
    """How many billion float32 operations a second this machine's matrix product does, all cores; takes 0.1 s."""
    import numpy as np

    side = 768
    left = np.random.default_rng(0).random((side, side), dtype=np.float32)
    best = float("inf")
    for _ in range(6):
        since = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - since)
    return 2 * side**3 / best / 1e9
