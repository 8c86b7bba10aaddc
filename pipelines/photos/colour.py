"""Colour: convert a picture from any colour space to sRGB.

In: a Pillow image and what its file says about colours (ICC profile, PNG's cICP, HEIF's nclx, Exif). Out: an image in
sRGB, or a `UserError` for a high dynamic range. Whether a profile is sRGB is measured on colours, not read in its name.
Try it: `to_srgb(image, profile_of(image, file))`.
"""

from __future__ import annotations

import io
import re
import struct
from functools import lru_cache
from typing import IO, Any

import numpy as np

from pipelines.core.records import UserError

# Colour primaries by their number in ITU-T H.273: the XYZ of red, green and blue, adapted to D50 as ICC profiles are.
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3_PRIMARIES = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
REC2020_PRIMARIES = ((0.67348, 0.27904, -0.00194), (0.16567, 0.67534, 0.02998), (0.12505, 0.04561, 0.79686))
ADOBE_PRIMARIES = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
PRIMARIES = {9: REC2020_PRIMARIES, 11: P3_PRIMARIES, 12: P3_PRIMARIES}  # any other number: sRGB
LINEAR, PQ, HLG = 8, 16, 18  # transfer characteristics of H.273
GAMMA = {4: 2.2, 5: 2.8}  # any other number: the curve of sRGB
USUAL_GAMMA = 1 / 2.2  # by PNG's gAMA chunk: near enough to the curve of sRGB
SAME_WITHIN = 1  # a profile that changes no colour by more than this many of 255 levels is sRGB
Primaries = tuple[tuple[float, float, float], ...]


def profile_of(image: Any, file: IO[bytes]) -> bytes | None:
    """The ICC profile of an opened picture: its own, or made from what else the file says. None: sRGB.

    Raises UserError for a picture with a high dynamic range (PQ, HLG); callers put the file's name before its sentence.
    """
    said = _numbers(image.format, file)
    own = image.info.get("icc_profile")
    if said is not None:
        primaries, transfer = said
        if transfer in (PQ, HLG):
            kind = "PQ" if transfer == PQ else "HLG"
            raise UserError(f"is an HDR picture ({kind}), which can't be read yet. Export it as JPEG (SDR).")
        curve = 1.0 if transfer == LINEAR else GAMMA.get(transfer)
        if (primaries in PRIMARIES or curve) and (image.format == "PNG" or not own):
            return matrix_profile(PRIMARIES.get(primaries, SRGB_PRIMARIES), curve)
        if image.format == "PNG":
            return None
    if own:
        return bytes(own)
    gamma = image.info.get("gamma") if image.format == "PNG" and "srgb" not in image.info else None
    if gamma and 0.1 <= gamma <= 1 and abs(gamma - USUAL_GAMMA) > 0.02:
        return matrix_profile(SRGB_PRIMARIES, 1 / gamma)
    return matrix_profile(ADOBE_PRIMARIES, 563 / 256) if _is_adobe(image) else None


def _numbers(kind: str | None, file: IO[bytes]) -> tuple[int, int] | None:
    """(primaries, transfer characteristics) by H.273, from PNG's cICP chunk or the nclx box of HEIF and AVIF."""
    if kind == "PNG":
        file.seek(8)
        for _ in range(1000):
            head = file.read(8)
            if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
                break
            size = struct.unpack(">I", head[:4])[0]
            if head[4:] == b"cICP" and size == 4:
                primaries, transfer, _, _ = file.read(4)
                return primaries, transfer
            file.seek(size + 4, io.SEEK_CUR)
    elif kind in ("HEIF", "AVIF"):
        found = re.search(rb"colrnclx(.{4})", _meta_box(file), re.DOTALL)
        if found:
            return struct.unpack(">HH", found[1])
    return None


META_BYTES = 1 << 20


def _meta_box(file: IO[bytes]) -> bytes:
    """The first bytes of the "meta" box, which describes the pictures of a HEIF or AVIF file."""
    at = 0
    for _ in range(100):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        size, kind = struct.unpack(">I4s", head[:8])
        if kind == b"meta":
            return head[8:] + file.read(META_BYTES)
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8 or size > 1 << 40:
            break
        at += size
    return b""


def _is_adobe(image: Any) -> bool:
    """True when Exif says that the picture is Adobe RGB: cameras write this without a profile."""
    try:
        return str(image.getexif().get_ifd(0xA005).get(1, "")).startswith("R03")
    except Exception:  # damaged Exif: the picture itself can still be used
        return False


@lru_cache(maxsize=16)
def matrix_profile(primaries: Primaries, gamma: float | None) -> bytes:
    """A minimal ICC profile (version 2, matrix and curve). `gamma` None: the curve of sRGB."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    if gamma is None:
        x = np.linspace(0, 1, 1024)
        table = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.rint(table * 65535).astype(">u2").tobytes()
    else:
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = (0.9642, 1.0, 0.8249)
    parts = {b"wtpt": xyz(white), b"rXYZ": xyz(primaries[0]), b"gXYZ": xyz(primaries[1]), b"bXYZ": xyz(primaries[2])}
    parts |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, tags, body = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for name, data in parts.items():
        tags += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s", at + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    return head.ljust(68, b"\0") + xyz(white)[8:] + bytes(48) + tags + body


def to_srgb(image: Any, profile: bytes | None) -> Any:
    """`image` (mode L, RGB or CMYK) in sRGB; unchanged when `profile` is None, damaged, or made for other modes.

    The result has the same mode, or RGB.
    """
    from PIL import ImageCms

    if not profile or image.mode not in ("L", "RGB", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            return image
        change = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode in ("L", "RGB"):
            probe = _probe()
            moved = ImageCms.applyTransform(probe.convert(image.mode), change)
            before = np.asarray(probe.convert(image.mode).convert("RGB"), np.int16)
            if int(np.abs(np.asarray(moved, np.int16) - before).max()) <= SAME_WITHIN:
                return image
        return ImageCms.applyTransform(image, change) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


@lru_cache(maxsize=1)
def _probe() -> Any:
    """A small picture of colours from the whole RGB cube and a ramp of greys."""
    from PIL import Image

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    return Image.fromarray(np.concatenate([cube, greys])[None])


# The value that means white when the file does not say it: the first of these that no pixel exceeds. With 65535 for
# all, a picture that uses only 10, 12 or 14 of its 16 bits would be nearly black.
INTEGER_TOPS, FLOAT_TOPS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0, 2.0**31 - 1), (1.0, 255.0, 65535.0)
ROWS = 256  # rows that are converted at once, so that a large picture takes little more memory than its pixels


def deep_grey(image: Any, profile: bytes | None) -> np.ndarray:
    """A grey picture with 16 or 32 bits per pixel, integers or floats -> (H, W, 3) uint8 in sRGB. NaN becomes black."""
    from PIL import Image

    def rows() -> Any:
        for top in range(0, image.height, ROWS):
            yield top, np.asarray(image.crop((0, top, image.width, min(image.height, top + ROWS))))

    high = max(float(np.max(part, initial=0, where=np.isfinite(part))) for _, part in rows())
    tops = FLOAT_TOPS if image.mode == "F" else INTEGER_TOPS
    declared = None if image.mode == "F" else _number(getattr(image, "tag_v2", {}).get(281))  # TIFF's MaxSampleValue
    top = declared or next((top for top in tops if high <= top), high)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    curve = np.asarray(to_srgb(ramp, profile).convert("RGB"), np.float64)[0]  # (256, 3): the sRGB colour of each grey
    places = np.linspace(0, 255, 65536)
    table = np.stack([np.interp(places, np.arange(256), curve[:, k]) + 0.5 for k in range(3)], 1).astype(np.uint8)
    out = np.empty((image.height, image.width, 3), np.uint8)
    for start, part in rows():
        if top == 65535 and part.dtype.kind == "u":
            index = part
        else:
            scaled = np.nan_to_num(part.astype(np.float64) * (65535 / top), nan=0.0, posinf=65535, neginf=0)
            index = np.clip(scaled + 0.5, 0, 65535).astype(np.uint16)
        out[start : start + ROWS] = table[index]
    return out


def _number(value: Any) -> float | None:
    """A positive number from a TIFF tag, which may hold several."""
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) and first > 0 else None
