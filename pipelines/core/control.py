"""How a running job learns that it has to stop, to pause or to go on without a method; and a clock of its work.

In: functions that answer this (from a flag file, a signal, a host's time limit). Out: a `Control`, which every stage of
a job gets. A stage asks it between two steps, pictures or scores, and calls `keep` after each. Light: no torch.
Try it: `perform(run, spec, control=Control(stop=lambda: True))` ends with "stopped" before anything is loaded.

A slice is one short request to a host that lends a GPU; `over` says that its time is up. A stage pauses only after it
has kept at least one step, picture or score, so that every slice brings the job further.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.core.files import read_json, write_json
from pipelines.core.records import UserError

SAVE_EVERY_S = 3.0  # how often a stage saves what would be lost if the process were killed
STOPPED = "Stopped. What was learned so far is kept; start again to continue."


class Stopped(Exception):
    """A person asked to stop, or the slice is over. What was done so far is saved."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Clock:
    """Counts the seconds of work in all sessions of a job. With `file` they are saved there, in case it is killed.

    `key` names the work: seconds that the file holds for another key are ignored.
    """

    def __init__(self, file: Path | None = None, key: str = "") -> None:
        self._file, self._key = file, key
        saved = (read_json(file) or {}) if file is not None else {}
        self.before = float(saved["wall_s"]) if saved.get("key") == key else 0.0  # seconds of earlier sessions
        self._spent, self._since = 0.0, time.monotonic()
        self._saved = self._since

    def start(self) -> None:
        """Count again, after `pause`."""
        self._since = time.monotonic()

    def pause(self) -> None:
        """Stop counting until `start`."""
        self._spent += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """The seconds so far, earlier sessions included. Only for a running clock, not between `pause` and `start`."""
        return self.before + self._spent + time.monotonic() - self._since

    def save(self, *, every_s: float = 0.0) -> bool:
        """Write the file when `every_s` seconds have passed since the last time; returns whether they have."""
        if time.monotonic() - self._saved < every_s:
            return False
        if self._file is not None:
            with contextlib.suppress(OSError, UserError):
                write_json(self._file, {"key": self._key, "wall_s": round(self.seconds, 3)})
        self._saved = time.monotonic()
        return True


class Control:
    """Tells the stages of a job when to stop, pause or leave a method. The default never does."""

    def __init__(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        leave: Callable[[str], bool] = lambda method: False,
        over: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
    ) -> None:
        self._stop, self._leave, self._over = stop, leave, over
        self._paused = False
        self.kept = 0  # how many steps, pictures, scores and the like are saved
        self.clock = clock or Clock()  # of the whole job

    def stopped(self, method: str | None = None) -> bool:
        """True when a person asked to stop the job, or this `method` of it: save what was learned, then end."""
        return self._stop() or (method is not None and self._leave(method))

    def left(self, method: str) -> bool:
        """True when a person asked to go on without this method."""
        return self._leave(method)

    def paused(self) -> bool:
        """True when the slice is over: save only what continuing needs. Once True it stays True."""
        over = self._over()
        self._paused |= over and self.kept > 0
        return self._paused

    def ended(self, method: str | None = None) -> bool:
        """`stopped` or `paused`."""
        return self.stopped(method) or self.paused()

    def keep(self) -> None:
        """Count one more step, picture or score that is on disk, or will be before the slice ends."""
        self.kept += 1

    def check(self, together: Callable[[bool], bool] = bool) -> None:
        """Raises Stopped when the work has to end. `together` lets processes that teach together stop as one."""
        if self.paused() or together(self.stopped()):
            raise Stopped
