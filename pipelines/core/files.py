"""Files on disk: JSON, JSON lines and any other file, so that no reader ever sees a half-written one; locks; hashes.

In: a path and a value. Out: the complete new file, or the unchanged old one. Try it: `write_json(path, {"a": 1})`.
Light: no numpy, no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipelines.core import process
from pipelines.core.records import Sampling, UserError, sampling_fields

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]  # holds presets/ and models/
FULL = "The disk is full, so this could not be saved. Free some space or delete a run, then try again."
PARTIAL = re.compile(r"\.(?P<name>.+)\.(\d+)\.[0-9a-f]{8}\.part")  # a file being written: name, writer's process id
STALE_S = 600.0
_REFUSALS = {
    errno.EACCES: "this program may not write or read there",
    errno.EPERM: "this program may not write or read there",
    errno.EROFS: "the disk is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "it is a folder and not a file",
    errno.ENOTDIR: "what should be a folder on the way to it is a file",
    errno.EEXIST: "a file is there, where a folder is needed",
    errno.ELOOP: "links lead in a circle there",
    errno.EIO: "the disk failed",
    errno.EFBIG: "the file is too large for this disk",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
_FULL_CODES = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk (or a quota) is full."""
    return isinstance(error, OSError) and error.errno in _FULL_CODES


def refusal(error: BaseException) -> str | None:
    """An error of the disk or the system as a sentence with the file's name, not its folder; None for other errors."""
    if is_full(error):
        return FULL
    if not isinstance(error, OSError) or (why := _REFUSALS.get(error.errno or 0)) is None:
        return None
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if partial := PARTIAL.fullmatch(name):
        name = partial[1]
    return f"{name[:80] or 'A file'} can't be used: {why}. Choose another place or name, or change that."


@contextlib.contextmanager
def told_when_full() -> Iterator[None]:
    """Context that turns the errors `refusal` knows, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        if sentence := refusal(error):
            raise UserError(sentence) from error
        raise


def check_target(path: Path) -> None:
    """Raises UserError when no file can be written at `path`; called before the work starts. Nothing is changed."""
    with told_when_full():
        missing = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        try:
            with _beside(path) as partial:
                partial.touch()
        except FileNotFoundError as error:
            raise UserError(f"{path.name} can't be used: no folder can be made there. Choose another place.") from error
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def jsonable(value: Any) -> Any:
    """`value` in JSON's types: records become objects, paths strings, NaN and infinities null."""
    if isinstance(value, Sampling):
        return {name: jsonable(each) for name, each in sampling_fields(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        every = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        # fields that were added later are left out at their default, so that hashes of earlier versions stay valid
        said = {f.name: each for f, each in every.items() if not (f.metadata.get("later") and each == f.default)}
        return {name: jsonable(each) for name, each in said.items()}
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset | Sequence) and not isinstance(value, str | bytes):
        return [jsonable(each) for each in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a temporary file beside it, fsync, rename. `UserError` when the disk is full."""
    write_bytes(path, _encoded(text))


def _encoded(text: str) -> bytes:
    r"""UTF-8. A byte of a file's name that is no UTF-8 becomes a JSON escape (\udce9), from which it is read back."""
    return text.encode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Like `write_text`, for bytes."""
    with told_when_full():
        write_file(path, lambda partial: partial.write_bytes(data))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one, also
    after a power cut. Raises what `write` raises, and OSError on a full disk.
    """
    with _beside(path) as partial:
        write(partial)
        settle(partial)
        os.replace(partial, path)
        settle(path.parent)


def write_folder(path: Path, write: Callable[[Path], T]) -> T:
    """Like `write_file`, for a folder that `write` makes; an existing one is replaced. Returns what `write` returns."""
    with _beside(path) as partial:
        made = write(partial)
        for where, _, names in os.walk(partial):
            for name in names:
                settle(Path(where, name))
            settle(Path(where))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        settle(path.parent)
    return made


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which `sweep_partials` knows; removed at the end if it still exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsencode(path.name)[:150].decode(errors="ignore")  # the name may already be of the longest length
    partial = path.with_name(f".{stem}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Call fsync on a file, or on a folder for its list of names."""
    if os.name == "nt" and path.is_dir():  # Windows can't open a folder
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep_partials(folder: Path) -> int:
    """Remove half-written files of killed processes below `folder`; returns how many were removed."""
    gone = 0
    for path in folder.rglob(".*.part"):
        found = PARTIAL.fullmatch(path.name)
        with contextlib.suppress(OSError):
            # another process may have the writer's id by now; but no writer is idle for `STALE_S`
            if found and (not process.exists(int(found[2])) or time.time() - path.stat().st_mtime > STALE_S):
                _remove(path)
                gone += 1
    return gone


def write_json(path: Path, value: Any) -> None:
    """Write a record (dataclasses, dicts, lists, numbers) as JSON, atomically."""
    write_text(path, _json(value, indent=1) + "\n")


def _json(value: Any, **options: Any) -> str:
    """JSON as valid UTF-8: bytes of a file name that are no UTF-8, which Python keeps as lone surrogates, become
    escapes, from which they are read back.
    """
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, **options)
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None when the file is not there. `UserError` when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} in {path.parent.name} can't be read. Delete that run and start again.") from error


def append_line(path: Path, value: Any) -> None:
    """Append one record as one line of JSON, in a single write. One process at a time writes to a file."""
    line = _json(value, separators=(",", ":")) + "\n"
    with told_when_full(), path.open("ab", buffering=0) as file:
        data = _encoded(line)
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)  # half a line would spoil the next one
            raise


def read_lines(path: Path, *, after: int = 0, damaged: Any = None) -> list[Any]:
    """The records of a file of JSON lines, without the first `after`; a line still being written is left out.

    A line that a power cut damaged is left out too; with `damaged`, it is read as that value, so that the count fits.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]  # the last piece is empty, or a line without its end
    records = (_record(line, damaged) for line in lines[after:])
    return [record for record in records if record is not None]


def _record(line: bytes, damaged: Any) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return damaged


def repair_lines(path: Path) -> int:
    """Cut off a line that a killed writer left unfinished; returns how many whole lines there are."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("rb+") as file:
            file.truncate(whole)
    return data[:whole].count(b"\n")


def require_space(folder: Path, needed_bytes: int, *, purpose: str = "This") -> None:
    """Raise `UserError` when the disk has less than `needed_bytes` free. `folder` need not exist yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise UserError(
            f"The disk is nearly full. {purpose} needs about {_megabytes(needed_bytes)} MB and {_megabytes(free)} MB "
            "are free. Free some space or delete a run, then try again."
        )


def _megabytes(count: int) -> str:
    return f"{max(1, math.ceil(count / 1e6)):,}"


class Lock:
    """A lock on a file, which the system releases when the process that holds it ends, even if it is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free. Returns whether this object holds it now."""
        if self._file is not None:
            return True
        with told_when_full():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
        try:
            _lock_file(file)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()  # closing releases it
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock_file(file: BinaryIO) -> None:
    """Raises OSError when somebody else holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def sha(*parts: object) -> str:
    """SHA-256 of values that can be written as JSON, as hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------- names


def printable(name: str) -> str:
    """A file name that is safe to show and to store: control characters and those that change the reading direction
    are escaped (`\\x1b`), and so are bytes that are no UTF-8, which Python keeps as lone surrogates.
    """
    return "".join(each if _is_harmless(each) else _escaped(each) for each in name)


JOINERS = "\u200c\u200d"  # between letters of some scripts and inside emoji


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"  # spaces


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
