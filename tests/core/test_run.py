"""Laws of the files: whole or not there, a run removed is gone, and nothing that is not ours is ever removed."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.files import Lock, append_line, read_json, read_lines, repair_lines, require_space, write_json
from pipelines.core.records import Event, UserError
from pipelines.core.run import (
    Run,
    all_runs,
    data_root,
    forget,
    load_photo_set,
    new_run,
    open_run,
    record_consent,
    run_at,
    save_photo_set,
)
from tests.runs import make_run


def test_json_round_trip_of_records_and_numbers_json_does_not_know(tmp_path):
    value = {
        "event": Event("step", loss=float("nan"), seconds=1.5),
        "n": np.float32(0.5),
        "path": tmp_path,
        "t": (1, 2),
    }
    write_json(tmp_path / "a" / "b.json", value)
    read = read_json(tmp_path / "a" / "b.json")
    assert read["event"]["loss"] is None and read["event"]["seconds"] == 1.5
    assert read["n"] == 0.5 and read["path"] == str(tmp_path) and read["t"] == [1, 2]
    assert read_json(tmp_path / "missing.json") is None
    with pytest.raises(TypeError):
        write_json(tmp_path / "c.json", {"object": object()})


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "status.json").write_text('{"state": ')
    with pytest.raises(UserError, match="can't be read"):
        read_json(tmp_path / "status.json")


def test_a_full_disk_keeps_the_old_file_and_leaves_no_piece(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write_json(path, {"state": "done"})
    assert json.loads(path.read_text()) == {"state": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_appending_on_a_full_disk_is_a_sentence():
    with pytest.raises(UserError, match="disk is full"):
        append_line(Path("/dev/full"), {"kind": "step"})


def test_too_little_space_is_said_before_work_starts(tmp_path):
    with pytest.raises(UserError, match=r"disk is nearly full.*Free some space"):
        require_space(tmp_path / "not" / "there" / "yet", 10**18)
    require_space(tmp_path, 1)


def test_readers_never_see_half_a_line_and_writers_repair_it(tmp_path):
    path = tmp_path / "events.jsonl"
    for number in range(3):
        append_line(path, {"n": number})
    with path.open("ab") as file:
        file.write(b'{"n": 3, "text": "torn')
    assert [line["n"] for line in read_lines(path)] == [0, 1, 2]
    assert repair_lines(path) == 3
    append_line(path, {"n": 3})
    assert [line["n"] for line in read_lines(path, after=2)] == [2, 3]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipelines.core.files import Lock\n"
        "lock = Lock(Path(sys.argv[1])); assert lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
        mine = Lock(tmp_path / "lock")
        assert not mine.acquire()
    finally:
        holder.kill()
        holder.communicate()
    with mine:
        assert mine.acquire()


def test_runs_are_private_unguessable_and_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))
    assert data_root() == tmp_path / "home"
    first, second = new_run(), new_run()
    assert first.folder.parent == tmp_path / "home"
    assert len(first.id) == 32 and first.id != second.id
    if os.name == "posix":
        assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700
    (tmp_path / "home" / "sessions").mkdir()
    assert {run.id for run in all_runs()} == {first.id, second.id}


def test_a_run_is_made_only_where_nothing_else_lies(tmp_path):
    run = run_at(tmp_path / "run")
    assert run_at(tmp_path / "run") == run == open_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds other files"):
        run_at(tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        run_at(tmp_path / "mine" / "thesis.txt")
    with pytest.raises(UserError, match="no run at"):
        open_run(tmp_path / "nowhere")


def test_names_inside_a_run_can_not_leave_it(tmp_path):
    run = run_at(tmp_path / "run")
    for name in ("../other", "a/b", "", "/etc", "."):
        with pytest.raises(ValueError):
            run.method(name)


def test_the_photo_set_moves_with_its_run(tmp_path):
    run = make_run(tmp_path / "run", photos=6)
    saved = load_photo_set(run)
    assert saved is not None and saved.weak and len(saved.train) == 4
    run.folder.rename(tmp_path / "elsewhere")
    moved = load_photo_set(Run(tmp_path / "elsewhere"))
    assert moved is not None and moved.digest == saved.digest
    assert all(Path(photo.path).is_file() for photo in moved.photos)
    (tmp_path / "elsewhere" / "photos.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match="damaged"):
        load_photo_set(Run(tmp_path / "elsewhere"))


def test_a_photo_set_stored_before_photos_had_reasons_still_says_which_photo_shows_a_group(tmp_path):
    run = make_run(tmp_path / "run", photos=6)
    saved = json.loads(run.photo_set.read_text())
    for part in ("train", "validation", "held_out"):
        for entry in saved[part]:
            del entry["reasons"]
    group = "the face is dark; several faces; the one that agrees with the other photos is used"
    saved["held_out"][0]["notes"] = [group]
    run.photo_set.write_text(json.dumps(saved))
    read = load_photo_set(run)
    assert read is not None and read.held_out[0].reasons == ("several_faces",)
    assert all(photo.reasons == () for photo in (*read.train, *read.validation))
    save_photo_set(run, read)
    assert load_photo_set(run) == read


def test_forget_removes_everything_and_proves_it(tmp_path):
    run = make_run(tmp_path / "run")
    (run.method("lora")).mkdir(parents=True)
    (run.method("lora") / "weights.safetensors").write_bytes(b"x" * 1000)
    present = [p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()]
    size = sum((run.folder / name).stat().st_size for name in present)
    receipt = forget(run.folder)
    assert not run.folder.exists() and list(tmp_path.iterdir()) == []
    removed = {each["file"] for each in receipt["removed"]}
    assert removed >= set(present) and "methods/lora/weights.safetensors" in removed
    assert receipt["files"] == len(removed) and receipt["bytes"] == size and receipt["remaining_files"] == 0
    json.dumps(receipt)
    with pytest.raises(UserError, match="no run at"):
        forget(run.folder)


def test_forget_refuses_what_is_not_a_run(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run"):
        forget(home)
    (home / "run.json").write_text('{"name": "an npm project, say"}')
    with pytest.raises(UserError, match="not a run"):
        forget(home)
    assert (home / "letter.txt").read_text() == "dear"


def test_forget_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    run = run_at(tmp_path / "run")
    (run.folder / "link").symlink_to(outside)
    (tmp_path / "alias").symlink_to(run.folder)
    with pytest.raises(UserError, match="is a link"):
        forget(tmp_path / "alias")
    receipt = forget(run.folder)
    assert "link" in {each["file"] for each in receipt["removed"]}
    assert (outside / "kept.txt").read_text() == "kept"


def test_forget_waits_for_nobody_and_disturbs_no_worker(tmp_path):
    run = run_at(tmp_path / "run")
    with Lock(run.lock) as worker:
        assert worker.acquire()
        with pytest.raises(UserError, match="Stop it first"):
            forget(run.folder)
    assert run.folder.is_dir()
    forget(run.folder)


def test_forget_names_copies_it_can_not_reach(tmp_path):
    run = run_at(tmp_path / "run")
    (run.folder / "a.png").write_bytes(b"picture")
    os.link(run.folder / "a.png", tmp_path / "copy.png")
    assert forget(run.folder)["copies_elsewhere"] == ["a.png"]


def test_consent_is_noted_with_time_and_means(tmp_path):
    run = run_at(tmp_path / "run")
    record_consent(run, means="command line: train", statement="yes")
    saved = read_json(run.consent)
    assert saved["means"] == "command line: train" and saved["when"].endswith("Z")


def test_pictures_are_whole_and_oldest_first(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    folder = run.renders("lora")
    folder.mkdir(parents=True)
    for age, name in enumerate(("b.png", "a.png", ".part-123-c.png", "gone.png", "notes.txt")):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1000 + age, 1000 + age))
    look = Path.stat

    def stat_of(path: Path, **options: bool) -> os.stat_result:
        if path.name == "gone.png":
            raise FileNotFoundError(path)
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", stat_of)
    assert [path.name for path in run.pictures("lora")] == ["b.png", "a.png"]
    assert run.pictures("none") == []
