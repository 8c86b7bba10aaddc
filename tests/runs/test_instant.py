"""The instant column in a run: in a comparison by default, drawn without training, gone with the run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.files import read_json
from pipelines.core.records import Sampling, UserError
from pipelines.core.run import forget, load_photo_set, run_at, save_photo_set
from pipelines.runs.compare import compare, perform
from pipelines.runs.jobspec import JobSpec
from pipelines.training.subjects import load_subject
from tests.runs import quick
from tests.tiny import tiny_folder

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
BASE = str(tiny_folder("portrait"))
LOOK = Sampling("portrait of {subject}", steps=2)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_FACE_MODELS", str(tmp_path_factory.mktemp("no-packs")))
        out = tmp_path_factory.mktemp("runs") / "run"
        options = {"class_word": "woman", "base": BASE, "quality": "draft", "renders": 1, "out": out}
        told = list(compare(SAMPLE, methods=["lora", "zero_shot"], settings=quick("lora", steps=2), **options))
    return run_at(out), told


def only_photos(run, folder):
    """A run in which nothing was done yet, with the same photos."""
    fresh = run_at(folder / "run")
    shutil.copytree(run.photos, fresh.photos, dirs_exist_ok=True)
    shutil.copy(run.folder / "photos.json", fresh.folder)
    return fresh


def test_it_is_a_column_like_the_others_and_comes_before_any_training(compared):
    run, told = compared
    assert told[-1].kind == "done"
    done = [event.method for event in told if event.kind == "done" and event.method]
    assert done == ["zero_shot", "lora"]
    first_step = next(k for k, event in enumerate(told) if event.kind == "step")
    assert first_step > next(k for k, event in enumerate(told) if event.kind == "done" and event.method == "zero_shot")
    report = read_json(run.report)
    assert set(report["methods"]) == {"none", "zero_shot", "lora"}
    row = report["methods"]["zero_shot"]
    assert (row["steps"], row["trainable_params"], row["renders"]) == (0, 0, 1) and row["train_s"] > 0
    assert list(report["judges"])[0] != "dlib", "an independent judge comes first"
    assert read_json(run.manifest)["methods"]["zero_shot"]["sha256"] == load_subject(run.method("zero_shot")).sha256


def test_drawing_needs_no_training_and_follows_the_photos(compared, tmp_path):
    run = only_photos(compared[0], tmp_path)
    photos = load_photo_set(run)
    spec = JobSpec("generate", BASE, "woman", ("zero_shot",), "draft", samplings=(LOOK,))
    told = list(perform(run, spec))
    assert [event.method for event in told if event.kind == "render"] == ["zero_shot"]
    first = load_subject(run.method("zero_shot"))
    assert first.photo_digest == photos.digest
    assert not [event for event in perform(run, spec) if event.kind == "start"], "it is not made twice"
    fewer = replace(photos, train=photos.train[1:])
    save_photo_set(run, fewer)
    list(perform(run, spec))
    second = load_subject(run.method("zero_shot"))
    assert second.photo_digest == fewer.digest and second.sha256 != first.sha256
    assert len(list((run.renders("zero_shot") / "earlier").glob("*.png"))) == 1


def test_without_photos_it_says_what_is_missing(tmp_path):
    spec = JobSpec("generate", BASE, "woman", ("zero_shot",), "draft", samplings=(LOOK,))
    with pytest.raises(UserError, match="needs the person's photos"):
        list(perform(run_at(tmp_path / "run"), spec))


def test_nothing_of_it_holds_a_descriptor_and_forgetting_the_run_removes_it(compared, tmp_path):
    run = only_photos(compared[0], tmp_path)
    list(perform(run, JobSpec("generate", BASE, "woman", ("zero_shot",), "draft", samplings=(LOOK,))))
    names = sorted(path.name for path in run.method("zero_shot").iterdir())
    assert names == ["learned_embeds.safetensors", "likeness.safetensors", "subject.json"]
    card = json.loads((run.method("zero_shot") / "subject.json").read_text())
    assert not any(isinstance(value, list) and len(value) >= 128 for value in card.values())
    assert forget(run)["verified"] and not run.folder.exists()


def test_an_album_weighs_photos_by_what_they_show():
    from pipelines.photos import album

    pictures = {"clear": 0.0, "blurred": 1.0, "small": 1.0, "stranger": 9.0}
    photos = []
    for name in pictures:
        reasons = ("blurred",) if name == "blurred" else ()
        eyes = 15.0 if name == "small" else 80.0
        photos.append(_photo(name, reasons, eyes))
    assert [album.weight_of(photo) for photo in photos] == [1.0, 0.5, 0.25, 1.0]
    values = np.array([[value] * 128 for value in pictures.values()])
    weights = np.array([album.weight_of(photo) for photo in photos])
    plain = np.average(values, axis=0, weights=weights)[0]
    assert album.consensus(values, weights)[0] < 0.5 * plain, "one that lies far from the others counts less"
    alike = np.ones((3, 128))
    assert np.allclose(album.consensus(alike, np.ones(3)), 1.0)


def _photo(name, reasons, eye_distance_px):
    from pipelines.core.records import Photo

    return Photo(name, name, "0", 9, 9, (0, 0, 9, 9), ((1, 1), (2, 1)), eye_distance_px, reasons=reasons)


def test_the_judge_it_is_made_from_never_judges_it_alone(compared, tmp_path, monkeypatch):
    from pipelines.faces import judges
    from pipelines.faces.dlib_faces import DlibJudge

    monkeypatch.setattr(judges, "available_judges", lambda **_: [DlibJudge()])
    run = only_photos(compared[0], tmp_path)
    told = list(perform(run, JobSpec("generate", BASE, "woman", ("none", "zero_shot"), "draft", samplings=(LOOK,))))
    assert {event.method for event in told if event.kind == "score"} == {"none"}
    assert any("can't judge alone" in (event.text or "") for event in told if event.kind == "note")
    methods = read_json(run.report)["methods"]
    assert methods["zero_shot"]["identity"]["dlib"]["mean"] is None
    assert methods["none"]["identity"]["dlib"]["mean"] is not None


def test_a_study_gives_it_its_own_cost_whatever_the_budget():
    from pipelines.runs import study

    matrix = study.Matrix((study.Budget("time", seconds=30),), methods={"zero_shot": {}, "lora": {}})
    anybody = study.Person("anybody", "person", ())
    spec = study._spec(matrix, anybody, matrix.budgets[0], study.Variant(""), 0, {"lora": 0.5})
    assert spec.methods == ("zero_shot", "lora")
    assert spec.settings["lora"]["steps"] == 60 and spec.settings["zero_shot"] == {}
    assert study._timing(spec, {"lora": 0}).methods == ("lora",)
