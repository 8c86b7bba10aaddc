"""The supervisor: the one thread of a process that starts worker processes, and updates jobs whose worker died.

In: a run that gets a worker of its own, or a data root whose queue is to be done. Out: worker processes; a queue that
agrees with the runs' folders. Light: no torch. Try it: `watch(root)`, then `enqueue` jobs below `root`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.core.files import REPOSITORY, read_json, timestamp
from pipelines.core.process import lives
from pipelines.core.records import UserError
from pipelines.core.run import Run, all_runs, sweep_forgotten
from pipelines.runs.ledger import WAITING, WORKING, Entry, Ledger
from pipelines.runs.status import load_spec, read_status, save_status, status, stop_asked
from pipelines.training import world

DEVICES_ENV = "LIKENESS_DEVICES"  # "cuda:0,cuda:1": one worker process each; empty: one, on the best device here
BROKEN_STARTS = 3  # worker processes in a row that end without taking a job
OURS = "Something went wrong on our side; the details are in the run's worker.log. Photos and results so far are kept."
PARENT_ENV = "LIKENESS_PARENT"


def devices() -> tuple[str, ...]:
    """The devices that get a worker process each; ("",) is one process on the best device."""
    named = [each.strip() for each in os.environ.get(DEVICES_ENV, "").split(",")]
    return tuple(dict.fromkeys(each for each in named if each)) or ("",)


def watch(root: Path) -> None:
    """From now on, as long as this process runs, start a worker whenever jobs wait in the queue of `root`."""
    supervisor().watch(root.resolve())


def recover(root: Path) -> None:
    """Rebuild the queue of `root` from the runs' folders, after a restart or where its file was lost. Jobs that waited
    wait again; those whose worker is gone become interrupted or failed. Interrupted removals of runs are finished.
    """
    sweep_forgotten(root)
    found, looked = [], time.time()
    for run in all_runs(root):
        for slot in (run, run.drawing):
            with contextlib.suppress(UserError):  # a damaged run is left out
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
    """The process that took a job, "pid@born" as in `Entry.worker`; None when it is another job's."""
    found = read_json(run.worker) or {}
    return f"{found.get('pid')}@{found.get('born')}" if found.get("job") == job else None


@dataclass
class Post:
    """The worker process of one device of one root."""

    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    broken: int = 0  # processes in a row that ended at once


class Supervisor(threading.Thread):
    """The one thread that starts workers. It runs as long as this process: Linux tells a worker that its parent died
    when the *thread* that started it ends, and a web server's handler threads end sooner."""

    def __init__(self) -> None:
        super().__init__(name="likeness-supervisor", daemon=True)
        self._wanted: queue.SimpleQueue[tuple[Run | Path, queue.SimpleQueue[int | OSError | UserError]]] = (
            queue.SimpleQueue()
        )
        self._posts: dict[tuple[Path, str], Post] = {}

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
            children = [child for child in children if child.poll() is None]  # poll() also removes a zombie process
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
                        self._posts.setdefault((wanted, device), Post())
            for (root, device), post in self._posts.items():
                with contextlib.suppress(OSError, UserError, sqlite3.Error):  # as a full disk: again in a second
                    self._man(root, device, post)

    def _man(self, root: Path, device: str, post: Post) -> None:
        """Start the worker of one device when jobs wait and it does not run."""
        if post.process is not None and post.process.poll() is None:
            return
        ended, post.process = post.process, None
        if not root.is_dir():
            return
        line = Ledger(root)
        if line.is_new():  # the file was damaged or deleted while jobs waited
            recover(root)
        take_back(root, line)
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
                    replace(read_status(first), state="failed", reason=OURS, phase=None, ended=timestamp()),
                )
            post.broken = 0
            return
        if time.monotonic() - post.since < 3 * post.broken:
            return
        post.process, post.since = _spawn(world.line_command(root, device), root / "worker.log"), time.monotonic()


def take_back(root: Path, line: Ledger) -> None:
    """Update jobs whose worker process died: they have ended. A job whose worker was killed because its other job did
    not stop waits for the next worker.
    """
    left = [entry for entry in line.unfinished() if entry.state == WORKING and not _holds(entry)]
    forced = {entry.worker for entry in left if stop_asked(Run(root / entry.run, entry.slot), entry.job)}
    for entry in left:
        with contextlib.suppress(UserError):  # a damaged run is left out
            run = Run(root / entry.run, entry.slot)
            now = status(run)
            if now.job == entry.job and not now.busy and read_status(run).busy:
                if entry.worker in forced and now.state == "interrupted":
                    now = replace(now, state="queued", reason=None, phase="Waiting for its turn")
                save_status(run, now)  # now: the signs of why it ended do not last
            line.put(entry.job, WAITING if now.waits and now.job == entry.job else now.state)


def _holds(entry: Entry) -> bool:
    """Whether the process that took this job still runs."""
    pid, _, born = (entry.worker or "").partition("@")
    return pid.isdigit() and lives(int(pid), born)


_only = threading.Lock()
_running: Supervisor | None = None


def supervisor() -> Supervisor:
    global _running
    with _only:
        if _running is None or not _running.is_alive():
            _running = Supervisor()
            _running.start()
        return _running


def _spawn(command: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    package_parent = str(REPOSITORY)
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
