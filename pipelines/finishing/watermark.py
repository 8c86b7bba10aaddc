"""An invisible watermark in the pixels, the same in every picture; reading it does not need the original picture.

In: an RGB image, uint8 (H, W, 3). Out: the image with the mark (`embed`), or what was found in one (`read`).
Try it: `python -m pipelines verify portrait.jpg`.

A sum of several hundred weak waves is added to the brightness. Their frequencies are on a lattice, in cycles per short
side of the picture, so that resizing does not change them. Their phases are the key, which is public: everyone can read
the mark, and everyone who knows the key can also remove it. The mark has only one meaning, "an AI drew this", and
stores no number, so that it has no data about a person, a machine or a time, and is as easy to find as possible.

Reading compares the phases at the lattice points with the key, for all scales and shifts that cropping may have caused.
In a picture without the mark the phases are independent of the key, so the chance that `Reading.strength` reaches
`THRESHOLD` anywhere is at most tries * exp(-THRESHOLD**2 / 2) (`false_alarm_bound`): a sum of K independent cosines
exceeds z * sqrt(K / 2) with probability exp(-z**2 / 2) at most (Chernoff's bound with
E[exp(t cos)] = I0(t) <= exp(t**2 / 4)).
Cox et al., "Secure spread spectrum watermarking for multimedia" (1997): many weak waves; Kutter, "Watermarking
resisting to translation, rotation, and scaling" (1998): a repeated pattern shows its own scale.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

KEY = b"Likeness watermark 1: drawn by an AI"  # published on purpose
SPACING_CYCLES = 3.0  # per short side, between neighbouring waves
BAND_CYCLES = (14.0, 48.0)  # per short side: lower waves are hidden by a face; halving a 256 px picture removes higher
MIN_SIDE_PX = 112  # a smaller picture can't have waves of this band
PSNR_DB = (
    52.0,
    50.0,
    48.0,
    46.0,
    45.0,
    44.0,
    43.0,
    42.0,
    41.0,
    40.0,
)  # weakest mark first; the first one with MARGIN is used
THRESHOLD = 7.5
MARGIN = 2.5  # strength above the threshold that remains after halving or cropping, see `_strength_after_harm`
FEWEST_WAVES = 100  # that the picture's resolution must contain, or it can't be read
GRID = 64  # shifts that are tried along each axis of the pattern's period
# Short side of the marked picture / that of the picture that is read; below 1 if it was pasted onto a larger one.
SCALES = np.exp(np.arange(math.log(0.48), math.log(2.1), 0.006))
READ_SIDE_PX = 512


@dataclass(frozen=True)
class Reading:
    """What was found. `strength`: agreement of the phases with the key, in standard deviations of chance agreement."""

    present: bool
    strength: float
    scale: float  # short side of the marked picture / that of this one
    reason: str = ""  # why the picture can't be read


@lru_cache(maxsize=1)
def lattice() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The waves: (K, 2) multiples (across, down) of `SPACING_CYCLES`, their (K,) phases and (K,) default amplitudes."""
    reach = int(BAND_CYCLES[1] / SPACING_CYCLES)
    points = [
        (u, v)
        for v in range(reach + 1)
        for u in range(-reach, reach + 1)
        if (v > 0 or u > 0) and BAND_CYCLES[0] <= SPACING_CYCLES * math.hypot(u, v) <= BAND_CYCLES[1]
    ]
    stream = b"".join(
        hashlib.sha256(KEY + number.to_bytes(4, "big")).digest() for number in range(len(points) // 8 + 1)
    )
    phases = np.frombuffer(stream, ">u4")[: len(points)] * (2 * np.pi / 2**32)
    where = np.array(points)
    # The spectrum of a picture decreases about as 1/f; with amplitudes that do too, all waves are equally easy to read.
    return where, phases, 1.0 / np.hypot(*where.T)


def pattern(shape: tuple[int, ...], amplitudes: np.ndarray) -> np.ndarray:
    """The sum of the waves with these (K,) amplitudes: float32 (H, W) of this shape, phases relative to the middle."""
    where, phases, _ = lattice()
    reach = int(np.abs(where).max())
    table = np.zeros((2 * reach + 1, 2 * reach + 1), np.complex64)
    table[where[:, 1] + reach, where[:, 0] + reach] = amplitudes * np.exp(1j * phases)
    steps = 2j * np.pi * SPACING_CYCLES / min(shape) * np.arange(-reach, reach + 1)

    def waves(length: int) -> np.ndarray:
        return np.exp(np.outer(np.arange(length) - (length - 1) / 2, steps)).astype(np.complex64)

    return ((waves(shape[0]) @ table) @ waves(shape[1]).T).real


def _brightness(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _activity(grey: np.ndarray, *, spread: float = 1.5) -> np.ndarray:
    """The contrast around each pixel, in grey levels (H, W)."""
    import cv2

    sigma = min(grey.shape) / 48
    fine = grey - cv2.GaussianBlur(grey, (0, 0), sigma)
    return np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), spread * sigma))


def _room(grey: np.ndarray) -> np.ndarray:
    """How strong the waves may be at each pixel (H, W), in relative units: where contrast is high, much stronger waves
    are invisible. Flat parts beside an edge (cheek, backdrop) count as flat.
    """
    import cv2

    sigma = min(grey.shape) / 48
    side = int(3 * sigma) | 1
    least = cv2.erode(_activity(grey, spread=0.5), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.clip(cv2.GaussianBlur(least, (0, 0), 0.7 * sigma) + 3.0, 3.0, 12.0)


def embed(image: np.ndarray) -> np.ndarray:
    """A copy of `image`, uint8 (H, W, 3), with the mark. The same picture always gives the same bits.

    It is as weak as possible (`PSNR_DB`), but strong enough to be read from a copy of half the size and from a cropped
    JPEG, with a margin. A picture smaller than `MIN_SIDE_PX` is returned unchanged: no mark could be read from it.
    """
    import cv2

    rows, columns = image.shape[:2]
    if min(rows, columns) < MIN_SIDE_PX:
        return image.copy()
    grey = _at_most(_brightness(image), READ_SIDE_PX)  # the waves can be made at this size and enlarged
    room = _room(grey)
    plan = _Plan.of(grey, room)
    for psnr_db in PSNR_DB:
        waves = room * pattern(grey.shape, plan.amplitudes(255 * 10 ** (-psnr_db / 20)))
        if waves.shape != (rows, columns):
            waves = cv2.resize(waves, (columns, rows), interpolation=cv2.INTER_CUBIC)
        marked = np.clip(image + np.rint(waves).astype(np.int16)[:, :, None], 0, 255).astype(np.uint8)
        if psnr_db == PSNR_DB[-1] or _strength_after_harm(marked) >= THRESHOLD + MARGIN:
            break
    return marked


@dataclass(frozen=True)
class _Plan:
    """Chooses the amplitude of each wave from the picture's own values at the lattice points, rotated by the key. A
    point whose phase agrees with the key already needs no wave, and one that is strong and disagrees would need too
    much; the points between them get the strength (informed embedding: Miller, Doerr & Cox, "Applying informed coding
    and embedding", 2004).
    """

    own: np.ndarray  # (K,) complex
    gain: float  # what a wave of amplitude 1 adds to `own`
    room_rms: float

    @classmethod
    def of(cls, grey: np.ndarray, room: np.ndarray) -> _Plan:
        falling = lattice()[2]
        own = _at_lattice(_spectrum(grey))
        trial = _at_lattice(_spectrum(grey + (0.5 * room * pattern(grey.shape, falling)).astype(np.float32)))
        return cls(own, float(np.median((trial - own).real / (0.5 * falling))), float(np.sqrt((room**2).mean())))

    def amplitudes(self, rms: float) -> np.ndarray:
        """The (K,) amplitudes with the best expected agreement, for waves of this root mean square in grey levels."""
        falling = lattice()[2]
        # Cropping or JPEG changes the picture's own values by about half; the agreement has to remain after that.
        change = 0.5 * np.abs(self.own).mean() * falling / falling.mean()
        steps = np.linspace(0, 6 * np.median(np.abs(self.own)) / max(self.gain, 1e-9), 65)
        along = self.own.real[:, None] + self.gain * steps
        agreement = along / np.sqrt(along**2 + (self.own.imag**2 + change**2)[:, None] + 1e-12)
        low, high = 1e-9, 1e9  # limits of the Lagrange multiplier ("price") at which the waves have this rms
        for _ in range(50):
            price = math.sqrt(low * high)
            bought = steps[np.argmax(agreement - price * steps**2, axis=1)]
            if self.room_rms * math.sqrt(float((bought**2).sum()) / 2) > rms:
                low = price
            else:
                high = price
        if not bought.any():  # an empty picture: the default amplitudes
            bought = falling
        return bought * (rms / (self.room_rms * math.sqrt(float((bought**2).sum()) / 2)))


def _strength_after_harm(image: np.ndarray) -> float:
    """The smaller strength of the mark in two JPEG copies: one of half the size (at least `MIN_SIDE_PX`), and one with
    a tenth cut off at two sides.
    """
    import cv2

    small = _at_most(image, READ_SIDE_PX)
    rows, columns = small.shape[:2]
    half = _at_most(small, max(MIN_SIDE_PX, min(rows, columns) // 2))
    cropped = small[rows // 10 :, : columns - columns // 10]
    found = []
    for harmed, quality, scales in ((half, 85, np.ones(1)), (cropped, 75, np.array([1.105, 1.111, 1.117]))):
        _, packed = cv2.imencode(".jpg", harmed[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        again = np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[:, :, ::-1])
        found.append(float(_agreement(_phases(_brightness(again)), scales).max()))
    return min(found)


def read(image: np.ndarray) -> Reading:
    """Look for the mark in an image, uint8 (H, W, 3), of any size, cropped or not, mirrored or not."""
    if min(image.shape[:2]) < MIN_SIDE_PX // 2:
        return Reading(False, 0.0, 1.0, "the picture is too small to read one from")
    grey = _at_most(_brightness(image), READ_SIDE_PX)
    best = Reading(False, 0.0, 1.0)
    for mirrored in (False, True):
        spectrum = _phases(np.ascontiguousarray(grey[:, ::-1]) if mirrored else grey)
        for scales in np.array_split(SCALES, 8):  # all at once would take 100 MB of memory
            strengths = _agreement(spectrum, scales)
            if strengths.max() > best.strength:
                strongest = float(strengths.max())
                best = Reading(strongest >= THRESHOLD, strongest, float(scales[strengths.argmax()]))
        if best.present:
            break
    return best


@dataclass(frozen=True)
class _Spectrum:
    """The spectrum of an image: the half with frequencies >= 0 across; phases are relative to the image's middle."""

    values: np.ndarray  # (height, width // 2 + 1), complex
    width: int
    short_px: int


def _spectrum(grey: np.ndarray) -> _Spectrum:
    """The spectrum of a picture (H, W) after its large shapes are removed and its contrasts made equal."""
    import cv2

    short = min(grey.shape)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), short / 24)
    fine = fine / (_activity(grey) + 1.5)  # so that no part of the picture is much stronger than the others
    fine = 2 * np.tanh(fine / 2)  # nor any edge
    fine = fine * np.outer(_window(grey.shape[0]), _window(grey.shape[1]))
    height, width = (cv2.getOptimalDFTSize(2 * side) for side in fine.shape)
    padded = np.zeros((height, width), np.float32)
    padded[: fine.shape[0], : fine.shape[1]] = fine
    padded = np.roll(padded, (-(fine.shape[0] // 2), -(fine.shape[1] // 2)), (0, 1))
    return _Spectrum(np.fft.rfft2(padded), width, short)


def _phases(grey: np.ndarray) -> _Spectrum:
    """The spectrum with all its values scaled to length 1."""
    found = _spectrum(grey)
    return replace(found, values=found.values / np.maximum(np.abs(found.values), 1e-9))


def _lattice_values(spectrum: _Spectrum, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, K) values at the lattice points for each scale, rotated back by the key; and (S, K) whether the picture's
    resolution contains them.
    """
    where, phases, _ = lattice()
    height, width = spectrum.values.shape[0], spectrum.width
    cycles = SPACING_CYCLES / (scales[:, None, None] * spectrum.short_px) * where  # per pixel, (S, K, 2)
    across, down = np.rint(cycles[..., 0] * width).astype(int), np.rint(cycles[..., 1] * height).astype(int)
    other_half = across < 0  # the conjugate of the stored half
    across, down = np.abs(across), np.where(other_half, -down, down) % height
    found = spectrum.values[down, np.minimum(across, spectrum.values.shape[1] - 1)]
    found = np.where(other_half, found.conj(), found)
    return found * np.exp(-1j * phases), (np.abs(cycles) < 0.47).all(-1)


def _at_lattice(spectrum: _Spectrum) -> np.ndarray:
    return _lattice_values(spectrum, np.ones(1))[0][0]


def _agreement(spectrum: _Spectrum, scales: np.ndarray) -> np.ndarray:
    """(S,): for each scale the agreement with the key at the best shift, in standard deviations of chance agreement."""
    where = lattice()[0]
    found, known = _lattice_values(spectrum, scales)
    table = np.zeros((len(scales), GRID, GRID), np.complex64)
    table[:, where[:, 1] % GRID, where[:, 0] % GRID] = np.where(known, found, 0)
    sums = np.fft.ifft2(table).real.max((1, 2)) * GRID * GRID
    count = known.sum(1)
    return np.where(count >= FEWEST_WAVES, sums / np.sqrt(np.maximum(count, 1) / 2), 0.0)


def _at_most(image: np.ndarray, side_px: int) -> np.ndarray:
    """`image`, shrunk if its short side is longer than `side_px`."""
    import cv2

    ratio = side_px / min(image.shape[:2])
    if ratio >= 1:
        return image
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _window(length: int) -> np.ndarray:
    """A window (length,) that decreases to 0 over a tenth at both ends: the picture's borders must have no effect."""
    edge = np.minimum(1.0, (np.arange(length) + 0.5) / (0.1 * length))
    ramp = 0.5 - 0.5 * np.cos(np.pi * edge)
    return ramp * ramp[::-1]


def false_alarm_bound() -> float:
    """An upper bound of the probability that a mark is found in a picture without one."""
    return 2 * len(SCALES) * GRID * GRID * math.exp(-(THRESHOLD**2) / 2)
