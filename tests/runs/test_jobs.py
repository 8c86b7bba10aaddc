"""Laws of the worker: it stops within a step, survives kill -9, continues where it was, and says why it failed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core.control import Control
from pipelines.core.files import FULL, Lock, append_line, read_json, write_json
from pipelines.core.process import birth
from pipelines.core.records import METHODS, Counted, Event, Failed, Look, Sampling, Score, Started, UserError, Validated
from pipelines.core.run import Run, forget
from pipelines.runs import jobs
from pipelines.runs.compare import perform
from pipelines.runs.jobs import JobStatus, follow, hold, start, status, stop
from pipelines.runs.jobspec import JobSpec, spec_from_json
from pipelines.runs.status import START_GRACE_S
from pipelines.runs.supervisor import OURS
from pipelines.runs.worker import MEMORY, explain, short
from pipelines.training.subjects import load_subject
from tests.runs import make_run, train_spec
from tests.tiny import tiny_folder

BASE = "portrait"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes by signal")


def until_step(run: Run, step: int, *, timeout_s: float = 120.0) -> None:
    """Wait until this job told of `step`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        told = jobs.events(run, status(run).first_event)
        if any(event.kind == "step" and event.step >= step for event in told):
            return
        assert status(run).busy, status(run)
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {status(run)}")


def of_this_job(run: Run) -> list[Event]:
    return jobs.events(run, status(run).first_event)


def test_events_are_read_with_their_details_and_without_those_of_an_earlier_version(tmp_path):
    run = make_run(tmp_path)
    sampling = Sampling("portrait of {subject}", seed=7)
    told = [
        Event("start", "lora", data=Started(12, "Memory is enough.")),
        Event("watch", "lora", 4, 8, data=Look(0.5, 0.5, None, 0.4)),
        Event("render", "lora", data=sampling),
        Event("score", "lora", data=Score("a.png", "dlib", 0.25)),
        Event("note", step=1, steps=2, text="photo 1.jpg looked at", data=Counted("photos")),
        Event("failed", "lora", text="Too large.", data=Failed(out_of_memory=True)),
    ]
    for event in told:
        append_line(run.events, short(event))
    assert jobs.events(run) == told
    append_line(run.events, {"kind": "note", "text": "Computing", "data": {"name": "cpu", "dtype": "float32"}})
    append_line(run.events, {"kind": "done", "data": {"subject": {"id": "lora-1"}}})
    assert jobs.events(run, len(told)) == [Event("note", text="Computing"), Event("done")]


def test_killed_continued_stopped_and_continued_again_is_equal_to_never_having_stopped(tmp_path):
    """One long story, because every chapter costs the start of a process."""
    steps = 60
    run = make_run(tmp_path / "run")
    spec = train_spec(tiny_folder(BASE), steps=steps, checkpoint_every=5)
    start(run, spec)
    with pytest.raises(UserError, match="already being worked on"):
        start(run, spec)
    with pytest.raises(UserError, match="Stop it first"):
        hold(run, lambda found: found.state == "running")
        forget(run.folder)

    # kill -9: nothing is written at death, and still everybody knows
    until_step(run, 12)
    os.kill(read_json(run.worker)["pid"], signal.SIGKILL)
    found = hold(run, lambda each: not each.busy)
    assert found.state == "interrupted" and "continues from the last checkpoint" in str(found.reason)
    assert list(follow(run))[-1].kind == "step"
    reached = of_this_job(run)[-1].step

    # continued: from the last checkpoint, not from the start
    start(run)
    until_step(run, 0)
    first = next(event for event in of_this_job(run) if event.kind == "start")
    assert first.method == "lora" and 0 < first.step <= reached and first.step % 5 == 0

    # stopped: what was learned is kept
    until_step(run, first.step + 7)
    asked = time.monotonic()
    stop(run)
    found = hold(run, lambda each: not each.busy)
    assert found.state == "cancelled" and "kept" in str(found.reason)
    assert time.monotonic() - asked < 60
    kept = load_subject(run.method("lora"))
    last = [event for event in of_this_job(run) if event.kind == "step"][-1].step
    assert not kept.complete and kept.steps == last < steps
    assert (run.method("lora") / kept.artifact).is_file()

    # and to its end
    start(run)
    told = list(follow(run))
    assert status(run).state == "done" and status(run).reason is None
    assert next(event for event in told if event.kind == "start").step == last
    assert [event.step for event in told if event.kind == "step"] == list(range(last + 1, steps + 1))
    assert told[-1].kind == "done" and told[-1].method is None
    finished = load_subject(run.method("lora"))
    assert finished.complete and finished.steps == steps

    # the same as in one go
    other = make_run(tmp_path / "other")
    list(perform(other, spec))
    assert load_subject(other.method("lora")).sha256 == finished.sha256

    # once more is no work at all
    again = list(perform(other, spec))
    assert not [event for event in again if event.kind == "step"]
    forget(run.folder)


def test_stop_is_seen_within_one_step(tmp_path):
    run = make_run(tmp_path / "run")
    spec = train_spec(tiny_folder(BASE), steps=1000)
    seen = 0

    def asked() -> bool:
        return seen >= 3

    told = []
    for event in perform(run, spec, control=Control(stop=asked)):
        told.append(event)
        seen = event.step if event.kind == "step" else seen
    assert max(event.step for event in told if event.kind == "step") == 3
    assert told[-1].kind == "stopped" and told[-1].method is None
    assert load_subject(run.method("lora")).steps == 3
    assert (run.method("lora") / "checkpoint.safetensors").is_file()


def test_methods_of_a_small_base_learn_side_by_side_and_one_failure_stops_no_other(tmp_path):
    run = make_run(tmp_path / "run")
    spec = train_spec(tiny_folder(BASE))
    settings = {name: spec.settings["lora"] for name in METHODS}
    settings["textual_inversion"] = settings["textual_inversion"] | {"init": "magic"}
    told: list[Event] = []
    with pytest.raises(UserError, match=r"Textual inversion was not trained: .*magic.*The others are trained"):
        told.extend(_collected(perform(run, replace(spec, methods=METHODS, settings=settings)), told))
    order = [event.method for event in told if event.kind == "step"]
    assert order == ["dreambooth", "lora"] * 4
    assert [event.method for event in told if event.kind == "failed"] == ["textual_inversion"]
    assert load_subject(run.method("lora")).complete and load_subject(run.method("dreambooth")).complete


def _collected(events, into):
    for event in events:
        into.append(event)
    return []


def test_a_worker_that_fails_says_why_and_keeps_the_traceback_to_itself(tmp_path):
    base = shutil.copytree(tiny_folder(BASE), tmp_path / "base")
    for file in (base / "unet").glob("*.safetensors"):
        file.unlink()
    run = make_run(tmp_path / "run")
    start(run, train_spec(base))
    told = list(follow(run))
    found = status(run)
    assert found.state == "failed" and found.reason and "can't be loaded" in found.reason
    assert told[-1].kind == "failed" and told[-1].text == found.reason
    for path in (run.status, run.events):
        assert "Traceback" not in path.read_text() and "site-packages" not in path.read_text()
    assert "Traceback" in run.log.read_text()
    assert found.ended and found.wall_s > 0


def test_a_missing_base_is_said_before_anything_starts(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="no base model"):
        start(run, train_spec(tmp_path / "nowhere"))
    assert status(run) == JobStatus("none") and not run.spec.exists()


def test_jobs_of_the_app_take_turns_and_a_waiting_one_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path))
    run = make_run(tmp_path / "run")
    with Lock(tmp_path / ".turn") as busy:
        assert busy.acquire()
        start(run, train_spec(tiny_folder(BASE)))
        found = hold(run, lambda each: "another job" in str(each.phase))
        assert found.state == "queued"
        stop(run)
        assert hold(run, lambda each: not each.busy).state == "cancelled"
    assert not run.method("lora").exists()


def test_a_worker_ends_with_the_app_that_started_it(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path))
    run = make_run(tmp_path / "run")
    write_json(run.spec, train_spec(tiny_folder(BASE)))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pipelines.core.run import open_run; from pipelines.runs import jobs\n"
        "run = open_run(Path(sys.argv[1])); jobs.start(run)\n"
        "jobs.hold(run, lambda each: 'another job' in str(each.phase)); print('started', flush=True); time.sleep(60)"
    )
    with Lock(tmp_path / ".turn") as busy:
        assert busy.acquire()
        app = subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE, text=True)
        assert app.stdout is not None and app.stdout.readline().strip() == "started"
        assert status(run).state == "queued"
        app.kill()
        app.communicate()
        found = hold(run, lambda each: not each.busy)
    assert found.state == "interrupted" and "app was closed" in str(found.reason)


def test_a_worker_that_does_not_react_is_ended_by_force(tmp_path):
    run = make_run(tmp_path / "run")
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "deaf"
    write_json(run.status, JobStatus("running", "train", job="j1"))
    write_json(run.worker, {"job": "j1", "pid": process.pid, "born": birth(process.pid)})
    assert status(run).busy
    stop(run, patience_s=0.2)
    assert process.wait(20) == -signal.SIGKILL
    found = hold(run, lambda each: not each.busy)
    assert found.state == "cancelled" and "by force" in str(found.reason)


def test_a_number_that_another_process_has_now_is_not_our_worker(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run.status, JobStatus("running", "train", job="j1"))
    write_json(run.worker, {"job": "j1", "pid": os.getpid(), "born": "another boot:1"})
    assert status(run).state == "interrupted"
    write_json(run.worker, {"job": "j1", "pid": os.getpid(), "born": birth(os.getpid())})
    assert status(run).state == "running"
    # a dead child that nobody has looked after yet still has its number
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    born = birth(child.pid)
    deadline = time.monotonic() + 20
    while birth(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert birth(child.pid) is None
    child.wait()
    write_json(run.worker, {"job": "j1", "pid": child.pid, "born": born})
    assert status(run).state == "interrupted"


def test_a_job_whose_process_never_came_is_interrupted_after_a_while(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run.status, JobStatus("queued", "train", job="j2"))
    assert status(run).state == "queued"
    long_ago = time.time() - 2 * START_GRACE_S
    os.utime(run.status, (long_ago, long_ago))
    assert status(run).state == "interrupted"


def test_a_spec_survives_its_file(tmp_path):
    spec = JobSpec(
        "generate",
        "portrait-128",
        "woman",
        ("none", "lora"),
        "best",
        7,
        samplings=(Sampling("portrait of {subject}", seed=3, guidance=2.5),),
        settings={"lora": {"rank": 8, "targets": "all", "snr_gamma": None}},
    )
    write_json(tmp_path / "spec.json", spec)
    assert spec_from_json(read_json(tmp_path / "spec.json")) == spec
    for damaged in ([], {"samplings": [{"colour": 1}]}, {"samplings": 3}):
        with pytest.raises(UserError, match="damaged"):
            spec_from_json(damaged)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": math.nan}, "seed must be a whole number"),
        ({"seed": True}, "seed"),
        ({"renders": 0}, "number of pictures"),
        ({"class_word": "dog"}, "class word dog"),
        ({"quality": "perfect"}, "quality perfect"),
        ({"kind": "dream"}, "kind of job dream"),
        ({"methods": ()}, "No method"),
        ({"methods": ("none",)}, "no method none"),
        ({"base": "portrait-9000"}, "no base model"),
        ({"base": "z-image", "methods": ("dreambooth",)}, "does not offer dreambooth"),
        ({"kind": "generate"}, "Nothing to draw"),
        ({"kind": "generate", "samplings": (Sampling("x", guidance=math.nan),)}, "Guidance must be a number"),
        ({"settings": {"lora": {"rank": math.nan}}}, "rank"),
        ({"settings": {"lora": {"rank": 2.5}}}, "whole number"),
        ({"settings": {"lora": {"steps": 10**9}}}, "steps"),
        ({"settings": {"lora": {"seed": 1}}}, "no setting seed"),
        ({"settings": {"lora": {"mirror": "yes"}}}, "mirror"),
        ({"settings": {"magic": {"rank": 1}}}, "no method magic"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(changes, said):
    with pytest.raises(UserError, match=said):
        replace(JobSpec(), **changes).check()


def test_every_error_becomes_one_sentence():
    import errno

    for error, said in (
        (UserError("Add photos."), "Add photos."),
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (RuntimeError("safetensors: No space left on device (os error 28)"), FULL),
        (MemoryError(), MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), MEMORY),
        (ZeroDivisionError("division by zero"), OURS),
    ):
        assert explain(error) == said


def test_events_keep_their_order_and_their_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    told = [Event("step", "lora", step, 9, loss=0.5, seconds=0.25 * step, data=Validated(1.0)) for step in range(4)]
    for event in told:
        append_line(run.events, short(event))
    assert jobs.events(run) == told and jobs.events(run, 3) == told[3:]
    assert "path" not in json.loads(run.events.read_text().splitlines()[1])
    assert Path(run.events).stat().st_size < 600
