"""The job queue of one data root: which jobs wait, in which order, and which are being worked on.

In: accepted jobs. Out: the next job to do, and all unfinished ones in order. It is an SQLite file (WAL) and only an
index: the files in the runs' folders decide, and `Ledger.rebuild` fills the index from them. A damaged or missing file
is replaced by an empty one; `Ledger.is_new` is true until it is rebuilt. Light: no torch.
Try it: `print(Ledger(root).unfinished())`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.files import FULL
from pipelines.core.records import UserError
from pipelines.core.run import Run

FILE = "jobs.sqlite3"
WAITING, WORKING = "queued", "running"
REBUILT = 1  # SQLite's user_version after `rebuild`; a new file has 0
LAYOUT = """
CREATE TABLE IF NOT EXISTS jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL UNIQUE,
    run TEXT NOT NULL,
    slot TEXT NOT NULL,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    estimate_s REAL,
    queued REAL NOT NULL,
    worker TEXT
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, place);
"""
COLUMNS = "place, job, run, slot, owner, kind, state, estimate_s, worker"


@dataclass(frozen=True)
class Entry:
    """One job of the queue."""

    place: int  # counts up with every job that was accepted
    job: str
    run: str  # name of the run's folder
    slot: str
    owner: str  # whose job it is: a visitor's hashed capability
    kind: str
    state: str
    estimate_s: float | None = None  # how long it takes; None: not known
    worker: str | None = None  # "pid@born" of the process that took it


class Ledger:
    """The index in `root`. Every operation is one transaction; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / FILE

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Raises UserError when the disk is full, and for a damaged file, which is deleted: the next call makes one."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            connection = self._connect()
        except sqlite3.OperationalError as error:  # locked, disk full or no permission: the file is not damaged
            raise _told(error) from error
        except sqlite3.DatabaseError:
            self._discard()
            connection = self._connect()
        try:
            with connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise _told(error) from error
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            self._discard()
            raise UserError("The list of waiting jobs was damaged and is made anew. Try again.") from error
        finally:
            connection.close()

    def _discard(self) -> None:
        for stale in (self.file, *(self.file.with_name(FILE + end) for end in ("-wal", "-shm"))):
            stale.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=10.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'jobs'").fetchone()[0] == 0:
                connection.executescript(LAYOUT)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    # ------------------------------------------------------------------------------------------------- writing

    def add(self, run: Run, *, job: str, owner: str, kind: str, estimate_s: float | None, limit: int) -> Entry:
        """Put a job at the end of the queue. Raises UserError when `limit` jobs wait already."""
        with self._connected() as line:
            line.execute("BEGIN IMMEDIATE")
            waiting = line.execute("SELECT count(*) FROM jobs WHERE state = ?", (WAITING,)).fetchone()[0]
            if waiting >= limit:
                raise UserError(
                    f"{waiting} jobs are waiting already, and this machine takes no more. Come back in a while."
                )
            values = (job, run.id, run.slot, owner, kind, WAITING, estimate_s, time.time())
            found = line.execute(
                # `rebuild` may have added this job from its folder already
                "INSERT OR REPLACE INTO jobs (job, run, slot, owner, kind, state, estimate_s, queued) "
                f"VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING {COLUMNS}",
                values,
            ).fetchone()
            return Entry(*found)

    def take(self, kinds: Sequence[str], worker: str) -> Entry | None:
        """Mark the first waiting job of one of these kinds as taken by `worker`, and return it; None without one."""
        with self._connected() as line:
            marks = ", ".join("?" * len(kinds))
            found = line.execute(
                f"UPDATE jobs SET state = ?, worker = ? WHERE place = (SELECT place FROM jobs WHERE state = ? AND kind "
                f"IN ({marks}) ORDER BY place LIMIT 1) AND state = ? RETURNING {COLUMNS}",
                (WORKING, worker, WAITING, *kinds, WAITING),
            ).fetchone()
            return Entry(*found) if found else None

    def take_own(self, job: str, worker: str) -> bool:
        """Mark this job as taken, wherever it stands in the queue; False when it is not waiting."""
        with self._connected() as line:
            found = line.execute(
                "UPDATE jobs SET state = ?, worker = ? WHERE job = ? AND state = ?", (WORKING, worker, job, WAITING)
            )
            return found.rowcount > 0

    def put(self, job: str, state: str) -> None:
        """Set the state of a job."""
        with self._connected() as line:
            line.execute("UPDATE jobs SET state = ? WHERE job = ?", (state, job))

    def withdraw(self, job: str, state: str) -> bool:
        """Give a job that still waits its last `state`; False when it is not waiting."""
        with self._connected() as line:
            found = line.execute("UPDATE jobs SET state = ? WHERE job = ? AND state = ?", (state, job, WAITING))
            return found.rowcount > 0

    def forget(self, run: str) -> None:
        """Delete all jobs of a run."""
        with self._connected() as line:
            line.execute("DELETE FROM jobs WHERE run = ?", (run,))

    def rebuild(self, entries: Sequence[Entry], *, looked: float) -> None:
        """Fill the index from `entries`, in their order; `Entry.place` is ignored.

        `looked`: when the folders were read, in seconds since the epoch; a job that was added later stays.
        """
        with self._connected() as line:
            line.execute("BEGIN IMMEDIATE")
            line.execute("DELETE FROM jobs WHERE queued < ?", (looked,))
            line.executemany(
                "INSERT OR IGNORE INTO jobs (job, run, slot, owner, kind, state, estimate_s, worker, queued) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (one.job, one.run, one.slot, one.owner, one.kind, one.state, one.estimate_s, one.worker, looked)
                    for one in entries
                ],
            )
            line.execute(f"PRAGMA user_version = {REBUILT}")

    # ------------------------------------------------------------------------------------------------- reading

    def is_new(self) -> bool:
        """True from when the file is made until `rebuild` has filled it."""
        with self._connected() as line:
            return bool(line.execute("PRAGMA user_version").fetchone()[0] != REBUILT)

    def unfinished(self) -> list[Entry]:
        """Jobs that wait or are being worked on, oldest first."""
        with self._connected() as line:
            rows = line.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN (?, ?) ORDER BY place", (WAITING, WORKING)
            ).fetchall()
            return [Entry(*row) for row in rows]


def _told(error: sqlite3.OperationalError) -> Exception:
    return UserError(FULL) if "full" in str(error) else error
