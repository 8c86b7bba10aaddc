"""The types `Face`, `Seen` and `Judge`, and how a face is cut out of a picture.

In: RGB uint8 (H, W, 3) pictures and eye positions. Out: `Face` and `Seen` records, aligned crops, the `Judge`
interface.
Embeddings (`Seen.vector`) are biometric data: they live in memory only and are never written to disk.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.faces.calibration import Calibration

# The framing of the embedded base's training data: midpoint and distance of the eyes in a 128x128 crop, in pixels.
PORTRAIT_SIZE_PX = 128


PORTRAIT_EYES_MID = (64.0, 58.0)


PORTRAIT_EYES_APART_PX = 30.0


@dataclass(frozen=True)
class Face:
    """One detected face. Coordinates are image pixels (x, y)."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    points: np.ndarray  # (k, 2): the detector's own landmarks, in its own order
    eyes: np.ndarray  # (2, 2): eye centres, the one on the left of the image first
    nose: np.ndarray  # (2,)
    score: float  # the detector's own confidence; not comparable between detectors
    detector: str = "dlib"  # or "scrfd": whose landmarks `points` are

    @property
    def eye_distance_px(self) -> float:
        return float(np.linalg.norm(self.eyes[1] - self.eyes[0]))

    @property
    def height_px(self) -> float:
        return max(0.0, self.box[3] - self.box[1])

    @property
    def area_px(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


def moved(face: Face, shift: np.ndarray) -> Face:
    """`face` in the coordinates of a larger image, in which the old image's corner is at `shift` (x, y) pixels."""
    left, top, right, bottom = face.box
    x, y = float(shift[0]), float(shift[1])
    return replace(
        face,
        box=(left + x, top + y, right + x, bottom + y),
        points=face.points + shift,
        eyes=face.eyes + shift,
        nose=face.nose + shift,
    )


def align_by_eyes(
    image: np.ndarray,
    eyes: np.ndarray,
    *,
    size_px: int = PORTRAIT_SIZE_PX,
    midpoint: tuple[float, float] = PORTRAIT_EYES_MID,
    apart_px: float = PORTRAIT_EYES_APART_PX,
) -> np.ndarray:
    """Rotate, scale and shift `image`, uint8 (H, W, 3), so that the eyes are at fixed points: (size, size, 3) uint8.

    It is first shrunk with area averaging, because a single warp would alias; pixels outside the photo repeat its edge.
    """
    import cv2

    eyes = np.asarray(eyes, dtype=np.float64)
    across = eyes[1] - eyes[0]
    scale = apart_px / max(float(np.hypot(*across)), 1e-6)
    if scale < 0.75:
        reach = math.dist((0, 0), [max(m, size_px - m) for m in midpoint]) / scale
        image, corner = around(image, eyes.mean(0), reach)
        eyes = eyes - corner
        height, width = image.shape[:2]
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        # cv2.resize maps pixel centres: x' = (x + 0.5) * ratio - 0.5
        ratio = np.array([small[0] / width, small[1] / height])
        eyes = (eyes + 0.5) * ratio - 0.5
        across = eyes[1] - eyes[0]
        scale = apart_px / max(float(np.hypot(*across)), 1e-6)
    angle = np.arctan2(across[1], across[0])
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    matrix[:, 2] = np.asarray(midpoint) - matrix[:, :2] @ eyes.mean(0)
    return cv2.warpAffine(image, matrix, (size_px, size_px), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def around(image: np.ndarray, middle: np.ndarray, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of `image` within `reach_px` of the point `middle` (x, y), and its corner (x, y). It saves time when
    only a face of a 12-megapixel photo is shrunk.
    """
    height, width = image.shape[:2]
    left, top = (int(max(0.0, v - reach_px - 4)) for v in middle)
    right, bottom = int(min(width, middle[0] + reach_px + 5)), int(min(height, middle[1] + reach_px + 5))
    if right - left < 2 or bottom - top < 2:
        return image, np.zeros(2)
    return image[top:bottom, left:right], np.array([left, top], np.float64)


@dataclass(frozen=True)
class Seen:
    """What a judge saw in a picture: the largest face."""

    vector: np.ndarray | None = field(repr=False)  # (d,), unit length; None: see reason
    reason: str | None = None
    face_px: float | None = None  # height of the face in the picture
    faces: int = 0  # how many the detector found
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom in the picture


class Judge(Protocol):
    """One face recogniser. Similarity: 1 is the same picture, about 0 two different people."""

    name: str
    licence: str

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the weight files."""

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of these weights; None: uncalibrated."""

    def look(self, image: np.ndarray) -> Seen:
        """The largest face in an RGB uint8 (H, W, 3) image."""

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        """Every face in an RGB uint8 (H, W, 3) image, largest first; [] when there is none."""

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """The similarity of two unit vectors (d,), at most 1."""


NO_FACE = "no face found"


def sha256_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
