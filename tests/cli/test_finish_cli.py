"""The command `finish` and finishing in a run: a file under its target with its marks, JSON, and nothing half done."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.__main__ import main
from pipelines.core import workspace
from pipelines.core.schema import Finish, PhotoSet, UserError
from pipelines.core.workspace import Run
from pipelines.finishing import mark, refine, stage
from pipelines.runs import comparison, jobspec
from tests.finishing.test_refine import Watcher, bicubic, greenness, never_minds
from tests.runs import make_run

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = sorted((ROOT / "presets" / "sample_person").glob("*.png"))
ORDER = Finish(("renders/lora/seed1.png",), ("exposure", "enlarge", "sharpen"), max_kb=60)


@pytest.fixture(autouse=True)
def plain_enlarging(monkeypatch, tmp_path):
    """The network is other tests' business."""
    monkeypatch.setattr(refine, "enlarger", lambda name="": bicubic)
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))


def draw(path: Path, number: int = 0, *, base: str = "portrait-128", subject: str | None = "lora-1") -> Path:
    """A render of 128 px with its settings inside."""
    chunks = PngInfo()
    chunks.add_text(
        "likeness", json.dumps({"sampling": {"prompt": "portrait of {subject}"}, "base": base, "subject": subject})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(SAMPLE[number]).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
    picture.save(path, pnginfo=chunks)
    return path


@pytest.fixture
def run(tmp_path) -> Run:
    """A run whose held-out photos show nobody, with two pictures."""
    run = make_run(tmp_path / "run")
    draw(run.folder / "renders/lora/seed1.png")
    draw(run.folder / "renders/lora/seed2.png", 1)
    return run


@pytest.fixture
def watchers(monkeypatch):
    """Judges of ours in the place of the machine's: the first never minds, the second sees green."""
    judges = (Watcher("judge 1", never_minds), Watcher("judge 2", greenness))
    monkeypatch.setattr(stage, "judges", lambda: judges)
    return judges


# ------------------------------------------------------------------------------------------------- the command


def test_a_render_becomes_a_marked_file_under_its_target(tmp_path, capsys):
    picture, out = draw(tmp_path / "raw.png", 3), tmp_path / "portrait.jpg"
    told = ["finish", str(picture), "--px", "512", "--max-kb", "80", "--background", "studio", "--out", str(out)]
    assert main([*told, "--json"]) == 0
    said = capsys.readouterr()
    saved = json.loads(said.out)
    with Image.open(out) as image:
        assert (image.size, image.format) == ((512, 512), "JPEG")
    assert out.stat().st_size == saved["bytes"] <= 80_000
    assert mark.verify(out).found and saved["marks"]["field"]
    assert [one["step"] for one in saved["steps"]] == ["exposure", "enlarge", "sharpen", "background"]
    assert all(one["state"] == "kept" for one in saved["steps"][1:]), saved["steps"]
    assert saved["reference"] == refine.ITSELF and set(saved["similarity"]) == {"arcface-mini", "dlib"}
    for found in saved["similarity"].values():
        assert found["raw"] == 1.0 and found["refined"] > 1 - found["may_lose"] and found["delivered"] > 0.85
    assert "Super-resolution: kept." in said.err


def test_whom_it_has_to_stay_like_comes_from_the_run(tmp_path, run, capsys):
    photos = workspace.load_photo_set(run)
    assert photos is not None
    Image.open(SAMPLE[7]).convert("RGB").save(run.photos / "held.png")
    held = replace(photos.held_out[0], path=str(run.photos / "held.png"))
    workspace.save_photo_set(run, PhotoSet(photos.train, photos.validation, (held,)))
    out = tmp_path / "a.webp"
    picture = run.folder / "renders/lora/seed1.png"
    assert main(["finish", str(picture), "--run", str(run.folder), "--steps", "none", "--out", str(out), "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["reference"] == refine.HELD_OUT and saved["reference_photos"] == 1 and saved["steps"] == []
    assert saved["format"] == "WEBP" and all(found["raw"] < 0.95 for found in saved["similarity"].values())
    assert all(found["may_lose"] <= 0.05 for found in saved["similarity"].values())
    assert "vector" not in json.dumps(saved) and not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(
    "changes",
    [
        {"IMAGE": "nowhere.png"},
        {"--out": "portrait.gif"},
        {"--steps": "beautify"},
        {"--background": "palm beach"},
        {"--size": "poster"},
        {"--max-kb": "1"},
        {"--px": "9"},
        {"--upscaler": "magic"},
        {"--upscaler": "evil.pth"},
        {"--run": "nowhere"},
    ],
    ids=str,
)
def test_wrong_use_writes_nothing(tmp_path, capsys, changes):
    picture = draw(tmp_path / "raw.png")
    asked = {"--out": str(tmp_path / "a.jpg")} | {key: value for key, value in changes.items() if key != "IMAGE"}
    if "--out" in changes:
        asked["--out"] = str(tmp_path / changes["--out"])
    arguments = ["finish", changes.get("IMAGE", str(picture))]
    for name, value in asked.items():
        arguments += [name, value]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["raw.png"]


# ------------------------------------------------------------------------------------------------- in a run


def test_a_job_finishes_pictures_and_keeps_what_a_page_shows(run, watchers):
    order = replace(ORDER, pictures=("renders/lora/seed1.png", "renders/lora/seed2.png"))
    events = list(stage.finish_pictures(run, order))
    made = [event for event in events if event.kind == "finished"]
    assert [(event.step, event.steps) for event in made] == [(1, 2), (2, 2)]
    for picture in order.pictures:
        record, folder = stage.record_of(run, picture), run.finished(picture)
        assert record is not None and (record["base"], record["subject"]) == ("portrait-128", "lora-1")
        named = {record["file"], record["raw_file"], record["refined_file"]}
        named |= {step[key] for step in record["steps"] for key in ("before_file", "after_file") if step.get(key)}
        assert named <= {file.name for file in folder.iterdir()}
        assert mark.verify(folder / record["file"]).found and record["bytes"] <= 60_000
        sizes = {Image.open(folder / name).size for name in named - {record["file"]}}
        assert sizes == {(512, 512)}, "they lie over each other"
    with zipfile.ZipFile(run.folder / "finished" / stage.ARCHIVE) as archive:
        assert sorted(archive.namelist()) == ["contact-sheet.jpg", "lora-seed1.jpg", "lora-seed2.jpg"]
    assert [record["picture"] for record in stage.records(run)] == list(reversed(order.pictures))
    assert not [file for file in run.folder.rglob("*") if file.name.endswith(".part")]


def test_a_dropped_step_is_kept_to_be_looked_at_and_its_picture_is_not_used(run, watchers, monkeypatch):
    def green(image):
        return np.full((2 * image.shape[0], 2 * image.shape[1], 3), (0, 255, 0), np.uint8)

    monkeypatch.setattr(refine, "enlarger", lambda name="": green)
    list(stage.finish_pictures(run, ORDER))
    record = stage.record_of(run, ORDER.pictures[0])
    assert record is not None
    enlarged, sharpened = record["steps"][1:]
    assert enlarged["state"] == "dropped" and enlarged["sentence"].startswith("judge 2")
    folder = run.finished(ORDER.pictures[0])
    dropped = cv2.imread(str(folder / enlarged["after_file"])).reshape(-1, 3).mean(0)
    used = cv2.imread(str(folder / record["file"])).reshape(-1, 3).mean(0)
    assert dropped[1] > 240 and used[1] < 200 and sharpened["before_file"] != enlarged["after_file"]


def test_a_picture_that_is_gone_is_told_and_the_others_go_on(run, watchers):
    order = replace(ORDER, pictures=("renders/lora/gone.png", "renders/lora/seed1.png"))
    kinds = [event.kind for event in stage.finish_pictures(run, order)]
    assert kinds == ["phase", "note", "finished"]
    with pytest.raises(UserError, match="no longer here"):
        list(stage.finish_pictures(run, replace(ORDER, pictures=("renders/lora/gone.png",))))


def test_stopping_keeps_what_is_there(run, watchers):
    order = replace(ORDER, pictures=("renders/lora/seed1.png", "renders/lora/seed2.png"))
    events = []
    for event in stage.finish_pictures(run, order, stop=lambda: any(e.kind == "finished" for e in events)):
        events.append(event)
    assert stage.record_of(run, order.pictures[0]) is not None
    assert stage.record_of(run, order.pictures[1]) is None


def test_the_worker_does_it_without_a_base_model(run, watchers, monkeypatch):
    def load(*_, **__):
        raise AssertionError("finishing needs no base model")

    monkeypatch.setattr(comparison._Flow, "load", load)
    spec = jobspec.JobSpec("finish", methods=("none",), finish=ORDER)
    assert jobspec.spec_from_json(workspace.plain(spec)) == spec
    assert spec.disk_bytes() < 100e6
    events = list(comparison.perform(run, spec))
    assert [event.kind for event in events] == ["phase", "finished", "done"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": ()},
        {"pictures": ("../../etc/passwd.png",)},
        {"pictures": ("renders/lora/seed1.png",) * 51},
        {"steps": ("retouch",)},
        {"background": "palm beach"},
        {"size": "poster"},
        {"max_kb": float("nan")},
        {"max_kb": True},
        {"format_name": "GIF"},
        {"upscaler": "evil.pth"},
    ],
    ids=str,
)
def test_an_order_that_makes_no_sense_never_becomes_a_job(changes):
    with pytest.raises(UserError):
        jobspec.JobSpec("finish", methods=("none",), finish=replace(ORDER, **changes)).check()
    with pytest.raises(UserError, match="No picture"):
        jobspec.JobSpec("finish", methods=("none",)).check()


def test_forgetting_a_run_takes_the_finished_pictures_along(run, watchers):
    list(stage.finish_pictures(run, ORDER))
    receipt = workspace.forget(run.folder)
    assert any(each["file"].startswith("finished/") for each in receipt["removed"]) and not run.folder.exists()
