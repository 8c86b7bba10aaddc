"""How long a training will take and how much memory it needs, before anything starts.

In: a base and how many steps each method takes. Out: an `Estimate` that says what it rests on: what this machine took
before, else what a reference machine took (`presets/paces.json`, written by `benchmarks/measure_paces.py`), scaled by
how fast both multiply matrices; memory on a GPU is calculated (`bases/memory.py`). Where nothing was
measured, the estimate has no time. Light: no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.bases.memory import MemoryPlan, memory_needs, memory_plan, too_large
from pipelines.bases.registry import BaseRow
from pipelines.core.presets import PRESETS
from pipelines.core.records import METHOD_ROWS, Recipe

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
    seconds: float | None  # None: nothing was measured
    memory_mb: float | None
    basis: str  # one clause: what it rests on
    memory: str = ""  # one sentence: how the method that needs most fits into the GPU's memory


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
    """Time and memory to train `recipes` one after another. `here`: key -> `Pace` as JSON, measured on this machine.
    `free_gb`: free memory of the GPU, None without one; `dtype`: its number format.
    """
    recipes = {name: recipe for name, recipe in recipes.items() if METHOD_ROWS[name].learns}  # others cost a second
    left_out = {
        name: why for name, recipe in recipes.items() if (why := too_large(row, recipe, free_gb, dtype)) is not None
    }
    taught = {name: recipe for name, recipe in recipes.items() if name not in left_out}
    plan = None if free_gb is None else _largest_plan(row, taught, free_gb, dtype)
    said = [f"Left out, {name.replace('_', ' ')}: {why}" for name, why in left_out.items()]
    said += [plan.reason] if plan is not None else []
    return replace(_estimate(row, taught, here, plan), memory=" ".join(said))


def _largest_plan(row: BaseRow, recipes: Mapping[str, Recipe], free_gb: float, dtype: str) -> MemoryPlan | None:
    """The memory plan of the recipe that needs most; None where nothing is known."""
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
    """The method's pace on the reference machine. A method that was not timed and combines others (pivotal) has the
    pace of the slowest of these. None: not known.
    """
    if (pace := pace_of(paces.get(key(row, method)))) is not None:
        return pace
    learns = METHOD_ROWS[method].learns
    parts = [
        pace_of(paces.get(key(row, each.name)))
        for each in METHOD_ROWS.values()
        if len(learns) > 1 and each.usual and each.learns and set(each.learns) <= set(learns)
    ]
    known = [each for each in parts if each is not None]
    return max(known, key=lambda each: each.step_s / each.batch) if known and len(known) == len(parts) else None


def _total(recipes: Mapping[str, Recipe], paces: Mapping[str, Pace], slower: float) -> float:
    return slower * sum(
        recipe.steps * paces[method].step_s * recipe.batch / paces[method].batch for method, recipe in recipes.items()
    )


def _memory(row: BaseRow, paces: Mapping[str, Pace]) -> float | None:
    return max((pace.memory_mb for pace in paces.values() if pace.memory_mb), default=1e3 * row.vram_gb)


def _reference() -> Mapping[str, Any]:
    try:
        saved = json.loads(Path(REFERENCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) and saved.get("gflops", 0) > 0 else {}


def fastest(here: Mapping[str, object]) -> float:
    """The larger of `gflops` and the earlier value of this machine, which may have been less busy then."""
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
