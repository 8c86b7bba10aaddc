"""Laws of a power cut: what is put in place is on the disk before, and what it replaces goes afterwards.

No test can pull the plug. What can be checked is the order of calls that file systems promise something about: a file's
bytes are synced before it gets its name, its folder's list of names before anything else is removed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.core.files import append_line, read_lines
from pipelines.core.records import METHODS, Event, Sampling
from pipelines.core.run import FORGOTTEN, sweep_forgotten
from pipelines.runs import jobs
from pipelines.runs.compare import perform
from pipelines.runs.jobspec import JobSpec
from pipelines.training.checkpoints import CHECKPOINT
from tests.runs import make_run, quick
from tests.tiny import tiny_folder

BASE = "portrait"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders can't be synced on Windows")


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """("sync", path), ("move", path) for every file that gets its place, ("remove", path), in their order."""
    told: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def sync(handle: int) -> None:
        told.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def move(source, target) -> None:
        held = [source] if os.path.isfile(source) else [str(f) for f in Path(source).rglob("*") if f.is_file()]
        unsynced = [str(each) for each in held if ("sync", str(each)) not in told]
        assert not unsynced, f"{target} got its name before the disk held {unsynced}"
        replace(source, target)
        told.append(("move", str(target)))

    def remove(path: Path, missing_ok: bool = False) -> None:
        told.append(("remove", str(path)))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    monkeypatch.setattr(Path, "unlink", remove)
    return told


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
def test_what_was_learned_is_on_the_disk_before_the_checkpoint_goes(tmp_path, calls):
    run = make_run(tmp_path / "run")
    settings = {name: quick(name, checkpoint_every=2)[name] for name in METHODS}
    list(perform(run, JobSpec("train", str(tiny_folder(BASE)), "man", METHODS, "draft", settings=settings)))
    for name in METHODS:
        folder = run.method(name)
        card, checkpoint = str(folder / "subject.json"), str(folder / CHECKPOINT)
        assert ("move", checkpoint) in calls  # it was written, so that its removal means something
        named = calls.index(("move", card))
        removed = max(index for index, call in enumerate(calls) if call == ("remove", checkpoint))
        assert ("sync", str(folder)) in calls[named:removed]
    draw = JobSpec("generate", str(tiny_folder(BASE)), "man", ("none",), samplings=(Sampling("a man", steps=2),))
    run.photo_set.unlink()
    list(perform(run.drawing, draw))
    assert any(call == "move" and path.endswith(".png") and "renders" in path for call, path in calls)


def test_a_line_that_was_damaged_hides_no_other(tmp_path):
    run = make_run(tmp_path / "run")
    for step in range(3):
        append_line(run.events, {"kind": "step", "step": step})
    data = run.events.read_bytes()
    first = data.index(b"\n") + 1
    run.events.write_bytes(data[:first] + b"\0" * 12 + b'{"k\n' + data[first:])
    assert [line["step"] for line in read_lines(run.events)] == [0, 1, 2]
    told = jobs.events(run)
    assert [event.kind for event in told] == ["step", "note", "step", "step"]
    assert [event.step for event in jobs.events(run, after=2)] == [1, 2]  # who counted to two misses none


def test_what_killed_writers_left_goes_with_the_next_job(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    folder = run.method("lora")
    folder.mkdir(parents=True)
    gone, mine = 2**22 + 1, os.getpid()
    left = [
        folder / f".checkpoint.safetensors.{gone}.0123abcd.part",
        folder / f".old.safetensors.{mine}.0123abcd.part",  # of an earlier process with our number
    ]
    for file in left:
        file.write_bytes(b"half")
    half = folder / f".unet.{gone}.0123abcd.part"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    os.utime(left[1], (1.0, 1.0))
    kept = [folder / f".new.safetensors.{mine}.0123abcd.part", folder / ".something.part", folder / "a.part"]
    for file in kept:
        file.write_bytes(b"being written")
    spec = JobSpec("train", str(tiny_folder(BASE)), "man", ("lora",), "draft", settings=quick())
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path))
    jobs.enqueue(run, spec, owner="anna", serve=False)
    monkeypatch.setattr("pipelines.runs.worker.perform", lambda *_, **__: iter([Event("done", text="Done")]))
    from pipelines.runs import worker

    worker.work_slice(run, over=lambda: False)
    assert not [file for file in (*left, half) if file.exists()]
    assert all(file.exists() for file in kept)


def test_removals_that_a_crash_interrupted_are_finished_at_the_next_start(tmp_path):
    left = tmp_path / f"{FORGOTTEN}abc-12345678"
    (left / "photos").mkdir(parents=True)
    (left / "photos" / "00.png").write_bytes(b"somebody")
    assert sweep_forgotten(tmp_path, older_than_s=60.0) == 0  # whoever removes it this moment is left alone
    jobs.recover(tmp_path)
    assert not left.exists()
