"""Jobs: one worker process per run, started from the run's own folder, followed through files.

In: a `JobSpec` (spec.json). Out: events.jsonl, status.json and checkpoints, each whole at any moment. The app, the
command line and the tests read the same events; any of them may come, go, reload or crash.
Try it: `start(run, spec)`, then `for event in follow(run): print(event.text)`; `stop(run)` from anywhere.

    queued -> running -> done | stopped | failed (reason) | interrupted

A job that was stopped or interrupted continues from its checkpoints when it is started again. Light: no torch here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import parallel, workspace
from pipelines.comparison import JobSpec, perform, spec_from_json
from pipelines.schema import Event, UserError
from pipelines.workspace import Lock, Run

__all__ = ["JobSpec", "JobStatus", "events", "follow", "load_spec", "start", "status", "stop", "work"]

BUSY, FINISHED = ("queued", "running"), ("done", "stopped", "failed", "interrupted")
START_GRACE_S = 20.0  # a job whose process is not known after this long never started
STATUS_EVERY_S = 0.5
OURS = "Something went wrong on our side; the details are in the run's worker.log. Photos and results so far are kept."
MEMORY = (
    "This machine ran out of memory. Choose fewer pictures at once, a smaller base or a lower quality, then try again."
)
INTERRUPTED = (
    "The work ended without a word: the machine was restarted or ran out of memory. "
    "Start again; it continues from the last checkpoint."
)
FORCED = "It had to be ended by force. What was learned up to the last checkpoint is kept."
PARENT_ENV = "LIKENESS_PARENT"


@dataclass(frozen=True)
class JobStatus:
    """How a run's current (or last) job stands."""

    state: str  # "none" | "queued" | "running" | "done" | "stopped" | "failed" | "interrupted"
    kind: str = ""  # of the job: "compare" | "train" | "generate"
    reason: str | None = None  # one sentence, when it is not simply done
    phase: str | None = None  # what it is doing, in words
    job: str = ""  # changes with every start
    first_event: int = 0  # where this job's events begin
    started: str | None = None  # UTC
    ended: str | None = None
    wall_s: float = 0.0
    peak_mem_mb: float | None = None  # of the worker process
    pace_s: float = 0.0  # longest time between two events so far: how long a step may take

    @property
    def busy(self) -> bool:
        return self.state in BUSY


# ------------------------------------------------------------------------------------------------- from outside


def start(run: Run, spec: JobSpec | None = None) -> None:
    """Start a worker on `run` and return at once. Without a `spec` the run's last one is continued.

    Finished methods and pictures that are already there are not made again. Raises UserError for settings that make no
    sense, when this run is being worked on already, and when the disk is nearly full.
    """
    spec = spec or load_spec(run)
    spec.check()
    with Lock(run.folder / ".starting") as starting:
        if not starting.acquire() or status(run).busy:
            raise UserError("This run is already being worked on. Wait until it is done, or stop it.")
        workspace.require_space(run.folder, spec.disk_bytes(), purpose="This job")
        job = secrets.token_hex(8)
        run.stop_flag.unlink(missing_ok=True)
        workspace.write_json(run.spec, spec)
        first = workspace.repair_lines(run.events)
        now = workspace.timestamp()
        _save_status(
            run, JobStatus("queued", spec.kind, job=job, first_event=first, started=now, phase="Waiting to start")
        )
        try:
            pid = _supervisor().spawn(run)
        except OSError as error:
            reason = "No worker process could be started on this machine. Close other programs, then try again."
            _save_status(run, replace(_read_status(run), state="failed", reason=reason, ended=workspace.timestamp()))
            raise UserError(reason) from error
        workspace.write_json(run.worker, {"job": job, "pid": pid, "born": _born(pid)})


def status(run: Run) -> JobStatus:
    """How the job stands. A worker that died is told from one that works by its pid and start time."""
    found = _read_status(run)
    if not found.busy or _worker_lives(run, found):
        return found
    found = _read_status(run)  # it may have finished between the two looks
    if not found.busy:
        return found
    if _stop_asked(run, found.job):
        return replace(found, state="stopped", reason=FORCED)
    return replace(found, state="interrupted", reason=INTERRUPTED)


def events(run: Run, after: int = 0) -> list[Event]:
    """The run's events without the first `after`. Ask again with `after` + how many came."""
    return [Event(**entry) for entry in workspace.read_lines(run.events, after=after)]


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
    SIGKILL after as long again. One that reacted has two minutes to save.
    """
    found = status(run)
    if not found.busy:
        return
    workspace.write_json(run.stop_flag, {"job": found.job, "asked": workspace.timestamp()})
    threading.Thread(target=_insist, args=(run, found.job, patience_s), daemon=True).start()


def load_spec(run: Run) -> JobSpec:
    """What the run's last job was asked to do. Raises UserError when there was none."""
    saved = workspace.read_json(run.spec)
    if saved is None:
        raise UserError("Nothing was started in this run yet. Choose what to train first.")
    return spec_from_json(saved)


def _insist(run: Run, job: str, patience_s: float) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
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


def _stop_asked(run: Run, job: str) -> bool:
    """Whether somebody asked this job to stop. Called every step: one look for a file that is rarely there."""
    if not run.stop_flag.exists():
        return False
    with contextlib.suppress(UserError):
        return bool((workspace.read_json(run.stop_flag) or {}).get("job") == job)
    return True


def _read_status(run: Run) -> JobStatus:
    saved = workspace.read_json(run.status)
    return JobStatus("none") if saved is None else JobStatus(**saved)


def _save_status(run: Run, value: JobStatus) -> None:
    workspace.write_json(run.status, value)


def _worker_lives(run: Run, found: JobStatus) -> bool:
    worker = workspace.read_json(run.worker) or {}
    if worker.get("job") == found.job:
        return _lives(worker.get("pid"), worker.get("born"))
    with contextlib.suppress(OSError):  # its process is being started this moment
        return time.time() - run.status.stat().st_mtime < START_GRACE_S
    return False


# ------------------------------------------------------------------------------------------------- processes


def _born(pid: int) -> str | None:
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
    return isinstance(pid, int) and isinstance(born, str) and _born(pid) == born


class _Supervisor(threading.Thread):
    """The one thread that starts workers. It lives as long as this process: Linux tells a worker that its parent died
    when the *thread* that started it ends, and a web server's handler threads come and go."""

    def __init__(self) -> None:
        super().__init__(name="likeness-supervisor", daemon=True)
        self._wanted: queue.SimpleQueue[tuple[Run, queue.SimpleQueue[int | OSError | UserError]]] = queue.SimpleQueue()

    def spawn(self, run: Run) -> int:
        answer: queue.SimpleQueue[int | OSError | UserError] = queue.SimpleQueue()
        self._wanted.put((run, answer))
        pid = answer.get()
        if isinstance(pid, OSError | UserError):
            raise pid
        return pid

    def run(self) -> None:
        children: list[subprocess.Popen[bytes]] = []
        while True:
            children = [child for child in children if child.poll() is None]  # poll() also buries the dead
            try:
                run, answer = self._wanted.get(timeout=1.0)
            except queue.Empty:
                continue
            try:
                child = _spawn(run)
            except (OSError, UserError) as error:
                answer.put(error)
            else:
                children.append(child)
                answer.put(child.pid)


_only = threading.Lock()
_running: _Supervisor | None = None


def _supervisor() -> _Supervisor:
    global _running
    with _only:
        if _running is None or not _running.is_alive():
            _running = _Supervisor()
            _running.start()
        return _running


def _spawn(run: Run) -> subprocess.Popen[bytes]:
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), PARENT_ENV: str(os.getpid())}
    with run.log.open("ab") as log:
        run.log.chmod(0o600)
        return subprocess.Popen(
            parallel.command(load_spec(run).processes, run.folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


# ------------------------------------------------------------------------------------------------- the worker

STOPPING = "Stopping: saving what was learned"


class _Asked:
    """Whether to stop, and why: a person's flag file, or the end of the process that started us."""

    def __init__(self, run: Run, job: str) -> None:
        self._run, self._job = run, job
        self.terminated = False

    def __call__(self) -> bool:
        self.terminated |= _orphaned()
        return self.terminated or _stop_asked(self._run, self._job)

    @property
    def by_person(self) -> bool:
        return _stop_asked(self._run, self._job)

    def listen(self) -> None:
        """Take SIGTERM as a wish to stop. Only the main thread may; elsewhere the flag file is enough."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.terminated = True


def work(run: Run) -> int:
    """Do the job in `run`'s folder in this process; what `python -m pipelines worker RUN` does. Returns an exit code.

    Every outcome is written to status.json, in words. Tracebacks go to worker.log and nowhere else.
    """
    os.umask(0o077)
    if parallel.launched() and int(os.environ["RANK"]):
        while status(run).state == "queued":  # the first process waits for its turn
            time.sleep(0.2)
        if status(run).state != "running":
            return 0
        for _ in perform(run, load_spec(run)):  # the first of the processes keeps the books and says when to stop
            pass
        return 0
    with Lock(run.lock) as lock:
        deadline = time.monotonic() + 10
        while not lock.acquire():
            if time.monotonic() > deadline:
                print("another worker is busy in this run", file=sys.stderr)
                return 1
            time.sleep(0.1)
        found = _read_status(run)
        if not found.busy:  # started by hand, not by `start`
            first = workspace.repair_lines(run.events)
            found = JobStatus("queued", job=secrets.token_hex(8), first_event=first, started=workspace.timestamp())
        workspace.write_json(run.worker, {"job": found.job, "pid": os.getpid(), "born": _born(os.getpid())})
        asked = _Asked(run, found.job)
        asked.listen()
        _end_with_parent()
        return _Worker(run, found, asked).work()


class _Worker:
    def __init__(self, run: Run, found: JobStatus, asked: _Asked) -> None:
        self.run, self.status, self.asked = run, found, asked
        self._since = time.monotonic()
        self._written = self._event_at = self._since

    def work(self) -> int:
        last: Event | None = None
        with contextlib.ExitStack() as held:
            try:
                spec = load_spec(self.run)
                self.save(kind=spec.kind, phase="Starting")
                self._wait_for_turn(held)
                self.save(state="running")
                for event in perform(self.run, spec, stop=self.asked):
                    last = event
                    self.tell(event)
            except Exception as error:
                return self._fail(error)
        if last is not None and last.kind == "done":
            self.save(state="done", phase=None, ended=workspace.timestamp())
        elif self.asked.terminated and not self.asked.by_person:
            reason = "The app was closed. Start again; it continues where it was."
            if parallel.launched() and not _orphaned():
                reason = "Another of its processes ended. Start again; it continues where it was."
            self.save(state="interrupted", reason=reason, phase=None, ended=workspace.timestamp())
        else:
            said = last.text if last is not None and last.kind == "stopped" else None
            self.save(state="stopped", reason=said, phase=None, ended=workspace.timestamp())
        return 0

    def _wait_for_turn(self, held: contextlib.ExitStack) -> None:
        """Jobs of the app take turns: two at once would starve each other. The lock dies with its holder."""
        root = workspace.data_root()
        if self.run.folder.parent != root:
            return  # started by hand in a folder of their own choice
        turn = held.enter_context(Lock(root / ".turn"))
        told = False
        while not turn.acquire() and not self.asked():
            if not told:
                self.save(phase="Waiting: another job is being worked on")
                told = True
            time.sleep(0.2)

    def tell(self, event: Event) -> None:
        """Write one event, and every half second how things stand."""
        now = time.monotonic()
        pace, self._event_at = now - self._event_at, now
        workspace.append_line(self.run.events, _short(event))
        changes: dict[str, Any] = {}
        if event.kind == "step":
            changes["pace_s"] = round(max(self.status.pace_s, pace), 3)
        if event.text and event.kind in ("phase", "start"):
            changes["phase"] = event.text
        if self.asked():
            changes["phase"] = STOPPING
        new_phase = changes.get("phase", self.status.phase) != self.status.phase
        if new_phase or now - self._written >= STATUS_EVERY_S:
            self.save(**changes)
        else:
            self.status = replace(self.status, **changes)

    def save(self, **changes: Any) -> None:
        from pipelines.runtime import peak_memory_mb

        self._written = time.monotonic()
        wall = round(self._written - self._since, 3)
        self.status = replace(self.status, wall_s=wall, peak_mem_mb=round(peak_memory_mb(), 1), **changes)
        _save_status(self.run, self.status)

    def _fail(self, error: Exception) -> int:
        sentence = explain(error)
        with contextlib.suppress(OSError):
            with self.run.log.open("a", encoding="utf-8") as log:
                log.write(f"{workspace.timestamp()} job {self.status.job} failed\n")
                log.write("".join(traceback.format_exception(error)))
            self.run.log.chmod(0o600)
        with contextlib.suppress(
            OSError, UserError
        ):  # on a full disk the event may not fit; the status is tried as well
            workspace.append_line(self.run.events, _short(Event("failed", text=sentence)))
        with contextlib.suppress(OSError, UserError):
            self.save(state="failed", reason=sentence, phase=None, ended=workspace.timestamp())
        return 1


def explain(error: BaseException) -> str:
    """One sentence for a person about any error. No traceback, no content of a photo."""
    if isinstance(error, UserError):
        return str(error)
    if workspace.is_full(error) or "No space left on device" in str(error):
        return workspace.FULL
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return MEMORY
    if isinstance(error, RuntimeError) and "not enough memory" in str(error):  # torch's allocator on a CPU
        return MEMORY
    return OURS


def _short(event: Event) -> dict[str, Any]:
    """An event without what it leaves at its default: thousands of them are kept."""
    empty = Event(event.kind)
    return {
        name: value for name, value in workspace.plain(event).items() if name == "kind" or value != getattr(empty, name)
    }


def _orphaned() -> bool:
    """Whether the process that had this one launched is gone."""
    parent = os.environ.get(PARENT_ENV)
    return parent is not None and parallel.launched() and _born(int(parent)) is None


def _end_with_parent() -> None:
    """When the process that started us ends, be asked to stop (Linux): a closed app leaves no training behind."""
    parent = os.environ.get(PARENT_ENV)
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # the page stays quick while both cores train
    if sys.platform != "linux" or parallel.launched():  # a launcher stands in between: `_orphaned` looks
        return
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if str(os.getppid()) != parent:  # it was gone before we could ask
        os.kill(os.getpid(), signal.SIGTERM)


def hold(run: Run, until: Callable[[JobStatus], bool], *, timeout_s: float = 60.0) -> JobStatus:
    """Wait until the job's status satisfies `until`; the status then, or the last one when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = status(run)
        if until(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
