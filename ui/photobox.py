"""The photos of one run as they arrive: staged one by one, judged at once, split when there are enough.

In: uploaded files. Out: a `Box` - every file's verdict and, from five good ones on, the `PhotoSet` training uses.
An upload is decoded as soon as it arrives; a metadata-free copy is kept in the run, and Gradio's copy is deleted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines import workspace
from pipelines.schema import Photo, PhotoSet, UserError

MIN_PHOTOS, MAX_PHOTOS = 5, 30
FREE_SPACE_NEEDED = 300_000_000  # photos, checkpoints and artefacts of a small run
STAGED, RECORD = "incoming", "incoming.json"
PNG_UP_TO_PIXELS = 4_000_000


@dataclass(frozen=True)
class Staged:
    name: str  # the person's own file name
    file: str | None  # in the staging folder; None when refused
    text: str = ""  # why refused, or notes

    @property
    def key(self) -> str:
        """Names this photo within its run; what a Remove button sends back."""
        return self.file or f"refused:{self.name}"


@dataclass(frozen=True)
class Box:
    """`problem` says why there is no photo set although photos are there."""

    staged: tuple[Staged, ...] = ()
    photo_set: PhotoSet | None = None
    problem: str | None = None

    @property
    def good(self) -> int:
        return sum(one.file is not None for one in self.staged)

    @property
    def missing(self) -> int:
        """How many more photos are needed."""
        return max(0, MIN_PHOTOS - (len(self.photo_set.photos) if self.photo_set else self.good))


def load(run: workspace.Run) -> Box:
    """What is stored; an empty Box when nothing is. Raises UserError when the list is damaged."""
    saved = workspace.read_json(run.folder / RECORD)
    if saved is None:
        return Box()
    try:
        staged = tuple(Staged(**one) for one in saved["staged"])
        return Box(staged, workspace.load_photo_set(run) if saved["split"] else None, saved["problem"])
    except (KeyError, TypeError) as error:
        raise UserError("The list of photos of this run is damaged. Delete your data and start again.") from error


def add(run: workspace.Run, uploads: Sequence[Path]) -> Iterator[Box]:
    """Judge uploads one by one, then split. Yields the box after each photo; the last one is stored.

    Raises UserError before anything is changed when there are too many, or the disk is nearly full.
    """
    box = load(run)
    if box.good + len(uploads) > MAX_PHOTOS:
        raise UserError(
            f"At most {MAX_PHOTOS} photos are used; there are {box.good} already and {len(uploads)} more were added. "
            f"Add at most {MAX_PHOTOS - box.good}."
        )
    workspace.require_space(run.folder, FREE_SPACE_NEEDED, purpose="A run")
    folder = run.folder / STAGED
    folder.mkdir(mode=0o700, exist_ok=True)
    taken = {one.name for one in box.staged if one.file}
    # A refused file that is sent again gets a new verdict in the place of the old one.
    again = {display_name(path.name) for path in uploads}
    staged = [one for one in box.staged if one.file or one.name not in again]
    for path in uploads:
        name = unique(display_name(path.name), taken)
        taken.add(name)
        staged.append(_stage(path, name, folder))
        yield replace(box, staged=tuple(staged))
    yield _settle(run, tuple(staged))


def remove(run: workspace.Run, key: object) -> Box:
    """Take the photo with this key out again and split the rest anew. A browser sends the key: it is only compared."""
    box = load(run)
    gone = next((one for one in box.staged if one.key == key), None)
    if gone is None:
        raise UserError("That photo is not in the list any more. Reload the page.")
    if gone.file is None:  # only its verdict is listed
        rest = tuple(one for one in box.staged if one is not gone)
        return _save(run, Box(rest, box.photo_set, box.problem))
    (run.folder / STAGED / gone.file).unlink(missing_ok=True)
    return _settle(run, tuple(one for one in box.staged if one is not gone))


def clear(run: workspace.Run) -> Box:
    """Take all photos out."""
    shutil.rmtree(run.folder / STAGED, ignore_errors=True)
    return _settle(run, ())


def _stage(path: Path, name: str, folder: Path) -> Staged:
    from PIL import Image

    from pipelines import faces, photos

    try:
        pixels = photos.decode(path)
        if min(pixels.shape[:2]) < 64:
            raise UserError(f"only {pixels.shape[1]} x {pixels.shape[0]} pixels. Use a larger copy.")
        found = faces.detect_faces(pixels)
        if not found:
            raise UserError("no face was found. Use a photo where the face looks towards the camera.")
    except UserError as problem:
        return Staged(name, None, re.sub(rf"^{re.escape(path.name)}:? ", "", str(problem)))
    note = f"{len(found)} faces; the largest is used" if len(found) > 1 else ""
    small = pixels.shape[0] * pixels.shape[1] <= PNG_UP_TO_PIXELS
    number = 1 + max((int(p.stem) for p in folder.iterdir() if p.stem.isdigit()), default=-1)
    target = folder / f"{number:03d}{'.png' if small else '.jpg'}"
    picture = Image.fromarray(pixels)
    if small:
        picture.save(target, compress_level=1)
    else:
        picture.save(target, quality=97, subsampling=0)
    target.chmod(0o600)
    return Staged(name, target.name, note)


def _settle(run: workspace.Run, staged: tuple[Staged, ...]) -> Box:
    """Split what is staged into train, validation and held out, and store the result."""
    from pipelines import photos

    good = {one.file: one for one in staged if one.file}
    photo_set, problem = None, None
    if len(good) >= MIN_PHOTOS:
        try:
            found = photos.intake([run.folder / STAGED / file for file in good], run.photos)
            photo_set, staged = _with_names(found, staged)
        except UserError as error:
            problem = _named(str(error), good)
    return _save(run, Box(staged, photo_set, problem))


def _save(run: workspace.Run, box: Box) -> Box:
    if box.photo_set is None:
        run.photo_set.unlink(missing_ok=True)
        shutil.rmtree(run.photos, ignore_errors=True)
    else:
        workspace.save_photo_set(run, box.photo_set)
    record = {"staged": list(box.staged), "split": box.photo_set is not None, "problem": box.problem}
    workspace.write_json(run.folder / RECORD, record)
    return box


def _with_names(found: PhotoSet, staged: tuple[Staged, ...]) -> tuple[PhotoSet, tuple[Staged, ...]]:
    """Put the person's own file names in the place of ours, and what intake noted into the verdicts."""
    names = {one.file: one.name for one in staged if one.file}
    verdicts: dict[str, tuple[bool, str]] = {}

    def renamed(part: tuple[Photo, ...]) -> tuple[Photo, ...]:
        for photo in part:
            verdicts[photo.name] = (True, _named("; ".join(photo.notes), names))
        return tuple(replace(p, name=names[p.name], notes=tuple(_named(note, names) for note in p.notes)) for p in part)

    photo_set = replace(
        found,
        train=renamed(found.train),
        validation=renamed(found.validation),
        held_out=renamed(found.held_out),
        rejected={names.get(name, name): _named(text, names) for name, text in found.rejected.items()},
    )
    verdicts |= {name: (False, _named(text, names)) for name, text in found.rejected.items()}
    told = []
    for one in staged:
        good, text = verdicts.get(one.file or "", (one.file is not None, one.text))
        told.append(replace(one, file=one.file if good else None, text=text))
    refused = {one.name: one.text for one in told if one.file is None}
    return replace(photo_set, rejected=photo_set.rejected | refused), tuple(told)


def _named(text: str, names: dict) -> str:
    """`text` with our staged file names replaced by the person's."""
    for file, one in names.items():
        text = text.replace(file, one.name if isinstance(one, Staged) else one)
    return text


def part_of(box: Box, name: str) -> str:
    """ "training", "validation", "held out", or "" before there is a split."""
    if box.photo_set is None:
        return ""
    parts = (
        ("training", box.photo_set.train),
        ("validation", box.photo_set.validation),
        ("held out", box.photo_set.held_out),
    )
    return next((word for word, photos in parts if any(photo.name == name for photo in photos)), "")


def display_name(name: str) -> str:
    """A file name fit for messages: no path, no control characters, at most 80 characters."""
    clean = re.sub(r"[\x00-\x1f\x7f/\\]+", "_", name).strip() or "photo"
    return clean if len(clean) <= 80 else clean[:60] + "…" + clean[-19:]


def unique(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    stem, dot, suffix = name.rpartition(".")
    stem = stem if dot else name
    count = 2
    while f"{stem} ({count}){dot + suffix if dot else ''}" in taken:
        count += 1
    return f"{stem} ({count}){dot + suffix if dot else ''}"


def drop_upload(path: Path) -> None:
    """Delete Gradio's copy of an upload. Only ever inside Gradio's own folder."""
    root = os.environ.get("GRADIO_TEMP_DIR")
    if root and path.resolve().is_relative_to(Path(root).resolve()):
        path.unlink(missing_ok=True)
        if path.parent.resolve() != Path(root).resolve() and not any(path.parent.iterdir()):
            path.parent.rmdir()
