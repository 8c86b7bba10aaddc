"""Scoring: how much do pictures look like a person, by a recogniser, against photos training never saw?

In: pictures and a person's held-out photos. Out: `Score` records, the marks that give a score its meaning, summaries
per method and a paired bootstrap. Try it: `python -m pipelines score a.png --against photo1.jpg photo2.jpg --json`.
A reference is a face embedding, hence biometric: it lives in memory only and refuses to be pickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipelines.core.schema import Photo, PhotoSet, Score, UserError
from pipelines.faces import calibration
from pipelines.faces.faces import NO_FACE, Judge, Seen
from pipelines.photos.decode import decode
from pipelines.photos.framing import person_view

Picture = Photo | Path | np.ndarray


@dataclass(frozen=True)
class Reference:
    """What a judge remembers of a person: the normalised mean of their photos' unit vectors."""

    judge: Judge
    mean: np.ndarray = field(repr=False)  # (d,), unit length
    photos: int  # how many went in
    without_face: tuple[str, ...] = ()  # photos in which this judge saw no face
    notes: tuple[str, ...] = ()  # sentences about photos that were used in a way the person may not expect

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reference is a face embedding and stays in memory; it can't be pickled")

    def similarity(self, vector: np.ndarray) -> float:
        return self.judge.similarity(vector, self.mean)


def reference(judge: Judge, photos: Sequence[Picture]) -> Reference:
    """The reference of some photos (`Photo`, path or RGB uint8 array each).

    Photos in which this judge sees no face are left out and named. `UserError` when none is left.
    """
    seen = _look_at_all(judge, photos)
    vectors = [one.vector for one in seen.values() if one.vector is not None]
    missing = tuple(name for name, one in seen.items() if one.vector is None)
    if not vectors:
        raise UserError(
            f"{judge.name} finds no face in {', '.join(missing)}. Use photos where the face looks towards the camera."
        )
    notes = [f"{name}: {judge.name} finds no face in it, so it is not compared with." for name in missing]
    notes += [
        f"{name}: {one.faces} faces are in it; the largest is compared with."
        for name, one in seen.items()
        if one.faces > 1 and one.vector is not None
    ]
    return Reference(judge, mean_vector(vectors), len(vectors), missing, tuple(notes))


def vectors_of(judge: Judge, photos: PhotoSet, others: Sequence[Path]) -> list[tuple[str, str, np.ndarray]]:
    """(part, name, unit vector) of every photo in which this judge sees a face; "other" are those of other people.

    Embeddings: for comparing in memory, never to be kept.
    """
    found: list[tuple[str, str, np.ndarray]] = []
    for part, pictures in (("train", photos.train), ("held_out", photos.held_out)):
        for name, seen in _look_at_all(judge, pictures).items():
            if seen.vector is not None:
                found.append((part, name, seen.vector))
    for number, path in enumerate(others, start=1):
        with contextlib.suppress(UserError):  # somebody else's damaged file is nothing to this person
            vector = judge.look(decode(path)).vector
            if vector is not None:
                found.append(("other", f"somebody else {number}", vector))
    return found


def _look_at_all(judge: Judge, pictures: Sequence[Picture]) -> dict[str, Seen]:
    """What a judge sees in each picture, by its name (pictures of one name are told apart)."""
    out: dict[str, Seen] = {}
    for index, picture in enumerate(pictures, start=1):
        name = _name(picture) or f"picture {index}"
        out[name if name not in out else f"{name} ({index})"] = judge.look(pixels(picture))
    return out


def _vectors(judge: Judge, pictures: Sequence[Picture]) -> list[np.ndarray]:
    return [seen.vector for seen in _look_at_all(judge, pictures).values() if seen.vector is not None]


def pixels(picture: Picture) -> np.ndarray:
    """A picture as judges see it: upright RGB uint8; of a group photo only what is around the person's face."""
    if isinstance(picture, Photo):
        return person_view(decode(Path(picture.path)), picture)
    return decode(picture) if isinstance(picture, Path) else np.asarray(picture)


def _name(picture: Picture) -> str | None:
    return picture.name if isinstance(picture, Photo | Path) else None


def mean_vector(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The normalised mean of unit vectors."""
    mean = np.mean(vectors, axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def score_renders(paths: Sequence[Path | str], reference: Reference) -> list[Score]:
    """One score per picture, in order. A picture without a face, or unreadable, keeps its row with the reason."""
    return [_score(Path(path), str(path), reference) for path in paths]


def _score(path: Path, render: str, reference: Reference) -> Score:
    try:
        seen = reference.judge.look(decode(path))
    except UserError as problem:
        return Score(render, reference.judge.name, None, str(problem))
    return score_of(seen, render, reference)


def score_of(seen: Seen, render: str, reference: Reference) -> Score:
    """What a judge saw in a picture, as a score against `reference`."""
    judge = reference.judge
    if seen.vector is None:
        return Score(render, judge.name, None, seen.reason or NO_FACE, verdict=calibration.NO_FACE)
    similarity, found = round(reference.similarity(seen.vector), 6), judge.calibration
    return Score(
        render,
        judge.name,
        similarity,
        verdict=calibration.verdict(found, similarity, reference.photos),
        face_px=None if seen.face_px is None else round(seen.face_px, 1),
        faces=seen.faces,
        note=_note(seen, found),
        words=calibration.in_words(found, similarity, reference.photos),
    )


def _note(seen: Seen, found: calibration.Calibration | None) -> str | None:
    """What makes a similarity less than it seems, in one sentence."""
    notes = []
    if seen.faces > 1:
        notes.append(f"{seen.faces} faces are in the picture; the largest was judged.")
    smallest = found.smallest_face_px if found else None
    if smallest is not None and seen.face_px is not None and seen.face_px < smallest:
        notes.append(
            f"The face is {seen.face_px:.0f} px high, too small to judge: below {smallest:.0f} px even real "
            "photos score low."
        )
    return " ".join(notes) or None


def in_words(score: Score, marks: Marks | None = None) -> str:
    """A score as people read it: where it lies among strangers, and what the person's own photos reach."""
    if score.similarity is None:
        return score.reason or NO_FACE
    text = score.words or f"{score.similarity:.2f}"
    if marks is not None and marks.ceiling_low is not None and marks.ceiling_high is not None:
        span = f"{marks.ceiling_low:.2f}" + (f"-{marks.ceiling_high:.2f}" if marks.comparisons > 1 else "")
        text += f"; your own photos agree with each other at {span}"
    return text


# ---------------------------------------------------------------------------------------------------- marks


@dataclass(frozen=True)
class Marks:
    """The marks on a judge's strip for one person."""

    judge: str
    impostor: float | None  # 99.9% of comparisons of different people lie below; None: uncalibrated
    floor: float | None  # mean of the untrained base's pictures
    best_possible: float | None  # held-out photos drawn by the base's VAE, compared as for the ceiling
    ceiling: float | None  # this person's photo to photo; see `marks`
    ceiling_low: float | None
    ceiling_high: float | None
    threshold: float | None  # "looks like you" from here on: 1 in 1000 strangers passes; None: uncalibrated
    comparisons: int = 0  # how many photo-to-photo comparisons the ceiling rests on


def marks(
    judge: Judge,
    photo_set: PhotoSet,
    *,
    floor_scores: Sequence[Score | float | None] = (),
    rebuilt_images: Sequence[np.ndarray] = (),
) -> Marks:
    """Measure one person's marks.

    Ceiling: every held-out photo is compared (a) with the normalised mean of the training photos and (b), leave one
    out, with the normalised mean of the other held-out photos, if there are any. The ceiling is the mean of all
    these, its range their smallest and largest. No photo is ever part of what it is compared with, and no training
    happened in between: it is what real photos of this person reach. (a) compares with more photos than a render's
    score does and (b) with one fewer; a larger reference scores higher, so the two errors have opposite signs. Over
    13 people, 20 splits each, the ceiling lies 0.00-0.04 above what training photos score when they are treated
    exactly as renders are, against the held-out reference.

    Best possible: the same comparisons with `rebuilt_images` (held-out photos through the base's VAE, in the order of
    `photo_set.held_out`) in the place of the held-out photos. Floor: the mean of `floor_scores`, failures as 0.
    A mark that can't be measured is None.
    """
    held_out = [judge.look(pixels(photo)).vector for photo in photo_set.held_out]
    train = _vectors(judge, photo_set.train)
    best: float | None = None
    if len(rebuilt_images):
        if len(rebuilt_images) != len(photo_set.held_out):
            raise ValueError("rebuilt_images must be the held-out photos, one each and in order")
        drawn = [judge.look(np.asarray(image)).vector for image in rebuilt_images]
        rebuilt = _real_comparisons(judge, drawn, held_out, train)
        best = float(np.mean(rebuilt)) if rebuilt else None
    floors = [_zero(score) for score in floor_scores]
    return marks_of(judge, held_out, train, floor=float(np.mean(floors)) if floors else None, best_possible=best)


def marks_of(
    judge: Judge,
    held_out: Sequence[np.ndarray | None],
    train: Sequence[np.ndarray],
    *,
    floor: float | None = None,
    best_possible: float | None = None,
) -> Marks:
    """`marks` of photos that were looked at already: their unit vectors, None where there is no face."""
    known = judge.calibration
    kind = known.kind(len(held_out)) if known else None
    real = _real_comparisons(judge, held_out, held_out, train)
    return Marks(
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
    """Comparisons (a) and (b) of `marks`; `probes` stand in the places of the `held_out` photos."""
    similarities = []
    for index, probe in enumerate(probes):
        if probe is None:
            continue
        others = [vector for i, vector in enumerate(held_out) if i != index and vector is not None]
        for compared in (list(train), others):
            if compared:
                similarities.append(judge.similarity(probe, mean_vector(compared)))
    return similarities


def _zero(score: Score | float | None) -> float:
    value = score.similarity if isinstance(score, Score) else score
    return 0.0 if value is None or not np.isfinite(value) else float(value)


def normalised(gen: float | None, floor: float | None, ceiling: float | None) -> float | None:
    """(gen - floor) / (ceiling - floor): 0 = the untrained base, 1 = a real photo, above 1 = a warning of copying.

    None where something is missing or the ceiling does not lie above the floor.
    """
    if gen is None or floor is None or ceiling is None or not ceiling - floor > 1e-6:
        return None
    return (gen - floor) / (ceiling - floor)


# ---------------------------------------------------------------------------------------------------- summaries


@dataclass(frozen=True)
class IdentitySummary:
    """One method under one judge."""

    mean: float | None  # over pictures that show a face
    best: float | None
    mean_zero_imputed: float | None  # pictures without a face count 0
    normalised: float | None  # of mean_zero_imputed: failures cost
    faces_found: int
    renders: int


def summary(scores: Sequence[Score], marks: Marks) -> IdentitySummary:
    """Sum up one method's scores by one judge. Pictures without a face are counted, never dropped."""
    found = [score.similarity for score in scores if score.similarity is not None]
    imputed = float(np.mean([_zero(score) for score in scores])) if scores else None
    return IdentitySummary(
        mean=float(np.mean(found)) if found else None,
        best=max(found, default=None),
        mean_zero_imputed=imputed,
        normalised=normalised(imputed, marks.floor, marks.ceiling),
        faces_found=len(found),
        renders=len(scores),
    )


@dataclass(frozen=True)
class Bootstrap:
    """A paired comparison of a with b."""

    difference: float  # mean of a - b
    low: float  # 95% interval
    high: float
    p: float  # two-sided
    people: int
    pairs: int

    @property
    def significant(self) -> bool:
        return self.p < 0.05


def paired_bootstrap(
    a: Sequence[Sequence[float]] | Sequence[float] | np.ndarray,
    b: Sequence[Sequence[float]] | Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Is a better than b? Both hold one number per (person, seed), or per seed for one person; NaN (no face) is 0.

    Pairs stay pairs. With several people, people are drawn with replacement and then, within each, their seeds: the
    interval speaks of people like these. With one person only the seeds are drawn: it speaks of this person.
    Percentile interval; p = 2 * the smaller tail, with the observed data counted in (Davison & Hinkley 1997, 4.4),
    so it is never below 2 / (resamples + 1). The same `seed` gives the same result.
    """
    first, second = (np.nan_to_num(np.atleast_2d(np.asarray(x, np.float64)), nan=0.0) for x in (a, b))
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(f"a and b must be of one shape (people, seeds), not {first.shape} and {second.shape}")
    difference = first - second
    people, seeds = difference.shape
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // difference.size)  # about 16 MB of indices at a time
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        who = rng.integers(people, size=(count, people, 1))
        which = rng.integers(seeds, size=(count, people, seeds))
        means[start : start + count] = difference[who, which].mean(axis=(1, 2))
    return _bootstrapped(difference, means)


def _bootstrapped(observed: np.ndarray, means: np.ndarray) -> Bootstrap:
    """Percentile interval and two-sided p of the resampled `means`; `observed` has people first."""
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Bootstrap(
        difference=float(observed.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2.0 * (tail + 1) / (len(means) + 1)),
        people=len(observed),
        pairs=observed.size,
    )


def cluster_bootstrap(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Bootstrap:
    """Mean of `values` (people, training seeds, prompts, pictures per prompt) with a 95% interval; NaN counts as 0.

    People are drawn with replacement, within each their training seeds, within each its prompts; pictures of one
    prompt stay together, since they are no independent witnesses. A level with one member is kept as it is: the
    interval then says nothing about it. For a comparison give the paired differences; `p` is two-sided against 0.
    """
    data = np.nan_to_num(np.asarray(values, np.float64), nan=0.0)
    if data.ndim != 4 or not data.size:
        raise ValueError(f"values are (people, seeds, prompts, pictures), not {data.shape}")
    people, seeds, prompts, _ = (int(size) for size in data.shape)
    cells = data.mean(3)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for k in range(resamples):
        who = rng.integers(people, size=people)[:, None, None]
        trained = rng.integers(seeds, size=(people, seeds))[:, :, None]
        which = rng.integers(prompts, size=(people, seeds, prompts))
        means[k] = cells[who, trained, which].mean()
    return _bootstrapped(data, means)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given: significant at 5% where the result is below 0.05."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = highest
    return adjusted
