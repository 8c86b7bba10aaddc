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
import os
import re
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines import attributes
from pipelines.faces import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes, detect_faces
from pipelines.schema import Photo, PhotoSet, UserError

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
SHARPNESS_LOW = 25.0  # variance of the Laplacian in the aligned 128 px face; below, the face looks blurred


def photo_files(folder: Path) -> list[Path]:
    """The pictures directly inside `folder`, by name. `UserError` when it is no folder or holds none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name the folder that holds the photos.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder} holds no photos. Put 5 to 15 photos of one person into it.")
    return files


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
        image = ImageOps.exif_transpose(image)
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
    """One file that passed, before it has its place in the set."""

    photo: Photo
    pixels_sha256: str
    hash_bits: np.ndarray  # (64,) bool, of the whole picture
    face_bits: np.ndarray  # (64,) bool, of the aligned face and what surrounds it


def intake(
    paths: Sequence[Path],
    folder: Path,
    *,
    min_photos: int = 5,
    max_photos: int = 30,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> PhotoSet:
    """Decode, check, strip, store and split a person's photos.

    Every file is decoded once. What passes is stored in `folder` (made with mode 0700) without any metadata as
    00.png / 00.jpg ..., in an order that depends on the pictures and not on the upload. Files that fail are listed in
    `rejected`, each with its sentence. `progress(done, total, file name)` is called after each file.
    Raises `UserError`, and stores nothing, when fewer than `min_photos` different pictures with a face remain.
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
        taken, rejected = _take_all(paths, incoming, progress)
        if len(taken) < min_photos:
            raise UserError(_too_few(len(taken), len(paths), min_photos, rejected))
        groups = _near_duplicates(taken)
        if len(groups) < 2:
            raise UserError(
                "All photos are nearly the same picture, so none can be kept apart to judge with. "
                "Add photos from other moments."
            )
        stored = _store(taken, groups, folder)
        return split([[stored[i] for i in group] for group in groups], rejected=rejected, seed=seed)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError("The disk is full, so no photo was stored. Free some space and try again.") from error
        raise UserError(f"The photos could not be stored ({_reason(error)}). Choose another folder.") from error
    finally:
        if incoming is not None:
            shutil.rmtree(incoming, ignore_errors=True)


def _take_all(
    paths: Sequence[Path], incoming: Path, progress: Callable[[int, int, str], None] | None
) -> tuple[list[_Taken], dict[str, str]]:
    """Everything that passes, sorted by its pixels, and the sentences for what does not."""
    taken: dict[str, _Taken] = {}
    rejected: dict[str, str] = {}
    # By name, so that of two equal pictures the same one is kept whatever the order of upload.
    ordered = sorted(paths, key=lambda path: (path.name, str(path)))
    names: dict[str, int] = {}
    for done, path in enumerate(ordered, start=1):
        names[path.name] = names.get(path.name, 0) + 1
        name = path.name if names[path.name] == 1 else f"{path.name} ({names[path.name]})"
        try:
            one = _take(path, name, incoming / f"{done:03d}")
            twin = taken.get(one.pixels_sha256)
            if twin is None:
                taken[one.pixels_sha256] = one
            else:
                Path(one.photo.path).unlink()
                rejected[name] = f"the same picture as {twin.photo.name}; it counts once."
        except UserError as problem:
            rejected[name] = re.sub(rf"^{re.escape(path.name)}:? ", "", str(problem))
        if progress is not None:
            progress(done, len(paths), name)
    return [taken[key] for key in sorted(taken)], rejected


def _take(path: Path, name: str, target: Path) -> _Taken:
    image = decode(path)
    height, width = image.shape[:2]
    if min(height, width) < 64:
        raise UserError(f"{name} has only {width} x {height} pixels. Use a larger copy.")
    faces = detect_faces(image)
    if not faces:
        raise UserError(f"{name}: no face was found. Use a photo where the face looks towards the camera.")
    face = faces[0]
    notes = []
    if len(faces) > 1:
        notes.append(f"{len(faces)} faces; the largest is used")
    if face.eye_distance_px < PORTRAIT_EYES_APART_PX:
        notes.append(f"small face: {face.eye_distance_px:.0f} px between the eyes")
    elif sharpness(image, face.eyes) < SHARPNESS_LOW:
        notes.append("the face looks blurred")
    stored = _write(image, target)
    (left_x, left_y), (right_x, right_y) = face.eyes.tolist()
    photo = Photo(
        name=name,
        path=str(stored),
        sha256=hashlib.sha256(stored.read_bytes()).hexdigest(),
        width_px=width,
        height_px=height,
        face_box=(float(face.box[0]), float(face.box[1]), float(face.box[2]), float(face.box[3])),
        eyes=((left_x, left_y), (right_x, right_y)),
        eye_distance_px=face.eye_distance_px,
        notes=tuple(notes),
    )
    pixels = hashlib.sha256(f"{width}x{height}".encode() + image.tobytes()).hexdigest()
    return _Taken(photo, pixels, perceptual_hash(image), perceptual_hash(align_by_eyes(image, face.eyes)))


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


def _near_duplicates(taken: Sequence[_Taken]) -> list[list[int]]:
    """Indices grouped so that photos of one moment share a group (chains count). Sorted, order-independent."""
    whole, face = (np.stack(bits) for bits in zip(*((one.hash_bits, one.face_bits) for one in taken)))
    near = (whole[:, None] != whole[None]).sum(-1) <= NEAR_DUPLICATE_BITS
    near |= (face[:, None] != face[None]).sum(-1) <= NEAR_DUPLICATE_FACE_BITS
    label = np.arange(len(taken))
    for _ in range(len(taken)):
        label = np.where(near, label[None, :], len(taken)).min(1)
    return [np.flatnonzero(label == one).tolist() for one in np.unique(label)]


def _store(taken: Sequence[_Taken], groups: list[list[int]], folder: Path) -> list[Photo]:
    """Move the copies to their final names; photos that were here before go."""
    for old in folder.iterdir():
        if re.fullmatch(r"\d\d\.(png|jpg)", old.name):
            old.unlink()
    alike = {i: [taken[j].photo.name for j in group if j != i] for group in groups for i in group}
    photos = []
    for index, one in enumerate(taken):
        source = Path(one.photo.path)
        target = folder / f"{index:02d}{source.suffix}"
        os.replace(source, target)
        notes = one.photo.notes
        if alike[index]:
            notes = (*notes, f"nearly the same picture as {', '.join(alike[index])}; they stay together")
        photos.append(replace(one.photo, path=str(target), notes=notes))
    return photos


# ---------------------------------------------------------------------------------------------------- split


def split_sizes(count: int) -> tuple[int, int, int]:
    """(train, validation, held out) for `count` photos: a quarter held out; validation 1 from 8, 2 from 12 photos.

    5 photos are 4 + 1. Validation chooses checkpoints, so it may neither train nor judge.
    """
    held_out = max(1, int(count * 0.25 + 0.5)) if count > 5 else 1
    validation = 2 if count >= 12 else 1 if count >= 8 else 0
    return count - validation - held_out, validation, held_out


def split(groups: Sequence[Sequence[Photo]], *, rejected: dict[str, str] | None = None, seed: int = 0) -> PhotoSet:
    """Divide groups of near-duplicates into the three parts; a group is never divided.

    The order of the draw is a hash of the seed and the pictures, so neither upload order nor file names matter.
    At least 2 groups. `weak` where one photo, or one moment, is all there is to judge with.
    """
    if len(groups) < 2:
        raise UserError("All photos are nearly the same picture. Add photos from other moments.")

    def draw(group: Sequence[Photo]) -> str:
        return hashlib.sha256(f"{seed}:{min(photo.sha256 for photo in group)}".encode()).hexdigest()

    waiting = sorted((sorted(group, key=lambda photo: photo.sha256) for group in groups), key=draw)
    _, validation_size, held_out_size = split_sizes(sum(len(group) for group in waiting))
    held_out = _fill(waiting, held_out_size, at_least_one=True)
    validation = _fill(waiting, validation_size, at_least_one=False) if len(waiting) > 1 else []

    def flat(part: Sequence[Sequence[Photo]]) -> tuple[Photo, ...]:
        return tuple(sorted((photo for group in part for photo in group), key=lambda photo: photo.path))

    return PhotoSet(
        train=flat(waiting),
        validation=flat(validation),
        held_out=flat(held_out),
        rejected=dict(rejected or {}),
        weak=len(held_out) < 2,
    )


def _fill(waiting: list[list[Photo]], size: int, *, at_least_one: bool) -> list[list[Photo]]:
    """Take groups out of `waiting`, in order, while they fit into `size`; the last one always stays."""
    part: list[list[Photo]] = []
    for group in list(waiting):
        if len(waiting) > 1 and sum(map(len, part)) + len(group) <= size:
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


def sharpness(image: np.ndarray, eyes: np.ndarray) -> float:
    """Variance of the Laplacian over the face, aligned to one size so that resolution does not matter."""
    import cv2

    face = align_by_eyes(image, eyes)[30:100, 30:98]
    return float(cv2.Laplacian(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


# ---------------------------------------------------------------------------------------------------- frames


class Framing(Protocol):
    """What `frames` needs of a base's registry row."""

    @property
    def aligned(self) -> bool: ...
    @property
    def resolution_px(self) -> int: ...


def frames(
    photos: Sequence[Photo],
    row_or_size: Framing | int | None = None,
    *,
    aligned: bool | None = None,
    resolution_px: int | None = None,
) -> np.ndarray:
    """Cut each photo to what a base sees: (n, resolution, resolution, 3) uint8, in the order given.

    Aligned bases get the eyes on the points they were trained with (scaled from 128 px); others a square around
    the face with head and shoulders. The keywords win over the registry row.
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
        image = decode(Path(photo.path))
        if aligned:
            scale = resolution_px / PORTRAIT_SIZE_PX
            x, y = PORTRAIT_EYES_MID
            out[index] = align_by_eyes(
                image,
                np.array(photo.eyes),
                size_px=resolution_px,
                midpoint=((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5),
                apart_px=PORTRAIT_EYES_APART_PX * scale,
            )
        else:
            out[index] = _square_around_face(image, photo, resolution_px)
    return out


def _square_around_face(image: np.ndarray, photo: Photo, resolution_px: int) -> np.ndarray:
    """A square inside the photo with the face in its upper middle, about a third of its height."""
    import cv2

    left, top, right, bottom = photo.face_box
    face_px = max(right - left, bottom - top, 1.0)
    height, width = image.shape[:2]
    # Rather more surroundings than enlarged pixels, up to a face of a fifth of the picture.
    side = int(min(height, width, max(3.0 * face_px, min(float(resolution_px), 5.0 * face_px))))
    x = int(np.clip((left + right) / 2 - side / 2, 0, width - side))
    y = int(np.clip((top + bottom) / 2 - 0.42 * side, 0, height - side))
    crop = np.ascontiguousarray(image[y : y + side, x : x + side])
    method = cv2.INTER_AREA if side > resolution_px else cv2.INTER_CUBIC
    return cv2.resize(crop, (resolution_px, resolution_px), interpolation=method)


def captions(frames: np.ndarray) -> tuple[str, ...]:
    """One caption per frame (n, H, W, 3), each with `{subject}`, in the grammar of the embedded base.

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
