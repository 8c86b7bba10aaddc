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

from pipelines.cli.entry import main
from pipelines.core.control import Control
from pipelines.core.files import jsonable
from pipelines.core.records import Finish, PhotoSet, UserError
from pipelines.core.run import Run, forget, load_photo_set, save_photo_set
from pipelines.finishing import mark, refine, stage
from pipelines.runs import jobspec
from pipelines.runs.compare import perform
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
    monkeypatch.setattr("pipelines.faces.judges.resident_judges", lambda: judges)
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
    photos = load_photo_set(run)
    assert photos is not None
    Image.open(SAMPLE[7]).convert("RGB").save(run.photos / "held.png")
    held = replace(photos.held_out[0], path=str(run.photos / "held.png"))
    save_photo_set(run, PhotoSet(photos.train, photos.validation, (held,)))
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


def two_people(path: Path, *, left_px: int, right_px: int) -> Path:
    """Two portraits of these sizes beside each other; the left one has a blue cast."""
    page = np.full((max(left_px, right_px), left_px + right_px, 3), 128, np.uint8)
    one, other = (
        np.asarray(Image.open(SAMPLE[n]).convert("RGB").resize((s, s))) for n, s in ((3, left_px), (7, right_px))
    )
    page[:left_px, :left_px] = (one * np.array([0.5, 0.6, 1.0])).astype(np.uint8)
    page[:right_px, left_px:] = other
    Image.fromarray(page).save(path)
    return path


def blueness(path: Path) -> float:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)
    middle = pixels[pixels.shape[0] // 4 : -pixels.shape[0] // 4, pixels.shape[1] // 4 : -pixels.shape[1] // 4]
    return float(middle[..., 2].mean() - middle[..., 0].mean())


def test_of_two_prominent_faces_the_one_that_is_meant_has_to_be_named(tmp_path, capsys):
    picture, out = two_people(tmp_path / "two.png", left_px=320, right_px=300), tmp_path / "a.png"
    told = ["finish", str(picture), "--steps", "none", "--max-kb", "900", "--out", str(out)]
    assert main(told) == 2
    assert "2 faces in two.png are prominent" in capsys.readouterr().err and not out.exists()
    assert main([*told, "--face", "3"]) == 1 and "There is no face 3" in capsys.readouterr().err
    assert main([*told, "--face", "1"]) == 0 and blueness(out) > 10
    assert main([*told, "--face", "2"]) == 0 and blueness(out) < 0


def test_a_small_face_behind_is_no_question(tmp_path):
    picture, out = two_people(tmp_path / "two.png", left_px=400, right_px=160), tmp_path / "a.png"
    assert main(["finish", str(picture), "--steps", "none", "--max-kb", "900", "--out", str(out)]) == 0
    assert blueness(out) > 10


def test_out_that_is_the_picture_needs_overwrite(tmp_path, capsys):
    picture = draw(tmp_path / "raw.png")
    before = picture.read_bytes()
    (tmp_path / "link.png").symlink_to(picture)
    for out in (picture, tmp_path / "link.png", tmp_path / "x" / ".." / "raw.png"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert main(["finish", str(picture), "--steps", "none", "--out", str(out)]) == 2
        assert "is the picture itself" in capsys.readouterr().err and picture.read_bytes() == before
    assert main(["finish", str(picture), "--steps", "none", "--out", str(picture), "--overwrite"]) == 0
    assert picture.read_bytes() != before and mark.verify(picture).found


@pytest.mark.parametrize("kind", ["folder", "below a file", "long"])
def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch, kind):
    picture = draw(tmp_path / "raw.png")
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.setattr(stage, "finish", lambda *args, **keys: pytest.fail("the work has begun"))
    out = {"folder": "folder.jpg", "below a file": "raw.png/a.jpg", "long": "x" * 300 + ".jpg"}[kind]
    assert main(["finish", str(picture), "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert "can't be used" in said and "fault" not in said and "Traceback" not in said


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
    control = Control(stop=lambda: any(e.kind == "finished" for e in events))
    for event in stage.finish_pictures(run, order, control=control):
        events.append(event)
    assert stage.record_of(run, order.pictures[0]) is not None
    assert stage.record_of(run, order.pictures[1]) is None


def test_the_worker_does_it_without_a_base_model(run, watchers, monkeypatch):
    def load(*_, **__):
        raise AssertionError("finishing needs no base model")

    monkeypatch.setattr("pipelines.bases.loading.load_family", load)
    spec = jobspec.JobSpec("finish", methods=("none",), finish=ORDER)
    assert jobspec.spec_from_json(jsonable(spec)) == spec
    assert spec.disk_bytes() < 100e6
    events = list(perform(run, spec))
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
    receipt = forget(run.folder)
    assert any(each["file"].startswith("finished/") for each in receipt["removed"]) and not run.folder.exists()
