"""The line of jobs of one data root: who waits, in which order, and who is being worked on.

In: jobs that were accepted. Out: the next one to do, a place in the line, how many one visitor has. It is an SQLite
file (WAL) and only an index: the runs' folders are the truth, and `Ledger.rebuild` makes it anew from them. A file that
is damaged or gone is replaced by an empty one, and `Ledger.is_new` until it is rebuilt. Light: no torch.
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
REBUILT = 1  # the file's own version number, once it holds what the folders say
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
    """One job of the line."""

    place: int  # counts up with every job that was accepted
    job: str
    run: str  # name of the run's folder
    slot: str
    owner: str  # whose job it is: a visitor's hashed capability
    kind: str
    state: str
    estimate_s: float | None = None  # how long it takes, where that is known
    worker: str | None = None  # "pid@born" of the process that took it


class Ledger:
    """The index in `root`. Every operation is one transaction; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / FILE

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Raises UserError on a full disk, and where the file turns out to be damaged: the next call has a new one."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            connection = self._connect()
        except sqlite3.OperationalError as error:  # busy, full or not permitted: nothing is wrong with it
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
        """Put a job at the end of the line. Raises UserError when `limit` jobs wait already."""
        with self._connected() as line:
            line.execute("BEGIN IMMEDIATE")
            waiting = line.execute("SELECT count(*) FROM jobs WHERE state = ?", (WAITING,)).fetchone()[0]
            if waiting >= limit:
                raise UserError(
                    f"{waiting} jobs are waiting already, and this machine takes no more. Come back in a while."
                )
            values = (job, run.id, run.slot, owner, kind, WAITING, estimate_s, time.time())
            found = line.execute(
                # a rebuilding of the line may have found it in its folder already
                "INSERT OR REPLACE INTO jobs (job, run, slot, owner, kind, state, estimate_s, queued) "
                f"VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING {COLUMNS}",
                values,
            ).fetchone()
            return Entry(*found)

    def take(self, kinds: Sequence[str], worker: str) -> Entry | None:
        """The first waiting job of one of these kinds; from now on it is `worker`'s."""
        with self._connected() as line:
            marks = ", ".join("?" * len(kinds))
            found = line.execute(
                f"UPDATE jobs SET state = ?, worker = ? WHERE place = (SELECT place FROM jobs WHERE state = ? AND kind "
                f"IN ({marks}) ORDER BY place LIMIT 1) AND state = ? RETURNING {COLUMNS}",
                (WORKING, worker, WAITING, *kinds, WAITING),
            ).fetchone()
            return Entry(*found) if found else None

    def take_own(self, job: str, worker: str) -> bool:
        """Take this very job out of its turn; False when it does not wait."""
        with self._connected() as line:
            found = line.execute(
                "UPDATE jobs SET state = ?, worker = ? WHERE job = ? AND state = ?", (WORKING, worker, job, WAITING)
            )
            return found.rowcount > 0

    def put(self, job: str, state: str) -> None:
        """Note how a job stands now."""
        with self._connected() as line:
            line.execute("UPDATE jobs SET state = ? WHERE job = ?", (state, job))

    def withdraw(self, job: str, state: str) -> bool:
        """End a job that still waits; False when it is not waiting (any more)."""
        with self._connected() as line:
            found = line.execute("UPDATE jobs SET state = ? WHERE job = ? AND state = ?", (state, job, WAITING))
            return found.rowcount > 0

    def forget(self, run: str) -> None:
        """Nothing about a run that is gone is kept."""
        with self._connected() as line:
            line.execute("DELETE FROM jobs WHERE run = ?", (run,))

    def rebuild(self, entries: Sequence[Entry], *, looked: float) -> None:
        """Make the index anew from `entries`, in their order (their places are not looked at).

        `looked`: when the folders were read, in seconds since the epoch; a job that came later stays.
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
        """Whether the file was made, or made again, and nobody has filled it from the folders since."""
        with self._connected() as line:
            return bool(line.execute("PRAGMA user_version").fetchone()[0] != REBUILT)

    def unfinished(self) -> list[Entry]:
        """Jobs that wait or are being worked on, first come first."""
        with self._connected() as line:
            rows = line.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN (?, ?) ORDER BY place", (WAITING, WORKING)
            ).fetchall()
            return [Entry(*row) for row in rows]


def _told(error: sqlite3.OperationalError) -> Exception:
    return UserError(FULL) if "full" in str(error) else error
