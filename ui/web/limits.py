"""How much one visitor may ask for at once, so that the others are still served.

In: who asks (the browser's cookie, and the address it comes from) and for what. Out: nothing, or `TooMuch` with a
sentence that says when to come back. The numbers are environment variables (see `Allowance`; 0 = no limit). They
stop accidents and lazy floods; against somebody with many addresses a proxy in front has to help.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from pipelines.core.records import UserError
from ui.web.visitors import Visitor

ONE_ADDRESS = 8  # a household or an office behind one address gets this many visitors' worth
EVENT_KEPT_S = 300.0  # an event whose page never asked for its answer counts this long
REMEMBERED = 20_000  # browsers and addresses


class Refused(Exception):
    """`str()` is a sentence for the visitor, `status` the answer's code, `seconds` when to come back (0 = no use)."""

    def __init__(self, sentence: str, *, status: int = 403, seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.seconds = status, math.ceil(seconds)


class TooMuch(Refused):
    def __init__(self, sentence: str, *, seconds: float) -> None:
        super().__init__(sentence, status=429, seconds=seconds)


@dataclass(frozen=True)
class Allowance:
    """Of one browser. Each is set by LIKENESS_<NAME IN CAPITALS>."""

    max_waiting: int = 10  # queued events whose answer has not come
    max_in_flight: int = 16  # events being answered at this moment
    max_reads: int = 100  # pages and files being sent at this moment
    max_streams: int = 40  # open event streams: two a tab
    max_uploads: int = 4  # uploads under way
    max_votes: int = 4  # pages of a blind vote being made
    max_files: int = 1000  # uploaded and not yet taken in
    events_per_minute: int = 240  # queued events
    requests_per_minute: int = 2000  # everything else: pages, files, the timer
    upload_mb_per_hour: int = 1000

    @classmethod
    def from_environment(cls) -> Allowance:
        found = {}
        for field in fields(cls):
            name = f"LIKENESS_{field.name.upper()}"
            said = os.environ.get(name)
            if said:
                if not said.isascii() or not said.isdigit():
                    raise SystemExit(f"{name} must be a whole number, such as {field.default}; 0 means no limit.")
                found[field.name] = int(said)
        return cls(**found)

    @property
    def queue_size(self) -> int | None:
        """How many events may wait in all: far more than one address may have waiting."""
        return 10 * ONE_ADDRESS * self.max_waiting or None


class Limits:
    """Counts. A visitor is a browser and its address; the address may do `ONE_ADDRESS` times as much."""

    def __init__(self, allowance: Allowance | None = None) -> None:
        self.allowance = allowance or Allowance.from_environment()
        self._lock = threading.Lock()
        self._held: Counter[tuple[str, str]] = Counter()  # (kind, party)
        # kind, browsers or addresses -> party -> left, when. Apart, because names of browsers can be made up.
        self._left: defaultdict[tuple[str, str], OrderedDict[str, tuple[float, float]]] = defaultdict(OrderedDict)
        self._waiting: OrderedDict[str, dict[str, tuple[float, str]]] = OrderedDict()  # party -> event -> when, page

    @contextlib.contextmanager
    def hold(self, kind: str, visitor: Visitor) -> Iterator[None]:
        """One more "in_flight", "reads", "streams", "uploads" or "votes" for as long as the block lasts."""
        most = int(getattr(self.allowance, f"max_{kind}"))
        keys = [((kind, who), most * factor) for who, factor in parties(visitor)]
        with self._lock:
            if most and any(self._held[key] >= limit for key, limit in keys):
                raise TooMuch(
                    "You have too many requests open here. Close other tabs of this page, then try again.", seconds=5
                )
            self._held.update(key for key, _ in keys)
        try:
            yield
        finally:
            with self._lock:
                for key, _ in keys:
                    self._held[key] -= 1
                    if not self._held[key]:
                        del self._held[key]

    def require_upload(self, visitor: Visitor, size: int) -> None:
        """Raise Refused when an upload of `size` bytes is more than is left. It costs nothing until bytes come."""
        allowed = self.allowance.upload_mb_per_hour
        if allowed and size > allowed * 1_000_000:
            raise Refused(f"One upload may have {allowed:,} MB. Send fewer or smaller photos.", status=413)
        self._spend("upload", visitor, size, allowed * 1_000_000, 3600.0, spend=False)

    def spend_upload(self, visitor: Visitor, size: int) -> None:
        """`size` more bytes have come."""
        self._spend("upload", visitor, size, self.allowance.upload_mb_per_hour * 1_000_000, 3600.0)

    def spend_request(self, visitor: Visitor, cost: int = 1) -> None:
        """A page, a file, a tick of the timer."""
        self._spend("request", visitor, cost, self.allowance.requests_per_minute, 60.0)

    def spend_event(self, visitor: Visitor, page: str = "") -> str:
        """Count a queued event before it is let in. Returns the name it has until `asked` gives it its own."""
        self._spend("event", visitor, 1, self.allowance.events_per_minute, 60.0)
        most = self.allowance.max_waiting
        now, ticket = time.monotonic(), secrets.token_hex(8)
        with self._lock:
            for who, factor in parties(visitor):
                waiting = self._waiting.get(who, {})
                for event in [event for event, (since, _) in waiting.items() if now - since > EVENT_KEPT_S]:
                    del waiting[event]
                if most and len(waiting) >= most * factor:
                    raise TooMuch(
                        f"{len(waiting)} things you asked for are still being worked on. Wait until one is done, then "
                        "try again.",
                        seconds=5,
                    )
            self._wait(visitor, ticket, now, page)
        return ticket

    def asked(self, visitor: Visitor, ticket: str, event: str, page: str) -> None:
        """An event was let in, under this id."""
        with self._lock:
            for who, _ in parties(visitor):
                self._waiting.get(who, {}).pop(ticket, None)
            self._wait(visitor, event, time.monotonic(), page)

    def waits(self, visitor: Visitor, event: str) -> bool:
        """Whether this is an event of this browser's whose answer has not come."""
        with self._lock:
            return bool(visitor.browser) and event in self._waiting.get(f"browser {visitor.browser}", {})

    def _wait(self, visitor: Visitor, event: str, since: float, page: str) -> None:
        for who, _ in parties(visitor):
            self._waiting.setdefault(who, {})[event] = (since, page)
            self._waiting.move_to_end(who)
        while len(self._waiting) > REMEMBERED:
            self._waiting.popitem(last=False)

    def answered(self, visitor: Visitor, *, event: str | None = None, page: str | None = None) -> None:
        """An event has its answer, or its page is gone and Gradio has dropped what it waited for."""
        with self._lock:
            for who, _ in parties(visitor):
                waiting = self._waiting.get(who, {})
                for name in [name for name, (_, of) in waiting.items() if name == event or of == page]:
                    del waiting[name]
                if not waiting:
                    self._waiting.pop(who, None)

    def _spend(self, kind: str, visitor: Visitor, cost: int, allowed: int, per_s: float, *, spend: bool = True) -> None:
        """Take `cost` out of what is left of the `allowed` in `per_s` seconds; what was taken comes back evenly."""
        if not allowed:
            return
        now = time.monotonic()
        with self._lock:
            levels = {}
            for who, factor in parties(visitor):
                most = float(allowed * factor)
                known = self._left[kind, who.partition(" ")[0]]
                left, since = known.get(who, (most, now))
                left = min(most, left + (now - since) * most / per_s)
                if left < cost:
                    wait_s = (cost - left) * per_s / most
                    raise TooMuch(
                        f"That is more than one visitor may send. Come back in {_soon(wait_s)}.", seconds=wait_s
                    )
                levels[who] = known, left - cost
            if not spend:
                return
            for who, (known, left) in levels.items():
                known[who] = (left, now)
                known.move_to_end(who)
                if len(known) > REMEMBERED:
                    known.popitem(last=False)


def parties(visitor: Visitor) -> list[tuple[str, int]]:
    """(name, how many visitors' worth) of the browser, where it has a name, and of its address."""
    own = [(f"browser {visitor.browser}", 1)] if visitor.browser else []
    return [*own, (f"address {visitor.address}", ONE_ADDRESS)]


def _soon(seconds: float) -> str:
    return f"{math.ceil(seconds / 60)} minutes" if seconds > 90 else f"{math.ceil(seconds)} seconds"


def require_room(folder: Path) -> None:
    """Raise UserError when a run holds more than $LIKENESS_RUN_GB (20; 0 = no limit)."""
    try:
        allowed = float(os.environ.get("LIKENESS_RUN_GB") or 20)
    except ValueError:
        raise SystemExit("LIKENESS_RUN_GB must be a number of gigabytes, such as 20; 0 means no limit.") from None
    if not allowed:
        return
    held = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a training replaces its checkpoints meanwhile
                held += os.lstat(os.path.join(parent, name)).st_size
    if held > allowed * 1e9:
        raise UserError(
            f"This run holds {held / 1e9:.1f} GB; at most {allowed:g} GB are kept. Download what you need in the Score "
            "tab, then delete it in the Upload tab and start again."
        )
