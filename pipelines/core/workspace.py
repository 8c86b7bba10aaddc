"""Where everything lies on disk: runs and their files, written so that nobody ever meets half of one.

In: a root folder (`LIKENESS_HOME`, else `./runs`). Out: `Run` objects with named paths, JSON that appears whole or not
at all, and `forget`, which removes a run and proves it. Try it: `run = new_run(); print(forget(run.folder))`.
This is the only module that knows paths inside a run. Light: no numpy, no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipelines.core.schema import (
    COLUMNS,
    IMPORTED,
    Photo,
    PhotoCheck,
    PhotoSet,
    Sampling,
    SetReport,
    UserError,
    is_imported,
    sampling_fields,
)

T = TypeVar("T")
MARKER = "run.json"  # a folder without it is none of ours and is never removed
MARKER_SCHEMA = 1
DRAWING = "drawing"
FORGOTTEN = ".likeness-forgotten-"  # prefix of a run on its way out
FULL = "The disk is full, so this could not be saved. Free some space or delete a run, then try again."
PARTIAL = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.part")  # what is being written, by which process
STALE_S = 600.0
_FULL_CODES = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def data_root() -> Path:
    """The folder that holds the runs: `LIKENESS_HOME`, else `runs` in the current folder. Not created here."""
    return Path(os.environ.get("LIKENESS_HOME") or "runs").expanduser().resolve()


def credentials_folder() -> Path:
    """Where the certificate lies that this copy signs its pictures with (see `credentials`). Not created here."""
    return data_root() / ".credentials"


# ------------------------------------------------------------------------------------------------- plain files


WATCH_FILE, STRENGTHS_FILE = "watch.json", "strengths.json"  # what choosing leaves beside a method's subject.json


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk (or a quota) is full."""
    return isinstance(error, OSError) and error.errno in _FULL_CODES


@contextlib.contextmanager
def told_when_full() -> Iterator[None]:
    """Turn "no space left on device" into a sentence. What was there before stays as it was."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise UserError(FULL) from error
        raise


def plain(value: Any) -> Any:
    """`value` as JSON knows it: records become objects, paths strings; NaN and infinities, which JSON lacks, null."""
    if isinstance(value, Sampling):
        return {name: plain(each) for name, each in sampling_fields(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        every = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        # what came later is left out where it says nothing, so that keys of earlier versions stay what they were
        return {f.name: plain(each) for f, each in every.items() if not (f.metadata.get("later") and each == f.default)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a temporary file beside it, fsync, rename. `UserError` when the disk is full."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The same for bytes."""
    with told_when_full():
        write_file(path, lambda partial: partial.write_bytes(data))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` and put it in place in one move: nobody meets half a file, and
    after a power cut there is the old one or the new one. Raises what `write` does, and OSError on a full disk.
    """
    with _beside(path) as partial:
        write(partial)
        settle(partial)
        os.replace(partial, path)
        settle(path.parent)


def write_folder(path: Path, write: Callable[[Path], T]) -> T:
    """The same for a folder that `write` makes; an older one is replaced. Returns what `write` does."""
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
    """A name for what is being written, which `sweep_partials` knows; what is left there afterwards goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """A file or a folder, where there is one and it can be."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before anything goes on."""
    if os.name == "nt" and path.is_dir():  # no handle on a folder there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep_partials(folder: Path) -> int:
    """Remove what killed writers left half written anywhere below `folder`; returns how many went."""
    gone = 0
    for path in folder.rglob(".*.part"):
        found = PARTIAL.fullmatch(path.name)
        with contextlib.suppress(OSError):
            # the number of a writer that is gone may be somebody else's by now: no write stands still for so long
            if found and (not _is_process(int(found[1])) or time.time() - path.stat().st_mtime > STALE_S):
                _remove(path)
                gone += 1
    return gone


def _is_process(pid: int) -> bool:
    if os.name == "nt":  # a signal would end it there
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def write_json(path: Path, value: Any) -> None:
    """Write a record (dataclasses, dicts, lists, numbers) as JSON, atomically."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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
    line = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    with told_when_full(), path.open("ab", buffering=0) as file:
        data = line.encode()
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

    A line that a power cut damaged is left out too, or reads as `damaged`, for whoever counts lines.
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
    """Raise `UserError` before work starts that the disk could not hold. `folder` need not exist yet."""
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
    """A lock on a file that the system releases when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Take it if it is free. Returns whether it is ours now."""
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


# ------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """One person's folder: everything that is known or was made of them lies in it, and nowhere else.

    Its job's files (spec, status, events, ...) lie in the folder itself; `drawing` is the same run with the files of a
    second job, so that pictures can be drawn while a training goes on.
    """

    folder: Path
    slot: str = ""  # "" | "drawing": whose job files the properties name

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def drawing(self) -> Run:
        """This run with the files of the job that draws."""
        return Run(self.folder, DRAWING)

    @property
    def job_folder(self) -> Path:
        """Where the job's own files lie."""
        return self.folder / self.slot

    @property
    def photos(self) -> Path:
        """Folder of the upright, metadata-free copies."""
        return self.folder / "photos"

    @property
    def photo_set(self) -> Path:
        """The `PhotoSet` (see `save_photo_set`)."""
        return self.folder / "photos.json"

    @property
    def spec(self) -> Path:
        """What the worker is to do (`jobs.JobSpec`)."""
        return self.job_folder / "spec.json"

    @property
    def status(self) -> Path:
        return self.job_folder / "status.json"

    @property
    def worker(self) -> Path:
        """Which process works here: pid and start time."""
        return self.job_folder / "worker.json"

    @property
    def events(self) -> Path:
        return self.job_folder / "events.jsonl"

    @property
    def log(self) -> Path:
        """The worker's own output and tracebacks; for whoever runs the machine."""
        return self.job_folder / "worker.log"

    @property
    def stop_flag(self) -> Path:
        return self.job_folder / "stop"

    def leave_flag(self, method: str) -> Path:
        """Where it is, the training goes on without this method."""
        return self.job_folder / f"stop-{_plain_name(method)}"

    @property
    def lock(self) -> Path:
        return self.job_folder / ".lock"

    @property
    def scores(self) -> Path:
        """One line per render and judge."""
        return self.folder / "scores.jsonl"

    @property
    def marks(self) -> Path:
        """The marks of each judge's strip for this person."""
        return self.folder / "marks.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def page(self) -> Path:
        """The report as one self-contained HTML file."""
        return self.folder / "report.html"

    @property
    def cells(self) -> Path:
        """One row per render, for a spreadsheet."""
        return self.folder / "cells.csv"

    @property
    def figures(self) -> Path:
        """The numbers behind the report's drawings."""
        return self.folder / "figures.json"

    @property
    def grid(self) -> Path:
        return self.folder / "grid.png"

    @property
    def votes(self) -> Path:
        """One line per answer of a blind vote."""
        return self.folder / "votes.jsonl"

    @property
    def ballots(self) -> Path:
        """Folder of the blind votes that were started: which pictures, in which order."""
        return self.folder / "ballots"

    @property
    def manifest(self) -> Path:
        """Written last: where it exists, the comparison is complete."""
        return self.folder / "manifest.json"

    @property
    def favourites(self) -> Path:
        """The pictures a person liked."""
        return self.folder / "favourites.json"

    @property
    def consent(self) -> Path:
        return self.folder / "consent.json"

    def method(self, name: str) -> Path:
        """Folder of one method's artefact, checkpoint and previews."""
        return self.folder / "methods" / _plain_name(name)

    def renders(self, column: str) -> Path:
        """Folder of one column's pictures."""
        return self.folder / "renders" / _plain_name(column)

    def pictures(self, column: str) -> list[Path]:
        """One column's pictures, oldest first. What is being written is none yet, what goes meanwhile is left out."""
        found = []
        for path in self.renders(column).glob("*.png"):
            if not path.name.startswith("."):  # unlike a shell's, this pattern finds `.part-1234-seed1.png` as well
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.name, path))
        return [path for *_, path in sorted(found)]

    def finished(self, picture: str) -> Path:
        """Folder of what was made of one picture (its path inside the run) to be shown to others."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", picture.removeprefix("renders/").removesuffix(".png"))
        return self.folder / "finished" / name[:150]

    def relative(self, path: Path | str) -> str:
        """A path inside the run as its files name it."""
        return Path(path).resolve().relative_to(self.folder.resolve()).as_posix()


def imported(run: Run) -> tuple[str, ...]:
    """The columns of a run that were not trained here but imported, by name."""
    cards = sorted((run.folder / "methods").glob(f"{IMPORTED}*/subject.json"))
    return tuple(card.parent.name for card in cards if is_imported(card.parent.name))


def columns(run: Run) -> tuple[str, ...]:
    """Every column a run can have, in the order of its report."""
    return (*COLUMNS, *imported(run))


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"{name!r} is no name for a folder of a run")
    return name


def new_run(root: Path | None = None) -> Run:
    """A new run in a folder of its own with an unguessable name (128 random bits), readable by this user only."""
    parent = root or data_root()
    require_space(parent, 20_000_000, purpose="A new run")
    with told_when_full():
        parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, older_than_s=60.0)
    return _make(parent / secrets.token_hex(16))


def run_at(folder: Path) -> Run:
    """The run at `folder`: an existing one, or a new one where there is nothing (or an empty folder).

    Raises UserError when something else lies there: its files are not ours to mix with.
    """
    folder = folder.expanduser().resolve()
    if is_run(folder):
        return Run(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder.name} is a file. Give a folder for the run.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"The folder {folder.name} holds other files and is no run. Choose a new or empty folder.")
    return _make(folder)


def open_run(folder: Path) -> Run:
    """The existing run at `folder`. Raises UserError when it is none."""
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"There is no run at {folder}. Check the path.")
    if not is_run(folder):
        raise UserError(f"{folder.name} is not a run of Likeness (it has no {MARKER}). Check the path.")
    return Run(folder)


def is_run(folder: Path) -> bool:
    """Whether `folder` was made by `new_run` or `run_at`."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("likeness_run") == MARKER_SCHEMA


def runs(root: Path | None = None) -> list[Run]:
    """Every run directly below `root`, newest first."""
    parent = root or data_root()
    if not parent.is_dir():
        return []
    found = [folder for folder in parent.iterdir() if not folder.name.startswith(".") and is_run(folder)]
    return [Run(folder) for folder in sorted(found, key=lambda f: (f / MARKER).stat().st_mtime, reverse=True)]


def _make(folder: Path) -> Run:
    with told_when_full():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except PermissionError as error:
            raise UserError(f"No folder can be made at {folder}: permission denied. Choose another place.") from error
    write_json(folder / MARKER, {"likeness_run": MARKER_SCHEMA, "id": secrets.token_hex(8), "created": timestamp()})
    return Run(folder.resolve())


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def record_consent(run: Run, *, means: str, statement: str) -> None:
    """Note when and by which means consent to learn this face was given."""
    write_json(run.consent, {"schema": 1, "when": timestamp(), "means": means, "statement": statement})


def save_photo_set(run: Run, photo_set: PhotoSet) -> None:
    """Keep the outcome of `photos.intake` with the run. Paths are kept relative, so that a run can be moved."""

    def part(photos: tuple[Photo, ...]) -> list[Photo]:
        return [dataclasses.replace(photo, path=run.relative(photo.path)) for photo in photos]

    write_json(
        run.photo_set,
        {
            "schema": 1,
            "train": part(photo_set.train),
            "validation": part(photo_set.validation),
            "held_out": part(photo_set.held_out),
            "rejected": photo_set.rejected,
            "weak": photo_set.weak,
            "checks": photo_set.checks,
            "report": photo_set.report,
            "digest": photo_set.digest,
        },
    )


def set_report(saved: dict[str, Any] | None) -> SetReport | None:
    """A set's report as it was saved."""
    if not saved:
        return None
    return SetReport(**{**saved, "angles": tuple((float(yaw), float(pitch)) for yaw, pitch in saved["angles"])})


# Photo sets that were stored before photos had `reasons` say in this sentence that a photo shows several faces.
SEVERAL_FACES_NOTE = "several faces; the one that agrees with the other photos is used"


def _reasons_of(notes: tuple[str, ...]) -> tuple[str, ...]:
    return ("several_faces",) if SEVERAL_FACES_NOTE in "; ".join(notes) else ()


def load_photo_set(run: Run) -> PhotoSet | None:
    """The photos that were taken in, or None when none were. Raises UserError when their list is damaged."""
    saved = read_json(run.photo_set)
    if saved is None:
        return None

    def photo(entry: dict[str, Any]) -> Photo:
        (left_x, left_y), (right_x, right_y) = entry["eyes"]
        left, top, right, bottom = entry["face_box"]
        notes = tuple(str(note) for note in entry.get("notes", ()))
        return Photo(
            name=str(entry["name"]),
            path=str(run.folder / entry["path"]),
            sha256=str(entry["sha256"]),
            width_px=int(entry["width_px"]),
            height_px=int(entry["height_px"]),
            face_box=(float(left), float(top), float(right), float(bottom)),
            eyes=((float(left_x), float(left_y)), (float(right_x), float(right_y))),
            eye_distance_px=float(entry["eye_distance_px"]),
            notes=notes,
            reasons=tuple(entry["reasons"]) if "reasons" in entry else _reasons_of(notes),
            caption=entry.get("caption"),
            zoom=float(entry.get("zoom", 1.0)),
        )

    def check(entry: dict[str, Any]) -> PhotoCheck:
        return PhotoCheck(**{**entry, "reasons": tuple(entry["reasons"])})

    try:
        return PhotoSet(
            train=tuple(photo(entry) for entry in saved["train"]),
            validation=tuple(photo(entry) for entry in saved["validation"]),
            held_out=tuple(photo(entry) for entry in saved["held_out"]),
            rejected={str(name): str(reason) for name, reason in saved["rejected"].items()},
            weak=bool(saved["weak"]),
            checks=tuple(check(entry) for entry in saved.get("checks", ())),
            report=set_report(saved.get("report")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("The list of photos in this run is damaged. Add the photos again.") from error


# ------------------------------------------------------------------------------------------------- forgetting


def forget(run_folder: Path | Run) -> dict[str, Any]:
    """Remove a run with everything in it and return a receipt that says what was removed and checks that it is gone.

    The folder is renamed first, so that a crash half way leaves something `sweep` recognises. Raises UserError for a
    folder that is no run of ours, for a link, while a worker is busy in it, and when something could not be removed.
    What a file system or a backup keeps of deleted files is beyond it; the receipt says so.
    """
    given = run_folder.folder if isinstance(run_folder, Run) else Path(run_folder).expanduser()
    if given.is_symlink():
        raise UserError(f"{given.name} is a link. Give the run's own folder.")
    run = open_run(given)
    locks = [Lock(slot.lock) for slot in (run, run.drawing) if slot.job_folder.is_dir()]
    if not all(lock.acquire() for lock in locks):
        for lock in locks:
            lock.release()
        raise UserError("This run is still being worked on. Stop it first, then delete it.")
    files = sorted(_files(run.folder))
    shared = [name for name, _, links in files if links > 1]
    doomed = run.folder.with_name(f"{FORGOTTEN}{run.id}-{secrets.token_hex(4)}")
    try:
        if os.name == "nt":
            for lock in locks:
                lock.release()  # an open file can't be moved there
        os.replace(run.folder, doomed)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"The run could not be removed ({reason}). Nothing was deleted.") from error
    finally:
        for lock in locks:
            lock.release()
    shutil.rmtree(doomed, ignore_errors=True)
    left = [name for name, _, _ in _files(doomed)] if doomed.exists() else []
    if doomed.exists() or run.folder.exists():
        raise UserError(
            f"{len(left)} of {len(files)} files of the run could not be removed; they lie in {doomed}. "
            "Delete that folder by hand."
        )
    return {
        "schema": 1,
        "run": run.id,
        "forgotten": timestamp(),
        "files": len(files),
        "bytes": sum(size for _, size, _ in files),
        "removed": [{"file": name, "bytes": size} for name, size, _ in files],
        "verified": "the folder and every listed file were looked for afterwards and are not there",
        "remaining_files": 0,
        "copies_elsewhere": shared,  # hard links: the same bytes under another name
        "note": "Backups and the disk's own unused blocks are outside this program's reach.",
    }


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(relative name, bytes, hard links) of every file; links are not followed."""
    for where, folders, names in os.walk(folder):
        for name in names + [each for each in folders if Path(where, each).is_symlink()]:
            path = Path(where, name)
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                yield path.relative_to(folder).as_posix(), found.st_size, found.st_nlink


def sweep(root: Path, *, older_than_s: float = 0.0) -> int:
    """Finish removals that a crash interrupted; returns how many folders went. Where others may be removing this very
    moment, `older_than_s` leaves theirs alone.
    """
    gone = 0
    if root.is_dir():
        for folder in root.glob(f"{FORGOTTEN}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_ctime < older_than_s:  # renaming a folder changes its ctime
                    continue
            shutil.rmtree(folder, ignore_errors=True)
            gone += not folder.exists()
    return gone
