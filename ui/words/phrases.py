"""Names, amounts and durations in the reader's language, as plain text.

In: numbers and ids. Out: short texts, not escaped. Try it: `duration(100)` gives "1 min 40 s".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipelines.reports.figures import titled
from ui.words.words import tell

if TYPE_CHECKING:
    pass
from ui.run.cards import Shot


def named(method: str) -> str:
    return titled(method, tell)


def called(shot: Shot) -> str:
    """A picture's name: who drew it, and from which seed."""
    return tell("{method}, seed {seed}", method=named(shot.method), seed=shot.seed)


def pictures(count: int) -> str:
    return tell("1 picture") if count == 1 else tell("{count} pictures", count=count)


def duration(seconds: float | None) -> str:
    """5 -> "5 s", 100 -> "1 min 40 s", 4000 -> "1 h 7 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def waiting(ahead: int, seconds: float | None) -> str:
    """Where a waiting job stands, in words; "" when none is before it."""
    if not ahead:
        return ""
    if ahead == 1:
        place = tell("Waiting: one job is before yours.")
    else:
        place = tell("Waiting: {count} jobs are before yours.", count=ahead)
    when = tell("Its turn comes in about {time}.", time=duration(seconds)) if seconds is not None else ""
    return f"{place} {when}".rstrip()


def rounded(seconds: float) -> float:
    """An estimate as exact as it deserves: to 10 seconds below 5 minutes, else to the minute."""
    grain = 10 if seconds < 300 else 60
    return max(grain, grain * round(seconds / grain))


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def amount(size_bytes: float | None) -> str:
    """2100 -> "2.1 kB", 430000 -> "0.43 MB"."""
    if size_bytes is None:
        return "–"
    return f"{size_bytes / 1e3:.3g} kB" if size_bytes < 1e5 else f"{size_bytes / 1e6:.3g} MB"


def look(prompt: str) -> str:
    """What a prompt says beyond whom it shows."""
    return prompt.rpartition("{subject}")[2].lstrip(" ,") or prompt.replace("{subject}", "...")


def span(low: float, high: float) -> str:
    """An interval of shares."""
    return tell("{low} to {high}", low=f"{low:.0%}", high=f"{high:.0%}")
