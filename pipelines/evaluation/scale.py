"""The scale of a judge for one person: what strangers, the untrained base and the person's own photos reach.

In: a judge, a person's photos and scores. Out: `Scale`, the normalised identity, one `IdentitySummary` per method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.core.records import PhotoSet, Score, UserError
from pipelines.evaluation.references import mean_vector, vectors
from pipelines.evaluation.statistics import known_mean
from pipelines.faces import calibration
from pipelines.faces.face import NO_FACE, Judge

if TYPE_CHECKING:
    from pipelines.photos.album import Album


def in_words(score: Score, marks: Scale | None = None) -> str:
    """A score as people read it: where it lies among strangers, and what the person's own photos reach."""
    if score.similarity is None:
        return score.reason or NO_FACE
    text = score.words or f"{score.similarity:.2f}"
    if marks is not None and marks.ceiling_low is not None and marks.ceiling_high is not None:
        span = f"{marks.ceiling_low:.2f}" + (f"-{marks.ceiling_high:.2f}" if marks.comparisons > 1 else "")
        text += f"; your own photos agree with each other at {span}"
    return text


@dataclass(frozen=True)
class Scale:
    """Similarities by one judge that say what a score of this person means; the report draws them as marks."""

    judge: str
    impostor: float | None  # 99.9% of comparisons of different people lie below; None: uncalibrated
    floor: float | None  # mean of the untrained base's pictures
    best_possible: float | None  # held-out photos drawn by the base's VAE, compared as for the ceiling
    ceiling: float | None  # mean similarity of this person's photos to each other; see `measure_scale`
    ceiling_low: float | None
    ceiling_high: float | None
    threshold: float | None  # "looks like you" from here on: 1 in 1000 strangers passes; None: uncalibrated
    comparisons: int = 0  # how many photo-to-photo comparisons the ceiling rests on
    genuine: float | None = None  # mean similarity of a held-out photo and a training photo, one by one
    # Mean similarity of the held-out photos and one photo of each other person, in the order of `others`; None where
    # no face is found in it. () = nobody else was given.
    strangers: tuple[float | None, ...] = ()


def measure_scale(
    judge: Judge,
    photo_set: PhotoSet,
    *,
    floor_scores: Sequence[Score | float | None] = (),
    rebuilt_images: Sequence[np.ndarray] = (),
    album: Album | None = None,
    others: Sequence[Path] = (),
) -> Scale:
    """Measure one person's scale. `album` keeps what was computed.

    Ceiling: every held-out photo is compared (a) with the normalised mean of the training photos and (b), leave one
    out, with the normalised mean of the other held-out photos, if there are any. The ceiling is the mean of all
    these, its range their smallest and largest. No photo is part of the mean that it is compared with, and nothing
    here is drawn by a model: it is what real photos of this person reach. (a) compares with more photos than a render's
    score does and (b) with one fewer; a larger reference scores higher, so the two errors have opposite signs. Over
    13 people, 20 splits each, the ceiling lies 0.00-0.04 above what training photos score when they are treated
    exactly as renders are, against the held-out reference.

    Best possible: the same comparisons with `rebuilt_images` (held-out photos through the base's VAE, in the order of
    `photo_set.held_out`) in the place of the held-out photos. Floor: the mean of `floor_scores`, failures as 0.
    A mark that can't be measured is None. `others` are photos of other people, for `Scale.strangers`.
    """
    held_out = vectors(judge, photo_set.held_out, album)
    train = [vector for vector in vectors(judge, photo_set.train, album) if vector is not None]
    best: float | None = None
    if len(rebuilt_images):
        if len(rebuilt_images) != len(photo_set.held_out):
            raise ValueError("rebuilt_images must be the held-out photos, one each and in order")
        drawn = [judge.look(np.asarray(image)).vector for image in rebuilt_images]
        rebuilt = _real_comparisons(judge, drawn, held_out, train)
        best = float(np.mean(rebuilt)) if rebuilt else None
    floors = [imputed(score) for score in floor_scores]
    scale = scale_of(judge, held_out, train, floor=float(np.mean(floors)) if floors else None, best_possible=best)
    if not others:
        return scale
    own = [vector for vector in held_out if vector is not None]
    return replace(
        scale,
        genuine=known_mean(judge.similarity(a, b) for a in own for b in train),
        strangers=tuple(
            None if stranger is None else known_mean(judge.similarity(one, stranger) for one in own)
            for stranger in (_stranger(judge, path, album) for path in others)
        ),
    )


def _stranger(judge: Judge, path: Path, album: Album | None) -> np.ndarray | None:
    try:
        return vectors(judge, [path], album)[0]
    except UserError:  # somebody else's damaged file is nothing to this person
        return None


def scale_of(
    judge: Judge,
    held_out: Sequence[np.ndarray | None],
    train: Sequence[np.ndarray],
    *,
    floor: float | None = None,
    best_possible: float | None = None,
) -> Scale:
    """`measure_scale` from the photos' unit vectors; None in `held_out` for a photo without a face."""
    known = judge.calibration
    kind = known.kind(len(held_out)) if known else None
    real = _real_comparisons(judge, held_out, held_out, train)
    return Scale(
        judge=judge.name,
        impostor=kind.different[calibration.IMPOSTOR_QUANTILE] if kind else None,
        floor=floor,
        best_possible=best_possible,
        ceiling=float(np.mean(real)) if real else None,
        ceiling_low=min(real, default=None),
        ceiling_high=max(real, default=None),
        threshold=kind.thresholds[calibration.STRICT_RATE] if kind else None,
        comparisons=len(real),
    )


def _real_comparisons(
    judge: Judge,
    probes: Sequence[np.ndarray | None],
    held_out: Sequence[np.ndarray | None],
    train: Sequence[np.ndarray],
) -> list[float]:
    """Comparisons (a) and (b) of `measure_scale`; `probes` stand in the places of the `held_out` photos."""
    similarities = []
    for index, probe in enumerate(probes):
        if probe is None:
            continue
        others = [vector for i, vector in enumerate(held_out) if i != index and vector is not None]
        for compared in (list(train), others):
            if compared:
                similarities.append(judge.similarity(probe, mean_vector(compared)))
    return similarities


def imputed(score: Score | float | None) -> float:
    """The similarity, 0 where there is no face."""
    value = score.similarity if isinstance(score, Score) else score
    return 0.0 if value is None or not np.isfinite(value) else float(value)


def normalised(gen: float | None, floor: float | None, ceiling: float | None) -> float | None:
    """(gen - floor) / (ceiling - floor): 0 = the untrained base, 1 = a real photo, above 1 = a warning of copying.

    None where something is missing or the ceiling does not lie above the floor.
    """
    if gen is None or floor is None or ceiling is None or not ceiling - floor > 1e-6:
        return None
    return (gen - floor) / (ceiling - floor)


@dataclass(frozen=True)
class IdentitySummary:
    """One method under one judge."""

    mean: float | None  # over pictures that show a face
    best: float | None
    mean_zero_imputed: float | None  # pictures without a face count 0
    normalised: float | None  # of mean_zero_imputed
    faces_found: int
    renders: int


def summary(scores: Sequence[Score], marks: Scale) -> IdentitySummary:
    """Sum up one method's scores by one judge. Pictures without a face are counted, never dropped."""
    found = [score.similarity for score in scores if score.similarity is not None]
    zero_imputed = float(np.mean([imputed(score) for score in scores])) if scores else None
    return IdentitySummary(
        mean=float(np.mean(found)) if found else None,
        best=max(found, default=None),
        mean_zero_imputed=zero_imputed,
        normalised=normalised(zero_imputed, marks.floor, marks.ceiling),
        faces_found=len(found),
        renders=len(scores),
    )
