"""One slice of a job, for hosts that lend a GPU for a short request at a time: when to leave the rest for the next one.

In: whether the host's time is over. Out: `Slice`, which the work asks between two steps or pictures, and tells what it
kept. A slice is never left before something was kept that the next one does not do again: however short slices are,
each brings the job further, and whoever drives them can tell one that did not.
"""

from __future__ import annotations

from collections.abc import Callable


class Slice:
    """Asked "leave now?" by calling it. The default is a slice without an end: a job in one go."""

    def __init__(self, over: Callable[[], bool] = lambda: False) -> None:
        self._over, self._leaves = over, False
        self.kept = 0  # steps, pictures, scores and the like that are done for good

    def __call__(self) -> bool:
        over = self._over()
        self._leaves |= over and self.kept > 0  # once said it holds: what was left half done is not gone on with
        return self._leaves

    def keep(self) -> None:
        """One more step, picture or score is on disk, or will be before the slice is left."""
        self.kept += 1
