"""Which browser uploaded which file, and when the file goes.

In: what the upload route answered, what an event names, which events Gradio still works on. Out: yes or no, and files
deleted: those that an event named when it ends or is dropped, and all of a browser's when its person deletes their
data. Nothing else deletes an upload but the hourly sweep of what nobody named.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from ui.page.errors import DISK_FULL
from ui.web.limits import Limits, Refused, parties
from ui.web.visitors import Visitor

FREE_BYTES = 50_000_000  # an upload leaves at least this much of the disk free
SILENCE_S = 20.0  # a body whose next piece takes longer is given up ...
PACE_BYTES_S, PACE_FROM_S = 8_000, 30.0  # ... and one that is slower than this for longer than that
SLOW = "The upload came in too slowly and was given up. Check the connection, then send the photos again."
NO_LENGTH = "An upload has to say how long it is. Use the page, or send a Content-Length."
MANY = "Too many of your files wait here. Press Delete my data, or wait an hour, then send the photos again."


class Uploads:
    """The uploads of every browser. Two browsers that send the same bytes own one file; it goes with the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, dict[str, Visitor]] = {}  # path -> browser -> who
        self._inode: dict[str, int] = {}  # path -> of the file that its owners sent
        self._count: Counter[str] = Counter()  # of files, by party
        self._named: dict[str, tuple[str, dict[str, int]]] = {}  # event -> browser, paths and their inodes

    def add(self, paths: Iterable[str], visitor: Visitor) -> None:
        """`visitor` has uploaded these."""
        with self._lock:
            for path in paths:
                self._inode[path] = _inode(path)
                owners = self._owners.setdefault(path, {})
                if visitor.browser not in owners:
                    owners[visitor.browser] = visitor
                    self._count.update(who for who, _ in parties(visitor))

    def owned(self, path: str, browser: str) -> bool:
        with self._lock:
            return browser in self._owners.get(path, {})

    def require_room(self, visitor: Visitor, limits: Limits) -> None:
        """Raise Refused when as many files of this visitor wait as one may have."""
        most = limits.allowance.max_files
        with self._lock:
            full = most and any(self._count[who] >= most * factor for who, factor in parties(visitor))
        if full:
            raise Refused(MANY, status=429, seconds=60)

    def name(self, event: str, browser: str, paths: Iterable[str]) -> None:
        """An event that names these files was let in: they go when it ends."""
        with self._lock:
            if named := {path: self._inode.get(path, 0) for path in paths}:
                self._named[event] = (browser, named)

    @property
    def awaited(self) -> bool:
        """Whether any event that names files was let in and not yet seen to have ended."""
        return bool(self._named)

    def settle(self, working: Collection[str]) -> None:
        """Delete the files of events that are not among those being worked on."""
        with self._lock:
            ended = [event for event in self._named if event not in working]
            for event in ended:
                browser, paths = self._named.pop(event)
                waited = {path for who, named in self._named.values() if who == browser for path in named}
                for path, inode in paths.items():
                    # the same bytes lie at the same path: they may have been sent again, for the next event
                    if path not in waited and self._inode.get(path) == inode == _inode(path):
                        self._drop(path, browser)

    def forget(self, browser: str) -> tuple[int, int]:
        """Delete all of a browser's uploads. Returns how many files, and their bytes."""
        with self._lock:
            files = bytes_ = 0
            for path in [path for path, owners in self._owners.items() if browser in owners]:
                with contextlib.suppress(OSError):
                    bytes_ += os.stat(path).st_size
                    files += 1
                self._drop(path, browser)
        return files, bytes_

    def prune(self) -> None:
        """Forget the owners of files that the sweep has deleted."""
        with self._lock:
            for path in [path for path in self._owners if not os.path.lexists(path)]:
                for browser in list(self._owners[path]):
                    self._drop(path, browser)

    def _drop(self, path: str, browser: str) -> None:
        owners = self._owners.get(path, {})
        if (visitor := owners.pop(browser, None)) is None:
            return
        for who, _ in parties(visitor):
            self._count[who] -= 1
            if not self._count[who]:
                del self._count[who]
        if not owners:
            self._owners.pop(path, None)
            if self._inode.pop(path, 0) == _inode(path):  # else it has just been sent again, and `add` is to come
                delete(Path(path))


def _inode(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_ino
    return 0


def delete(path: Path) -> None:
    """Delete an upload and its folder. Only ever inside Gradio's own folder."""
    root = folder()
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(root):
            path.unlink(missing_ok=True)
            if path.parent.resolve() != root:
                path.parent.rmdir()  # stays while it holds another name for the same bytes


def forget_progress(name: str) -> None:
    """Drop what Gradio keeps of how far an upload is: it waits for somebody to ask, and drops nothing else."""
    from gradio.routes import file_upload_statuses

    file_upload_statuses.stop_tracking(name)
    file_upload_statuses._signals.pop(name, None)


def folder() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"]).resolve()


def require(limits: Limits, visitor: Visitor, said: str) -> None:
    """Raise Refused when an upload announces no length, or more than this visitor may send or the disk has room for."""
    if not (said.isascii() and said.isdigit() and len(said) < 16):
        raise Refused(NO_LENGTH, status=411)
    limits.require_upload(visitor, int(said))
    with contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(os.environ.get("GRADIO_TEMP_DIR", ".")).free < int(said) + FREE_BYTES:
            raise Refused(DISK_FULL, status=507, seconds=60)


class Incoming:
    """A `receive` that counts what comes and gives up what comes too slowly, too much, or not to its end.

    It then raises what Gradio's parser takes for a broken form: the parser deletes what it has written so far.
    """

    def __init__(self, receive: Receive, limits: Limits, visitor: Visitor) -> None:
        self._receive = patient(receive)
        self._limits, self._visitor = limits, visitor
        self._complete = False
        self.refused: Refused | None = None

    async def __call__(self) -> Message:
        message = await self._receive()
        if self._complete:
            return message
        try:
            if message["type"] == "http.disconnect":
                raise Refused(SLOW, status=408)
            self._limits.spend_upload(self._visitor, len(message.get("body", b"")))
        except Refused as problem:
            self.refused = problem
            raise MultiPartException(str(problem)) from None
        self._complete = not message.get("more_body")
        return message


def patient(receive: Receive) -> Receive:
    """A `receive` that gives a body up which comes in too slowly: to Gradio it looks as if the visitor had left."""
    began, got, complete = time.monotonic(), 0, False

    async def some() -> Message:
        nonlocal got, complete
        if complete:  # what comes now is the end of the connection: that may take as long as the answer
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), SILENCE_S)
        except TimeoutError:
            return {"type": "http.disconnect"}
        got += len(message.get("body", b""))
        complete = not message.get("more_body")
        passed = time.monotonic() - began
        if not complete and passed > PACE_FROM_S and got < PACE_BYTES_S * passed:
            return {"type": "http.disconnect"}
        return message

    return some
