"""Jobs: one after another per device, started from a run's own folder, followed through files.

In: a `JobSpec` (spec.json). Out: events.jsonl, status.json and checkpoints, each whole at any moment. The app, the
command line and the tests read the same events; any of them may come, go, reload or crash.

Two doors. `start` gives the job a worker process of its own: the command line. `enqueue` puts it in the line of its
data root, where one worker process per device does one after another and draws pictures between training steps: the
app. Try it: `start(run, spec)`, then `for event in follow(run): print(event.text)`; `stop(run)` from anywhere.

    queued -> running -> done | cancelled | failed (reason) | interrupted

A job that was cancelled or interrupted continues from its checkpoints when it is started again. The worker's side is
in `pipelines.runs.worker`. Light: no torch here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.core import workspace
from pipelines.training import world
from pipelines.runs.jobspec import JobSpec, spec_from_json
from pipelines.runs.ledger import WAITING, WORKING, Entry, Ledger
from pipelines.core.schema import ALL_METHODS, Event, UserError
from pipelines.core.workspace import Lock, Run

__all__ = ["JobSpec", "JobStatus", "enqueue", "events", "follow", "load_spec", "place", "start", "status", "stop"]

BUSY, FINISHED = ("queued", "running"), ("done", "cancelled", "failed", "interrupted")
LONG, SHORT = (
    ("compare", "train"),
    ("generate", "finish"),
)  # kinds of jobs; short ones are done between a long one's steps
PER_VISITOR = 2  # unfinished jobs: one being worked on and one waiting
LINE_ENV = "LIKENESS_QUEUE"  # how many jobs may wait in all
LINE_LIMIT = 50
DEVICES_ENV = "LIKENESS_DEVICES"  # "cuda:0,cuda:1": one worker process each; empty: one, on the best device here
TERM_SHARED_S, KILL_SHARED_S = 10.0, 60.0  # a big base takes a while to load or save
FULL_BYTES = 5_000_000  # with less a disk counts as full: checkpoints need more
START_GRACE_S = 20.0  # a job whose process is not known after this long never started
BROKEN_STARTS = 3  # worker processes in a row that end without taking a job
OURS = "Something went wrong on our side; the details are in the run's worker.log. Photos and results so far are kept."
INTERRUPTED = (
    "The work ended without a word: the machine was restarted or ran out of memory. "
    "Start again; it continues from the last checkpoint."
)
KILLED = (
    "The machine ran out of memory and ended the work. What was learned up to the last checkpoint is kept. Close other "
    "programs, or choose a smaller batch, a smaller base or fewer pictures at once; then start again."
)
FORCED = "It had to be ended by force. What was learned up to the last checkpoint is kept."
STOPPING = "Stopping: saving what was learned"
WITHDRAWN = "Stopped before its turn came."
PARENT_ENV = "LIKENESS_PARENT"


@dataclass(frozen=True)
class JobStatus:
    """How a run's current (or last) job stands."""

    state: str  # "none" | "queued" | "running" | "done" | "cancelled" | "failed" | "interrupted"
    kind: str = ""  # of the job: "compare" | "train" | "generate" | "finish"
    reason: str | None = None  # one sentence, when it is not simply done
    phase: str | None = None  # what it is doing, in words
    job: str = ""  # changes with every start
    first_event: int = 0  # where this job's events begin
    started: str | None = None  # UTC
    ended: str | None = None
    wall_s: float = 0.0
    peak_mem_mb: float | None = None  # of the worker process
    pace_s: float = 0.0  # longest time between two events so far: how long a step may take
    left_s: float | None = None  # of training, as far as the steps so far tell
    owner: str = ""  # whose job of the line it is
    in_line: bool = False  # it waits, or waited, in the line of its data root
    queued_at: float = 0.0  # seconds since the epoch
    estimate_s: float | None = None  # how long it takes, where that was known when it came
    kept: int = 0  # steps, pictures and scores that its slices brought so far (`worker.work_slice`)

    @property
    def busy(self) -> bool:
        return self.state in BUSY

    @property
    def waits(self) -> bool:
        return self.state == "queued" and self.in_line


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands."""

    ahead: int  # jobs before it, the one being worked on included
    seconds: float | None  # until its turn, as far as is known


# ------------------------------------------------------------------------------------------------- from outside


def start(run: Run, spec: JobSpec | None = None) -> None:
    """Start a worker on `run` and return at once. Without a `spec` the run's last one is continued.

    Finished methods and pictures that are already there are not made again. Raises UserError for settings that make no
    sense, when this run is being worked on already, and when the disk is nearly full.
    """
    with _accepted(run, spec) as (spec, job):
        try:
            pid = _supervisor().spawn(run)
        except OSError as error:
            reason = "No worker process could be started on this machine. Close other programs, then try again."
            save_status(run, replace(read_status(run), state="failed", reason=reason, ended=workspace.timestamp()))
            raise UserError(reason) from error
        workspace.write_json(run.worker, me(job, pid))


def enqueue(
    run: Run, spec: JobSpec | None = None, *, owner: str, estimate_s: float | None = None, serve: bool = True
) -> None:
    """Put a job at the end of its data root's line and return at once; like `start` otherwise.

    Raises UserError too when `owner` has `PER_VISITOR` unfinished jobs, and when too many jobs wait. The job waits
    until a process that watches the line (`watch`) has a worker for it; this process does from now on, unless `serve`
    is off: then somebody calls `worker.work_slice`.
    """
    root = run.folder.parent
    line = Ledger(root)
    mine = [Run(root / entry.run, entry.slot) for entry in line.unfinished() if entry.owner == owner]
    if sum(status(one).busy for one in mine) >= PER_VISITOR:  # the folders are the truth
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
    """Check what is asked for and write the new job's files; (spec, job). Nobody else starts one meanwhile."""
    spec = spec or load_spec(run)
    spec.check()
    run.job_folder.mkdir(mode=0o700, exist_ok=True)
    with Lock(run.job_folder / ".starting") as starting:
        if not starting.acquire() or status(run).busy:
            raise UserError("This run is already being worked on. Wait until it is done, or stop it.")
        workspace.require_space(run.folder, spec.disk_bytes(), purpose="This job")
        job = secrets.token_hex(8)
        for flag in (run.stop_flag, *(run.leave_flag(method) for method in ALL_METHODS)):
            flag.unlink(missing_ok=True)
        workspace.write_json(run.spec, spec)
        first = workspace.repair_lines(run.events)
        now = workspace.timestamp()
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
    """How many jobs are done before this one and when its turn comes; None when it is not waiting."""
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


def devices() -> tuple[str, ...]:
    """The devices that get a worker process each; ("",) is one process on the best device."""
    named = [each.strip() for each in os.environ.get(DEVICES_ENV, "").split(",")]
    return tuple(dict.fromkeys(each for each in named if each)) or ("",)


def status(run: Run) -> JobStatus:
    """How the job stands. A worker that died is told from one that works by its pid and start time."""
    found = read_status(run)
    if not found.busy or found.waits or _worker_lives(run, found):
        return found
    found = read_status(run)  # it may have finished between the two looks
    if not found.busy:
        return found
    if stop_asked(run, found.job):
        return replace(found, state="cancelled", reason=FORCED)
    if _out_of_memory(run):
        return replace(found, state="failed", reason=KILLED)
    full = shutil.disk_usage(run.folder).free < FULL_BYTES  # a worker can't say so where nothing can be written
    return replace(found, state="interrupted", reason=workspace.FULL if full else INTERRUPTED)


def events(run: Run, after: int = 0) -> list[Event]:
    """The run's events without the first `after`. Ask again with `after` + how many came."""
    damaged = {"kind": "note", "text": "A line of this record was damaged when the machine stopped"}
    return [Event(**entry) for entry in workspace.read_lines(run.events, after=after, damaged=damaged)]


def follow(run: Run, *, every_s: float = 0.1) -> Iterator[Event]:
    """This job's events from its beginning, until it ended. Then `status(run)` says how."""
    seen = status(run).first_event
    while True:
        ended = not status(run).busy  # looked at before the events, so that none is missed
        for event in events(run, seen):
            seen += 1
            yield event
        if ended:
            return
        time.sleep(every_s)


def stop(run: Run, *, patience_s: float = 10.0) -> None:
    """Ask the job to stop and return at once. It stops within one step and keeps what was learned.

    Only a worker that does not react gets SIGTERM after `patience_s` (or three times its slowest step so far) and
    SIGKILL after as long again, or a minute where it serves others too: those go on with the next process. One that
    reacted has two minutes to save.
    """
    found = status(run)
    if not found.busy:
        return
    line = Ledger(run.folder.parent)
    if found.waits and (
        line.withdraw(found.job, "cancelled") or all(entry.job != found.job for entry in line.unfinished())
    ):  # or the line lost it: then nobody will ever take it
        now = workspace.timestamp()
        save_status(run, replace(found, state="cancelled", reason=WITHDRAWN, phase=None, ended=now))
        return
    workspace.write_json(run.stop_flag, {"job": found.job, "asked": workspace.timestamp()})
    threading.Thread(target=_insist, args=(run, found.job, patience_s), daemon=True).start()


def give_up(run: Run, reason: str) -> None:
    """End a job that waits and that nobody can do."""
    found = status(run)
    if found.waits:
        Ledger(run.folder.parent).withdraw(found.job, "failed")
        save_status(run, replace(found, state="failed", reason=reason, phase=None, ended=workspace.timestamp()))


def leave(run: Run, method: str) -> None:
    """Ask a training to go on without one of its methods. What that one learned so far is kept."""
    found = status(run)
    if found.busy and method in load_spec(run).methods:
        workspace.write_json(run.leave_flag(method), {"job": found.job, "asked": workspace.timestamp()})


def load_spec(run: Run) -> JobSpec:
    """What the run's last job was asked to do. Raises UserError when there was none."""
    saved = workspace.read_json(run.spec)
    if saved is None:
        raise UserError("Nothing was started in this run yet. Choose what to train first.")
    return spec_from_json(saved)


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
        worker = workspace.read_json(run.worker) or {}
        if worker.get("job") == job and _lives(worker.get("pid"), worker.get("born")):
            with contextlib.suppress(OSError):
                os.kill(int(worker["pid"]), number)


def stop_asked(run: Run, job: str) -> bool:
    """Whether somebody asked this job to stop. Called every step: one look for a file that is rarely there."""
    if not run.stop_flag.exists():
        return False
    with contextlib.suppress(UserError):
        return bool((workspace.read_json(run.stop_flag) or {}).get("job") == job)
    return True


def leave_asked(run: Run, method: str) -> bool:
    """Whether somebody asked to go on without this method. Flags of earlier jobs are gone."""
    return run.leave_flag(method).exists()


def read_status(run: Run) -> JobStatus:
    saved = workspace.read_json(run.status)
    if not isinstance(saved, dict) or "state" not in saved:
        return JobStatus("none")
    return JobStatus(**{each.name: saved[each.name] for each in fields(JobStatus) if each.name in saved})


def save_status(run: Run, value: JobStatus) -> None:
    workspace.write_json(run.status, value)


def me(job: str, pid: int | None = None) -> dict[str, Any]:
    """What worker.json says of this process, or another one, and how often the machine ran out of memory before."""
    pid = pid or os.getpid()
    return {"job": job, "pid": pid, "born": birth(pid), "oom_kills": oom_kills()}


def oom_kills() -> int | None:
    """How many processes Linux ended since it started because memory ran out, in containers too; None elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters["oom_kill"]) if "oom_kill" in counters else None
    return None


def _out_of_memory(run: Run) -> bool:
    """Whether Linux ended a process for want of memory since this run's worker began."""
    worker = workspace.read_json(run.worker) or {}
    before, now = worker.get("oom_kills"), oom_kills()
    same_boot = str(worker.get("born")).partition(":")[0] == str(birth(os.getpid())).partition(":")[0]
    return same_boot and isinstance(before, int) and now is not None and now > before


def _worker_lives(run: Run, found: JobStatus) -> bool:
    worker = workspace.read_json(run.worker) or {}
    if worker.get("job") == found.job:
        return _lives(worker.get("pid"), worker.get("born"))
    with contextlib.suppress(OSError):  # its process is being started this moment
        return time.time() - run.status.stat().st_mtime < START_GRACE_S
    return False


# ------------------------------------------------------------------------------------------------- processes


def birth(pid: int) -> str | None:
    """When a process began, as text that no other process of this number will share. None: there is none (any more).

    On Linux the boot's id and the kernel's own clock ticks, which no clock correction moves.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"  # Z: dead, but its parent has not looked yet
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def _lives(pid: Any, born: Any) -> bool:
    return isinstance(pid, int) and isinstance(born, str) and birth(pid) == born


def watch(root: Path) -> None:
    """From now on this process sees to it that jobs waiting in `root` get a worker, as long as it lives."""
    _supervisor().watch(root.resolve())


def recover(root: Path) -> None:
    """After a restart, or where the line is lost: the line anew from the runs' folders. Jobs that waited wait again;
    those whose worker is gone are interrupted. Removals that were interrupted are finished.
    """
    workspace.sweep(root)
    found, looked = [], time.time()
    for run in workspace.runs(root):
        for slot in (run, run.drawing):
            with contextlib.suppress(UserError):  # one damaged run keeps nobody else waiting
                now = status(slot)
                if now.state in ("interrupted", "failed") and read_status(slot).busy:
                    save_status(slot, now)
                elif now.busy and now.in_line:
                    found.append((slot, now))
    found.sort(key=lambda each: each[1].queued_at)
    entries = [
        Entry(0, now.job, run.id, run.slot, now.owner, now.kind, now.state, now.estimate_s, _worker(run, now.job))
        for run, now in found
    ]
    Ledger(root).rebuild(entries, looked=looked)


def _worker(run: Run, job: str) -> str | None:
    """The process that took a job, as the line names it."""
    found = workspace.read_json(run.worker) or {}
    return f"{found.get('pid')}@{found.get('born')}" if found.get("job") == job else None


@dataclass
class _Post:
    """The worker process of one device of one root."""

    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    broken: int = 0  # processes in a row that ended at once


class _Supervisor(threading.Thread):
    """The one thread that starts workers. It lives as long as this process: Linux tells a worker that its parent died
    when the *thread* that started it ends, and a web server's handler threads come and go."""

    def __init__(self) -> None:
        super().__init__(name="likeness-supervisor", daemon=True)
        self._wanted: queue.SimpleQueue[tuple[Run | Path, queue.SimpleQueue[int | OSError | UserError]]] = (
            queue.SimpleQueue()
        )
        self._posts: dict[tuple[Path, str], _Post] = {}

    def spawn(self, run: Run) -> int:
        """A worker for this run alone."""
        answer: queue.SimpleQueue[int | OSError | UserError] = queue.SimpleQueue()
        self._wanted.put((run, answer))
        pid = answer.get()
        if isinstance(pid, OSError | UserError):
            raise pid
        return pid

    def watch(self, root: Path) -> None:
        self._wanted.put((root, queue.SimpleQueue()))

    def run(self) -> None:
        children: list[subprocess.Popen[bytes]] = []
        while True:
            children = [child for child in children if child.poll() is None]  # poll() also buries the dead
            try:
                wanted, answer = self._wanted.get(timeout=1.0)
            except queue.Empty:
                pass
            else:
                if isinstance(wanted, Run):
                    try:
                        child = _spawn(world.command(load_spec(wanted).processes, wanted.folder), wanted.log)
                    except (OSError, UserError) as error:
                        answer.put(error)
                    else:
                        children.append(child)
                        answer.put(child.pid)
                else:
                    for device in devices():
                        self._posts.setdefault((wanted, device), _Post())
            for (root, device), post in self._posts.items():
                with contextlib.suppress(OSError, UserError, sqlite3.Error):  # a full disk: the next second tries again
                    self._man(root, device, post)

    def _man(self, root: Path, device: str, post: _Post) -> None:
        """Start a worker where jobs wait and none is at work."""
        if post.process is not None and post.process.poll() is None:
            return
        ended, post.process = post.process, None
        if not root.is_dir():
            return
        line = Ledger(root)
        if line.is_new():  # the file was damaged or deleted while jobs waited
            recover(root)
        _take_back(root, line)
        waiting = [entry for entry in line.unfinished() if entry.state == WAITING]
        if ended is not None:
            quick = time.monotonic() - post.since < 10 and ended.returncode not in (0, None)
            post.broken = post.broken + 1 if quick else 0
        if not waiting:
            return
        if post.broken >= BROKEN_STARTS:
            first = Run(root / waiting[0].run, waiting[0].slot)
            if line.withdraw(waiting[0].job, "failed"):
                save_status(
                    first,
                    replace(read_status(first), state="failed", reason=OURS, phase=None, ended=workspace.timestamp()),
                )
            post.broken = 0
            return
        if time.monotonic() - post.since < 3 * post.broken:
            return
        post.process, post.since = _spawn(world.line_command(root, device), root / "worker.log"), time.monotonic()


def _take_back(root: Path, line: Ledger) -> None:
    """See to jobs whose worker died: they have ended, but one that shared its worker with a job that had to be ended by
    force waits for the next.
    """
    left = [entry for entry in line.unfinished() if entry.state == WORKING and not _holds(entry)]
    forced = {entry.worker for entry in left if stop_asked(Run(root / entry.run, entry.slot), entry.job)}
    for entry in left:
        with contextlib.suppress(UserError):  # one damaged run keeps nobody else waiting
            run = Run(root / entry.run, entry.slot)
            now = status(run)
            if now.job == entry.job and not now.busy and read_status(run).busy:
                if entry.worker in forced and now.state == "interrupted":
                    now = replace(now, state="queued", reason=None, phase="Waiting for its turn")
                save_status(run, now)  # why it ended is known best at once
            line.put(entry.job, WAITING if now.waits and now.job == entry.job else now.state)


def _holds(entry: Entry) -> bool:
    """Whether the process that took this job lives."""
    pid, _, born = (entry.worker or "").partition("@")
    return pid.isdigit() and _lives(int(pid), born)


_only = threading.Lock()
_running: _Supervisor | None = None


def _supervisor() -> _Supervisor:
    global _running
    with _only:
        if _running is None or not _running.is_alive():
            _running = _Supervisor()
            _running.start()
        return _running


def _spawn(command: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), PARENT_ENV: str(os.getpid())}
    with log_file.open("ab") as log:
        log_file.chmod(0o600)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def released(run: Run) -> bool:
    """Whether no worker is in the run: it lets go a moment after it has written down how its job ended."""
    if not run.job_folder.is_dir():
        return True
    with Lock(run.lock) as lock:
        return lock.acquire()


def hold(run: Run, until: Callable[[JobStatus], bool], *, timeout_s: float = 60.0) -> JobStatus:
    """Wait until the job's status satisfies `until`; the status then, or the last one when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = status(run)
        if until(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
