"""Intake: turns the files of a person into a checked and split set of clean copies, for training and scoring.

In: files of any kind. Out: a `PhotoSet` - upright copies without metadata in a private folder, one face each, in three
parts (train, validation, held out) - or one `UserError` that says what is wrong with which file.
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`; its first phase is this module.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.core.files import printable, settle
from pipelines.core.records import Photo, PhotoCheck, PhotoSet, SetReport, UserError
from pipelines.faces.face import Face
from pipelines.photos import checks
from pipelines.photos.checks import Examined, Recogniser, examine_upright
from pipelines.photos.decode import Unreadable, decode, kind_of_file, reason
from pipelines.photos.split import (
    ALIKE_COSINE,
    NEAR_DUPLICATE_CORRELATION,
    NEAR_DUPLICATE_COSINE,
    correlation,
    face_patch,
    near_duplicates,
    perceptual_hash,
    split,
)

# Larger pictures are stored as JPEG (quality 95, full colour): a 12-megapixel PNG takes 20 MB.
PNG_UP_TO_PIXELS = 4_000_000


@dataclass(frozen=True)
class _Taken:
    """One file that could be read, before the set is split."""

    name: str
    path: Path  # the stored copy
    examined: Examined
    pixels_sha256: str
    hash_bits: np.ndarray  # (64,) bool, of the whole picture
    patches: np.ndarray  # (faces, 64, 64): each aligned face, see `split.face_patch`


def intake(
    paths: Sequence[Path],
    folder: Path,
    *,
    min_photos: int = 5,
    max_photos: int = 30,
    seed: int = 0,
    min_eye_distance_px: float = 20.0,
    keep: Collection[str] = (),
    held_out: Collection[str] = (),
    trained: Collection[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> PhotoSet:
    """Decode, check, store and split a person's photos.

    Every file is decoded once. Photos that pass are stored in `folder` (made with mode 0700) without any metadata as
    00.png / 00.jpg ..., in an order that depends on the pictures and not on the upload. Every file has its entry in
    `checks`; those left out are also listed in `rejected`, each with a sentence. File names in `keep` are used although
    the checks would leave them out; names in `held_out` and `trained` go to that part.
    `progress(done, total, file name)` is called after each file.
    Raises `UserError`, and stores nothing, when fewer than `min_photos` different pictures remain.
    """
    paths = [Path(path) for path in paths]
    keep, held_out, trained = ([printable(name) for name in names] for names in (keep, held_out, trained))
    if not paths:
        raise UserError("No photos were given. Add 5 to 15 photos of one person.")
    given = sum(not isinstance(kind_of_file(path), str) for path in paths)  # without files that are surely no photos
    if given > max_photos:
        raise UserError(f"{given} photos were given and at most {max_photos} are used. Remove {given - max_photos}.")
    incoming: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=folder))
        found = look(paths, incoming, min_eye_distance_px=min_eye_distance_px, keep=keep, progress=progress)
        rejected = {c.name: c.text for c in found.checks if c.verdict == "leave_out" and not c.kept}
        if len(found.taken) < min_photos:
            raise UserError(_too_few(len(found.taken), len(paths), min_photos, rejected))
        if len(found.groups) < 2:
            raise UserError(
                "All photos are nearly the same picture, so none can be kept apart to judge with. "
                "Add photos from other moments."
            )
        stored = _store(found, folder)
        groups = [[stored[i] for i in group] for group in found.groups]
        parts = split(groups, rejected=rejected, seed=seed, held_out=held_out, trained=trained)
        return replace(parts, checks=tuple(found.checks), report=found.report)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError("The disk is full, so no photo was stored. Free some space and try again.") from error
        raise UserError(f"The photos could not be stored ({reason(error)}). Choose another folder.") from error
    finally:
        if incoming is not None:
            shutil.rmtree(incoming, ignore_errors=True)


def check(
    paths: Sequence[Path],
    *,
    min_eye_distance_px: float = 20.0,
    keep: Collection[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[PhotoCheck], SetReport]:
    """The checks and the report that `intake` would give for these files, even for a few; nothing is stored."""
    found = look(
        [Path(path) for path in paths], None, min_eye_distance_px=min_eye_distance_px, keep=keep, progress=progress
    )
    return found.checks, found.report


@dataclass(frozen=True)
class Looked:
    """All files, read and checked. `taken`: the photos that are used; `faces[i]`: the person's face in `taken[i]`."""

    checks: list[PhotoCheck]
    report: SetReport
    taken: list[_Taken]
    faces: list[Face]
    groups: list[list[int]]  # indices into `taken`, grouped by near-duplicates


def look(
    paths: Sequence[Path],
    incoming: Path | None,
    *,
    min_eye_distance_px: float,
    keep: Collection[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Looked:
    """Read every file (and store its copy in `incoming`, if given); check each one and the whole set."""
    recogniser = _recogniser()
    known = recogniser.calibration if recogniser else None
    names, read, problems = _read_all(paths, incoming, progress)
    # sorted by a hash of the pixels: what follows depends on neither upload order nor file names
    order = sorted((k for k, one in enumerate(read) if one is not None), key=lambda k: _sha(read, k))
    first: dict[str, int] = {}
    same: dict[int, int] = {}
    for k in sorted(order):  # in the given order, so that the first of two equal pictures is always kept
        if _sha(read, k) in first:
            same[k] = first[_sha(read, k)]
        first.setdefault(_sha(read, k), k)
    unlike = [k for k in order if k not in same]
    who = checks.subjects([None if one is None else one.examined for one in read])
    with_face = [k for k in unlike if _one(read, k).examined.faces]
    near = _moments([_one(read, k) for k in with_face], [who[k] for k in with_face])
    near = [[with_face[i] for i in group] for group in near]
    judged, report, who = checks.check_set(
        names,
        [None if one is None else one.examined for one in read],
        problems,
        min_eye_distance_px=min_eye_distance_px,
        near=near,
        same=same,
        keep=keep,
        known=known,
    )
    used = [k for k in with_face if judged[k].verdict != "leave_out" or judged[k].kept]
    place = {k: i for i, k in enumerate(used)}
    groups = [[place[k] for k in group if k in place] for group in near]
    taken = [_one(read, k) for k in used]
    faces = [one.examined.faces[who[k]] for one, k in zip(taken, used, strict=True)]
    return Looked(judged, report, taken, faces, [group for group in groups if group])


def _moments(taken: Sequence[_Taken], who: Sequence[int]) -> list[list[int]]:
    """Indices into `taken`, grouped by near-duplicates. `who[i]` is the person's face in photo i."""
    if not taken:
        return []
    match = np.eye(len(taken), dtype=bool)
    for i in range(len(taken)):
        for j in range(i):
            match[i, j] = match[j, i] = faces_match(taken[i], who[i], taken[j], who[j])
    return near_duplicates(np.stack([one.hash_bits for one in taken]), match)


# Results of `faces_match`, by the hashes of the pictures, so that each pair is compared only once.
_matched: dict[tuple[str, int, str, int], bool] = {}
MATCHED_AT_MOST = 20_000


def faces_match(one: _Taken | Measured, who: int, other: _Taken | Measured, whom: int) -> bool:
    """Whether two faces are near-duplicates (photos of one moment): see `split.NEAR_DUPLICATE_CORRELATION`."""
    key = (one.pixels_sha256, who, other.pixels_sha256, whom)
    if key not in _matched:
        vectors = one.examined.vectors, other.examined.vectors
        known = len(vectors[0]) and len(vectors[1])
        cosine = float(vectors[0][who] @ vectors[1][whom]) if known else ALIKE_COSINE  # without a recogniser
        found = cosine >= NEAR_DUPLICATE_COSINE
        if not found and cosine >= ALIKE_COSINE:
            found = correlation(one.patches[who], other.patches[whom]) >= NEAR_DUPLICATE_CORRELATION
        if len(_matched) >= MATCHED_AT_MOST:
            _matched.clear()
        _matched[key] = found
    return _matched[key]


def _one(read: Sequence[_Taken | None], k: int) -> _Taken:
    one = read[k]
    assert one is not None
    return one


def _sha(read: Sequence[_Taken | None], k: int) -> str:
    return _one(read, k).pixels_sha256


@lru_cache(maxsize=1)
def _recogniser() -> Recogniser | None:
    """The embedded recogniser; None without onnxruntime: then no photo is called another person."""
    try:
        import onnxruntime  # noqa: F401 - is it here?

        return Recogniser()
    except (ImportError, UserError):
        return None


def _read_all(
    paths: Sequence[Path],
    incoming: Path | None,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[list[str], list[_Taken | None], dict[str, str]]:
    """(unique names, the photos that could be read, {name: sentence} for the others)."""
    names: list[str] = []
    read: list[_Taken | None] = []
    problems: dict[str, str] = {}
    times: dict[str, int] = {}
    ordered = sorted(paths, key=lambda path: (path.name, str(path)))
    for path in ordered:
        name = printable(path.name)
        times[name] = times.get(name, 0) + 1
        names.append(name if times[name] == 1 else f"{name} ({times[name]})")
    # decoding, shrinking and storing release the GIL; a 12-megapixel photo takes about 150 MB of memory meanwhile
    with ThreadPoolExecutor(_readers()) as pool:
        waiting = [
            pool.submit(_take, path, name, incoming / f"{number:03d}" if incoming else None)
            for number, (path, name) in enumerate(zip(ordered, names), start=1)
        ]
        try:
            for done, (name, taken) in enumerate(zip(names, waiting), start=1):
                try:
                    read.append(taken.result())
                except Unreadable as problem:
                    read.append(None)
                    problems[name] = problem.why
                if progress is not None:
                    progress(done, len(paths), name)
        finally:
            for taken in waiting:
                taken.cancel()
    return names, read, problems


def _readers() -> int:
    """How many photos are read at once: one per core, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


@dataclass(frozen=True)
class Measured:
    """What was measured in one picture. Biometric: kept in memory only."""

    examined: Examined
    pixels_sha256: str
    hash_bits: np.ndarray
    patches: np.ndarray


# What was measured in the stored copies, so that a set is checked again quickly when one photo is added or removed. By
# path, time and size of the file; limited in number, and gone with the process or with `forget_measures`.
_known: dict[tuple[str, int, int], Measured] = {}
_known_lock = threading.Lock()
KNOWN_AT_MOST = 400


def _identity(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return str(path.resolve()), about.st_mtime_ns, about.st_size


def store_copy(image: np.ndarray, target: Path) -> Path:
    """Write a copy of an upright picture without metadata (a suffix is added), and keep what is measured in it."""
    image, examined = examine_upright(image, _recogniser())
    found = measured(image, examined)
    stored = _write(image, target)
    with _known_lock:
        _known[_identity(stored)] = found
        while len(_known) > KNOWN_AT_MOST:
            _known.pop(next(iter(_known)))
    return stored


def forget_measures(folder: Path) -> None:
    """Forget what was measured in the copies in `folder`."""
    inside = str(folder.resolve()) + os.sep
    with _known_lock:
        _matched.clear()
        for key in [key for key in _known if key[0].startswith(inside)]:
            del _known[key]


def measured(image: np.ndarray, examined: Examined) -> Measured:
    patches = [face_patch(image, face.eyes) for face in examined.faces]
    sha = hashlib.sha256(repr(image.shape).encode())
    sha.update(np.ascontiguousarray(image).data)
    return Measured(examined, sha.hexdigest(), perceptual_hash(image), np.array(patches))


def _take(path: Path, name: str, target: Path | None) -> _Taken:
    with _known_lock:
        known = _known.get(_identity(path)) if path.is_file() else None
    stored = path
    if known is None:
        image, examined = examine_upright(decode(path), _recogniser())
        known = measured(image, examined)
        if target is not None and known.examined.faces:
            stored = _write(image, target)
    elif target is not None and known.examined.faces:  # already a stored copy: copy its bytes
        stored = target.with_suffix(path.suffix)
        shutil.copyfile(path, stored)
        stored.chmod(0o600)
    return _Taken(name, stored, known.examined, known.pixels_sha256, known.hash_bits, known.patches)


def _write(image: np.ndarray, target: Path) -> Path:
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width * picture.height <= PNG_UP_TO_PIXELS:
        path = target.with_suffix(".png")
        picture.save(path, compress_level=3)
    else:
        path = target.with_suffix(".jpg")
        picture.save(path, quality=95, subsampling=0)
    path.chmod(0o600)
    return path


def _too_few(good: int, given: int, needed: int, rejected: dict[str, str]) -> str:
    sentences = " ".join(f"{name}: {reason}" for name, reason in sorted(rejected.items()))
    count = f"Only {good} of {given} photos" if good else f"None of the {given} photos"
    parts = [f"{count} can be used, and at least {needed} are needed.", sentences, "Add or replace photos."]
    return " ".join(part for part in parts if part)


def _store(found: Looked, folder: Path) -> list[Photo]:
    """Move the copies of the photos that are used to their final names; older photos in `folder` are deleted."""
    for old in folder.iterdir():
        if re.fullmatch(r"\d\d\.(png|jpg)", old.name):
            old.unlink()
    judged = {check.name: check for check in found.checks}
    photos = []
    for index, (one, face) in enumerate(zip(found.taken, found.faces, strict=True)):
        target = folder / f"{index:02d}{one.path.suffix}"
        os.replace(one.path, target)
        settle(target)
        (left_x, left_y), (right_x, right_y) = face.eyes.tolist()
        left, top, right, bottom = (float(side) for side in face.box)
        said = judged[one.name]
        photos.append(
            Photo(
                name=one.name,
                path=str(target),
                sha256=hashlib.sha256(target.read_bytes()).hexdigest(),
                width_px=one.examined.shape[1],
                height_px=one.examined.shape[0],
                face_box=(left, top, right, bottom),
                eyes=((left_x, left_y), (right_x, right_y)),
                eye_distance_px=face.eye_distance_px,
                notes=(said.text,) if said.text else (),
                reasons=said.reasons,
            )
        )
    return photos
