"""Framing: the part of each photo that a base is trained on, and where the head is in it.

In: `Photo` records and a base's registry row. Out: crops as uint8 RGB arrays, masks of the head.
Try it: `frames(photo_set.train, row)[0]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.core.records import Photo
from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes
from pipelines.photos.decode import decode

ZOOMS = (0.8, 1.3)  # limits: with a framing too different from its training data a base does not draw well


class Framing(Protocol):
    """The fields of a base's registry row that `frames` uses."""

    @property
    def aligned(self) -> bool: ...
    @property
    def resolution_px(self) -> int: ...


class Bucketed(Framing, Protocol):
    """The fields that `crops` uses."""

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
    """Cut each photo to what a base is trained on: (n, resolution, resolution, 3) uint8, in the order given.

    For aligned bases the eyes are moved to the points they were trained with (scaled from 128 px); others get a square
    around head and shoulders. The keywords override the registry row. `read` decodes a photo; it is called once for
    each, in order.
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
    """What training sees of each photo, (H, W, 3) uint8: like `frames`, but a base with several picture shapes gets
    each photo in the shape nearest to the photo's own (aspect-ratio bucketing).
    """
    if row.aligned or row.shapes == ((row.resolution_px, row.resolution_px),):
        return list(frames(photos, row, read=read))
    images = (read(Path(photo.path)) for photo in photos)
    return [_around_face(image, photo, *_nearest_shape(image, row.shapes)) for image, photo in zip(images, photos)]


def _nearest_shape(image: np.ndarray, shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    own = math.log(image.shape[0] / image.shape[1])
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - own))


def _around_face(image: np.ndarray, photo: Photo, height_px: int, width_px: int) -> np.ndarray:
    """The part of the photo with this shape; the face is in its upper middle, in a square a third of the height."""
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
    # A small face gets a wider crop, so that fewer pixels are enlarged, until the face is a fifth of the width.
    across = max(3.0 * face_px, min(float(width_px), 5.0 * face_px)) / photo.zoom
    across = int(min(across, width, height / tall))
    down = min(height, round(across * tall))
    x = int(np.clip((left + right) / 2 - across / 2, 0, width - across))
    y = int(np.clip((top + bottom) / 2 - 0.42 * down, 0, height - down))
    return x, y, across, down


def person_view(image: np.ndarray, photo: Photo) -> np.ndarray:
    """What judges get of a decoded photo (H, W, 3): all of it; of a group photo only the part around the person's head,
    because judges take the largest face, which may be somebody else's.
    """
    return around_person(image, photo) if "several_faces" in photo.reasons else image


def around_person(image: np.ndarray, photo: Photo) -> np.ndarray:
    """The part of a decoded photo that shows the person's head. (h, w, 3) uint8."""
    left, top, right, bottom = photo.face_box
    reach = 0.6 * max(right - left, bottom - top)
    height, width = image.shape[:2]
    x, y = int(max(0, left - reach)), int(max(0, top - reach))
    return np.ascontiguousarray(image[y : int(min(height, bottom + reach)), x : int(min(width, right + reach))])


# The size of a head with its hair, measured from the middle between the eyes, in distances between the eyes.
HEAD_ACROSS, HEAD_DOWN = 1.4, 2.1
HEAD_EDGE = 0.3  # the soft part of the edge, as a share of the oval
FACE_OF_EYES = 2.6  # width of a face box in eye distances; used for turned heads, whose eyes are close together


def heads(photos: Sequence[Photo], row: Bucketed) -> list[np.ndarray]:
    """A mask of the head for each crop of `crops`, (H, W) float32: 1 inside an oval with a soft edge, 0 outside.

    Calculated from the eyes and the box that intake noted; no picture is read.
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
        if row.aligned:  # the crop has the eyes level, at the base's points
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
