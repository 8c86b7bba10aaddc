"""The folder of a run: where everything that was made of one person lies, and how it is removed.

In: a root folder (`LIKENESS_HOME`, else `./runs`). Out: `Run` objects with named paths, and `forget`, which removes a
run and proves it. Try it: `run = new_run(); print(forget(run.folder))`.
This is the only module that knows paths inside a run. Light: no numpy, no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pipelines.core.decode import decode
from pipelines.core.files import Lock, read_json, require_space, timestamp, told_when_full, write_json
from pipelines.core.records import COLUMNS, IMPORTED, Photo, PhotoSet, UserError, is_imported

MARKER = "run.json"  # a folder without it is no run and is never removed
MARKER_SCHEMA = 1
DRAWING = "drawing"
FORGOTTEN = ".likeness-forgotten-"  # prefix of a run that is being removed
WATCH_FILE, STRENGTHS_FILE = "watch.json", "strengths.json"  # beside a method's subject.json, see `training/watch.py`


def data_root() -> Path:
    """The folder that holds the runs: `LIKENESS_HOME`, else `runs` in the current folder. Not created here."""
    return Path(os.environ.get("LIKENESS_HOME") or "runs").expanduser().resolve()


def credentials_folder() -> Path:
    """Where the certificate lies that this copy signs its pictures with (see `credentials`). Not created here."""
    return data_root() / ".credentials"


@dataclass(frozen=True)
class Run:
    """One person's folder. It holds all that is known of the person and was made of them; nothing is kept elsewhere.

    The job's files (spec, status, events, ...) are in the folder itself. `drawing` is the same run with the files of a
    second job, so that pictures can be drawn during a training.
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
        """Folder of the job's own files."""
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
        """What the worker has to do (`jobspec.JobSpec`)."""
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
        """While this file exists, the training goes on without this method."""
        return self.job_folder / f"stop-{_plain_name(method)}"

    @property
    def lock(self) -> Path:
        return self.job_folder / ".lock"

    @property
    def photos_lock(self) -> Path:
        """Held while photos are taken in or changed."""
        return self.folder / ".photos"

    @property
    def scores(self) -> Path:
        """One line per render and judge."""
        return self.folder / "scores.jsonl"

    @property
    def marks(self) -> Path:
        """The `Scale` of each judge for this person."""
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
        """One column's pictures, oldest first, without those that are being written or removed."""
        found = []
        for path in self.renders(column).glob("*.png"):
            if not path.name.startswith("."):  # `glob` also finds names that begin with a dot
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.name, path))
        return [path for *_, path in sorted(found)]

    def finished(self, picture: str) -> Path:
        """Folder of the finished files of one picture (its path inside the run)."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", picture.removeprefix("renders/").removesuffix(".png"))
        return self.folder / "finished" / name[:150]

    def relative(self, path: Path | str) -> str:
        """A path relative to the run's folder, as the run's files write it."""
        return Path(path).resolve().relative_to(self.folder.resolve()).as_posix()


def imported_columns(run: Run) -> tuple[str, ...]:
    """The run's imported columns, sorted by name."""
    cards = sorted((run.folder / "methods").glob(f"{IMPORTED}*/subject.json"))
    return tuple(card.parent.name for card in cards if is_imported(card.parent.name))


def columns_of(run: Run) -> tuple[str, ...]:
    """Every column a run can have, in the order of its report."""
    return (*COLUMNS, *imported_columns(run))


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
    sweep_forgotten(parent, older_than_s=60.0)
    return _make(parent / secrets.token_hex(16))


def run_at(folder: Path) -> Run:
    """The run at `folder`: an existing one, or a new one where there is nothing (or an empty folder).

    Raises UserError when the folder holds other files.
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


def all_runs(root: Path | None = None) -> list[Run]:
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


def record_consent(run: Run, *, means: str, statement: str) -> None:
    """Note when and by which means consent to learn this face was given."""
    write_json(run.consent, {"schema": 1, "when": timestamp(), "means": means, "statement": statement})


def save_photo_set(run: Run, photo_set: PhotoSet) -> None:
    """Save the result of `photos.intake` in the run. Paths are relative, so that a run can be moved."""

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


# The note about a photo with several faces in photo sets of versions in which `Photo` had no `reasons`.
SEVERAL_FACES_NOTE = "several faces; the one that agrees with the other photos is used"


def _reasons_of(notes: tuple[str, ...]) -> tuple[str, ...]:
    return ("several_faces",) if SEVERAL_FACES_NOTE in "; ".join(notes) else ()


def load_photo_set(run: Run) -> PhotoSet | None:
    """The photos that were taken in, or None when none were. Raises UserError when their list is damaged."""
    saved = read_json(run.photo_set)
    if saved is None:
        return None

    def part(name: str) -> list[dict[str, object]]:
        placed = [{**entry, "path": str(run.folder / entry["path"])} for entry in saved[name]]
        return [{"reasons": _reasons_of(tuple(entry.get("notes", ()))), **entry} for entry in placed]

    try:
        return decode(PhotoSet, {**saved, **{name: part(name) for name in ("train", "validation", "held_out")}})
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError("The list of photos in this run is damaged. Add the photos again.") from error


# ------------------------------------------------------------------------------------------------- forgetting


class Receipt(TypedDict):
    """What `forget` removed."""

    schema: int
    run: str
    forgotten: str  # when
    files: int
    bytes: int
    removed: list[dict[str, object]]  # {"file", "bytes"}
    verified: str
    remaining_files: int
    copies_elsewhere: list[str]  # names of files of the run with hard links outside it
    note: str


def forget(run_folder: Path | Run) -> Receipt:
    """Remove a run with everything in it and return a receipt that says what was removed and checks that it is gone.

    The folder is renamed first, so that a crash half way leaves something `sweep_forgotten` recognises. Raises
    UserError for a folder that is no run, for a link, while a worker is busy in it, and when something could not be
    removed. It can't remove what a file system or a backup keeps of deleted files; the receipt says so.
    """
    given = run_folder.folder if isinstance(run_folder, Run) else Path(run_folder).expanduser()
    if given.is_symlink():
        raise UserError(f"{given.name} is a link. Give the run's own folder.")
    run = open_run(given)
    locks = [Lock(slot.lock) for slot in (run, run.drawing) if slot.job_folder.is_dir()]
    if run.photos_lock.exists():
        locks.append(Lock(run.photos_lock))
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


def sweep_forgotten(root: Path, *, older_than_s: float = 0.0) -> int:
    """Finish removals that a crash interrupted; returns how many folders were removed. `older_than_s`: skip younger
    ones, which another process may be removing now.
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
