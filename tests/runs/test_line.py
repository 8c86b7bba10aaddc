"""Laws of the app's line of jobs: one worker, pictures between training steps, nobody lost, nobody twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core.control import Control
from pipelines.core.files import read_json, write_json
from pipelines.core.process import birth
from pipelines.core.records import METHODS, Event, Sampling, UserError
from pipelines.core.run import Run, all_runs, forget
from pipelines.runs import jobs, supervisor, worker
from pipelines.runs.compare import perform
from pipelines.runs.jobs import enqueue, events, hold, place, status, stop
from pipelines.runs.jobspec import JobSpec
from pipelines.runs.ledger import FILE, Ledger
from pipelines.runs.status import me, read_status
from pipelines.training.subjects import load_subject
from tests.runs import make_run, train_spec
from tests.tiny import tiny_folder

BASE = "portrait"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes by signal")


def draw_spec(pictures: int = 2) -> JobSpec:
    plan = tuple(Sampling("portrait of {subject}", steps=4, seed=seed) for seed in range(pictures))
    return JobSpec("generate", str(tiny_folder(BASE)), "man", ("none",), samplings=plan)


def pictures(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run.renders("none").glob("*.png"))}


def until(run: Run, kind: str, count: int, *, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if sum(event.kind == kind for event in events(run, status(run).first_event)) >= count:
            return
        assert status(run).busy, status(run)
        time.sleep(0.02)
    raise AssertionError(f"{count} x {kind} did not come: {status(run)}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path))
    yield tmp_path
    for run in all_runs(tmp_path):
        for slot in (run, run.drawing):
            stop(slot, patience_s=1.0)
    for run in all_runs(tmp_path):
        for slot in (run, run.drawing):
            hold(slot, lambda found: not found.busy)


def test_one_worker_draws_between_the_steps_of_a_training_and_changes_neither(root):
    """One long story, because every chapter costs the start of a process."""
    spec = train_spec(tiny_folder(BASE), steps=150, checkpoint_every=10)
    learning, drawing, waiting = (make_run(root / name) for name in ("learning", "drawing", "waiting"))
    drawing.photo_set.unlink()  # nobody to compare with: its pictures are drawn and not judged
    enqueue(learning, spec, owner="anna")
    until(learning, "step", 3)
    enqueue(waiting, train_spec(tiny_folder(BASE), steps=5000), owner="ben", estimate_s=5.0)
    enqueue(drawing.drawing, draw_spec(), owner="cleo")

    # a place in the line, and an estimate that knows what the first one still needs
    assert hold(learning, lambda now: now.left_s is not None).state == "running"
    found = place(waiting)
    assert found is not None and found.ahead == 1 and found.seconds is not None and found.seconds > 0
    assert place(learning) is None
    with pytest.raises(UserError, match="already being worked on"):
        enqueue(waiting, spec, owner="ben")

    # the pictures come while the training goes on, from the same process
    assert hold(drawing.drawing, lambda now: not now.busy).state == "done"
    now = status(learning)
    assert now.state == "running", "the training was over before the pictures were: make it longer"
    pids = {read_json(run.worker)["pid"] for run in (learning, drawing.drawing)}
    assert len(pids) == 1
    with pytest.raises(UserError, match="Stop it first"):
        forget(learning.folder)

    # neither knows of the other
    assert hold(learning, lambda now: not now.busy).state == "done"
    alone = make_run(root / "alone")
    list(perform(alone, spec))
    assert load_subject(alone.method("lora")).sha256 == load_subject(learning.method("lora")).sha256
    other = make_run(root / "other")
    other.photo_set.unlink()
    list(perform(other, draw_spec()))
    assert pictures(other) == pictures(drawing) and len(pictures(other)) == 2

    # kill -9: who was being worked on is interrupted, who waits is done by a fresh process
    until(waiting, "step", 12)
    enqueue(learning, train_spec(tiny_folder(BASE), steps=5001), owner="anna")
    assert status(learning).waits
    os.kill(read_json(waiting.worker)["pid"], signal.SIGKILL)
    assert hold(waiting, lambda now: not now.busy).state == "interrupted"
    until(learning, "step", 2)
    assert read_json(learning.worker)["pid"] not in pids

    # one who still waits can leave, and who is at work stops within a step
    enqueue(waiting, owner="ben")
    stop(waiting)
    assert status(waiting).state == "cancelled" and "before its turn" in str(status(waiting).reason)
    stop(learning)
    assert hold(learning, lambda now: not now.busy).state == "cancelled"
    deadline = time.monotonic() + 10
    while Ledger(root).unfinished() and time.monotonic() < deadline:  # the folder says it first
        time.sleep(0.05)
    assert Ledger(root).unfinished() == []


def test_after_a_restart_the_line_is_what_the_folders_say(root, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)  # nobody serves
    runs = [make_run(root / name) for name in ("first", "second", "dead")]
    for run in runs:
        enqueue(run, train_spec(tiny_folder(BASE), steps=2), owner=run.id)
    write_json(runs[2].status, replace(status(runs[2]), state="running"))
    write_json(runs[2].worker, {"job": status(runs[2]).job, "pid": 2**22 + 1, "born": "before"})
    for file in root.glob(FILE + "*"):
        file.unlink()
    jobs.recover(root)
    assert [entry.run for entry in Ledger(root).unfinished()] == ["first", "second"]
    assert status(runs[2]).state == "interrupted"
    assert read_json(runs[2].status)["state"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.setenv("LIKENESS_HOME", str(root))
    jobs.watch(root)
    for run in runs[:2]:
        assert hold(run, lambda now: not now.busy, timeout_s=90).state == "done"


def test_a_line_that_is_lost_while_jobs_wait_is_made_anew(root, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    runs = [make_run(root / name) for name in ("first", "second")]
    for run in runs:
        enqueue(run, train_spec(tiny_folder(BASE), steps=2), owner=run.id, estimate_s=100.0)
    assert place(runs[1]) == jobs.Place(1, 100.0)
    for file in root.glob(FILE + "*"):
        file.unlink()
    assert Ledger(root).unfinished() == []
    started = []
    monkeypatch.setattr(supervisor, "_spawn", lambda command, log: started.append(command))
    supervisor.Supervisor()._man(root, "", supervisor.Post())
    assert [entry.run for entry in Ledger(root).unfinished()] == ["first", "second"] and started
    assert place(runs[1]) == jobs.Place(1, 100.0)  # estimates stand in the folders too


def test_one_visitor_has_one_job_at_work_and_one_waiting(root, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    first, second = make_run(root / "first"), make_run(root / "second")
    enqueue(first, train_spec(tiny_folder(BASE)), owner="anna")
    enqueue(first.drawing, draw_spec(), owner="anna")
    with pytest.raises(UserError, match="one is waiting already"):
        enqueue(second, train_spec(tiny_folder(BASE)), owner="anna")
    enqueue(second, train_spec(tiny_folder(BASE)), owner="ben")
    monkeypatch.setenv(jobs.LINE_ENV, "3")
    third = make_run(root / "third")
    with pytest.raises(UserError, match="takes no more"):
        enqueue(third, train_spec(tiny_folder(BASE)), owner="cleo")
    assert status(third).state == "none"
    assert place(second) == jobs.Place(1, None)  # pictures don't stand in a training's way
    assert place(first.drawing) == jobs.Place(0, 0.0)


class Desk:
    """A desk whose jobs are told by a script."""

    def __init__(self, root: Path, monkeypatch, script) -> None:
        monkeypatch.setattr(jobs, "watch", lambda root: None)
        monkeypatch.setattr(worker, "perform", lambda run, spec, **_: script(run, spec))
        self.desk = worker._Desk(root, "", worker._Ended())

    def work(self) -> None:
        assert self.desk.work(idle_s=0.0) == 0


def test_when_memory_runs_out_that_job_fails_with_advice_and_the_next_gets_a_fresh_process(root, monkeypatch):
    def script(run, spec):
        yield Event("phase", text="Loading")
        if run.id == "huge":
            raise MemoryError
        yield Event("done", text="Done")

    desk = Desk(root, monkeypatch, script)
    huge, small = make_run(root / "huge"), make_run(root / "small")
    enqueue(huge, train_spec(tiny_folder(BASE)), owner="a")
    enqueue(small, train_spec(tiny_folder(BASE)), owner="b")
    desk.work()
    assert status(huge).state == "failed" and status(huge).reason == worker.MEMORY
    assert status(small).waits  # this process takes no more ...
    Desk(root, monkeypatch, script).work()
    assert status(small).state == "done"  # ... and the next one does


def test_a_method_that_runs_out_of_gpu_memory_spoils_the_process_for_others(root, monkeypatch):
    import torch

    from pipelines.training import loop

    def no_memory(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield

    monkeypatch.setattr(jobs, "watch", lambda root: None)
    monkeypatch.setattr(loop._Training, "run", no_memory)
    big, next_one = make_run(root / "big"), make_run(root / "next")
    enqueue(big, train_spec(tiny_folder(BASE)), owner="a")
    enqueue(next_one, train_spec(tiny_folder(BASE)), owner="b")
    desk = worker._Desk(root, "", worker._Ended())
    assert desk.work(idle_s=0.0) == 0
    found = status(big)
    assert found.state == "failed" and "GPU's memory is not enough" in str(found.reason)
    assert "smaller batch" in str(found.reason)
    assert desk.spoiled and status(next_one).waits
    monkeypatch.undo()
    monkeypatch.setenv("LIKENESS_HOME", str(root))
    jobs.watch(root)
    assert hold(next_one, lambda now: not now.busy, timeout_s=90).state == "done"


def test_a_worker_that_linux_ended_for_want_of_memory_fails_that_job_with_advice(root, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    killed = 3
    monkeypatch.setattr("pipelines.runs.status.oom_kills", lambda: killed)
    run = make_run(root / "run")
    enqueue(run, train_spec(tiny_folder(BASE)), owner="a")
    taken = Ledger(root).take(jobs.LONG, f"{2**22 + 1}@nobody")
    assert taken is not None
    write_json(run.status, replace(status(run), state="running"))
    write_json(run.worker, me(taken.job) | {"pid": 2**22 + 1})
    assert status(run).state == "interrupted"  # none since it began
    killed = 4
    supervisor.take_back(root, Ledger(root))
    found = read_status(run)
    assert found.state == "failed" and "ran out of memory" in str(found.reason) and "smaller batch" in str(found.reason)
    assert Ledger(root).unfinished() == []
    killed = 3
    assert status(run).state == "failed"  # what was noted at once stays, whatever happens later


def test_who_shared_a_worker_that_had_to_be_ended_by_force_goes_on_with_the_next(root, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    monkeypatch.setattr(jobs, "TERM_SHARED_S", 0.2)
    monkeypatch.setattr(jobs, "KILL_SHARED_S", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "deaf"
    hangs, other = make_run(root / "hangs"), make_run(root / "other")
    enqueue(hangs, train_spec(tiny_folder(BASE)), owner="a")
    enqueue(other.drawing, draw_spec(), owner="b")
    line = Ledger(root)
    for run, kinds in ((hangs, jobs.LONG), (other.drawing, jobs.SHORT)):
        taken = line.take(kinds, f"{process.pid}@{birth(process.pid)}")
        assert taken is not None
        write_json(run.status, replace(status(run), state="running"))
        write_json(run.worker, me(taken.job, process.pid))
    assert status(hangs).state == status(other.drawing).state == "running"
    stop(hangs, patience_s=0.1)
    assert process.wait(20) == -signal.SIGKILL
    assert status(hangs).state == "cancelled" and "by force" in str(status(hangs).reason)
    supervisor.take_back(root, line)
    assert read_status(hangs).state == "cancelled"
    assert status(other.drawing).waits
    assert [(entry.run, entry.state) for entry in line.unfinished()] == [("other", "queued")]


def test_one_worker_process_per_device(root, monkeypatch):
    """A second one for the same device ends at once; one for another device takes the next job."""
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    runs = [make_run(root / name) for name in ("first", "second")]
    for run in runs:
        enqueue(run, train_spec(tiny_folder(BASE), steps=5000), owner=run.id)
    code = (
        "import sys; from pathlib import Path; from pipelines.runs import worker\n"
        "sys.exit(worker.serve(Path(sys.argv[1]), device=sys.argv[2], idle_s=1.0))"
    )

    def serve(device: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(root), device])

    one = serve("cpu")
    started = [one]
    try:
        until(runs[0], "step", 2)
        second = serve("cpu")
        started.append(second)
        assert second.wait(60) == 0 and one.poll() is None
        assert status(runs[1]).waits  # nobody took it meanwhile
        other = serve("cpu:0")
        started.append(other)
        until(runs[1], "step", 2)
        pids = [read_json(run.worker)["pid"] for run in runs]
        assert pids == [one.pid, other.pid]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)
    monkeypatch.setenv(supervisor.DEVICES_ENV, "cuda:0, cuda:1,cuda:0,")
    assert supervisor.devices() == ("cuda:0", "cuda:1")


def test_pictures_and_training_share_the_time_and_a_flood_of_pictures_does_not_starve_it(root, monkeypatch):
    spent = {"train": 0.0, "generate": 0.0}

    def script(run, spec):
        for step in range(1, 13):
            cost = 0.004 if spec.kind == "train" else 0.03
            time.sleep(cost)
            spent[spec.kind] += cost
            yield Event("step", "lora", step, 12, seconds_left=1.0)
            if spec.kind == "train":
                order.append("train")
        yield Event("done", text="Done")

    order: list[str] = []
    desk = Desk(root, monkeypatch, script)
    learning, drawing = make_run(root / "learning"), make_run(root / "drawing")
    enqueue(learning, train_spec(tiny_folder(BASE)), owner="a")
    enqueue(drawing.drawing, draw_spec(), owner="b")
    desk.work()
    first_picture_done = events(drawing.drawing)
    assert status(learning).state == status(drawing.drawing).state == "done"
    assert len(order) == 12 and len(first_picture_done) == 13
    # while the twelve short steps went on, only two of the long drawings were made: half of the time each
    times = learning.events.stat().st_mtime, drawing.drawing.events.stat().st_mtime
    assert times[0] < times[1]


def test_a_training_in_slices_is_equal_to_one_in_one_go(root):
    """As on hosts that lend a GPU for a minute at a time: every slice is a process of its own."""
    spec = train_spec(tiny_folder(BASE), steps=60, checkpoint_every=1000)
    whole, sliced = make_run(root / "whole"), make_run(root / "sliced")
    list(perform(whole, spec))
    enqueue(sliced, spec, owner="anna", serve=False)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipelines.core.run import open_run; from pipelines.runs import jobs, worker\n"
        "run = open_run(Path(sys.argv[1]))\n"
        "worker.work_slice(run, over=lambda: len(jobs.events(run)) >= int(sys.argv[2]))"
    )
    first_step = []
    for told_in_all in (0, 25, 45, 1000):  # the first slice is over as it begins: it teaches one step all the same
        before = len(events(sliced))
        subprocess.run([sys.executable, "-c", code, str(sliced.folder), str(told_in_all)], check=True, timeout=300)
        first_step += [event.step for event in events(sliced)[before:] if event.kind == "step"][:1]
        if not status(sliced).busy:
            break
        assert status(sliced).waits and "next slice" in str(status(sliced).phase)
    assert len(first_step) == 4 and first_step[:2] == [1, 2]
    assert status(sliced).state == "done" and Ledger(root).unfinished() == []
    assert load_subject(sliced.method("lora")).sha256 == load_subject(whole.method("lora")).sha256
    told = [event.step for event in events(sliced) if event.kind == "step"]
    assert told == list(range(1, 61)), "no step is lost and none is done twice"


def test_one_method_can_be_stopped_and_the_others_go_on(tmp_path):
    run = make_run(tmp_path / "run")
    spec = train_spec(tiny_folder(BASE), steps=6)
    spec = replace(spec, methods=METHODS, settings={name: spec.settings["lora"] for name in METHODS})
    steps: dict[str, int] = {}
    told = []
    control = Control(leave=lambda name: name == "lora" and steps.get("lora", 0) >= 2)
    for event in perform(run, spec, control=control):
        told.append(event)
        if event.kind == "step" and event.method:
            steps[event.method] = event.step
    assert steps == {"textual_inversion": 6, "dreambooth": 6, "lora": 2}
    assert told[-1].kind == "done" and "LoRA was stopped at step 2 of 6" in str(told[-1].text)
    assert not load_subject(run.method("lora")).complete
    # asked for again it continues where it was left
    again = list(perform(run, spec))
    assert [event.step for event in again if event.kind == "step" and event.method == "lora"] == [3, 4, 5, 6]
    assert {event.method for event in again if event.kind == "step"} == {"lora"}


def test_a_flag_to_leave_one_method_belongs_to_one_job(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "watch", lambda root: None)
    run = make_run(tmp_path / "run")
    enqueue(run, train_spec(tiny_folder(BASE)), owner="a")
    jobs.leave(run, "dreambooth")  # is not taught
    assert not jobs.leave_asked(run, "dreambooth")
    jobs.leave(run, "lora")
    assert jobs.leave_asked(run, "lora")
    stop(run)
    enqueue(run, train_spec(tiny_folder(BASE)), owner="a")
    assert not jobs.leave_asked(run, "lora")
