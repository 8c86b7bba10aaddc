"""The state of a job, read from the files in its run's folder by the page, the command line and the supervisor.

In: a run. Out: its `JobStatus`, events, spec and flags. Whether the worker process still runs is decided by its process
id and start time. Light: no torch. Try it: `for event in follow(run): print(event.text)`.

    queued -> running -> done | cancelled | failed (reason) | interrupted
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipelines.core.decode import decode
from pipelines.core.files import FULL, Lock, read_json, read_lines, write_json
from pipelines.core.process import birth, lives, oom_kills
from pipelines.core.records import DETAILS, Event, UserError
from pipelines.core.run import Run
from pipelines.runs.jobspec import JobSpec, spec_from_json

BUSY, FINISHED = ("queued", "running"), ("done", "cancelled", "failed", "interrupted")
FULL_BYTES = 5_000_000  # a disk with less free space counts as full: a checkpoint needs more
START_GRACE_S = 20.0  # a job whose process is not known after this long never started
INTERRUPTED = (
    "The work ended without a word: the machine was restarted or ran out of memory. "
    "Start again; it continues from the last checkpoint."
)
KILLED = (
    "The machine ran out of memory and ended the work. What was learned up to the last checkpoint is kept. Close other "
    "programs, or choose a smaller batch, a smaller base or fewer pictures at once; then start again."
)
FORCED = "It had to be ended by force. What was learned up to the last checkpoint is kept."


@dataclass(frozen=True)
class JobStatus:
    """The state of a run's current (or last) job."""

    state: str  # "none" | "queued" | "running" | "done" | "cancelled" | "failed" | "interrupted"
    kind: str = ""  # of the job: "compare" | "train" | "portrait" | "generate" | "finish"
    reason: str | None = None  # one sentence, when it is not simply done
    phase: str | None = None  # what it is doing, in words
    job: str = ""  # changes with every start
    first_event: int = 0  # where this job's events begin
    started: str | None = None  # UTC
    ended: str | None = None
    wall_s: float = 0.0
    peak_mem_mb: float | None = None  # of the worker process
    pace_s: float = 0.0  # longest time between two events so far: how long a step may take
    left_s: float | None = None  # of training, estimated from the steps so far
    owner: str = ""  # the visitor who queued it; "": not a job of the queue
    in_line: bool = False  # a job of the queue, waiting or not
    queued_at: float = 0.0  # seconds since the epoch
    estimate_s: float | None = None  # how long it takes, estimated when it was queued; None: not known
    kept: int = 0  # steps, pictures and scores done in all its slices (`worker.work_slice`)

    @property
    def busy(self) -> bool:
        return self.state in BUSY

    @property
    def waits(self) -> bool:
        return self.state == "queued" and self.in_line


def load_spec(run: Run) -> JobSpec:
    """What the run's last job was asked to do. Raises UserError when there was none."""
    saved = read_json(run.spec)
    if saved is None:
        raise UserError("Nothing was started in this run yet. Choose what to train first.")
    return spec_from_json(saved)


def status(run: Run) -> JobStatus:
    """The job's state. Where its worker process died, this says so: cancelled, failed or interrupted."""
    found = read_status(run)
    if not found.busy or found.waits or _worker_lives(run, found):
        return found
    found = read_status(run)  # again: the worker may have finished meanwhile
    if not found.busy:
        return found
    if stop_asked(run, found.job):
        return replace(found, state="cancelled", reason=FORCED)
    if _out_of_memory(run):
        return replace(found, state="failed", reason=KILLED)
    full = shutil.disk_usage(run.folder).free < FULL_BYTES  # the worker could not write this
    return replace(found, state="interrupted", reason=FULL if full else INTERRUPTED)


def read_status(run: Run) -> JobStatus:
    saved = read_json(run.status)
    if not isinstance(saved, dict) or "state" not in saved:
        return JobStatus("none")
    return JobStatus(**{each.name: saved[each.name] for each in fields(JobStatus) if each.name in saved})


def save_status(run: Run, value: JobStatus) -> None:
    write_json(run.status, value)


def events(run: Run, after: int = 0) -> list[Event]:
    """The run's events without the first `after`. For the next ones raise `after` by the number returned."""
    damaged = {"kind": "note", "text": "A line of this record was damaged when the machine stopped"}
    return [_event(entry) for entry in read_lines(run.events, after=after, damaged=damaged)]


def _event(entry: Mapping[str, Any]) -> Event:
    """One event from its line; without its details where an earlier version wrote others."""
    event = Event(**{**entry, "data": None})
    if entry.get("data") and event.kind in DETAILS:
        with contextlib.suppress(UserError):
            return replace(event, data=decode(DETAILS[event.kind], entry["data"]))
    return event


def follow(run: Run, *, every_s: float = 0.1) -> Iterator[Event]:
    """Yield this job's events, from the first one until the job has ended; `status(run)` then says how it ended."""
    seen = status(run).first_event
    while True:
        ended = not status(run).busy  # read before the events, so that none is missed
        for event in events(run, seen):
            seen += 1
            yield event
        if ended:
            return
        time.sleep(every_s)


def hold(run: Run, until: Callable[[JobStatus], bool], *, timeout_s: float = 60.0) -> JobStatus:
    """Wait until the job's status satisfies `until`; the status then, or the last one when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = status(run)
        if until(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def released(run: Run) -> bool:
    """True when no worker holds the run's lock. It is released a moment after the job's last status is written."""
    if not run.job_folder.is_dir():
        return True
    with Lock(run.lock) as lock:
        return lock.acquire()


def stop_asked(run: Run, job: str) -> bool:
    """Whether a person asked this job to stop. Called at every step, so the file is read only where it exists."""
    if not run.stop_flag.exists():
        return False
    with contextlib.suppress(UserError):
        return bool((read_json(run.stop_flag) or {}).get("job") == job)
    return True


def leave_asked(run: Run, method: str) -> bool:
    """Whether a person asked to stop this method. A new job deletes the flags of earlier jobs."""
    return run.leave_flag(method).exists()


def me(job: str, pid: int | None = None) -> dict[str, object]:
    """The content of worker.json for the process `pid` (None: this one). `oom_kills`: Linux's count so far."""
    pid = pid or os.getpid()
    return {"job": job, "pid": pid, "born": birth(pid), "oom_kills": oom_kills()}


def _worker_lives(run: Run, found: JobStatus) -> bool:
    worker = read_json(run.worker) or {}
    if worker.get("job") == found.job:
        return lives(worker.get("pid"), worker.get("born"))
    with contextlib.suppress(OSError):  # its process is being started this moment
        return time.time() - run.status.stat().st_mtime < START_GRACE_S
    return False


def _out_of_memory(run: Run) -> bool:
    """Whether Linux ended a process for want of memory since this run's worker began."""
    worker = read_json(run.worker) or {}
    before, now = worker.get("oom_kills"), oom_kills()
    same_boot = str(worker.get("born")).partition(":")[0] == str(birth(os.getpid())).partition(":")[0]
    return same_boot and isinstance(before, int) and now is not None and now > before
