"""`import`: a column that is taken out again leaves a report that does not tell of it, whatever made the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.core.files import write_json
from pipelines.core.run import Run, run_at, save_photo_set
from pipelines.photos.intake import intake
from pipelines.runs.compare import perform
from tests.methods.test_imports import lora
from tests.tiny import tiny_folder

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"


@pytest.fixture
def done(monkeypatch):
    """Jobs are done in this process; their kinds are noted."""
    kinds = []

    def work(run, spec):
        write_json(run.spec, spec)
        kinds.append((spec.kind, [event.kind for event in perform(run, spec)]))
        return 0

    monkeypatch.setattr("pipelines.cli.generate.work", work)
    return kinds


def generated(folder: Path, base: str) -> Run:
    from pipelines.core.records import Sampling
    from pipelines.runs.jobspec import JobSpec

    run = run_at(folder)
    save_photo_set(run, intake(sorted(SAMPLE.glob("*.png"))[:5], run.photos))
    spec = JobSpec("generate", base, "woman", ("none",), samplings=(Sampling("portrait of {subject}", steps=2),))
    write_json(run.spec, spec)
    list(perform(run, spec))
    return run


def test_a_removed_column_leaves_the_report_of_the_others(tmp_path, monkeypatch, capsys, done):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    run = generated(tmp_path / "run", str(tiny_folder("portrait")))
    file, _, _ = lora(tmp_path, "portrait")
    assert main(["import", str(run.folder), str(file), "--name", "theirs"]) == 0
    assert set(json.loads(run.report.read_text())["methods"]) == {"none", "imported-theirs"}
    picture = next(run.renders("none").glob("*.png"))
    before = picture.stat().st_mtime_ns
    capsys.readouterr()
    assert main(["import", str(run.folder), "--remove", "theirs"]) == 0
    assert set(json.loads(run.report.read_text())["methods"]) == {"none"} and run.page.exists() and run.grid.exists()
    assert "imported-theirs" not in run.page.read_text() + run.manifest.read_text() + run.cells.read_text()
    assert picture.stat().st_mtime_ns == before and [kind for kind, _ in done] == ["generate"] * 2
    assert "Removed theirs with its pictures and scores." in capsys.readouterr().out
    assert main(["import", str(run.folder), "--remove", "theirs"]) == 1
    assert "There is no imported column imported-theirs" in capsys.readouterr().err
    assert run.report.exists(), "a refusal changes nothing"


def test_a_report_of_nothing_else_goes_and_that_is_said(tmp_path, monkeypatch, capsys, done):
    from pipelines.bases.registry import find_base
    from pipelines.methods import imports

    base = str(tiny_folder("portrait"))
    run = run_at(tmp_path / "run")
    from pipelines.runs.jobspec import JobSpec

    write_json(run.spec, JobSpec("train", base, "woman"))
    file, _, _ = lora(tmp_path, "portrait")
    imports.add(run, file, find_base(base), name="theirs", class_word="woman")
    write_json(run.report, {})
    assert main(["import", str(run.folder), "--remove", "theirs"]) == 0
    said = capsys.readouterr()
    assert "The report told of nothing else and is removed too." in said.err and not done and not run.report.exists()
