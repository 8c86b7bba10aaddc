"""Measures of a picture besides its score: is it usable, does it show what was asked, is it a copy of a photo?

In: pictures, what was asked for, the training photos as the judge's framing shows them. Out: `Facts` per picture and
`Worth` per method. All measured by rules and by the recognisers; what can't be measured is None.
Class-only prompts ("portrait of man") show drift: whether every man that the base draws now looks like the person.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

import numpy as np

from pipelines.core.records import Sampling, Score
from pipelines.evaluation.statistics import known_mean
from pipelines.faces.calibration import LOOKS_LIKE
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import PORTRAIT_SIZE_PX, align_by_eyes
from pipelines.photos import captions, checks

FRAME_PX = PORTRAIT_SIZE_PX
STRUCTURE_PX = 64  # aligned faces are compared at this size, where noise no longer matters
# Of 13 people's photos (10 each, all pairs) two different ones reach 0.22 in the median and 0.67 at most; a photo drawn
# again by the embedded base's autoencoder keeps more than 0.85 of itself.
COPY = 0.75
BAD_QUALITY = ("blurred", "dark", "bright", "low_contrast")  # a turned head is no flaw in a portrait
PROMINENT = 0.12  # a prominent face is at least this share of the picture high


@dataclass(frozen=True)
class Facts:
    """The measures of one picture."""

    faces: int
    prominent: bool  # exactly one face, and a large one
    quality: tuple[str, ...]  # codes of `records.REMARKS` about its faults; () = none
    following: float | None  # share of the asked attributes that hold; None: nothing measurable was asked. Where CLIP
    # judges: share of the run's other prompts that fit less well than the picture's own
    copy: float | None  # structural similarity (0..1) with the most similar training photo
    nearest: str | None  # that photo's name
    yaw: float | None  # proxy, in eye distances
    eyes: tuple[tuple[float, float], tuple[float, float]] | None = None  # of the face, in pixels
    clip_t: float | None = None  # cosine of picture and prompt by CLIP, on bases that know all words
    copy_paste: float | None = None  # see `copy_paste`; None: the first judge sees no face in it
    others: float | None = None  # mean similarity to photos of other people by the first judge; None: as above
    structure: np.ndarray | None = field(default=None, repr=False, compare=False)  # (64, 64) grey, in memory only


@dataclass(frozen=True)
class Worth:
    """The measures of one method. Shares are of all its pictures of the person; a picture without a face counts 0."""

    usable: float | None  # one prominent face, looks like the person to the first judge, as asked, good quality
    following: float | None  # mean share of asked attributes that hold
    quality: float | None  # share without a remark
    diversity: float | None  # 1 - mean structural similarity of two pictures' aligned faces
    yaw_spread: float | None  # standard deviation of the yaw proxy
    copies: int  # pictures that repeat a training photo
    copy_score: float | None  # the highest structural similarity with a training photo
    memorisation_gap: float | None  # mean similarity to the training photos minus to the held-out ones
    drift: float | None  # of class-only prompts: similarity to the person minus the untrained base's
    clip_t: float | None  # mean cosine with the prompts by CLIP, the person's token replaced by the class word
    preserved: float | None  # of class-only prompts: structural similarity with the untrained base's same seed
    copy_paste: float | None = None  # mean of `Facts.copy_paste`; pictures without a face count as 0
    others: float | None = None  # mean of `Facts.others`; pictures without a face count as 0


def asked_for(prompt: str) -> dict[str, str]:
    """The attributes in a prompt that rules about pixels can check: {"background" | "jacket" | "tone": word}."""
    asked = {}
    for thing in ("background", "jacket"):
        found = re.search(rf"\b([a-z]+) {thing}\b", prompt.lower())
        if found and found[1] in captions.COLOURS:
            asked[thing] = found[1]
    for tone in ("black and white", "sepia"):
        if re.search(rf"\b{tone}\b", prompt.lower()):
            asked["tone"] = tone
    return asked


# Pairs of similar colour words that the rules can't tell apart in shade: they count as the same.
ALIKE = ({"navy", "blue"}, {"navy", "black"}, {"grey", "white"})


def holds(seen: str | None, asked: str) -> bool:
    return seen == asked or {seen, asked} in ALIKE


def following(image: np.ndarray, prompt: str) -> float | None:
    """Share of the asked attributes that an aligned (128, 128, 3) picture shows; None when none can be checked."""
    asked = asked_for(prompt)
    if not asked:
        return None
    seen = captions.measure(image)
    shown = {"background": seen.background, "jacket": seen.jacket, "tone": seen.tone}
    if "tone" in asked:  # a black-and-white picture has no colours to check
        asked = {"tone": asked["tone"]}
    return float(np.mean([holds(shown[thing], word) for thing, word in asked.items()]))


def followed(image: np.ndarray, prompt: str) -> float | None:
    """`following` of an RGB uint8 (H, W, 3) picture that is not aligned yet; 0 where it shows no face."""
    if not asked_for(prompt):
        return None
    found = detect_faces(image)
    return following(_framed(image, align_by_eyes(image, found[0].eyes)), prompt) if found else 0.0


def _framed(image: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """The picture to measure: one of the embedded base's size is not aligned, since that would move the background."""
    return image if image.shape[:2] == (FRAME_PX, FRAME_PX) else aligned


def facts_of(image: np.ndarray, sampling: Sampling, training: dict[str, np.ndarray]) -> Facts:
    """Look at one RGB uint8 (H, W, 3) picture. `training` are `structure`s of the training photos, by name."""
    found = detect_faces(image)
    if not found:
        return Facts(0, False, (), None, None, None, None)
    face = found[0]
    measured = checks.measure(image, face)
    aligned = align_by_eyes(image, face.eyes)
    own = structure(aligned)
    alike = {name: similarity(own, other) for name, other in training.items()}
    nearest = max(alike, key=lambda name: alike[name], default=None)
    return Facts(
        faces=len(found),
        prominent=len(found) == 1 and face.box[3] - face.box[1] >= PROMINENT * image.shape[0],
        quality=tuple(code for code in checks.remarks(measured) if code in BAD_QUALITY),
        following=following(_framed(image, aligned), sampling.prompt),
        copy=alike[nearest] if nearest is not None else None,
        nearest=nearest,
        yaw=measured.yaw,
        eyes=tuple((float(x), float(y)) for x, y in face.eyes),  # type: ignore[arg-type]
        structure=own,
    )


def facts_to_json(found: Facts) -> dict[str, object]:
    """Facts as JSON; `facts_from_json` reads them."""
    return {each.name: getattr(found, each.name) for each in fields(Facts) if each.name != "structure"}


def facts_from_json(saved: Mapping[str, Any], image: np.ndarray) -> Facts:
    """Facts from `facts_to_json` and their picture. Raises TypeError or ValueError for anything else."""
    eyes = saved["eyes"]
    own = None if eyes is None else structure(align_by_eyes(image, np.array(eyes)))
    placed = None if eyes is None else tuple((float(x), float(y)) for x, y in eyes)
    return Facts(**{**saved, "quality": tuple(saved["quality"]), "eyes": placed, "structure": own})


def structure(aligned: np.ndarray) -> np.ndarray:
    """The (64, 64) uint8 grey picture by which aligned (128, 128, 3) pictures are compared."""
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(aligned), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (STRUCTURE_PX, STRUCTURE_PX), interpolation=cv2.INTER_AREA)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) of two structures; 1 = the same picture."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(one, other, data_range=255))


def copy_paste(picture: np.ndarray, held_out: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> float | None:
    """MultiID-Bench's copy-paste measure of one picture from unit vectors (d,); None where a photo is missing.

    (angle(g, t) - angle(g, r)) / angle(t, r) of the picture g, a photo t that training never saw and a training photo
    r: 1 = the picture is r, -1 = it is t, 0 = as near to one as to the other. Here: the mean over all pairs (t, r).
    Source: Xu et al., WithAnyone (ICLR 2026), arXiv 2510.14975; `copy_geo` of its MultiID-Bench.
    """
    if not len(held_out) or not len(training):
        return None
    seen, learned = np.array(held_out, np.float64), np.array(training, np.float64)
    to_seen, to_learned, between = (
        np.arccos(np.clip(each, -1, 1)) for each in (seen @ picture, learned @ picture, seen @ learned.T)
    )
    apart = between > 1e-6  # one photo twice says nothing
    return float(((to_seen[:, None] - to_learned)[apart] / between[apart]).mean()) if apart.any() else None


def is_subject(sampling: Sampling) -> bool:
    """Whether a picture should show the person: its prompt has `{subject}`, or it was made elsewhere and has no prompt.
    Any other prompt is a class-only prompt.
    """
    return not sampling.prompt or "{subject}" in sampling.prompt


def is_counted(sampling: Sampling, stylised: Collection[str] = ()) -> bool:
    """Whether a picture counts for the identity figures of its method: it shows the person in a photographic style and
    was drawn from noise. A variation's face comes in part from its source, which another method may have drawn, and a
    draft's in part from the distilled LoRA: both have a score, but do not count.
    """
    return sampling.source is None and not sampling.draft and is_subject(sampling) and sampling.prompt not in stylised


def worth_of(
    pictures: Sequence[tuple[Sampling, Facts, Sequence[Score]]],
    base: Sequence[tuple[Sampling, Facts, Sequence[Score]]],
    *,
    to_training: Sequence[float | None],
    stylised: Collection[str] = (),
) -> Worth:
    """The `Worth` of a column. `base` is the untrained base's column; `to_training` has the first judge's similarity of
    each picture (in order) to the mean of the training photos; `stylised` names prompts that recognisers can't judge.
    """
    own = [(s, f, scores) for s, f, scores in pictures if is_counted(s, stylised)]
    shown = [f for _, f, _ in own]
    asked = [f.following if f.faces else 0.0 for s, f, _ in own if f.following is not None or asked_for(s.prompt)]
    copies = [f.copy for f in shown if f.copy is not None]
    structures = [f.structure for f in shown if f.structure is not None]
    yaws = [f.yaw for f in shown if f.yaw is not None]
    gaps = [
        trained - scores[0].similarity
        for (s, _, scores), trained in zip(pictures, to_training, strict=True)
        if is_counted(s, stylised) and scores and scores[0].similarity is not None and trained is not None
    ]
    pairs = [similarity(a, b) for a, b in combinations(structures[:24], 2)]
    drift, preserved = _class_only(pictures, base)
    return Worth(
        usable=known_mean([float(usable(f, scores)) for _, f, scores in own]),
        following=known_mean(asked),
        quality=known_mean([float(bool(f.faces) and not f.quality) for f in shown]),
        diversity=None if not pairs else 1 - float(np.mean(pairs)),
        yaw_spread=float(np.std(yaws)) if len(yaws) > 1 else None,
        copies=sum(value >= COPY for value in copies),
        copy_score=max(copies, default=None),
        memorisation_gap=known_mean(gaps),
        drift=drift,
        clip_t=known_mean(f.clip_t for f in shown),
        preserved=preserved,
        copy_paste=_with_failures(f.copy_paste for f in shown),
        others=_with_failures(f.others for f in shown),
    )


def _with_failures(values: Iterable[float | None]) -> float | None:
    """The mean with 0 for what is missing; None where everything is."""
    every = list(values)
    return None if all(value is None for value in every) else known_mean(value or 0.0 for value in every)


def usable(seen: Facts, scores: Sequence[Score]) -> bool:
    """One prominent face that looks like the person to the first judge, at least half as asked, without remarks."""
    alike = bool(scores) and scores[0].verdict == LOOKS_LIKE
    obeys = seen.following is None or seen.following >= 0.5
    return seen.prominent and alike and obeys and not seen.quality


def _class_only(
    pictures: Sequence[tuple[Sampling, Facts, Sequence[Score]]],
    base: Sequence[tuple[Sampling, Facts, Sequence[Score]]],
) -> tuple[float | None, float | None]:
    untrained = {s: (f, scores) for s, f, scores in base if not is_subject(s) and s.source is None}
    drifts, kept = [], []
    for s, f, scores in pictures:
        if is_subject(s) or s not in untrained:
            continue
        before, before_scores = untrained[s]
        if scores and before_scores:
            drifts.append((scores[0].similarity or 0.0) - (before_scores[0].similarity or 0.0))
        both = f.structure is not None and before.structure is not None
        kept.append(similarity(f.structure, before.structure) if both else 0.0)  # type: ignore[arg-type]
    return known_mean(drifts), known_mean(kept)
