"""The worker process: does jobs, and writes their events and their status into the run's folder.

In: a run's folder with spec.json (`work`), a data root with a queue of jobs (`serve`), or one waiting job and a time
limit (`work_slice`). Out: files that `runs.status` reads. `serve` works for one device: one training, and between its
steps the pictures that people ask for meanwhile. `python -m pipelines worker RUN` and `python -m pipelines worker ROOT
--line` call it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.core.control import Control
from pipelines.core.files import (
    FULL,
    Lock,
    append_line,
    jsonable,
    refusal,
    repair_lines,
    sweep_partials,
    timestamp,
    write_json,
)
from pipelines.core.process import birth
from pipelines.core.records import Event, Failed, OutOfMemory, UserError
from pipelines.core.run import Run, data_root, is_run
from pipelines.runs.compare import perform
from pipelines.runs.jobs import LONG, SHORT, STOPPING
from pipelines.runs.ledger import Ledger
from pipelines.runs.prepare import Resident
from pipelines.runs.status import (
    JobStatus,
    leave_asked,
    load_spec,
    me,
    read_status,
    save_status,
    status,
    stop_asked,
)
from pipelines.runs.supervisor import OURS, PARENT_ENV
from pipelines.training import world

STATUS_EVERY_S = 0.5
LOOK_EVERY_S = 0.25  # between two looks at the queue
IDLE_S = 120.0  # a worker without a job waits so long before it ends: loading torch and a base takes seconds
MEMORY = (
    "This machine ran out of memory. Choose fewer pictures at once, a smaller base or a lower quality, then try again."
)


class _Ended:
    """Whether this process has to end: after a signal, or because the process that started it has ended."""

    def __init__(self) -> None:
        self._signalled = False

    def __call__(self) -> bool:
        self._signalled |= _orphaned()
        return self._signalled

    def listen(self) -> None:
        """Stop at SIGTERM and SIGINT. Only the main thread may listen; in others the flag file alone stops the job."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._signalled = True


class _Asked:
    """Whether a job is to stop, and why: a person's flag file, or the end of this process."""

    def __init__(self, run: Run, job: str, ended: Callable[[], bool]) -> None:
        self._run, self._job, self.ended = run, job, ended

    def __call__(self) -> bool:
        return self.ended() or self.by_person

    @property
    def by_person(self) -> bool:
        return stop_asked(self._run, self._job)


def work(run: Run) -> int:
    """Do the job in `run`'s folder in this process; what `python -m pipelines worker RUN` does. Returns an exit code.

    Every outcome is written to status.json, in words. Tracebacks go to worker.log and nowhere else.
    """
    os.umask(0o077)
    if world.launched() and int(os.environ["RANK"]):
        while status(run).state == "queued":  # the first process waits for its turn
            time.sleep(0.2)
        if status(run).state != "running":
            return 0
        for _ in perform(run, load_spec(run)):  # the first process writes the files and says when to stop
            pass
        return 0
    with Lock(run.lock) as lock:
        deadline = time.monotonic() + 10
        while not lock.acquire():
            if time.monotonic() > deadline:
                print("another worker is busy in this run", file=sys.stderr)
                return 1
            time.sleep(0.1)
        found = read_status(run)
        if not found.busy:  # started by hand, not by `start`
            first = repair_lines(run.events)
            found = JobStatus("queued", job=secrets.token_hex(8), first_event=first, started=timestamp())
        ended = _Ended()
        ended.listen()
        one = _Worker(run, found, ended)
        _end_with_parent()
        with contextlib.ExitStack() as held:
            if one.begin():
                _wait_for_turn(one, held)
                while not one.advance():
                    pass
        return one.code


def _wait_for_turn(one: _Worker, held: contextlib.ExitStack) -> None:
    """Wait until no other job of the data root runs: two at once would slow each other down. `held` keeps the lock."""
    root = data_root()
    if one.run.folder.parent != root:
        return  # a run outside the data root waits for nobody
    turn = held.enter_context(Lock(root / TURN))
    told = False
    while not turn.acquire() and not one.asked():
        if not told:
            one.save(phase="Waiting: another job is being worked on")
            told = True
        time.sleep(0.2)


TURN = ".turn"


def serve(root: Path, *, device: str = "", idle_s: float = IDLE_S) -> int:
    """Do the jobs of a data root's queue on one device until none came for `idle_s`; returns an exit code.

    Only one process per device does; a second one ends at once.
    """
    os.umask(0o077)
    ended = _Ended()
    ended.listen()
    _end_with_parent()
    with Lock(root / f".worker-{device.replace(':', '-') or 'best'}") as own:
        return _Desk(root, device, ended).work(idle_s) if own.acquire() else 0


def work_slice(run: Run, *, over: Callable[[], bool]) -> None:
    """Do this run's waiting job in this process until it ends or `over` says so; the rest waits for the next slice.

    For hosts that lend a GPU for a short request at a time (ZeroGPU). What was done is kept and not done again. Each
    slice does at least one step, picture or score more; `JobStatus.kept` counts them.
    """
    line, found = Ledger(run.folder.parent), read_status(run)
    if not found.waits or not line.take_own(found.job, f"{os.getpid()}@{birth(os.getpid())}"):
        return
    with Lock(run.lock) as lock:
        if not lock.acquire():
            line.put(found.job, "queued")
            return
        one = _Worker(run, found, lambda: False, over=over, resident=Resident())
        if one.begin():
            while not one.advance():
                pass
    line.put(one.status.job, one.status.state)


class _Desk:
    """The jobs of one device: at most one long job (a training) and one short job (pictures) at a time.

    Both are generators in one thread, so only one computes at any moment. The one that had less time so far goes on:
    pictures take at most half of a training's time.
    """

    def __init__(self, root: Path, device: str, ended: Callable[[], bool]) -> None:
        self.root, self.device, self.ended = root, device, ended
        self.line = Ledger(root)
        self.resident = Resident()
        self.turn = Lock(root / (TURN if not device else f"{TURN}-{device.replace(':', '-')}"))
        self.busy: list[tuple[_Worker, Lock]] = []
        self.spoiled = False  # after running out of memory or an unknown error: the next job gets a new process
        self._looked = -LOOK_EVERY_S

    def work(self, idle_s: float) -> int:
        with self.turn:
            return self._work(idle_s)

    def _work(self, idle_s: float) -> int:
        since = time.monotonic()
        while True:
            self.look()
            if self.busy:
                since = time.monotonic()
                one, lock = min(self.busy, key=lambda each: each[0].spent_s)
                if one.advance():
                    self.finish(one, lock)
            elif self.ended() or self.spoiled or time.monotonic() - since > idle_s:
                return 0
            else:
                self.turn.release()
                time.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Take a waiting job: a short one where none is being done, then a long one where none is."""
        now = time.monotonic()
        if self.ended() or (self.spoiled and not self.busy) or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        kinds = {one.status.kind for one, _ in self.busy}
        # a spoiled process ends with its long job; until then pictures are drawn all the same
        free = [each for each in ((SHORT,) if self.spoiled else (SHORT, LONG)) if not kinds & set(each)]
        for wanted in free:
            with contextlib.suppress(sqlite3.Error, OSError, UserError):  # as a full disk: the next look tries again
                if any(entry.kind in wanted and entry.state == "queued" for entry in self.line.unfinished()):
                    if not self.turn.acquire():
                        return
                    self.take(wanted)

    def take(self, kinds: Sequence[str]) -> None:
        entry = self.line.take(kinds, f"{os.getpid()}@{birth(os.getpid())}")
        if entry is None:
            return
        run = Run(self.root / entry.run, entry.slot)
        found = read_status(run)
        lock = Lock(run.lock)
        if not is_run(run.folder) or found.job != entry.job or not found.waits:
            self.line.put(entry.job, "cancelled")  # deleted or replaced meanwhile
            return
        if not lock.acquire():  # its last worker is still saving
            self.line.put(entry.job, "queued")
            return
        one = _Worker(run, found, self.ended, resident=self.resident, device=self.device or None)
        one.spent_s = min((each.spent_s for each, _ in self.busy), default=0.0)
        self.busy.append((one, lock))
        if not one.begin():
            self.finish(one, lock)

    def finish(self, one: _Worker, lock: Lock) -> None:
        self.busy = [each for each in self.busy if each[0] is not one]
        self.spoiled |= one.spoiled
        lock.release()
        with contextlib.suppress(sqlite3.Error, OSError, UserError):  # the run's folder has it
            self.line.put(one.status.job, one.status.state)


class _Worker:
    """One running job: advances it event by event, and writes its events and its status."""

    def __init__(
        self,
        run: Run,
        found: JobStatus,
        ended: Callable[[], bool],
        *,
        over: Callable[[], bool] = lambda: False,
        resident: Resident | None = None,
        device: str | None = None,
    ) -> None:
        self.run, self.status = run, found
        self.asked = _Asked(run, found.job, ended)
        self.code, self.spoiled, self.spent_s = 0, False, 0.0
        self._control = Control(stop=self.asked, leave=lambda name: leave_asked(run, name), over=over)
        self._resident, self._device = resident, device
        self._kept_before = found.kept
        self._since = self._written = self._event_at = time.monotonic()
        self._last: Event | None = None
        self._left: dict[str, float] = {}  # method -> seconds it still needs
        self._events: Iterator[Event] = iter(())

    def begin(self) -> bool:
        """Read the spec and prepare the job; False when that failed."""
        try:
            write_json(self.run.worker, me(self.status.job))
            sweep_partials(self.run.folder)
            spec = load_spec(self.run)
            self.save(kind=spec.kind, phase="Starting", state="running" if self._resident else self.status.state)
            if self._device and spec.device is None:
                spec = replace(spec, device=self._device)
            self._events = perform(self.run, spec, control=self._control, resident=self._resident)
        except Exception as error:
            self._fail(error)
            return False
        return True

    def advance(self) -> bool:
        """Work until the next event; True when the job has ended."""
        since = time.monotonic()
        try:
            if self.status.state != "running":
                self.save(state="running")
            event = next(self._events, None)
            if event is None:
                self._end()
                return True
            self._last = event
            self.tell(event)
        except Exception as error:
            self._fail(error)
            return True
        finally:
            self.spent_s += time.monotonic() - since
        return False

    def _end(self) -> None:
        last = self._last
        if last is not None and last.kind == "done":
            self.save(state="done", phase=None, left_s=None, ended=timestamp())
        elif self._control.paused() and not self.asked():
            self.save(state="queued", phase="Waiting for the next slice of the GPU")
        elif self.asked.ended() and not self.asked.by_person and self._resident and _parent_lives():
            # this process was told to end because its other job did not stop: the next process continues this job
            self.save(state="queued", phase="Waiting for its turn")
        elif self.asked.ended() and not self.asked.by_person:
            reason = "The app was closed. Start again; it continues where it was."
            if world.launched() and not _orphaned():
                reason = "Another of its processes ended. Start again; it continues where it was."
            self.save(state="interrupted", reason=reason, phase=None, left_s=None, ended=timestamp())
        else:
            said = last.text if last is not None and last.kind == "stopped" else None
            self.save(state="cancelled", reason=said, phase=None, left_s=None, ended=timestamp())

    def tell(self, event: Event) -> None:
        """Write one event; the status too when the phase is new or every `STATUS_EVERY_S`."""
        now = time.monotonic()
        pace, self._event_at = now - self._event_at, now
        append_line(self.run.events, short(event))
        changes: dict[str, Any] = {}
        changes["pace_s"] = round(max(self.status.pace_s, pace), 3)
        if event.kind == "step":
            if event.method and event.seconds_left is not None:
                self._left[event.method] = event.seconds_left
        elif event.kind in ("done", "stopped", "failed") and event.method:
            self._left.pop(event.method, None)
            self.spoiled |= event.data == Failed(out_of_memory=True)  # the next job gets a new process
        changes["left_s"] = round(sum(self._left.values()), 1) if self._left else None
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
        from pipelines.core.device import peak_memory_mb

        self._written = time.monotonic()
        wall = round(self._written - self._since, 3)
        changes["kept"] = self._kept_before + self._control.kept
        self.status = replace(self.status, wall_s=wall, peak_mem_mb=round(peak_memory_mb(), 1), **changes)
        save_status(self.run, self.status)

    def _fail(self, error: Exception) -> None:
        sentence = explain(error)
        self.code = 1
        self.spoiled |= sentence in (OURS, FULL) or _out_of_memory(error)
        with contextlib.suppress(OSError):
            with self.run.log.open("a", encoding="utf-8") as log:
                log.write(f"{timestamp()} job {self.status.job} failed\n")
                log.write("".join(traceback.format_exception(error)))
            self.run.log.chmod(0o600)
        # on a full disk the event may not fit; the status is tried as well
        with contextlib.suppress(OSError, UserError):
            append_line(self.run.events, short(Event("failed", text=sentence)))
        try:
            self.save(state="failed", reason=sentence, phase=None, left_s=None, ended=timestamp())
        except (OSError, UserError):
            self.spoiled = True  # when this process is gone, `status` finds that the job has ended


def explain(error: BaseException) -> str:
    """One sentence for a person about any error. No traceback, no content of a photo."""
    if isinstance(error, UserError):
        return str(error)
    if "No space left on device" in str(error):
        return FULL
    if sentence := refusal(error):
        return sentence
    return MEMORY if _out_of_memory(error) else OURS


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)  # torch's allocator on a CPU


def short(event: Event) -> dict[str, object]:
    """An event as JSON, without fields at their default: events.jsonl holds thousands."""
    empty = Event(event.kind)
    return {name: value for name, value in jsonable(event).items() if name == "kind" or value != getattr(empty, name)}


def _orphaned() -> bool:
    """Whether a launcher started this process, and the process that started the launcher has ended."""
    parent = os.environ.get(PARENT_ENV)
    return parent is not None and world.launched() and birth(int(parent)) is None


def _parent_lives() -> bool:
    """Whether the process that started this one still runs, so that it can start another."""
    return str(os.getppid()) == os.environ.get(PARENT_ENV)


def _end_with_parent() -> None:
    """Get SIGTERM when the process that started this one ends (Linux): closing the app also ends its trainings."""
    parent = os.environ.get(PARENT_ENV)
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # below the app, so that the page stays quick
    if sys.platform != "linux" or world.launched():  # the parent is the launcher: `_orphaned` looks instead
        return
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if str(os.getppid()) != parent:  # it had ended before prctl was called
        os.kill(os.getpid(), signal.SIGTERM)
