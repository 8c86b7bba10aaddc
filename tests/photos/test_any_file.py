"""Any file under any name is either the right pixels or a sentence: never a traceback, never "our fault"."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image

from pipelines.core import files
from pipelines.core.records import UserError
from pipelines.photos import gather, intake
from pipelines.photos.decode import SUFFIXES, decode

pytestmark = pytest.mark.slow
EXAMPLES = settings(
    max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
# What each format keeps of the mode that it is given without loss, so that the pixels can be checked.
LOSSLESS = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "BMP": ("1", "L", "P", "RGB"),
            "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"), "WEBP": ("RGB", "RGBA"),
            "GIF": ("1", "L", "P")}  # fmt: skip
LOSSY = {"JPEG": ("L", "RGB", "CMYK"), "AVIF": ("RGB", "RGBA"), "HEIF": ("L", "RGB", "RGBA")}
KINDS = [(kind, mode) for table in (LOSSLESS, LOSSY) for kind, modes in table.items() for mode in modes]
# Bytes as a file system gives them: any but "/" and 0, also such that are no UTF-8.
NAMES = some.one_of(some.binary(min_size=1, max_size=60).map(os.fsdecode), some.text(min_size=1, max_size=40)).map(
    lambda name: name.replace("/", "_").replace("\0", "_")
)
SIDES = some.integers(1, 90)
CUTS = some.one_of(some.none(), some.floats(0, 1))  # how much of the file is there
FLIPS = some.lists(some.tuples(some.floats(0, 1), some.integers(0, 255)), max_size=6)  # bytes that are changed
START = {
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", "GIF": b"GIF89a",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "BMP": b"BM",
    "TIFF": b"II*\0\x08\0\0\0", "BIGTIFF": b"MM\0+\0\x08\0\0", "WEBP": b"RIFF\x40\0\0\0WEBPVP8L",
    "HEIF": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "EPS": b"%!PS-Adobe-3.0 EPSF",
    "none": b"",
}  # fmt: skip


def grey_or_colour(image: Image.Image) -> np.ndarray:
    """What a person sees of a picture in any of the modes, RGB."""
    if image.mode == "I;16":
        return np.repeat(((np.asarray(image).astype(int) + 128) // 257)[..., None], 3, 2)
    white = Image.new("RGBA", image.size, "white")
    if image.mode in ("LA", "RGBA"):
        return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")).astype(int)
    return np.asarray(image.convert("RGB")).astype(int)


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        values = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        values[0, 0] = 65535  # uses its whole range
        return Image.fromarray(values)
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.int32 if mode == "I" else np.float32))
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(values[..., 0]).convert(mode)
    return Image.frombytes(mode, (width, height), values.tobytes())


def told(work) -> object:
    """The result, or None when a person was told a sentence."""
    try:
        return work()
    except UserError as problem:
        sentence = str(problem)
        assert sentence.strip() and sentence.rstrip().endswith((".", "!")) and "fault" not in sentence
        sentence.encode()  # can be shown and stored anywhere
        assert "\x1b" not in sentence and "\n" not in sentence
        return None


@EXAMPLES
@given(
    kind=some.sampled_from(KINDS), width=SIDES, height=SIDES, seed=some.integers(0, 2**32),
    cut=CUTS, flips=FLIPS, name=NAMES,
    suffix=some.sampled_from([*SUFFIXES, "", ".zip", ".JPG"]),
)  # fmt: skip
def test_pictures_whole_cut_and_damaged(kind, width, height, seed, cut, flips, name, suffix):
    format_, mode = kind
    image = picture(mode, width, height, seed)
    buffer = io.BytesIO()
    image.save(buffer, format_, **({"lossless": True, "exact": True} if format_ == "WEBP" else {}))
    data = bytearray(buffer.getvalue() if cut is None else buffer.getvalue()[: int(cut * len(buffer.getvalue()))])
    for place, value in flips:
        if data:
            data[int(place * (len(data) - 1))] = value
    with TemporaryDirectory() as folder:
        path = place_for(Path(folder), name, suffix)
        path.write_bytes(data)
        found = told(lambda: decode(path))
    if found is not None:
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    if cut is None and not flips:
        assert found is not None and found.shape == (height, width, 3)
        if format_ in LOSSLESS and mode not in ("I", "F"):
            assert np.abs(found.astype(int) - grey_or_colour(image)).max() <= (1 if mode == "CMYK" else 0), kind


@EXAMPLES
@given(start=some.sampled_from(sorted(START)), rest=some.binary(max_size=400), name=NAMES)
def test_random_bytes_behind_every_beginning(start, rest, name):
    with TemporaryDirectory() as folder:
        path = place_for(Path(folder), name, ".jpg")
        path.write_bytes(START[start] + rest)
        told(lambda: decode(path))
        gathered = told(lambda: gather.gather(Path(folder)))
        if gathered is not None:
            assert len(gathered.photos) + len(gathered.left_out) == 1


@EXAMPLES
@given(
    names=some.lists(NAMES, min_size=1, max_size=4), rest=some.binary(max_size=300), cut=CUTS, flips=FLIPS,
    method=some.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
)  # fmt: skip
def test_archives_whole_cut_and_damaged(names, rest, cut, flips, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for index, name in enumerate(names):
            clean = name.encode(errors="ignore").decode() or "a"
            archive.writestr(zipfile.ZipInfo(f"{index}{clean}.jpg"), START["JPEG"] + rest)
    data = bytearray(buffer.getvalue() if cut is None else buffer.getvalue()[: int(cut * len(buffer.getvalue()))])
    for place, value in flips:
        if data:
            data[int(place * (len(data) - 1))] = value
    with TemporaryDirectory() as folder:
        path = place_for(Path(folder), names[0], ".zip")
        path.write_bytes(data)
        found = told(lambda: gather.unpack(path, Path(folder) / "out"))
        if found is not None:
            assert all(each.is_file() and len(each.name.encode()) <= 255 for each in found.photos)


@settings(EXAMPLES, max_examples=200)  # each looks for faces too
@given(
    names=some.lists(NAMES, min_size=1, max_size=3, unique=True),
    seed=some.integers(0, 2**32),
    data=some.binary(max_size=60),
)
def test_a_check_names_every_file_and_what_it_says_can_be_stored(names, seed, data):
    with TemporaryDirectory() as folder:
        paths = list({place_for(Path(folder), name, ".png"): None for name in names})
        for index, path in enumerate(paths):
            if index % 2:
                path.write_bytes(data)
            else:
                picture("RGB", 70, 70, seed + index).save(path, "PNG")
        found, report = intake.check(paths)
        assert len(found) == len(paths) == len({one.name for one in found})
        for one in found:
            assert one.text and files.printable(one.name) == one.name
            one.name.encode()
        files.write_json(Path(folder) / "said.json", {"checks": found, "paths": [str(path) for path in paths]})
        json.loads((Path(folder) / "said.json").read_text(encoding="utf-8"))


def place_for(folder: Path, name: str, suffix: str) -> Path:
    """A path for a file of this name, shortened to what the file system takes."""
    raw = os.fsencode(name.encode("utf-8", "surrogateescape")) if _fits(name) else name.encode("utf-8", "ignore")
    return folder / (os.fsdecode(raw[:200] or b"a").lstrip(".") + "x" + suffix)


def _fits(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
