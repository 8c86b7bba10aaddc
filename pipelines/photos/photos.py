"""Photos: from whatever a person drops in to a clean, split set that training and scoring can trust.

In: files of any kind. Out: a `PhotoSet` - upright, metadata-free copies in a private folder, one face each,
split into train / validation / held out - or one `UserError` that says what is wrong with which file.
Then `frames` cuts the crops a base trains on and `captions` describes them.
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`; the first phase is this module.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import shutil
import stat
import struct
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pipelines.core.files import settle
from pipelines.core.records import Photo, PhotoCheck, PhotoSet, SetReport, UserError
from pipelines.core.safety import check_prompt
from pipelines.faces.faces import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, Face, align_by_eyes
from pipelines.photos import attributes, checks
from pipelines.photos.checks import Examined, Recogniser, examine

MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 256 << 20
# Everything else Pillow can read (PostScript, PDF, FLI, ...) is no photo and only adds attack surface.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
# Larger pictures are stored as JPEG (quality 95, full colour): a 12-megapixel PNG takes 20 MB.
PNG_UP_TO_PIXELS = 4_000_000
# Photos are takes of one moment when the 64-bit perceptual hashes of the pictures differ in at most 4 bits, or those
# of their aligned faces in at most 8. Measured on 13 people: copies that were cropped by a tenth, turned by 3 degrees,
# brightened, shrunk or recompressed differ in 0-8 bits once aligned (one crop of 14: in 14), without alignment in up to
# 30; of 953 pairs of two moments all but one (two alike studio poses, 4 bits) differ in 12 or more. A false alarm only
# keeps two photos together, a miss would let the judge see what training saw.
NEAR_DUPLICATE_BITS = 4
NEAR_DUPLICATE_FACE_BITS = 8


def photo_files(folder: Path) -> list[Path]:
    """The pictures directly inside `folder`, by name. `UserError` when it is no folder or holds none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name the folder that holds the photos.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder} holds no photos. Put 5 to 15 photos of one person into it.")
    return files


ZIP_ENTRIES, ZIP_TOTAL_BYTES, ZIP_RATIO = 200, 1 << 30, 100


def unpack(archive: Path, into: Path) -> list[Path]:
    """The photos inside a ZIP, written to `into` (made with mode 0700) under their own file names.

    Raises UserError for what is no ZIP, holds no photo, too many entries, too much, something packed far too tightly, a
    link, or a name that leads out of the archive. Sizes are counted while unpacking: a header may lie.
    """
    name = archive.name
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > ZIP_ENTRIES:
                raise UserError(f"{name} holds {len(entries)} files; at most {ZIP_ENTRIES} are read. Send fewer.")
            for entry in entries:
                if stat.S_ISLNK(entry.external_attr >> 16) or ".." in Path(entry.filename).parts:
                    raise UserError(f"{name} holds a link or a path that leads out of it. Pack the photos anew.")
                if entry.flag_bits & 1:
                    raise UserError(f"{name} is locked with a password. Pack the photos without one.")
            wanted = [entry for entry in entries if _is_photo_name(Path(entry.filename).name)]
            if not wanted:
                raise UserError(f"{name} holds no photos. Pack 5 to 15 photos of one person.")
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
            room, out = ZIP_TOTAL_BYTES, []
            for number, entry in enumerate(wanted):
                target = into / f"{number:03d}" / Path(entry.filename).name[-200:]
                target.parent.mkdir(mode=0o700)
                with opened.open(entry) as source, target.open("wb") as sink:
                    size = _copy(source, sink, min(room, MAX_FILE_BYTES, ZIP_RATIO * max(entry.compress_size, 4096)))
                if size is None:
                    raise UserError(f"{name} unpacks to far more than photos need. Send the photos one by one.")
                room -= size
                out.append(target)
            return out
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{name} is not a ZIP that can be read. Pack the photos anew or send them one by one."
        ) from error


def _is_photo_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _copy(source: IO[bytes], sink: IO[bytes], at_most: int) -> int | None:
    """Bytes copied, or None when there were more than `at_most`."""
    size = 0
    while block := source.read(1 << 20):
        size += len(block)
        if size > at_most:
            return None
        sink.write(block)
    return size


# ---------------------------------------------------------------------------------------------------- decoding


@lru_cache(maxsize=1)
def _register_heif() -> None:
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def decode(path: Path) -> np.ndarray:
    """Read one photo: upright RGB uint8 (H, W, 3) in sRGB, first frame, nothing but pixels.

    The size is checked from the header, before a single pixel is decoded. Transparent parts become white, 16-bit
    and CMYK become 8-bit RGB, an embedded colour profile is applied. Raises `UserError` with a sentence that starts
    with the file's name.
    """
    from PIL import Image

    _register_heif()
    name = path.name
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{name} is not a file. Choose a photo instead.")
    except OSError as error:
        raise UserError(f"{name} could not be opened ({_reason(error)}). Choose it again.") from error
    if size == 0:
        raise UserError(f"{name} is empty (0 bytes). Copy it again from where it came from.")
    if size > MAX_FILE_BYTES:
        raise UserError(f"{name} is {size >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB can be read. Save it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the check below refuses them
            image = Image.open(path, formats=_formats())
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has far too many pixels. Save it with at most 40 megapixels.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError, MemoryError) as error:
        raise UserError(f"{name} is not a photo that can be read. Save it as JPEG or PNG.") from error
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{name} has {width} x {height} pixels ({width * height / 1e6:.0f} megapixels); at most "
                f"{MAX_PIXELS // 10**6} can be read. Save it smaller."
            )
        if width * height == 0:
            raise UserError(f"{name} has no pixels. Choose another photo.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                return _upright_rgb(image)
        except (
            OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, MemoryError,
            Image.DecompressionBombError,
        ) as error:  # fmt: skip
            raise UserError(f"{name} is damaged or cut short. Copy it again or leave it out.") from error


def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _upright_rgb(image: Any) -> np.ndarray:
    from PIL import Image, ImageOps

    with contextlib.suppress(Exception):  # broken EXIF: the picture counts, not its tags
        ImageOps.exif_transpose(image, in_place=True)  # else even an upright picture is copied
    if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits a pixel, always greyscale
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-9)
        grey = np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8, order="C")


def _to_srgb(image: Any, profile: bytes) -> Any:
    """Apply an embedded profile (phones write Display P3); an unreadable one is ignored."""
    from PIL import ImageCms

    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return converted if converted is not None else image
    return image


# ---------------------------------------------------------------------------------------------------- intake


@dataclass(frozen=True)
class _Taken:
    """One file that could be read, before it has its place in the set."""

    name: str
    path: Path  # the stored copy
    examined: Examined
    pixels_sha256: str
    hash_bits: np.ndarray  # (64,) bool, of the whole picture
    face_bits: np.ndarray  # (faces, 64) bool, of each aligned face and what surrounds it


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
    """Decode, check, strip, store and split a person's photos.

    Every file is decoded once. What passes is stored in `folder` (made with mode 0700) without any metadata as
    00.png / 00.jpg ..., in an order that depends on the pictures and not on the upload. Every file has its entry in
    `checks`; those left out are also listed in `rejected`, each with its sentence. File names in `keep` are used
    although the checks would leave them out; names in `held_out` and `trained` are pinned to that part.
    `progress(done, total, file name)` is called after each file.
    Raises `UserError`, and stores nothing, when fewer than `min_photos` different pictures remain.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("No photos were given. Add 5 to 15 photos of one person.")
    if len(paths) > max_photos:
        raise UserError(
            f"{len(paths)} photos were given and at most {max_photos} are used. Remove {len(paths) - max_photos}."
        )
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
        raise UserError(f"The photos could not be stored ({_reason(error)}). Choose another folder.") from error
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
    """What `intake` would say of these files, however few they are; nothing is stored."""
    found = look(
        [Path(path) for path in paths], None, min_eye_distance_px=min_eye_distance_px, keep=keep, progress=progress
    )
    return found.checks, found.report


@dataclass(frozen=True)
class Looked:
    """All files, read and judged. `taken[i]` is what is used, its face `faces[i]`; `groups` index into it."""

    checks: list[PhotoCheck]
    report: SetReport
    taken: list[_Taken]
    faces: list[Face]
    groups: list[list[int]]  # of near-duplicates


def look(
    paths: Sequence[Path],
    incoming: Path | None,
    *,
    min_eye_distance_px: float,
    keep: Collection[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Looked:
    """Read every file (storing its copy in `incoming`, if given) and judge each alone and all together."""
    recogniser = _recogniser()
    known = recogniser.calibration if recogniser else None
    names, read, problems = _read_all(paths, incoming, progress)
    # sorted by pixels: neither upload order nor file names matter to anything that follows
    order = sorted((k for k, one in enumerate(read) if one is not None), key=lambda k: _sha(read, k))
    first: dict[str, int] = {}
    same: dict[int, int] = {}
    for k in sorted(order):  # in the order of names, so that of two equal pictures the same one is kept
        if _sha(read, k) in first:
            same[k] = first[_sha(read, k)]
        first.setdefault(_sha(read, k), k)
    unlike = [k for k in order if k not in same]
    who = checks.subjects([None if one is None else one.examined for one in read])
    with_face = [k for k in unlike if _one(read, k).examined.faces]
    near = _near_duplicates([(_one(read, k), who[k]) for k in with_face]) if with_face else []
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


def _one(read: Sequence[_Taken | None], k: int) -> _Taken:
    one = read[k]
    assert one is not None
    return one


def _sha(read: Sequence[_Taken | None], k: int) -> str:
    return _one(read, k).pixels_sha256


@lru_cache(maxsize=1)
def _recogniser() -> Recogniser | None:
    """The embedded recogniser; without it (no onnxruntime) nobody is called another person."""
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
    """Names (told apart), what could be read, and the sentences for what could not; by file name."""
    names: list[str] = []
    read: list[_Taken | None] = []
    problems: dict[str, str] = {}
    times: dict[str, int] = {}
    ordered = sorted(paths, key=lambda path: (path.name, str(path)))
    for path in ordered:
        times[path.name] = times.get(path.name, 0) + 1
        names.append(path.name if times[path.name] == 1 else f"{path.name} ({times[path.name]})")
    # decoding, shrinking and storing let other threads run; a 12-megapixel photo takes about 150 MB meanwhile
    with ThreadPoolExecutor(_readers()) as pool:
        waiting = [
            pool.submit(_take, path, name, incoming / f"{number:03d}" if incoming else None)
            for number, (path, name) in enumerate(zip(ordered, names), start=1)
        ]
        try:
            for done, (path, name, taken) in enumerate(zip(ordered, names, waiting), start=1):
                try:
                    read.append(taken.result())
                except UserError as problem:
                    read.append(None)
                    problems[name] = re.sub(rf"^{re.escape(path.name)}:? ", "", str(problem))
                if progress is not None:
                    progress(done, len(paths), name)
        finally:
            for taken in waiting:
                taken.cancel()
    return names, read, problems


def _readers() -> int:
    """Photos that are read at once: a core each, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


@dataclass(frozen=True)
class _Known:
    """What was measured in one picture. Biometric: in memory only."""

    examined: Examined
    pixels_sha256: str
    hash_bits: np.ndarray
    face_bits: np.ndarray


# Of files that are ours already (metadata-free copies), so that a set is judged anew in no time when one photo is added
# or removed. Keyed by path, time and size; at most so many, and gone with the process or with `forget_measures`.
_known: dict[tuple[str, int, int], _Known] = {}
_known_lock = threading.Lock()
KNOWN_AT_MOST = 400


def _identity(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return str(path.resolve()), about.st_mtime_ns, about.st_size


def store_copy(image: np.ndarray, target: Path) -> Path:
    """Write a metadata-free copy of an upright picture (a suffix is added), and measure the picture once for all."""
    measured = _measured(image)
    stored = _write(image, target)
    with _known_lock:
        _known[_identity(stored)] = measured
        while len(_known) > KNOWN_AT_MOST:
            _known.pop(next(iter(_known)))
    return stored


def forget_measures(folder: Path) -> None:
    """Drop what is remembered of the copies in `folder`."""
    inside = str(folder.resolve()) + os.sep
    with _known_lock:
        for key in [key for key in _known if key[0].startswith(inside)]:
            del _known[key]


def _measured(image: np.ndarray) -> _Known:
    examined = examine(image, _recogniser())
    face_bits = [perceptual_hash(align_by_eyes(image, face.eyes)) for face in examined.faces]
    sha = hashlib.sha256(repr(image.shape).encode())
    sha.update(np.ascontiguousarray(image).data)
    return _Known(examined, sha.hexdigest(), perceptual_hash(image), np.array(face_bits))


def _take(path: Path, name: str, target: Path | None) -> _Taken:
    with _known_lock:
        known = _known.get(_identity(path)) if path.is_file() else None
    stored = path
    if known is None:
        image = decode(path)
        known = _measured(image)
        if target is not None and known.examined.faces:
            stored = _write(image, target)
    elif target is not None and known.examined.faces:  # a copy of ours: its bytes are good as they are
        stored = target.with_suffix(path.suffix)
        shutil.copyfile(path, stored)
        stored.chmod(0o600)
    return _Taken(name, stored, known.examined, known.pixels_sha256, known.hash_bits, known.face_bits)


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


def _near_duplicates(taken: Sequence[tuple[_Taken, int]]) -> list[list[int]]:
    """Indices of (photo, whose face) grouped so that photos of one moment share a group (chains count). Sorted,
    order-independent.
    """
    whole = np.stack([one.hash_bits for one, _ in taken])
    face = np.stack([one.face_bits[who] for one, who in taken])
    near = (whole[:, None] != whole[None]).sum(-1) <= NEAR_DUPLICATE_BITS
    near |= (face[:, None] != face[None]).sum(-1) <= NEAR_DUPLICATE_FACE_BITS
    label = np.arange(len(taken))
    for _ in range(len(taken)):
        label = np.where(near, label[None, :], len(taken)).min(1)
    return [np.flatnonzero(label == one).tolist() for one in np.unique(label)]


def _store(found: Looked, folder: Path) -> list[Photo]:
    """Move the copies of what is used to their final names; photos that were here before go."""
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
            )
        )
    return photos


# ---------------------------------------------------------------------------------------------------- split


def split_sizes(count: int) -> tuple[int, int, int]:
    """(train, validation, held out) for `count` photos: a quarter held out; validation 1 from 8, 2 from 12 photos.

    5 photos are 4 + 1. Validation chooses checkpoints, so it may neither train nor judge.
    """
    held_out = max(1, int(count * 0.25 + 0.5)) if count > 5 else 1
    validation = 2 if count >= 12 else 1 if count >= 8 else 0
    return count - validation - held_out, validation, held_out


def split(
    groups: Sequence[Sequence[Photo]],
    *,
    rejected: dict[str, str] | None = None,
    seed: int = 0,
    held_out: Collection[str] = (),
    trained: Collection[str] = (),
) -> PhotoSet:
    """Divide groups of near-duplicates into the three parts; a group is never divided.

    The order of the draw is a hash of the seed and the pictures, so neither upload order nor file names matter.
    Photos named in `held_out` or `trained` (by the person, or because a method has seen them) are pinned there, and
    take the photos of their moment with them.
    At least 2 groups. `weak` where one photo, or one moment, is all there is to judge with.
    """
    if len(groups) < 2:
        raise UserError("All photos are nearly the same picture. Add photos from other moments.")

    def draw(group: Sequence[Photo]) -> str:
        return hashlib.sha256(f"{seed}:{min(photo.sha256 for photo in group)}".encode()).hexdigest()

    waiting = sorted((sorted(group, key=lambda photo: photo.sha256) for group in groups), key=draw)
    _, validation_size, held_out_size = split_sizes(sum(len(group) for group in waiting))
    judging = _pinned(waiting, held_out)
    learning = _pinned(waiting, trained)
    if not (learning or waiting):
        raise UserError(
            "No photo is left to learn from: each is pinned to be held out, or shows the moment of one that is. Unpin "
            "some, or add photos of other moments."
        )
    if not (judging or waiting):
        raise UserError(
            "No photo is left to judge with: each is pinned to be learned from, was learned from before, or shows the "
            "moment of one that is or was. Add photos of other moments, or pin one to be held out."
        )
    stay = 0 if learning else 1  # one moment at least is learned from
    judging += _fill(waiting, held_out_size - _count(judging), at_least_one=not judging, stay=stay)
    validation = _fill(waiting, validation_size, at_least_one=False, stay=stay)
    waiting = [*learning, *waiting]

    def flat(part: Sequence[Sequence[Photo]]) -> tuple[Photo, ...]:
        return tuple(sorted((photo for group in part for photo in group), key=lambda photo: photo.path))

    return PhotoSet(
        train=flat(waiting),
        validation=flat(validation),
        held_out=flat(judging),
        rejected=dict(rejected or {}),
        weak=len(judging) < 2,
    )


def _count(groups: Sequence[Sequence[Photo]]) -> int:
    return sum(len(group) for group in groups)


def _pinned(waiting: list[list[Photo]], names: Collection[str]) -> list[list[Photo]]:
    """Take the groups that hold one of these photos out of `waiting`."""
    found = [group for group in waiting if any(photo.name in names for photo in group)]
    waiting[:] = [group for group in waiting if group not in found]
    return found


def _fill(waiting: list[list[Photo]], size: int, *, at_least_one: bool, stay: int) -> list[list[Photo]]:
    """Take groups out of `waiting`, in order, while they fit into `size` and more than `stay` are left."""
    part: list[list[Photo]] = []
    for group in list(waiting):
        if len(waiting) > stay and _count(part) + len(group) <= size:
            part.append(group)
            waiting.remove(group)
    if not part and at_least_one:
        smallest = min(waiting, key=len)
        part.append(smallest)
        waiting.remove(smallest)
    return part


# ---------------------------------------------------------------------------------------------------- measures


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """64 bits (bool) that survive scaling, recompression and small shifts in brightness.

    The sign of the 8x8 lowest frequencies of a 32x32 grey copy against their median (DCT "pHash", Zauner 2010).
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].reshape(-1)
    return low > np.median(low[1:])


# ---------------------------------------------------------------------------------------------------- frames


class Framing(Protocol):
    """What `frames` needs of a base's registry row."""

    @property
    def aligned(self) -> bool: ...
    @property
    def resolution_px(self) -> int: ...


class Bucketed(Framing, Protocol):
    """What `crops` needs of it besides."""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]: ...


def frames(
    photos: Sequence[Photo],
    row_or_size: Framing | int | None = None,
    *,
    aligned: bool | None = None,
    resolution_px: int | None = None,
    read: Callable[[Path], np.ndarray] = decode,
) -> np.ndarray:
    """Cut each photo to what a base sees: (n, resolution, resolution, 3) uint8, in the order given.

    Aligned bases get the eyes on the points they were trained with (scaled from 128 px); others a square around
    the face with head and shoulders. The keywords win over the registry row. `read`, once for each photo, in order: for
    who wants to see the whole photo too.
    """
    if isinstance(row_or_size, int):
        resolution_px = resolution_px or row_or_size
    elif row_or_size is not None:
        resolution_px = resolution_px or row_or_size.resolution_px
        aligned = row_or_size.aligned if aligned is None else aligned
    if resolution_px is None or resolution_px <= 0:
        raise ValueError("frames() needs a base's row or resolution_px")
    out = np.empty((len(photos), resolution_px, resolution_px, 3), np.uint8)
    for index, photo in enumerate(photos):
        image = read(Path(photo.path))
        if aligned:
            scale = resolution_px / PORTRAIT_SIZE_PX
            x, y = PORTRAIT_EYES_MID
            out[index] = align_by_eyes(
                image,
                np.array(photo.eyes),
                size_px=resolution_px,
                midpoint=((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5),
                apart_px=PORTRAIT_EYES_APART_PX * scale * photo.zoom,
            )
        else:
            out[index] = _around_face(image, photo, resolution_px, resolution_px)
    return out


def crops(photos: Sequence[Photo], row: Bucketed, *, read: Callable[[Path], np.ndarray] = decode) -> list[np.ndarray]:
    """What training sees of each photo, (H, W, 3) uint8: like `frames`, but for bases that learned several picture
    shapes each photo keeps the one nearest to its own (aspect-ratio bucketing).
    """
    if row.aligned or row.shapes == ((row.resolution_px, row.resolution_px),):
        return list(frames(photos, row, read=read))
    images = (read(Path(photo.path)) for photo in photos)
    return [_around_face(image, photo, *_nearest_shape(image, row.shapes)) for image, photo in zip(images, photos)]


def _nearest_shape(image: np.ndarray, shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    own = math.log(image.shape[0] / image.shape[1])
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - own))


def _around_face(image: np.ndarray, photo: Photo, height_px: int, width_px: int) -> np.ndarray:
    """A part of the photo of this shape with the face in its upper middle, about a third of a square's height."""
    import cv2

    x, y, across, down = _window(photo, image.shape, height_px, width_px)
    crop = np.ascontiguousarray(image[y : y + down, x : x + across])
    method = cv2.INTER_AREA if across > width_px else cv2.INTER_CUBIC
    return cv2.resize(crop, (width_px, height_px), interpolation=method)


def _window(photo: Photo, size: Sequence[int], height_px: int, width_px: int) -> tuple[int, int, int, int]:
    """Which part of a photo of `size` (height, width, ...) is cut out: left, top, width, height in pixels."""
    left, top, right, bottom = photo.face_box
    face_px = max(right - left, bottom - top, 1.0)
    height, width = size[:2]
    tall = height_px / width_px
    # Rather more surroundings than enlarged pixels, up to a face of a fifth of the width.
    across = max(3.0 * face_px, min(float(width_px), 5.0 * face_px)) / photo.zoom
    across = int(min(across, width, height / tall))
    down = min(height, round(across * tall))
    x = int(np.clip((left + right) / 2 - across / 2, 0, width - across))
    y = int(np.clip((top + bottom) / 2 - 0.42 * down, 0, height - down))
    return x, y, across, down


# A head with its hair, in distances between the eyes, which lie half-way up: 1.4 to each side, 2.1 up and down.
HEAD_ACROSS, HEAD_DOWN = 1.4, 2.1
HEAD_EDGE = 0.3  # the soft part of the edge, as a share of the oval
FACE_OF_EYES = 2.6  # a face box is about so many distances wide: turned heads have eyes close together


def heads(photos: Sequence[Photo], row: Bucketed) -> list[np.ndarray]:
    """Where the head is in what training sees of each photo (`crops`), (H, W) float32: 1 inside a soft oval, 0 outside.

    From the eyes and the box that intake noted; no picture is read.
    """
    aligned = row.aligned or row.shapes == ((row.resolution_px, row.resolution_px),)
    found = []
    for photo in photos:
        size = (photo.height_px, photo.width_px)
        if aligned:
            shape = (row.resolution_px, row.resolution_px)
        else:
            shape = min(row.shapes, key=lambda each: abs(math.log(each[0] / each[1]) - math.log(size[0] / size[1])))
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        eyes = np.array(photo.eyes, np.float64)
        across = eyes[1] - eyes[0]
        apart = max(float(np.hypot(*across)), 1e-6)
        left, _, right, _ = photo.face_box
        head = max(apart, (right - left) / FACE_OF_EYES)
        if row.aligned:  # the eyes lie where the base expects them, level
            scale = row.resolution_px / PORTRAIT_SIZE_PX
            middle = [(each + 0.5) * scale - 0.5 for each in PORTRAIT_EYES_MID]
            head *= PORTRAIT_EYES_APART_PX * scale * photo.zoom / apart
            level = np.array([1.0, 0.0])
        else:
            corner_x, corner_y, wide, high = _window(photo, size, *shape)
            ratio = np.array([shape[1] / wide, shape[0] / high])
            middle = list((eyes.mean(0) - (corner_x, corner_y) + 0.5) * ratio - 0.5)
            head *= float(ratio.mean())
            level = across / apart
        right_of, below = x - middle[0], y - middle[1]
        along = right_of * level[0] + below * level[1]
        down = below * level[0] - right_of * level[1]
        distance = np.hypot(along / (HEAD_ACROSS * head), down / (HEAD_DOWN * head))
        found.append(np.clip((1 + HEAD_EDGE / 2 - distance) / HEAD_EDGE, 0, 1).astype(np.float32))
    return found


ZOOMS = (0.8, 1.3)  # farther from the base's own framing it draws nothing well


def checked_caption(text: str, row: Any) -> str | None:
    """A person's own caption made fit to train with; None for an empty one: what was measured.

    Raises UserError, naming them, for words the base never learned, for a caption that is too long, and for sexual
    content.
    """
    clean = " ".join(text.split())
    if not clean:
        return None
    if "{subject}" not in clean:
        clean = f"portrait of {{subject}}, {clean}"
    if len(clean) > 300:
        raise UserError("The caption is longer than 300 characters. Say it shorter.")
    if re.sub(r"\{subject\}", "", clean).count("{") or "}" in clean.replace("{subject}", ""):
        raise UserError("A caption may hold {subject} and no other braces.")
    check_prompt(clean)
    if unknown := row.unknown_words(clean):
        raise UserError(f"{row.title} does not know: {', '.join(unknown)}. Remove or replace these words.")
    return clean


def training_captions(photos: Sequence[Photo], frames: Sequence[np.ndarray]) -> tuple[str, ...]:
    """The person's own caption of each photo, else what was measured in its frame (H, W, 3)."""
    measured = captions(frames)
    return tuple(photo.caption or text for photo, text in zip(photos, measured, strict=True))


def captions(frames: Sequence[np.ndarray]) -> tuple[str, ...]:
    """One caption per frame (H, W, 3), each with `{subject}`, in the grammar of the embedded base.

    The pixel rules are made for 128 px aligned frames. Larger frames come from other bases with freer framing: only
    background and tone are read from them.
    """
    texts = []
    for frame in frames:
        if frame.shape[:2] == (PORTRAIT_SIZE_PX, PORTRAIT_SIZE_PX):
            seen = attributes.measure(frame)
        else:
            import cv2

            small = cv2.resize(frame, (PORTRAIT_SIZE_PX, PORTRAIT_SIZE_PX), interpolation=cv2.INTER_AREA)
            seen = replace(attributes.measure(small), jacket=None)
        texts.append(attributes.caption("{subject}", seen))
    return tuple(texts)
