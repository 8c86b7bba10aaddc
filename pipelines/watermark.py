"""A mark in the pixels themselves: invisible, the same in every picture, and read back without knowing the original.

In: an RGB image, uint8 (H, W, 3). Out: the image with the mark (`embed`), or what was found in one (`read`).
Try it: `python -m pipelines verify portrait.jpg`.

A sum of several hundred faint waves is added to the brightness. Their frequencies lie on a lattice measured in cycles
per short side of the picture, so that resizing changes nothing; their phases are the key, published here: it says "an
AI drew this" to everyone, and keeps nobody who knows it from removing it. It carries that one statement and no number,
so there is nothing about a person, a machine or a time in it, and all its strength goes into being found.

Reading compares the phases at the lattice points with the key: all scales and shifts that cropping may have caused are
tried. In a picture without the mark the phases have nothing to do with the key, so the chance that `Reading.strength`
reaches `THRESHOLD` anywhere is at most `tries * exp(-THRESHOLD**2 / 2)`: a sum of K independent cosines exceeds
z * sqrt(K / 2) with probability exp(-z**2 / 2) at most (Chernoff's bound with E[exp(t cos)] = I0(t) <= exp(t**2 / 4)).
Cox et al., "Secure spread spectrum watermarking for multimedia" (1997), for hiding by many weak waves; Kutter, "Watermarking
resisting to translation, rotation and scaling" (1998), for a repeated pattern as its own ruler.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

KEY = b"Likeness watermark 1: drawn by an AI"  # published on purpose
SPACING_CYCLES = 3.0  # per short side, between neighbouring waves
BAND_CYCLES = (14.0, 48.0)  # per short side: below, every face hides it; above, halving a 256 px picture removes it
MIN_SIDE_PX = 112  # below, the band is no longer there
PSNR_DB = 42.0
THRESHOLD = 8.0
GRID = 64  # shifts tried along each axis of the pattern's period
# The short side of the marked picture over that of the picture at hand: below 1 it was pasted onto something larger.
SCALES = np.exp(np.arange(math.log(0.48), math.log(2.1), 0.006))
READ_SIDE_PX = 512


@dataclass(frozen=True)
class Reading:
    """What was found. `strength` is how far the phases agree with the key, in standard deviations of chance."""

    present: bool
    strength: float
    scale: float  # short side of the marked picture over that of this one
    reason: str = ""  # why nothing could be looked for


@lru_cache(maxsize=1)
def lattice() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, 2) whole multiples (across, down) of `SPACING_CYCLES`, their (K,) phases and (K,) amplitudes."""
    reach = int(BAND_CYCLES[1] / SPACING_CYCLES)
    points = [
        (u, v)
        for v in range(reach + 1)
        for u in range(-reach, reach + 1)
        if (v > 0 or u > 0) and BAND_CYCLES[0] <= SPACING_CYCLES * math.hypot(u, v) <= BAND_CYCLES[1]
    ]
    stream = b"".join(hashlib.sha256(KEY + number.to_bytes(4, "big")).digest() for number in range(len(points) // 8 + 1))
    phases = np.frombuffer(stream, ">u4")[: len(points)] * (2 * np.pi / 2**32)
    where = np.array(points)
    # What is there already falls off about as 1/f: falling off alike, all waves stand out of it equally.
    return where, phases, 1.0 / np.hypot(*where.T)


def pattern(height_px: int, width_px: int) -> np.ndarray:
    """The waves, float32 (H, W), centred, standard deviation 1."""
    where, phases, amplitudes = lattice()
    reach = int(np.abs(where).max())
    table = np.zeros((2 * reach + 1, 2 * reach + 1), np.complex64)
    table[where[:, 1] + reach, where[:, 0] + reach] = amplitudes * np.exp(1j * phases)
    steps = 2j * np.pi * SPACING_CYCLES / min(height_px, width_px) * np.arange(-reach, reach + 1)

    def waves(length: int) -> np.ndarray:
        return np.exp(np.outer(np.arange(length) - (length - 1) / 2, steps)).astype(np.complex64)

    made = ((waves(height_px) @ table) @ waves(width_px).T).real
    return made / np.sqrt((amplitudes**2).sum() / 2)


def _brightness(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _activity(grey: np.ndarray) -> np.ndarray:
    """How much goes on around each pixel, in grey levels (H, W): where much does, much more is unseen."""
    import cv2

    sigma = min(grey.shape) / 48
    fine = grey - cv2.GaussianBlur(grey, (0, 0), sigma)
    return np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 1.5 * sigma))


def embed(image: np.ndarray, *, psnr_db: float = PSNR_DB) -> np.ndarray:
    """A copy of `image`, uint8 (H, W, 3), with the mark. The same picture always gives the same bits.

    Smaller than `MIN_SIDE_PX` a picture comes back as it is: nothing could be read from it.
    """
    if min(image.shape[:2]) < MIN_SIDE_PX:
        return image.copy()
    grey = _brightness(image)
    room = np.clip(_activity(grey) + 3.0, 3.0, 16.0)
    waves = room * pattern(*image.shape[:2])
    waves *= 255 * 10 ** (-psnr_db / 20) / math.sqrt(float((waves**2).mean()))
    return np.clip(np.rint(image + waves[:, :, None]), 0, 255).astype(np.uint8)


def read(image: np.ndarray) -> Reading:
    """Look for the mark in an image, uint8 (H, W, 3), of any size, cropped or not."""
    import cv2

    short = min(image.shape[:2])
    if short < MIN_SIDE_PX // 2:
        return Reading(False, 0.0, 1.0, "the picture is too small to read a watermark from")
    grey = _brightness(image)
    if short > READ_SIDE_PX:
        ratio = READ_SIDE_PX / short
        size = (round(grey.shape[1] * ratio), round(grey.shape[0] * ratio))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    short = min(grey.shape)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), short / 24)
    fine /= _activity(grey) + 3.0
    fine *= np.outer(_window(grey.shape[0]), _window(grey.shape[1]))
    height, width = (cv2.getOptimalDFTSize(2 * side) for side in fine.shape)
    padded = np.zeros((height, width), np.float32)
    padded[: fine.shape[0], : fine.shape[1]] = fine
    padded = np.roll(padded, (-(fine.shape[0] // 2), -(fine.shape[1] // 2)), (0, 1))
    spectrum = np.fft.rfft2(padded)
    where, phases, _ = lattice()
    key = np.exp(-1j * phases)
    best, scale = 0.0, 1.0
    for some in np.array_split(SCALES, 8):
        cycles = SPACING_CYCLES / (some[:, None, None] * short) * where  # per pixel, (scales, K, 2)
        known = (np.abs(cycles) < 0.47).all(-1)
        down, across = np.rint(cycles[..., 1] * height).astype(int), np.rint(cycles[..., 0] * width).astype(int)
        mirrored = across < 0  # of a real image, the other half of the spectrum is the conjugate of this one
        across, down = np.abs(across), np.where(mirrored, -down, down) % height
        found = spectrum[down, np.minimum(across, spectrum.shape[1] - 1)]
        found = np.where(mirrored, found.conj(), found)
        agree = np.where(known, found / np.maximum(np.abs(found), 1e-12), 0) * key
        table = np.zeros((len(some), GRID, GRID), np.complex64)
        table[:, where[:, 1] % GRID, where[:, 0] % GRID] = agree
        sums = np.fft.ifft2(table).real.max((1, 2)) * GRID * GRID
        count = known.sum(1)
        strengths = np.where(count >= 100, sums / np.sqrt(np.maximum(count, 1) / 2), 0.0)
        if strengths.max() > best:
            best, scale = float(strengths.max()), float(some[strengths.argmax()])
    return Reading(best >= THRESHOLD, best, scale)


def _window(length: int) -> np.ndarray:
    """Falls to 0 over a tenth at both ends: the picture's own edges would drown everything else."""
    edge = np.minimum(1.0, (np.arange(length) + 0.5) / (0.1 * length))
    ramp = 0.5 - 0.5 * np.cos(np.pi * edge)
    return ramp * ramp[::-1]


def false_alarm_bound() -> float:
    """At most this likely is it that a picture without the mark is said to have it."""
    return len(SCALES) * GRID * GRID * math.exp(-(THRESHOLD**2) / 2)
