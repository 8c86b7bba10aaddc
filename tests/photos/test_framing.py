"""Laws of framing: the face is where a base expects it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.core.records import Photo
from pipelines.photos import framing


def test_aligned_frames_put_the_eyes_on_their_points(tmp_path):
    image = np.full((300, 400, 3), 90, np.uint8)
    for x, y in ((150, 140), (225, 160)):  # red dots as eyes, tilted
        image[y - 4 : y + 5, x - 4 : x + 5] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    photo = Photo("a.png", str(tmp_path / "a.png"), "0", 400, 300, (100, 80, 280, 260), ((150, 140), (225, 160)), 77.6)
    for size in (128, 256):
        (frame,) = framing.frames([photo], aligned=True, resolution_px=size)
        assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
        red = (frame[..., 0].astype(int) - frame[..., 1]) > 90
        left = np.argwhere(red & (np.arange(size) < size / 2)).mean(0)
        right = np.argwhere(red & (np.arange(size) >= size / 2)).mean(0)
        scale = size / 128
        assert np.allclose(left, (58.5 * scale - 0.5, 49.5 * scale - 0.5), atol=1.0)
        assert np.allclose(right, (58.5 * scale - 0.5, 79.5 * scale - 0.5), atol=1.0)


@pytest.mark.parametrize("box", [(100, 80, 280, 260), (0, 0, 60, 60), (350, 250, 399, 299), (-20, -30, 300, 290)])
def test_square_frames_hold_the_face(tmp_path, box):
    image = np.full((300, 400, 3), 90, np.uint8)
    x, y = (int(np.clip((box[0] + box[2]) / 2, 5, 394)), int(np.clip((box[1] + box[3]) / 2, 5, 294)))
    image[y - 5 : y + 5, x - 5 : x + 5] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    photo = Photo("a.png", str(tmp_path / "a.png"), "0", 400, 300, box, ((150, 140), (225, 160)), 75.0)

    class Row:
        aligned = False
        resolution_px = 64

    (frame,) = framing.frames([photo], Row())
    assert frame.shape == (64, 64, 3)
    assert ((frame[..., 0].astype(int) - frame[..., 1]) > 60).any()
    with pytest.raises(ValueError, match="resolution"):
        framing.frames([photo])


def test_a_photo_keeps_the_picture_shape_nearest_to_its_own(tmp_path):
    from dataclasses import replace

    from pipelines.bases.registry import find_base

    row = replace(find_base("sdxl"), resolution_px=64, buckets=((64, 64), (80, 48)))
    shown = []
    for name, (width, height) in {"upright": (300, 480), "square": (400, 410), "wide": (480, 300)}.items():
        image = np.full((height, width, 3), 90, np.uint8)
        image[100:160, 120:180] = (255, 0, 0)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        box = (120, 100, 180, 160)
        shown.append(
            Photo(name, str(tmp_path / f"{name}.png"), "0", width, height, box, ((130, 120), (170, 120)), 40.0)
        )
    upright, square, wide = framing.crops(shown, row)
    assert upright.shape == (80, 48, 3) and square.shape == wide.shape == (64, 64, 3)
    for crop in (upright, square, wide):
        red = np.argwhere((crop[..., 0] > 200) & (crop[..., 1] < 60))
        tall, across = np.ptp(red, 0) + 1
        assert abs(tall - across) <= 2, "the face keeps its proportions"
    assert all(crop.shape == (128, 128, 3) for crop in framing.crops(shown, find_base("portrait-128")))
