"""What a judge's similarity means, measured on photos of different people and of one person, per judge and weights.

In: presets/judges/<judge>.json, written by `tools/calibrate_judge.py`. Out: `Calibration`, thresholds with a known
false-match rate, and sentences. A judge whose weights were not measured is "uncalibrated": no other judge's figures are
used for it. Light: only JSON is read.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.core.files import REPOSITORY

FOLDER = REPOSITORY / "presets" / "judges"

LOOKS_LIKE, BORDERLINE, SOMEONE_ELSE = "looks like you", "borderline", "someone else"
NO_FACE, UNCALIBRATED = "no face", "uncalibrated"
STRICT_RATE, LOOSE_RATE = "0.001", "0.01"  # false-match rates: the share of pairs of different people that passes
IMPOSTOR_QUANTILE = "0.999"


@dataclass(frozen=True)
class Comparisons:
    """One kind of comparison: a picture with the normalised mean of `references` photos of a person."""

    references: int  # photos in the mean
    pairs_different: int
    pairs_same: int
    different: dict[str, float]  # quantile -> similarity, of pairs of different people
    same: dict[str, float]  # quantile -> similarity, of pairs of one person
    thresholds: dict[str, float]  # false-match rate -> similarity; only rates for which there are enough pairs
    missed: dict[str, float]  # false-match rate -> share of the same person's pictures below its threshold
    slope: float  # log10 likelihood ratio = slope * similarity + intercept
    intercept: float
    cllr: float  # cost of that ratio in bits, on people it was not fitted on: 0 is perfect, 1 gives no information
    accuracy: float  # balanced accuracy, at a threshold fitted on other people


@dataclass(frozen=True)
class Calibration:
    """All measurements of one judge with one set of weights."""

    judge: str
    weights_sha256: str
    detector: str  # "dlib" | "scrfd": whose landmarks the crops were aligned by
    source: str  # the data, the day and the command of the measurement
    comparisons: tuple[Comparisons, ...]
    face_height: dict[str, float] = field(default_factory=dict)  # face height in px -> share of the full similarity
    smallest_face_px: float | None = None  # with a smaller face, a real photo loses a tenth of its similarity or more
    groups: dict[str, Any] = field(default_factory=dict)  # group of people -> similarities of different people in it

    def kind(self, references: int) -> Comparisons:
        """The comparisons that fit a mean of `references` photos: those with one photo, or with several."""
        several = [kind for kind in self.comparisons if kind.references > 1]
        return several[0] if references > 1 and several else self.comparisons[0]


def load(judge: str, weights_sha256: str, detector: str, folder: Path = FOLDER) -> Calibration | None:
    """The calibration of this judge with exactly these weights and this detector, or None.

    Raises ValueError when there is a file that can't be read.
    """
    for found in _all(folder).get(judge, ()):
        if found.weights_sha256 == weights_sha256 and found.detector == detector:
            return found
    return None


@lru_cache(maxsize=4)
def _all(folder: Path) -> dict[str, tuple[Calibration, ...]]:
    out: dict[str, tuple[Calibration, ...]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            kinds = tuple(Comparisons(**kind) for kind in saved.pop("comparisons"))
            saved.pop("schema")
            found = Calibration(comparisons=kinds, **saved)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"presets/judges/{path.name} can't be read ({error}).") from error
        out[found.judge] = (*out.get(found.judge, ()), found)
    return out


def verdict(calibration: Calibration | None, similarity: float | None, references: int) -> str:
    """LOOKS_LIKE from the threshold that 1 in 1000 pairs of strangers passes, BORDERLINE from that of 1 in 100."""
    if similarity is None:
        return NO_FACE
    if calibration is None:
        return UNCALIBRATED
    thresholds = calibration.kind(references).thresholds
    if similarity >= thresholds[STRICT_RATE]:
        return LOOKS_LIKE
    return BORDERLINE if similarity >= thresholds[LOOSE_RATE] else SOMEONE_ELSE


def in_words(calibration: Calibration | None, similarity: float, references: int) -> str:
    """A sentence about the similarity of two photos; never the probability that they show one person."""
    if calibration is None:
        return f"{similarity:.2f} - this recogniser is uncalibrated here, so the number has no scale"
    share = share_below(calibration.kind(references), similarity)
    if share < 0.5:
        return f"{similarity:.2f} - like most different-person pairs"
    return f"{similarity:.2f} - higher than {_percent(share)} of different-person pairs"


def share_below(kind: Comparisons, similarity: float) -> float:
    """The largest measured quantile of pairs of different people that is below `similarity`; 0 when none is."""
    ladder = sorted((value, float(share)) for share, value in kind.different.items())
    place = bisect_right([value for value, _ in ladder], similarity)
    return ladder[place - 1][1] if place else 0.0


def log_likelihood_ratio(kind: Comparisons, similarity: float) -> float:
    """log10 likelihood ratio: how much more likely the similarity is for one person than for different people."""
    return kind.slope * similarity + kind.intercept


def _percent(share: float) -> str:
    if share >= 1.0:
        return "all measured"
    digits = max(0, math.ceil(-math.log10(1 - share) - 2 - 1e-9)) if share > 0.99 else 0
    return f"{100 * share:.{digits}f}%"
