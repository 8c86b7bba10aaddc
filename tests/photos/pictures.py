"""Pictures made by rule, for tests of photos: no photo of a person is needed."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.faces.face import Face


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A smooth random picture: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def centre_face(image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    x, y = width / 2, height / 2
    eyes = np.array([(x - 20, y - 10), (x + 20, y - 10)])
    return [Face((x - 40, y - 45, x + 40, y + 45), eyes, eyes, np.array([x, y]), 1.0)]


def save_scenes(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for seed in range(count):
        paths.append(folder / f"photo{seed}.png")
        scene(seed).save(paths[-1])
    return paths


def flag() -> Image.Image:
    """Left half red, right half blue, with a green bar at the top: shows any turn or mirror."""
    image = Image.new("RGB", (96, 64), (220, 20, 20))
    image.paste((20, 20, 220), (48, 0, 96, 64))
    image.paste((20, 220, 20), (0, 0, 96, 12))
    return image


def close(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(float) - b.astype(float)).mean()) < within


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` pixels and holds a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")


def jpeg(quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    scene(1, 320, 240).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
