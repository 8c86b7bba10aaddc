"""Captions: what can be seen in an aligned portrait (colours of background and jacket, tone), measured by pixel rules.

In: one 128x128 frame at the embedded base's framing (uint8 RGB). Out: plain words. The same rules write the captions
the base is trained on, caption a person's photos, and check whether a render shows what its prompt asked for.
Try it: `captions.caption("a man", captions.measure(frame))`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.core.records import Photo, UserError
from pipelines.core.safety import check_prompt
from pipelines.faces.face import PORTRAIT_SIZE_PX

# Prototype colours, sRGB; a colour gets the name of the nearest one in CIE Lab.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((12, 12, 14), (30, 30, 32)),
    "grey": ((95, 95, 97), (130, 130, 132), (165, 165, 167), (70, 70, 72)),
    "white": ((238, 238, 238), (215, 215, 217)),
    "navy": ((22, 28, 58), (35, 45, 90)),
    "blue": ((60, 110, 190), (100, 150, 200), (120, 155, 185), (40, 70, 170), (85, 120, 150)),
    "teal": ((20, 120, 120), (60, 150, 150)),
    "green": ((50, 120, 55), (110, 150, 90), (30, 70, 40)),
    "yellow": ((220, 200, 70), (235, 225, 140)),
    "orange": ((225, 125, 40), (200, 110, 60)),
    "brown": ((90, 60, 40), (130, 95, 70), (60, 40, 28), (165, 130, 100)),
    "red": ((175, 35, 40), (120, 25, 30), (205, 70, 70)),
    "pink": ((225, 150, 175), (235, 185, 195)),
    "purple": ((110, 60, 140), (150, 110, 175), (70, 40, 95)),
}
TONES = ("colour", "black and white", "sepia")


@dataclass(frozen=True)
class Attributes:
    """Words for one frame; `None` where the rules find no answer."""

    background: str | None  # a key of COLOURS
    jacket: str | None
    tone: str  # one of TONES


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0-255 (..., 3) -> CIE Lab (D65)."""
    c = np.asarray(rgb, np.float64) / 255
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


_NAMES = [name for name, shades in COLOURS.items() for _ in shades]
_LABS = _lab(np.array([shade for shades in COLOURS.values() for shade in shades]))


def name_colour(rgb: np.ndarray) -> str:
    """The word for one sRGB colour (3,), 0-255. Lightness counts less than hue, because people name the hue."""
    difference = (_lab(rgb) - _LABS) * np.array([0.6, 1.0, 1.0])
    return _NAMES[int((difference**2).sum(-1).argmin())]


def background_rgb(frame: np.ndarray) -> np.ndarray:
    """Median colour (3,) beside the head: the upper left and right corners of a (128, 128, 3) frame."""
    return np.median(np.concatenate([frame[:44, :18].reshape(-1, 3), frame[:44, 110:].reshape(-1, 3)]), 0)


def jacket_rgb(frame: np.ndarray) -> np.ndarray:
    """Median colour (3,) of both shoulders: the lower corners of a (128, 128, 3) frame, without the collar between."""
    return np.median(np.concatenate([frame[118:, 18:46].reshape(-1, 3), frame[118:, 82:110].reshape(-1, 3)]), 0)


def tone(frame: np.ndarray) -> str:
    """Whether the frame is in colour, black and white, or sepia (one warm hue over everything)."""
    lab = _lab(frame[::4, ::4])
    a, b = lab[..., 1], lab[..., 2]
    chroma = np.hypot(a, b)
    if np.quantile(chroma, 0.9) < 6:
        return "black and white"
    middle = (lab[..., 0] > 20) & (lab[..., 0] < 85)
    if middle.sum() > 50:
        hue = np.degrees(np.arctan2(b[middle], a[middle]))
        warm = (np.median(b[middle]) > 8) and (np.median(hue) > 45) and (np.median(hue) < 90)
        if warm and np.std(hue) < 12 and np.std(chroma[middle]) < 8:
            return "sepia"
    return "colour"


def measure(frame: np.ndarray) -> Attributes:
    """Measure one aligned (128, 128, 3) uint8 frame. Without colours it gets black, white or grey, and no jacket."""
    kind = tone(frame)
    if kind != "colour":
        luma = float(background_rgb(frame).mean())
        return Attributes("black" if luma < 50 else "white" if luma > 205 else "grey", None, kind)
    return Attributes(name_colour(background_rgb(frame)), name_colour(jacket_rgb(frame)), kind)


def caption(subject: str, attributes: Attributes, *, age: str | None = None, extra: tuple[str, ...] = ()) -> str:
    """`portrait of {subject}, middle aged, grey background, navy jacket`: the form of the base's training captions."""
    parts = [f"portrait of {subject}"]
    parts += [age] if age else []
    parts += [f"{attributes.background} background"] if attributes.background else []
    parts += [f"{attributes.jacket} jacket"] if attributes.jacket else []
    parts += [attributes.tone] if attributes.tone != "colour" else []
    return ", ".join([*parts, *extra])


def checked_caption(text: str, row: Any) -> str | None:
    """A caption that the person typed, completed for training; None when it is empty (then measured words are used).

    Raises UserError for words that the base never learned (it names them), for a caption that is too long, and for
    sexual content. `row`: the base's `BaseRow`.
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
    """For each photo the caption that the person typed, else the one measured in its frame, uint8 (H, W, 3)."""
    measured = frame_captions(frames)
    return tuple(photo.caption or text for photo, text in zip(photos, measured, strict=True))


def frame_captions(frames: Sequence[np.ndarray]) -> tuple[str, ...]:
    """One measured caption per uint8 frame (H, W, 3), with `{subject}`, in the form of the embedded base's captions.

    The pixel rules are made for 128 px aligned frames. Larger frames come from other bases and are not aligned: only
    background and tone are measured in them.
    """
    texts = []
    for frame in frames:
        if frame.shape[:2] == (PORTRAIT_SIZE_PX, PORTRAIT_SIZE_PX):
            seen = measure(frame)
        else:
            import cv2

            small = cv2.resize(frame, (PORTRAIT_SIZE_PX, PORTRAIT_SIZE_PX), interpolation=cv2.INTER_AREA)
            seen = replace(measure(small), jacket=None)
        texts.append(caption("{subject}", seen))
    return tuple(texts)
