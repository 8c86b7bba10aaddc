"""Decode: one photo file of any kind -> upright RGB pixels in sRGB, or one sentence that says what is wrong with it.

This is the only place that opens what a person sent. Try it: `decode(Path("photo.heic")).shape`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core.schema import UserError

MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 256 << 20
# Everything else Pillow can read (PostScript, PDF, FLI, ...) is no photo and only adds attack surface.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")


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
        raise UserError(f"{name} could not be opened ({reason(error)}). Choose it again.") from error
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


def reason(error: OSError) -> str:
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
