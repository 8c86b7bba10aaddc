"""What is handed through every stage of a job: whether to stop, to leave a method or to pause, and how long it took.

In: questions that somebody else answers (a flag file, a signal, a host's time). Out: a `Control`. Stages ask it between
two steps, pictures or scores, and tell it what they kept. Light: no torch.
Try it: `perform(run, spec, control=Control(stop=lambda: True))` ends with "stopped" before anything is loaded.

A slice is one short request of a host that lends a GPU (`over`). It is never left before something was kept that the
next slice does not do again: however short slices are, each brings the job further.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.core.files import read_json, write_json
from pipelines.core.records import UserError

SAVE_EVERY_S = 3.0  # how often a stage saves what it can't afford to lose to a kill
STOPPED = "Stopped. What was learned so far is kept; start again to continue."


class Stopped(Exception):
    """A person asked to stop, or the slice is over. What was done so far is saved."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Clock:
    """Seconds of work over all sessions of it. With a `file` they are kept there, so that a kill loses little.

    `key` names the work: seconds in the file that belong to other work count nothing.
    """

    def __init__(self, file: Path | None = None, key: str = "") -> None:
        self._file, self._key = file, key
        saved = (read_json(file) or {}) if file is not None else {}
        self.before = float(saved["wall_s"]) if saved.get("key") == key else 0.0  # seconds of earlier sessions
        self._spent, self._since = 0.0, time.monotonic()
        self._saved = self._since

    def start(self) -> None:
        """Go on counting after `pause`."""
        self._since = time.monotonic()

    def pause(self) -> None:
        """What follows is other work."""
        self._spent += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Valid while the clock runs."""
        return self.before + self._spent + time.monotonic() - self._since

    def save(self, *, every_s: float = 0.0) -> bool:
        """True when at least `every_s` seconds have passed since the last save; then the file is written."""
        if time.monotonic() - self._saved < every_s:
            return False
        if self._file is not None:
            with contextlib.suppress(OSError, UserError):
                write_json(self._file, {"key": self._key, "wall_s": round(self.seconds, 3)})
        self._saved = time.monotonic()
        return True


class Control:
    """How whoever started a job steers it. The default never stops."""

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
        self.kept = 0  # steps, pictures, scores and the like that are done for good
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
        """One more step, picture or score is on disk, or will be before the slice is left."""
        self.kept += 1

    def check(self, together: Callable[[bool], bool] = bool) -> None:
        """Raises Stopped when the work has to end. `together` lets processes that teach together stop as one."""
        if self.paused() or together(self.stopped()):
            raise Stopped
