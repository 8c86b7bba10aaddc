"""The flow is functions: each stage alone, on a run that the others made, gives what it gave among them."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.bases.family import Family
from pipelines.bases.loading import load_family
from pipelines.bases.registry import find_base
from pipelines.core.control import Control, Stopped
from pipelines.core.device import pick_device
from pipelines.core.files import file_sha256, read_json, read_lines
from pipelines.core.run import Run, load_photo_set
from pipelines.evaluation.judge import Closer, Judged, Terms, judge, look_closer
from pipelines.generation.draw import draw, renders_of
from pipelines.photos.album import Album
from pipelines.reports.findings import Findings, ScoredRender
from pipelines.reports.manifest import Origin, forget_report, is_written, report
from pipelines.runs.compare import compare
from pipelines.training.teach import subjects_of, teach
from tests.runs import quick
from tests.tiny import tiny_folder

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A comparison of one method, judged by what is embedded."""
    folder = tmp_path_factory.mktemp("whole")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(6):
        shutil.copy(SAMPLE / f"synthetic-{index:02d}.png", photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_FACE_MODELS", str(folder / "no-packs"))
        told = list(
            compare(
                photos, class_word="woman", base=str(tiny_folder("portrait")), quality="draft", out=folder / "run",
                methods=("lora",), renders=2, settings=quick("lora", steps=2),
            )
        )  # fmt: skip
    assert told[-1].kind == "done"
    return Run(folder / "run")


@pytest.fixture
def run(whole, tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    return Run(shutil.copytree(whole.folder, tmp_path / "run"))


@pytest.fixture
def album(run) -> Album:
    photos = load_photo_set(run)
    assert photos is not None
    return Album(photos)


@cache
def family() -> Family:
    """As the comparison had it: on the device, and in the arithmetic, that this machine chooses."""
    return load_family(find_base(str(tiny_folder("portrait"))), pick_device())


def returned(stage: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def judged(run: Run, album: Album) -> Judged:
    found = returned(judge(run, album, renders_of(run), family(), control=Control()))
    assert isinstance(found, Judged)
    return found


def test_teach_alone(run, album):
    before = subjects_of(run)["lora"]
    shutil.rmtree(run.method("lora"))
    taught = returned(teach(run, album, {"lora": before.recipe}, family(), control=Control()))
    assert taught.subjects["lora"].sha256 == before.sha256 and not taught.problems and not taught.left


def test_draw_alone(run):
    before = {path.name: file_sha256(path) for path in run.pictures("lora")}
    asked = [each.sampling for each in renders_of(run) if each.method == "lora"]
    asked.sort(key=lambda each: each.seed)
    shutil.rmtree(run.renders("lora"))
    drawn = returned(draw(run, ["lora"], asked, family(), class_word="woman", control=Control()))
    assert [each.sampling for each in drawn] == asked
    assert {Path(each.path).name: file_sha256(Path(each.path)) for each in drawn} == before and len(before) == 2


def test_judge_alone(run, album):
    lines, marks = read_lines(run.scores), read_json(run.marks)
    for stale in (run.scores, run.marks, run.folder / "scored_with.json"):
        stale.unlink()
    found = judged(run, album)
    assert [each.name for each in found.judges] == ["arcface-mini", "dlib"]
    assert sorted(map(str, read_lines(run.scores))) == sorted(map(str, lines)) and read_json(run.marks) == marks


def test_a_closer_look_alone(run, album):
    before = read_json(run.folder / "closer.json")
    (run.folder / "closer.json").unlink()
    found = returned(
        look_closer(run, album, renders_of(run), judged(run, album), terms=Terms("woman"), control=Control())
    )
    assert isinstance(found, Closer) and set(found.worth) == {"none", "lora"} and len(found.facts) == 4
    after = read_json(run.folder / "closer.json")
    assert after["stamp"] == before["stamp"] and after["pictures"] == before["pictures"]


def test_report_alone(run, album):
    saved, before = read_json(run.manifest), read_json(run.report)
    scores, renders = judged(run, album), renders_of(run)
    closer = returned(look_closer(run, album, renders, scores, terms=Terms("woman"), control=Control()))
    forget_report(run)
    assert not is_written(run, saved["key"])
    cells = [ScoredRender(each.method, each.sampling, run.relative(each.path), scores.scores[each.path])
             for each in renders]  # fmt: skip
    row = find_base(str(tiny_folder("portrait")))
    findings = Findings(
        base=before["base"], title=row.title, class_word="woman", quality="draft", seed=0, wall_s=before["wall_s"],
        photo_set=album.photos, columns=("none", "lora"), cells=tuple(cells), marks=scores.marks,
        subjects=subjects_of(run), facts=closer.facts, worth=closer.worth, heat=closer.heat,
    )  # fmt: skip
    origin = Origin("compare", saved["key"], saved["started"], row, pick_device(), (), scores.judges, {}, ())
    returned(report(run, album, findings, origin, control=Control()))
    assert read_json(run.report) == before and is_written(run, saved["key"])


def test_every_stage_stops_before_it_begins(run, album):
    control = Control(stop=lambda: True)
    recipe = subjects_of(run)["lora"].recipe
    scores = judged(run, album)
    stages = (
        teach(run, album, {"lora": recipe}, family(), control=control),
        draw(run, ["none"], [], family(), class_word="woman", control=control),
        judge(run, album, [], family(), control=control),
        look_closer(run, album, [], scores, terms=Terms(), control=control),
    )
    for stage in stages:
        with pytest.raises(Stopped):
            returned(stage)
