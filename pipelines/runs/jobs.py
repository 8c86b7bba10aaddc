"""Jobs: start one in a worker process of its own or put it in the queue, then follow and stop it through files.

In: a `JobSpec` (written as spec.json). Out: events.jsonl, status.json and checkpoints in the run's folder; a reader
never sees a half-written file. The app, the command line and the tests read the same files.

`start` (the command line) gives the job a worker process of its own. `enqueue` (the app) puts it in the queue of its
data root: one worker process per device does these jobs one after another and draws pictures between training steps.
Names with `line` mean this queue. The way of a job:

    enqueue -> ledger.Ledger.add -> supervisor starts worker.serve -> Ledger.take -> compare.perform
    follow <- status.events <- events.jsonl and status.json in the run's folder

A cancelled or interrupted job continues from its checkpoints when it is started again. Light: no torch here.
Try it: `start(run, spec)`, then `for event in follow(run): print(event.text)`; `stop(run)` from any process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.core.files import Lock, read_json, repair_lines, require_space, timestamp, write_json
from pipelines.core.process import lives
from pipelines.core.records import ALL_METHODS, UserError
from pipelines.core.run import Run
from pipelines.runs.jobspec import JobSpec
from pipelines.runs.ledger import WORKING, Entry, Ledger
from pipelines.runs.status import (
    JobStatus,
    events,
    follow,
    hold,
    leave_asked,
    load_spec,
    me,
    read_status,
    released,
    save_status,
    status,
)
from pipelines.runs.supervisor import devices, recover, supervisor, watch

__all__ = [
    "JobSpec", "JobStatus", "enqueue", "events", "follow", "give_up", "hold", "leave", "leave_asked", "load_spec",
    "place", "recover", "released", "save_status", "start", "status", "stop", "watch",
]  # fmt: skip

LONG, SHORT = (
    ("compare", "train", "portrait"),
    ("generate", "finish"),
)  # kinds of jobs; short ones are done between a long one's steps
PER_VISITOR = 2  # unfinished jobs: one being worked on and one waiting
LINE_ENV = "LIKENESS_QUEUE"  # how many jobs may wait in all
LINE_LIMIT = 50
TERM_SHARED_S, KILL_SHARED_S = 10.0, 60.0  # a big base takes a while to load or save
STOPPING = "Stopping: saving what was learned"
WITHDRAWN = "Stopped before its turn came."


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands."""

    ahead: int  # jobs before it, the one being worked on included
    seconds: float | None  # until its turn, as far as is known


def start(run: Run, spec: JobSpec | None = None) -> None:
    """Start a worker on `run` and return at once. Without a `spec` the run's last one is continued.

    Finished methods and pictures that are already there are not made again. Raises UserError for settings that make no
    sense, when this run is being worked on already, and when the disk is nearly full.
    """
    with _accepted(run, spec) as (spec, job):
        try:
            pid = supervisor().spawn(run)
        except OSError as error:
            reason = "No worker process could be started on this machine. Close other programs, then try again."
            save_status(run, replace(read_status(run), state="failed", reason=reason, ended=timestamp()))
            raise UserError(reason) from error
        write_json(run.worker, me(job, pid))


def enqueue(
    run: Run, spec: JobSpec | None = None, *, owner: str, estimate_s: float | None = None, serve: bool = True
) -> None:
    """Put a job at the end of its data root's queue and return at once; like `start` otherwise.

    Raises UserError too when `owner` has `PER_VISITOR` unfinished jobs, and when too many jobs wait. With `serve` this
    process starts workers for the queue from now on (`watch`); without it the caller does the job with
    `worker.work_slice`.
    """
    root = run.folder.parent
    line = Ledger(root)
    mine = [Run(root / entry.run, entry.slot) for entry in line.unfinished() if entry.owner == owner]
    if sum(status(one).busy for one in mine) >= PER_VISITOR:  # the queue is only an index
        raise UserError(
            "One job of yours is being worked on and one is waiting already. Wait until one is done, or stop it."
        )
    before = read_status(run)
    with _accepted(run, spec, owner=owner, in_line=True, estimate_s=estimate_s) as (spec, job):
        try:
            line.add(run, job=job, owner=owner, kind=spec.kind, estimate_s=estimate_s, limit=_line_limit())
        except (UserError, OSError, sqlite3.Error):
            save_status(run, before)
            raise
    if serve:
        watch(root)


@contextlib.contextmanager
def _accepted(
    run: Run, spec: JobSpec | None, *, owner: str = "", in_line: bool = False, estimate_s: float | None = None
) -> Iterator[tuple[JobSpec, str]]:
    """Check the spec and write the new job's files; yields (spec, job id). No other job can start here meanwhile."""
    spec = spec or load_spec(run)
    spec.check()
    run.job_folder.mkdir(mode=0o700, exist_ok=True)
    with Lock(run.job_folder / ".starting") as starting:
        if not starting.acquire() or status(run).busy:
            raise UserError("This run is already being worked on. Wait until it is done, or stop it.")
        require_space(run.folder, spec.disk_bytes(), purpose="This job")
        job = secrets.token_hex(8)
        for flag in (run.stop_flag, *(run.leave_flag(method) for method in ALL_METHODS)):
            flag.unlink(missing_ok=True)
        write_json(run.spec, spec)
        first = repair_lines(run.events)
        now = timestamp()
        phase = "Waiting for its turn" if in_line else "Waiting to start"
        accepted = JobStatus(
            "queued", spec.kind, job=job, first_event=first, started=now, phase=phase, owner=owner, in_line=in_line,
            queued_at=time.time(), estimate_s=estimate_s,
        )  # fmt: skip
        save_status(run, accepted)
        yield spec, job


def _line_limit() -> int:
    try:
        return max(1, int(os.environ.get(LINE_ENV) or LINE_LIMIT))
    except ValueError:
        return LINE_LIMIT


def place(run: Run) -> Place | None:
    """How many jobs come before this one and in how many seconds it starts; None when it is not waiting."""
    found = status(run)
    if not found.waits:
        return None
    root = run.folder.parent
    entries = Ledger(root).unfinished()
    kinds = SHORT if found.kind in SHORT else LONG
    before = []
    for entry in entries:
        if entry.job == found.job:
            break
        # pictures are drawn between a training's steps: they wait for other pictures only
        if entry.kind in kinds:
            before.append(entry)
    workers = max(1, len(devices()))
    times = [_remaining(root, entry) for entry in before]
    known = [each for each in times if each is not None]
    seconds = sum(known) / workers if len(known) == len(times) else None
    return Place(len(before), seconds)


def _remaining(root: Path, entry: Entry) -> float | None:
    if entry.state != WORKING:
        return entry.estimate_s
    now = read_status(Run(root / entry.run, entry.slot))
    if now.left_s is not None:
        return now.left_s
    return None if entry.estimate_s is None else max(0.0, entry.estimate_s - now.wall_s)


def stop(run: Run, *, patience_s: float = 10.0) -> None:
    """Ask the job to stop and return at once. It stops within one step and keeps what was learned.

    A worker that does not react within `patience_s` (or three times its slowest step so far) gets SIGTERM, and SIGKILL
    after the same time again. A worker of the queue gets at least 10 s and 60 s, because it may be doing a second job;
    that one continues in the next process. A worker that reacts has two minutes to save.
    """
    found = status(run)
    if not found.busy:
        return
    line = Ledger(run.folder.parent)
    if found.waits and (
        line.withdraw(found.job, "cancelled") or all(entry.job != found.job for entry in line.unfinished())
    ):  # a job that the queue no longer lists is never taken
        now = timestamp()
        save_status(run, replace(found, state="cancelled", reason=WITHDRAWN, phase=None, ended=now))
        return
    write_json(run.stop_flag, {"job": found.job, "asked": timestamp()})
    threading.Thread(target=_insist, args=(run, found.job, patience_s), daemon=True).start()


def give_up(run: Run, reason: str) -> None:
    """End a waiting job as failed, because no worker can do it. `reason`: one sentence."""
    found = status(run)
    if found.waits:
        Ledger(run.folder.parent).withdraw(found.job, "failed")
        save_status(run, replace(found, state="failed", reason=reason, phase=None, ended=timestamp()))


def leave(run: Run, method: str) -> None:
    """Stop one method of a training; the other methods go on. What it learned so far is kept."""
    found = status(run)
    if found.busy and method in load_spec(run).methods:
        write_json(run.leave_flag(method), {"job": found.job, "asked": timestamp()})


def _insist(run: Run, job: str, patience_s: float) -> None:
    shared = status(run).in_line
    term, kill = signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)
    for number, least_s in ((term, TERM_SHARED_S), (kill, KILL_SHARED_S)):
        if shared:
            patience_s = max(patience_s, least_s)
        since = time.monotonic()
        while True:
            found = status(run)
            if not found.busy or found.job != job:
                return
            reacted = found.phase == STOPPING
            if time.monotonic() - since > (120.0 if reacted else max(patience_s, 3 * found.pace_s)):
                break
            time.sleep(0.1)
        worker = read_json(run.worker) or {}
        if worker.get("job") == job and lives(worker.get("pid"), worker.get("born")):
            with contextlib.suppress(OSError):
                os.kill(int(worker["pid"]), number)
