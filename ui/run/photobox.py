"""The photos of one run as they arrive: staged one by one, judged at once, split when there are enough.

In: uploaded files. Out: a `Box` - every file's verdict and, from five good ones on, the `PhotoSet` training uses.
An upload is decoded as soon as it arrives; a metadata-free copy is kept in the run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.bases.registry import BaseRow
from pipelines.core.decode import decode
from pipelines.core.files import Lock, file_sha256, printable, read_json, require_space, write_json
from pipelines.core.records import REASONS, Photo, PhotoSet, SetReport, UserError
from pipelines.core.run import Run, is_run, load_photo_set, save_photo_set
from ui.run.sessions import ENDED
from ui.words.words import tell

MIN_PHOTOS, MAX_PHOTOS = 5, 30
REFUSED_LISTED = 60  # files that could not be used, the last ones; each stands on the page
FREE_SPACE_NEEDED = 300_000_000  # photos, checkpoints and artefacts of a small run
STAGED, RECORD, CROPS = "incoming", "incoming.json", "crops"
LEARNED = "learned.json"  # which photos a training of this run has seen
PINS = ("trained", "held_out")
ANOTHER = "another one"  # in a reason, where pipelines.photos.checks puts the name of the picture it repeats
NAMING = {
    "same_picture": "it is the same picture as {names}; it counts once",
    "near_duplicate": "nearly the same picture as {names}; they stay together and count little more than one",
}


@dataclass(frozen=True)
class Staged:
    name: str  # the person's own file name
    file: str | None  # in the staging folder; None when it could not be read
    text: str = ""  # one line: why left out, or what could be better
    verdict: str = "good"  # "good" | "usable" | "leave_out"
    reasons: tuple[str, ...] = ()  # codes of pipelines.photos.checks
    kept: bool = False  # used although we would leave it out
    pin: str = ""  # "" | "trained" | "held_out": where the person wants it
    caption: str | None = None  # the person's own
    zoom: float = 1.0  # the person's own framing

    @property
    def key(self) -> str:
        """Names this photo within its run; what its buttons send back."""
        return self.file or f"refused:{self.name}"

    @property
    def used(self) -> bool:
        return self.file is not None and (self.verdict != "leave_out" or self.kept)

    @property
    def can_be_kept(self) -> bool:
        from pipelines.photos.checks import OVERRULABLE

        return self.file is not None and self.verdict == "leave_out" and set(self.reasons) <= OVERRULABLE


@dataclass(frozen=True)
class Box:
    """`report` is of the set; `problem` says why there is no photo set although photos are there."""

    staged: tuple[Staged, ...] = ()
    photo_set: PhotoSet | None = None
    problem: str | None = None
    report: SetReport | None = None

    @property
    def good(self) -> int:
        return sum(one.used for one in self.staged)

    @property
    def stored(self) -> int:
        return sum(one.file is not None for one in self.staged)

    @property
    def missing(self) -> int:
        """How many more photos are needed."""
        return max(0, MIN_PHOTOS - (len(self.photo_set.photos) if self.photo_set else self.good))


def load(run: Run) -> Box:
    """What is stored; an empty Box when nothing is. Raises UserError when the list is damaged."""
    saved = read_json(run.folder / RECORD)
    if saved is None:
        return Box()
    try:
        staged = tuple(Staged(**{**one, "reasons": tuple(one.get("reasons", ()))}) for one in saved["staged"])
        photo_set = load_photo_set(run) if saved["split"] else None
        return Box(
            staged, photo_set, saved["problem"], decode(SetReport, saved["report"]) if saved.get("report") else None
        )
    except (KeyError, TypeError) as error:
        raise UserError("The list of photos of this run is damaged. Delete your data and start again.") from error


def add(run: Run, uploads: Sequence[Path], row: BaseRow) -> Iterator[Box]:
    """Read uploads one by one, then judge and split. Yields the box after each photo; the last one is stored.

    `row` is the chosen base: its smallest face and its framing count.

    Raises UserError before anything is changed when there are too many, or the disk is nearly full.
    """

    unpacked = run.folder / "unpacked"
    with taking(run):
        yield from _unpack_and_add(run, load(run), uploads, row, unpacked)


@contextlib.contextmanager
def taking(run: Run) -> Iterator[None]:
    """Nobody else changes this run's photos meanwhile. Raises UserError when somebody does."""
    if not is_run(run.folder):  # deleted meanwhile: taking the lock would make the folder again
        raise UserError(ENDED)
    with Lock(run.photos_lock) as lock:
        if not lock.acquire():
            raise UserError("Photos of this run are being taken in already. Wait until that is done, then try again.")
        if not is_run(run.folder):
            shutil.rmtree(run.folder, ignore_errors=True)
            raise UserError(ENDED)
        yield


def is_free(run: Run) -> bool:
    """Whether nobody is changing this run's photos."""
    if not is_run(run.folder):
        return True
    with Lock(run.photos_lock) as lock:
        return lock.acquire()


def _unpack_and_add(run: Run, box: Box, uploads: Sequence[Path], row: BaseRow, unpacked: Path) -> Iterator[Box]:
    from pipelines.photos.gather import Gathered, unpack

    try:
        there = [
            unpack(path, unpacked / str(number)) if path.suffix.lower() == ".zip" else Gathered((path,), {})
            for number, path in enumerate(uploads)
        ]
        refused = {name: why for each in there for name, why in each.left_out.items()}
        yield from _add(run, box, [photo for each in there for photo in each.photos], row, refused)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _add(run: Run, box: Box, uploads: Sequence[Path], row: BaseRow, refused: dict[str, str]) -> Iterator[Box]:
    """`refused`: {file name: sentence} of what was in an archive and can't be used."""
    if box.stored + len(uploads) > MAX_PHOTOS:
        raise UserError(
            f"At most {MAX_PHOTOS} photos are used; there are {box.stored} already and {len(uploads)} more were added. "
            f"Add at most {MAX_PHOTOS - box.stored}."
        )
    require_space(run.folder, FREE_SPACE_NEEDED, purpose="A run")
    folder = run.folder / STAGED
    folder.mkdir(mode=0o700, exist_ok=True)
    taken = {one.name for one in box.staged if one.file}
    # A refused file that is sent again gets a new verdict in the place of the old one.
    again = {display_name(name) for name in (*refused, *(path.name for path in uploads))}
    staged = [one for one in box.staged if one.file or one.name not in again]
    for name, why in refused.items():
        taken.add(name := unique(display_name(name), taken))
        staged.append(Staged(name, None, why, "leave_out", ("unreadable",)))
    for path in uploads:
        name = unique(display_name(path.name), taken)
        taken.add(name)
        staged.append(_stage(path, name, folder))
        yield replace(box, staged=tuple(staged))
    yield _settle(run, tuple(staged), row)


def remove(run: Run, key: object, row: BaseRow) -> Box:
    """Take the photo with this key out again and split the rest anew. A browser sends the key: it is only compared."""
    with taking(run):
        return _remove(run, key, row)


def _remove(run: Run, key: object, row: BaseRow) -> Box:
    box = load(run)
    gone = next((one for one in box.staged if one.key == key), None)
    if gone is None:
        raise UserError("That photo is not in the list any more. Reload the page.")
    if gone.file is None:  # only its verdict is listed
        rest = tuple(one for one in box.staged if one is not gone)
        return _save(run, replace(box, staged=rest))
    (run.folder / STAGED / gone.file).unlink(missing_ok=True)
    return _settle(run, tuple(one for one in box.staged if one is not gone), row)


def judge_again(run: Run, row: BaseRow) -> Box:
    """The same photos for another base."""
    with taking(run):
        box = load(run)
        return _settle(run, box.staged, row) if box.staged else box


def clear(run: Run) -> Box:
    """Take all photos out."""
    from pipelines.photos import intake

    intake.forget_measures(run.folder)
    for folder in (STAGED, CROPS):
        shutil.rmtree(run.folder / folder, ignore_errors=True)
    return _save(run, Box())


def change(run: Run, key: object, action: object, row: BaseRow, value: object = None) -> Box:
    """Overrule us about one photo.

    "keep" or "leave" what we leave out; pin it to a part ("trained", "held_out") or "unpin" it; frame it "closer" or
    "wider"; give it a "caption" (`value`; empty: ours).
    """
    with taking(run):
        return _change(run, key, action, row, value)


def _change(run: Run, key: object, action: object, row: BaseRow, value: object) -> Box:
    from pipelines.photos import captions, framing

    box = load(run)
    one = next((one for one in box.staged if one.key == key and one.file), None)
    if one is None:
        raise UserError("That photo is not in the list any more. Reload the page.")
    if action in ("keep", "leave"):
        changed = replace(one, kept=action == "keep" and one.can_be_kept)
    elif action in ("trained", "held_out", "unpin"):
        changed = replace(one, pin="" if action == "unpin" else str(action))
    elif action in ("closer", "wider"):
        zoom = one.zoom * (1.1 if action == "closer" else 1 / 1.1)
        changed = replace(one, zoom=round(min(max(zoom, framing.ZOOMS[0]), framing.ZOOMS[1]), 3))
    elif action == "caption":
        changed = replace(one, caption=captions.checked_caption(str(value or ""), row))
    else:
        raise UserError("That can't be done with a photo. Reload the page.")
    return _settle(run, tuple(changed if each is one else each for each in box.staged), row)


def _stage(path: Path, name: str, folder: Path) -> Staged:
    from pipelines.photos import decode, intake

    try:
        pixels = decode.decode(path)
    except decode.Unreadable as problem:
        return Staged(name, None, problem.why, "leave_out", ("unreadable",))
    number = 1 + max((int(p.stem) for p in folder.iterdir() if p.stem.isdigit()), default=-1)
    return Staged(name, intake.store_copy(pixels, folder / f"{number:03d}").name)


def _settle(run: Run, staged: tuple[Staged, ...], row: BaseRow) -> Box:
    """Judge what is staged, each photo and the set; split it where it is enough, and store the result."""
    from pipelines.photos import intake

    there = {one.file: one for one in staged if one.file}
    files = [run.folder / STAGED / file for file in there]
    keep = [file for file, one in there.items() if one.kept]
    photo_set, problem, report = None, None, None
    if files:
        found, report = intake.check(files, min_eye_distance_px=row.min_eye_distance_px, keep=keep)
        names = {file: one.name for file, one in there.items()}
        said = {check.name: check for check in found}
        staged = tuple(
            replace(one, verdict=check.verdict, reasons=check.reasons, text=_named(check.text, names), kept=check.kept)
            if (check := said.get(one.file or "")) is not None
            else one
            for one in staged
        )
        for one in staged:  # what can't be used whatever the person says is not kept
            if one.file and one.verdict == "leave_out" and not (one.kept or one.can_be_kept):
                (run.folder / STAGED / one.file).unlink(missing_ok=True)
                files.remove(run.folder / STAGED / one.file)
        gone = {one.file for one in staged if one.file and run.folder / STAGED / one.file not in files}
        staged = tuple(replace(one, file=None) if one.file in gone else one for one in staged)
        if sum(one.used for one in staged) >= MIN_PHOTOS:
            learn, judge = ([one.file for one in staged if one.file and one.pin == pin] for pin in PINS)
            seen = _seen(run)  # a photo that was learned from judges nobody, unless the person insists
            learn += [
                one.file
                for one in staged
                if one.file and not one.pin and seen and file_sha256(run.folder / STAGED / one.file) in seen
            ]
            try:
                made = intake.intake(
                    files,
                    run.photos,
                    min_eye_distance_px=row.min_eye_distance_px,
                    keep=keep,
                    trained=learn,
                    held_out=judge,
                )
                photo_set = _with_names(made, there, staged)
                _save_crops(run, photo_set, row)
            except UserError as error:
                problem = _named(str(error), names)
    return _save(run, Box(staged, photo_set, problem, report))


def note_learned(run: Run, methods: Sequence[str]) -> None:
    """Remember, before a training starts, which photos it will show these methods. Nothing is ever taken off the list:
    whether a training got anywhere is not known here.
    """
    box = load(run)
    now = _learned_from(run, box)
    seen = {method: sorted(_seen(run, method) | now) for method in methods}
    write_json(run.folder / LEARNED, {"schema": 1, "methods": _methods_seen(run) | seen})


def can_go_on(run: Run, box: Box, method: str) -> bool:
    """Whether what a method learned may be learned on: every photo it ever saw is still learned from, so none judges -
    not even as a copy under another name.
    """
    seen = _seen(run, method)
    return bool(seen) and seen <= _learned_from(run, box)


def _learned_from(run: Run, box: Box) -> frozenset[str]:
    """Digests of the photos that a training would see now."""
    if box.photo_set is None:
        return frozenset()
    used = {photo.name for photo in (*box.photo_set.train, *box.photo_set.validation)}
    return frozenset(file_sha256(run.folder / STAGED / one.file) for one in box.staged if one.file and one.name in used)


def _methods_seen(run: Run) -> dict[str, list[str]]:
    saved = read_json(run.folder / LEARNED)
    methods = saved.get("methods") if isinstance(saved, dict) else None
    return methods if isinstance(methods, dict) else {}


def _seen(run: Run, method: str | None = None) -> frozenset[str]:
    """Digests of the photos that a method (None: any) was shown in this run."""
    found = _methods_seen(run)
    return frozenset(str(sha) for name, shas in found.items() if method in (None, name) for sha in shas)


def _save_crops(run: Run, photo_set: PhotoSet, row: BaseRow) -> None:
    """What the base will see of each photo, and the words it will be told, for the person to look at."""
    from PIL import Image

    from pipelines.photos import captions, framing

    folder = run.folder / CROPS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    every = photo_set.photos
    frames = framing.crops(every, row)
    for photo, frame in zip(every, frames, strict=True):
        path = folder / f"{Path(photo.path).stem}.png"
        Image.fromarray(frame).save(path)
        path.chmod(0o600)
    told = captions.training_captions(every, frames)
    write_json(
        run.folder / CROPS / "captions.json", {photo.name: text for photo, text in zip(every, told, strict=True)}
    )


def crops(run: Run, box: Box) -> list[tuple[Staged, Path, str, bool]]:
    """(photo, its crop, its caption, whether it is learned from) of every photo in the set."""
    if box.photo_set is None:
        return []
    told = read_json(run.folder / CROPS / "captions.json") or {}
    staged = {one.name: one for one in box.staged if one.used}
    learned = {photo.name for photo in box.photo_set.train}
    return [
        (
            staged[photo.name],
            run.folder / CROPS / f"{Path(photo.path).stem}.png",
            told[photo.name],
            photo.name in learned,
        )
        for photo in box.photo_set.photos
        if photo.name in staged and photo.name in told
    ]


def _save(run: Run, box: Box) -> Box:
    refused = [one for one in box.staged if one.file is None]
    if older := refused[:-REFUSED_LISTED]:
        box = replace(box, staged=tuple(one for one in box.staged if one.file or one not in older))
    if box.photo_set is None:
        run.photo_set.unlink(missing_ok=True)
        shutil.rmtree(run.photos, ignore_errors=True)
        shutil.rmtree(run.folder / CROPS, ignore_errors=True)
    else:
        save_photo_set(run, box.photo_set)
    record = {
        "staged": list(box.staged),
        "split": box.photo_set is not None,
        "problem": box.problem,
        "report": box.report,
    }
    write_json(run.folder / RECORD, record)
    return box


def _with_names(found: PhotoSet, there: dict[str, Staged], staged: tuple[Staged, ...]) -> PhotoSet:
    """Put the person's own file names, captions and framing in the place of ours."""
    names = {file: one.name for file, one in there.items()}

    def own(photo: Photo) -> Photo:
        one, notes = there[photo.name], tuple(_named(note, names) for note in photo.notes)
        return replace(photo, name=one.name, notes=notes, caption=one.caption, zoom=one.zoom)

    def renamed(part: tuple[Photo, ...]) -> tuple[Photo, ...]:
        return tuple(own(photo) for photo in part)

    return replace(
        found,
        train=renamed(found.train),
        validation=renamed(found.validation),
        held_out=renamed(found.held_out),
        checks=tuple(replace(c, name=names[c.name], text=_named(c.text, names)) for c in found.checks),
        rejected={one.name: one.text for one in staged if not one.used},
    )


def _named(text: str, names: dict[str, str]) -> str:
    """`text` with our staged file names replaced by the person's."""
    for file, name in names.items():
        text = text.replace(file, name)
    return text


def told(one: Staged) -> str:
    """Why a photo is what it is, in the language of who asks. What only the English text holds - what is wrong with a
    file - is left in English.
    """
    codes = [code for code in one.reasons if code in REASONS]
    form = "; ".join(re.escape(REASONS[code]).replace(re.escape(ANOTHER), "(?P<names>.+)") for code in codes)
    found = re.fullmatch(form, one.text, re.DOTALL)
    if not found:
        return one.text
    names = found.groupdict().get("names", ANOTHER)
    return "; ".join(
        tell(NAMING[code], names=names) if code in NAMING and names != ANOTHER else tell(REASONS[code])
        for code in codes
    )


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
    clean = printable(re.sub(r"[\x00-\x1f\x7f/\\]+", "_", name).strip()) or "photo"
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
