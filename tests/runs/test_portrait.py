"""Portraits with one job: learn, draw, score. Stopped or killed at any step it goes on and does nothing twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.bases.registry import find_base
from pipelines.core.control import Control
from pipelines.core.files import read_lines
from pipelines.core.run import Run, run_at, save_photo_set
from pipelines.generation.draw import renders_of
from pipelines.photos.intake import intake
from pipelines.runs.compare import perform
from pipelines.runs.jobspec import JobSpec, portrait_spec
from pipelines.training.teach import subject_of
from tests.runs import quick
from tests.tiny import tiny_folder

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"


@pytest.fixture(scope="module")
def photographed(tmp_path_factory) -> Run:
    run = run_at(tmp_path_factory.mktemp("portrait") / "run")
    save_photo_set(run, intake(sorted(SAMPLE.glob("*.png"))[:6], run.photos, seed=0, min_eye_distance_px=10))
    return run


@pytest.fixture
def run(photographed, tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    return Run(shutil.copytree(photographed.folder, tmp_path / "run"))


@pytest.fixture
def spec() -> JobSpec:
    """The plan of the base's family, short: one method that trains, two pictures."""
    plan = portrait_spec(find_base(str(tiny_folder("portrait"))), class_word="woman")
    return replace(plan, samplings=tuple(replace(each, steps=2) for each in plan.samplings[:2]),
                   settings=quick(plan.methods[-1], steps=4))  # fmt: skip


def test_it_draws_at_once_then_learns_draws_and_scores(run, spec):
    told = list(perform(run, spec))
    kinds = [event.kind for event in told]
    assert kinds[-1] == "done" and told[-1].method is None and kinds.count("render") == 2 * len(spec.methods)
    assert spec.methods[0] == "zero_shot" and kinds.index("score") < kinds.index("step"), "portraits before learning"
    assert len(kinds) - kinds[::-1].index("score") > len(kinds) - kinds[::-1].index("step")
    assert {render.method for render in renders_of(run)} == set(spec.methods), "the untrained base draws nothing"
    assert run.report.is_file() and {line["render"] for line in read_lines(run.scores)}


def test_stopped_anywhere_it_keeps_what_is_there_and_goes_on(run, spec):
    method = spec.methods[-1]
    spec = replace(spec, methods=(method,))

    def until(kind: str) -> list[str]:
        seen: list[str] = []
        for event in perform(run, spec, control=Control(stop=lambda: kind in seen)):
            seen.append(event.kind)
        return seen

    first = until("step")
    assert first[-1] == "stopped" and "render" not in first
    second = until("render")
    assert second[-1] == "stopped" and subject_of(run, method).complete
    learned, drawn = subject_of(run, method), len(renders_of(run))
    assert drawn >= 1
    last = until("never")
    assert last[-1] == "done" and "step" not in last, "nothing is learned twice"
    assert subject_of(run, method) == learned and len(renders_of(run)) == 2 * len(spec.methods)


def test_what_was_learned_from_these_photos_by_another_recipe_is_used(run, spec):
    method = spec.methods[-1]
    spec = replace(spec, methods=(method,))
    longer = replace(spec, kind="train", settings=quick(method, steps=6), samplings=())
    list(perform(run, longer))
    learned = subject_of(run, method)
    told = list(perform(run, spec))
    assert told[-1].kind == "done" and not [event for event in told if event.kind == "step"]
    assert subject_of(run, method) == learned and learned.steps == 6
