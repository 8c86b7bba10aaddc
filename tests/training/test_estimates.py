"""Laws of estimates: what this machine took counts first, another machine's figures are scaled, nothing is invented."""

from __future__ import annotations

import json

import pytest

from pipelines.bases.registry import find_base
from pipelines.core import presets
from pipelines.core.files import jsonable as plain
from pipelines.core.records import METHODS
from pipelines.training import estimates
from pipelines.training.estimates import SPEED, Pace, estimate, key

ROW = find_base("portrait-128")
RECIPES = {m: presets.recipe(ROW, m, "draft", class_word="man") for m in METHODS}


@pytest.fixture
def half_as_fast(monkeypatch):
    reference = json.loads(estimates.REFERENCE.read_text())
    monkeypatch.setattr(estimates, "gflops", lambda: reference["gflops"] / 2)
    return reference


def reckoned(reference, slower: float) -> float:
    paces = reference["paces"]
    return slower * sum(recipe.steps * paces[key(ROW, m)]["step_s"] for m, recipe in RECIPES.items())


def test_the_reference_machine_knows_every_method_of_the_embedded_base():
    reference = json.loads(estimates.REFERENCE.read_text())
    assert set(reference["paces"]) == {key(ROW, method) for method in METHODS}
    assert reference["gflops"] > 0 and reference["machine"] and reference["date"]
    for method, recipe in RECIPES.items():
        pace = estimates.pace_of(reference["paces"][key(ROW, method)])
        assert pace is not None and pace.batch == recipe.batch and pace.memory_mb and pace.memory_mb > 500


def test_an_untimed_machine_is_scaled_by_its_speed(half_as_fast):
    found = estimate(ROW, RECIPES, {})
    assert found.seconds == pytest.approx(reckoned(half_as_fast, 2.0))
    assert "nothing was timed on this machine yet" in found.basis and half_as_fast["machine"] in found.basis


def test_a_busy_moment_does_not_count_against_a_machine_that_was_faster(half_as_fast):
    found = estimate(ROW, RECIPES, {SPEED: half_as_fast["gflops"]})
    assert found.seconds == pytest.approx(reckoned(half_as_fast, 1.0))


def test_what_this_machine_took_counts_first_and_scales_with_steps_and_batch(half_as_fast):
    lora = RECIPES["lora"]
    here = {key(ROW, "lora"): plain(Pace(0.5, lora.batch, 2000.0))}
    one = estimate(ROW, {"lora": lora}, here)
    assert one.seconds == pytest.approx(0.5 * lora.steps) and one.memory_mb == 2000.0
    assert "as measured on this machine" in one.basis
    more = estimate(ROW, {"lora": lora.replaced(steps=2 * lora.steps, batch=2 * lora.batch)}, here)
    assert more.seconds == pytest.approx(4 * 0.5 * lora.steps)
    assert "nothing was timed" in estimate(ROW, RECIPES, here).basis, "one of three says little about the others"


def test_a_method_made_of_others_is_reckoned_as_its_slowest_part(half_as_fast):
    recipe = presets.recipe(ROW, "pivotal", "draft", class_word="man")
    slowest = max(half_as_fast["paces"][key(ROW, part)]["step_s"] for part in ("textual_inversion", "lora"))
    assert estimate(ROW, {"pivotal": recipe}, {}).seconds == pytest.approx(2 * recipe.steps * slowest)


@pytest.mark.parametrize("damaged", [0.7, "fast", {"step_s": 0, "batch": 8}, {"speed": 3}, None, [1]])
def test_damaged_paces_are_no_paces(damaged, half_as_fast):
    found = estimate(ROW, {"lora": RECIPES["lora"]}, {key(ROW, "lora"): damaged, SPEED: "very"})
    assert "nothing was timed" in found.basis


def test_where_nothing_is_known_no_time_is_given():
    row = find_base("sdxl")
    recipes = {"lora": presets.recipe(find_base("sdxl"), "lora", "draft", class_word="man")}
    found = estimate(row, recipes, {})
    assert found.seconds is None and found.memory_mb == 1e3 * row.vram_gb and "arithmetic" in found.basis
