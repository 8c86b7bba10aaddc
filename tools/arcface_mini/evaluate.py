"""Evaluation of arcface-mini, dlib and, if installed, buffalo_sc, on people who were not in any training.

In: LFW's identity-disjoint lists. Out: figures per judge on the same balanced pairs - accuracy with the threshold from
training people, true accepts at 1% false accepts, rank correlation with buffalo_sc - and the densities for the card.
Each judge uses its own detector and alignment. Embeddings stay in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pipelines.faces import arcface_mini
from pipelines.faces.face import Judge
from pipelines.faces.judges import judge_named
from pipelines.photos.decode import decode
from tools.arcface_mini.data import people
from tools.arcface_mini.training import best_accuracy

TEST_PAIRS, TRAIN_PAIRS, PAIRS_PER_PERSON = 1000, 200, 4
Pair = tuple[Path, Path]


def choose_pairs(photos: list[list[Path]], count: int, *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """(`count` pairs of one person, as many of different people); at most PAIRS_PER_PERSON of one person."""
    rng = np.random.default_rng(seed)
    same: list[Pair] = []
    for files in photos:
        together = [(a, b) for k, a in enumerate(files) for b in files[k + 1 :]]
        chosen = rng.permutation(len(together))[:PAIRS_PER_PERSON]
        same += [together[k] for k in chosen]
    same = [same[k] for k in rng.permutation(len(same))[:count]]
    different: list[Pair] = []
    while len(different) < len(same):
        one, other = rng.choice(len(photos), 2, replace=False)
        different.append((photos[one][rng.integers(len(photos[one]))], photos[other][rng.integers(len(photos[other]))]))
    return same, different


Vectors = dict[Path, np.ndarray | None]


def look(judges: list[Judge], pairs: list[Pair]) -> dict[str, Vectors]:
    """The embeddings of every photo of `pairs` by each judge; judges with the same detector share its results."""
    found: dict[str, Vectors] = {one.name: {} for one in judges}
    for done, path in enumerate(sorted({path for pair in pairs for path in pair}), start=1):
        image = decode(path)
        for one in judges:
            found[one.name][path] = one.look(image).vector
        if done % 250 == 0:
            print(f"{done} photos", file=sys.stderr, flush=True)
    return found


def similarities(one: Judge, pairs: list[Pair], known: Vectors) -> np.ndarray:
    """One similarity per pair; NaN where this judge finds no face."""
    vectors = [(known[a], known[b]) for a, b in pairs]
    return np.array([np.nan if a is None or b is None else one.similarity(a, b) for a, b in vectors])


def everything(
    lfw: Path, packs: Path | None, *, test_pairs: int = TEST_PAIRS, train_pairs: int = TRAIN_PAIRS
) -> tuple[dict[str, dict[str, float]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """({judge: figures}, {judge: (same, different)}). A photo without a face makes a pair "different"."""
    names = ["arcface-mini", "dlib"] + (["buffalo_sc"] if packs else [])
    train = choose_pairs(people(lfw, lfw / "train_people.txt"), train_pairs, seed=1)
    test = choose_pairs(people(lfw, lfw / "test_people.txt"), test_pairs)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    figures: dict[str, dict[str, float]] = {}
    # arcface-mini with dlib's landmarks, as on a machine without downloads
    judges = [arcface_mini.ArcFaceMini() if name == arcface_mini.NAME else judge_named(name, packs) for name in names]
    seen = look(judges, [pair for kind in (*train, *test) for pair in kind])
    for one in judges:
        name, known = one.name, seen[one.name]
        train_same, train_different = (similarities(one, pairs, known) for pairs in train)
        same, different = (similarities(one, pairs, known) for pairs in test)
        missing = int(np.isnan(same).sum() + np.isnan(different).sum())
        threshold = best_accuracy(train_same[~np.isnan(train_same)], train_different[~np.isnan(train_different)])[1]
        same, different = (np.nan_to_num(values, nan=-1.0) for values in (same, different))
        found[name] = (same, different)
        at_one_percent = float(np.quantile(different, 0.99, method="higher"))
        figures[name] = {
            "pairs": len(same) + len(different),
            "pairs_without_face": missing,
            "threshold": threshold,
            "accuracy": float(((same >= threshold).mean() + (different < threshold).mean()) / 2),
            "tar_at_far_1pct": float((same >= at_one_percent).mean()),
        }
    if "buffalo_sc" in found:
        ours, theirs = (np.concatenate(found[name]) for name in ("arcface-mini", "buffalo_sc"))
        both = (ours > -1) & (theirs > -1)
        figures["arcface-mini"]["spearman_with_buffalo_sc"] = spearman(ours[both], theirs[both])
        figures["arcface-mini"]["spearman_same"] = spearman(*_halves(found, both, 0))
        figures["arcface-mini"]["spearman_different"] = spearman(*_halves(found, both, 1))
    return figures, found


def _halves(found: dict, seen: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of one person, or those of different people, by both recognisers."""
    count = len(found["arcface-mini"][0])
    part = seen[:count] if half == 0 else seen[count:]
    return found["arcface-mini"][half][part], found["buffalo_sc"][half][part]


def generated(lfw: Path, *, pictures: int = 64, against: int = 200) -> np.ndarray:
    """Similarities of pictures that the untrained embedded base drew (of no real person) to photos of test people: they
    show the usual values of such comparisons.
    """
    from diffusers import StableDiffusionPipeline

    from tools.portrait_base.evaluate import asked_prompts, sample

    one = arcface_mini.ArcFaceMini()
    pipeline = StableDiffusionPipeline.from_pretrained(arcface_mini.MODEL.parents[1] / "portrait-128")
    images = sample(pipeline, [prompt for prompt, *_ in asked_prompts(pictures)], seed=2000)
    drawn = [vector for image in images if (vector := one.look(image).vector) is not None]
    photos = [files[0] for files in people(lfw, lfw / "test_people.txt")[:against]]
    real = [vector for path in photos if (vector := one.look(decode(path)).vector) is not None]
    return np.array([one.similarity(a, b) for a in drawn for b in real])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, without ties, which do not occur among similarities."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
