"""Decode: one photo file of any kind -> upright RGB pixels in sRGB, or an `Unreadable` error that says what is wrong.

Files that a person sent are opened only here. The first bytes of a file say what kind it is, before Pillow opens it.
Try it: `decode(Path("photo.heic")).shape`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import struct
import subprocess
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipelines.core.files import REPOSITORY, printable
from pipelines.core.records import UserError
from pipelines.photos import colour

MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 256 << 20
APART_BYTES, APART_S = 1 << 30, 30  # limits of address space and CPU time of a process that reads one AVIF
WAIT_S = 300  # how long to wait for that process, on a machine that is busy with other work
# All other formats that Pillow reads (PostScript, PDF, FLI, ...) are not photos and would only add attack surface.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".heic", ".heif", ".hif", ".avif",
)  # fmt: skip
# A progressive JPEG is decoded once for each of its scans, even for empty ones: programs write about 10. The tools of
# libjpeg-turbo stop at 100 for the same reason. A CMYK photo has 18, which are read at any size.
MAX_JPEG_SCANS, MAX_JPEG_SEGMENTS = 64, 10_000
MAX_JPEG_SCANNED_PIXELS = 20 * MAX_PIXELS  # of all scans together

RAW = "is a raw file of a camera, which can't be read. Export it as JPEG."
Kind = tuple[str, ...] | str | None  # Pillow's names of the format; or why it is not read, a sentence; or unknown
_ISO: dict[bytes, tuple[str, ...] | str] = {
    b"avif": ("AVIF",), b"avis": ("AVIF",), b"mif1": ("HEIF", "AVIF"), b"msf1": ("HEIF", "AVIF"),
    b"miaf": ("HEIF", "AVIF"), b"heic": ("HEIF",), b"heix": ("HEIF",), b"heim": ("HEIF",), b"heis": ("HEIF",),
    b"hevc": ("HEIF",), b"hevx": ("HEIF",), b"crx ": RAW,
}  # fmt: skip
_BEGINNINGS: tuple[tuple[bytes, tuple[str, ...] | str], ...] = (
    (rb"\xff\xd8\xff", ("JPEG", "MPO")),
    (rb"\x89PNG\r\n\x1a\n", ("PNG",)),
    (rb"GIF8[79]a", ("GIF",)),
    (rb"BM", ("BMP",)),
    (rb"RIFF....WEBP", ("WEBP",)),
    (rb"II\*\x00....CR", RAW),
    (rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+", ("TIFF",)),
    (rb"FUJIFILMCCD-RAW|IIU\x00|IIRO|IIRS|MMOR|\x00MRM|FOVb", RAW),
    (rb"8BPS", "is a Photoshop file, which can't be read. Export it as JPEG or PNG."),
    (rb"%PDF", "is a PDF, not a photo. Export the picture as JPEG or PNG."),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "is not a photo but a PostScript file. Export the picture as JPEG or PNG."),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "is a JPEG XL file, which can't be read yet. Save it as JPEG or PNG."),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "is a JPEG 2000 file, which can't be read. Save it as JPEG or PNG."),
    (rb"PK\x03\x04", "is not a photo but an archive. Unpack it, or add it as a .zip file."),
    (rb"....ftyp(?:qt  |isom|iso[2-9]|mp4[12]|avc1|M4V |3gp.)", "is a film, not a photo. Save one picture of it."),
)  # fmt: skip
HEAD_BYTES = 64


def kind_of(head: bytes) -> Kind:
    """The kind of a file by its first `HEAD_BYTES` bytes. Callers put the file's name before a sentence."""
    if head[4:8] == b"ftyp":
        size = min(max(struct.unpack(">I", head[:4])[0], 16), HEAD_BYTES)
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
        found = next((_ISO[brand] for brand in brands if brand in _ISO), None)
        if found is not None:
            return found
    return next((kind for start, kind in _BEGINNINGS if re.match(start, head, re.DOTALL)), None)


def kind_of_file(path: Path) -> Kind:
    """`kind_of` a file; None also when it can't be opened."""
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD_BYTES))
    except OSError:
        return None


@lru_cache(maxsize=1)
def restrict_pillow() -> None:
    """Remove all formats that are not photos, and Ghostscript, from Pillow, for the whole process. Then no other code
    that opens a visitor's file can read more than `decode` does.
    """
    from PIL import EpsImagePlugin, Image

    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()  # load all plugins now, so that none is added later
    EpsImagePlugin.gs_binary = False
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    for name in set(Image.OPEN) - set(FORMATS):
        del Image.OPEN[name]


def decode(path: Path) -> np.ndarray:
    """Read the first frame of a photo: upright RGB uint8 (H, W, 3) in sRGB, without metadata.

    The size is read from the header and checked before any pixel is decoded. Transparent parts become white, 16-bit
    and CMYK become 8-bit RGB, colour profiles are applied. Raises `Unreadable` with a sentence that starts with the
    file's name.
    """
    restrict_pillow()
    name = printable(path.name)
    try:
        if not path.is_file() and path.exists():
            raise Unreadable(name, "is not a file. Choose a photo instead.")
        file = path.open("rb")
    except PermissionError:
        raise Unreadable(name, "may not be read (permission denied). Allow reading it, or leave it out.") from None
    except (OSError, ValueError) as error:
        raise Unreadable(name, f"could not be opened ({reason(error)}). Choose it again.") from None
    with file:
        try:
            apart = "AVIF" in (kind_of(file.read(HEAD_BYTES)) or ())
            file.seek(0)
            return _decoded_apart(file) if apart else _decoded(file)
        except _Refused as problem:
            raise Unreadable(name, str(problem)) from problem.__cause__


class Unreadable(UserError):
    """A photo can't be read. `why` is the sentence without its first word, the file's name."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name} {why}")
        self.why = why


class _Refused(Exception):
    """Why a file can't be read: `Unreadable.why`."""


def _decoded(file: IO[bytes]) -> np.ndarray:
    from PIL import Image

    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise _Refused("is empty (0 bytes). Copy it again from where it came from.")
    if size > MAX_FILE_BYTES:
        raise _Refused(f"is {size >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB can be read. Save it smaller.")
    head = file.read(HEAD_BYTES)
    kind = kind_of(head)
    if isinstance(kind, str):
        raise _Refused(kind)
    if kind is None:
        raise _Refused("is not a photo that can be read. Save it as JPEG or PNG.")
    scans = _count_scans(file) if "JPEG" in kind else 1
    file.seek(0)
    # Decoders raise errors of many types for damaged files, also KeyError, TypeError and ZeroDivisionError.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large pictures; the check below refuses them
            image = Image.open(file, formats=[each for each in kind if each in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _Refused("has far too many pixels. Save it with at most 40 megapixels.") from error
    except Exception as error:
        raise _Refused("is not a photo that can be read. Save it as JPEG or PNG.") from error
    with image:
        _check_size(*image.size)
        _check_scans(scans, image.width * image.height)
        _check_tiff(image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                at = file.tell()
                profile = colour.profile_of(image, file)
                file.seek(at)  # where Pillow stopped reading
                if _tag(image, 262) == (6,) and _tag(image, 259) in ((), (1,)):
                    image = _ycbcr(file, image)
                image.load()
                pixels = _upright_rgb(image, profile)
        except UserError as problem:
            raise _Refused(str(problem)) from problem
        except Exception as error:
            if _tag(image, 262) == (6,):
                told = "keeps its colours as YCbCr in a way that can't be read. Save it as JPEG or PNG."
                raise _Refused(told) from error
            raise _Refused("is damaged or cut short. Copy it again or leave it out.") from error
    if _is_deep_rgb(image, head) and int(pixels.max()) < 64:
        raise _Refused("uses only the lowest of its 16 bits and would be too dark. Save it with 8 bits a channel.")
    return pixels


def _decoded_apart(file: IO[bytes]) -> np.ndarray:
    """`_decoded` in a process with limited memory and time: an AVIF may hold more pixels than its header says, up to
    268 million, and Pillow does not limit them.
    """
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    search = os.pathsep.join(each for each in (str(REPOSITORY), *sys.path) if each)
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # the other process reads from the position of the file descriptor
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.photos.decode"], stdin=file, capture_output=True, cwd=REPOSITORY,
            timeout=WAIT_S, env={**kept, "PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        told, _, pixels = done.stdout.partition(b"\n")
        found = json.loads(told)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise _Refused("takes too much memory or time to read. Save it as JPEG or PNG.") from error
    if isinstance(found, str):
        raise _Refused(found)
    return np.frombuffer(pixels, np.uint8).reshape(found).copy()


def _main() -> None:
    """The process that `_decoded_apart` starts. In: a file (stdin). Out: JSON (shape or error), a line end, pixels."""
    with contextlib.suppress(ImportError):  # Windows has no such limits: only the caller's time limit, WAIT_S, remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (APART_BYTES, APART_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (APART_S, APART_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump: it would contain the picture
    restrict_pillow()
    try:
        pixels = _decoded(sys.stdin.buffer)
    except _Refused as problem:
        sys.stdout.buffer.write(json.dumps(str(problem)).encode() + b"\n")
        return
    sys.stdout.buffer.write(json.dumps(pixels.shape).encode() + b"\n" + pixels.tobytes())


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(
            f"has {width} x {height} pixels ({width * height / 1e6:.0f} megapixels); at most "
            f"{MAX_PIXELS // 10**6} can be read. Save it smaller."
        )
    if width * height == 0:
        raise _Refused("has no pixels. Choose another photo.")


def _tag(image: Any, number: int) -> tuple[int, ...]:
    """The whole numbers in a tag of a TIFF; () for other formats, and for a missing or damaged tag."""
    if image.format != "TIFF":
        return ()
    try:
        value = image.tag_v2.get(number, ())
    except Exception:  # Pillow decodes a tag only here, and may fail
        return ()
    values = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in values if isinstance(each, int))


def _check_tiff(image: Any) -> None:
    """Refuse raw files (Pillow reads only their thumbnail or the sensor's raw values) and tiles that are too large."""
    thumbnail = any(value & 1 for value in _tag(image, 254)) and _tag(image, 330)
    if _tag(image, 50706) or thumbnail or {32803, 34892} & set(_tag(image, 262)):
        raise _Refused(RAW)
    for width, height in zip(_tag(image, 322), _tag(image, 323)):  # Pillow unpacks whole tiles, even of a small picture
        _check_size(width, height)


def _ycbcr(file: IO[bytes], image: Any) -> Any:
    """An uncompressed YCbCr TIFF, which Pillow can't read, by OpenCV: upright."""
    import cv2
    from PIL import Image

    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        raise ValueError("OpenCV can't read it")
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _is_deep_rgb(image: Any, head: bytes) -> bool:
    """Whether the file has several channels of 16 bits; Pillow reads the upper 8 bits of each."""
    bits = _tag(image, 258) or ((head[24],) if image.format == "PNG" and len(head) > 24 else (8,))
    return image.mode in ("RGB", "RGBA") and max(bits) == 16


_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # inside a scan, only 0 or a restart follows 0xff
_EOI, _SOS, _NO_LENGTH = 0xD9, 0xDA, (0x01, 0xD8)


def _count_scans(file: IO[bytes]) -> int:
    """How many scans a JPEG's first picture has, without decoding one. Refuses more than MAX_JPEG_SCANS."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, scans = 2, 0
        for _ in range(MAX_JPEG_SEGMENTS):
            found = _MARKER.search(data, at)
            if found is None or (marker := found[1][0]) == _EOI:
                return scans
            at = found.end()
            if marker not in _NO_LENGTH:
                at += int.from_bytes(data[at : at + 2], "big")
            scans += marker == _SOS
            if scans > MAX_JPEG_SCANS:
                raise _Refused(f"is a JPEG of more than {MAX_JPEG_SCANS} scans; photos have about 10. Save it anew.")
    raise _Refused("is made of far too many parts to be a photo. Save it anew as JPEG.")


def _check_scans(scans: int, pixels: int) -> None:
    if scans > 1 and scans * pixels > MAX_JPEG_SCANNED_PIXELS:
        raise _Refused(
            f"is a JPEG of {scans} scans, too many for {pixels / 1e6:.0f} megapixels; photos have about 10. Save it "
            "anew."
        )


def reason(error: Exception) -> str:
    """The operating system's message in lower case: "no such file or directory"."""
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _upright_rgb(image: Any, profile: bytes | None) -> np.ndarray:
    from PIL import Image, ImageOps

    with contextlib.suppress(Exception):  # damaged EXIF: the picture itself can still be used
        ImageOps.exif_transpose(image, in_place=True)  # without in_place even an upright picture is copied
    if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bits per pixel, always greyscale
        return colour.deep_grey(image, profile)
    if image.mode in ("LA", "La"):
        image = image.convert("LA")
        alpha = image.getchannel("A")
        image = colour.to_srgb(image.getchannel("L"), profile).convert("RGB")
        image.putalpha(alpha)
        profile = None
    if image.mode in ("P", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    image = colour.to_srgb(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8, order="C")


if __name__ == "__main__":
    _main()
