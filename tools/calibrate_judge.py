"""Calibrate a judge: measure what its similarities mean on pairs of real photos, with its own detector and alignment.

    python tools/calibrate_judge.py --lfw LFW --judges arcface-mini,dlib --write
    python tools/calibrate_judge.py --lfw LFW --judges buffalo_sc --face-models FOLDER --write

In: Labeled Faces in the Wild (one folder per person) and its test_people.txt; no embedded model has seen these people.
Out: presets/judges/<judge>.json: quantiles of the similarities of different people and of one person, thresholds with
the false-match rates for which there are enough pairs, a logistic calibration, and the effect of small faces. Only such
figures are written; embeddings stay in memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.files import write_text
from pipelines.faces import calibration
from pipelines.faces.calibration import Calibration, Comparisons
from pipelines.faces.face import Judge
from pipelines.faces.judges import judge_named
from pipelines.photos.decode import decode

DIFFERENT = (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0)
SAME = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.95)
RATES = (0.01, 0.001, 0.0001)
SEVERAL = 3  # photos in a mean: the usual number of held-out photos
FACE_HEIGHTS_PX = (24, 32, 40, 48, 64, 80, 96, 128, 160)
KEEPS_SHARE = 0.9
FOLDS = 10


@dataclass(frozen=True)
class Pairs:
    """Similarities of pairs, with their people, so that no person is in two folds."""

    references: int
    same: np.ndarray
    same_person: np.ndarray  # (n,) the person of each pair
    different: np.ndarray
    different_people: np.ndarray  # (m, 2) the two people of each pair


def people_of(lfw: Path, names_file: Path, limit: int) -> list[list[Path]]:
    """Each person's photos. With a limit, people with several photos are kept first, because their pairs are rare."""
    names = [line.strip() for line in names_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    photos = [sorted((lfw / name).glob("*.jpg")) for name in sorted(names)]
    several = [files for files in photos if len(files) > 1]
    single = [files for files in photos if len(files) == 1]
    room = max(0, limit - len(several))
    chosen = np.linspace(0, len(single) - 1, min(room, len(single))).astype(int).tolist() if single and room else []
    return [*several[:limit], *(single[k] for k in chosen)]


def embed(one: Judge, people: list[list[Path]], most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(vectors (n, d), person of each (n,), number of photos without a face); at most `most` photos per person."""
    vectors, owners, missed = [], [], 0
    started = time.monotonic()
    for who, files in enumerate(people):
        for path in files[:most]:
            seen = one.look(decode(path))
            if seen.vector is None:
                missed += 1
                continue
            vectors.append(seen.vector)
            owners.append(who)
        if who % 100 == 99:
            print(f"{one.name}: {who + 1} of {len(people)} people, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return np.array(vectors), np.array(owners), missed


def similarities(one: Judge, cosines: np.ndarray) -> np.ndarray:
    """Similarities from cosines: a judge's similarity is a linear function of the cosine, found from two points."""
    unit, across = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    high, low = one.similarity(unit, unit), one.similarity(unit, across)
    return low + (high - low) * cosines


def pairs(one: Judge, vectors: np.ndarray, who: np.ndarray, references: int, *, seed: int = 0) -> Pairs:
    """Every photo with the mean of `references` other photos of each person who has enough photos.

    With one reference: every pair of photos of one person, and as references one photo of each person.
    """
    rng = np.random.default_rng(seed)
    same, same_person, different, different_people = [], [], [], []
    for person in np.unique(who):
        own = np.flatnonzero(who == person)
        if len(own) <= references and references > 1:
            continue
        own = rng.permutation(own)
        mean = vectors[own[:references]].mean(0)
        mean /= np.linalg.norm(mean)
        probes = own[references:]
        if references == 1:
            first, second = np.triu_indices(len(own), 1)
            found = (vectors[own[first]] * vectors[own[second]]).sum(1)
        else:
            found = vectors[probes] @ mean
        same.append(found)
        same_person.append(np.full(len(found), person))
        others = np.flatnonzero(who != person)
        # one photo of each other person, so that people with many photos do not count more
        others = rng.permutation(others)
        _, keep = np.unique(who[others], return_index=True)
        others = others[keep]
        different.append(vectors[others] @ mean)
        different_people.append(np.column_stack([np.full(len(others), person), who[others]]))
    return Pairs(
        references,
        similarities(one, np.concatenate(same)),
        np.concatenate(same_person),
        similarities(one, np.concatenate(different)),
        np.concatenate(different_people),
    )


def supported(rates: tuple[float, ...], pairs_different: int) -> list[float]:
    """False-match rates for which there are enough pairs of different people: no error in n pairs means only < 3/n."""
    return [rate for rate in rates if rate >= 3 / max(pairs_different, 1)]


def fit_logistic(same: np.ndarray, different: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of the natural-log likelihood ratio: logistic regression, with weight one half for each kind.

    Newton's method on standardised similarities (Platt 1999; Brümmer & du Preez 2006).
    """
    x = np.concatenate([same, different])
    mean, std = x.mean(), x.std() + 1e-9
    z = np.column_stack([(x - mean) / std, np.ones(len(x))])
    y = np.concatenate([np.ones(len(same)), np.zeros(len(different))])
    weight = np.concatenate([np.full(len(same), 0.5 / len(same)), np.full(len(different), 0.5 / len(different))])
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(z @ beta, -40, 40)))
        gradient = z.T @ (weight * (y - p)) - 1e-6 * beta * np.array([1, 0])
        curvature = (z * (weight * p * (1 - p))[:, None]).T @ z + np.diag([1e-6, 1e-9])
        step = np.linalg.solve(curvature, gradient)
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    return float(beta[0] / std), float(beta[1] - beta[0] * mean / std)


def cllr(same: np.ndarray, different: np.ndarray) -> float:
    """Cost of natural-log likelihood ratios in bits (Brümmer & du Preez 2006): 0 perfect, 1 gives no information."""
    return float((np.logaddexp(0, -same).mean() + np.logaddexp(0, different).mean()) / (2 * np.log(2)))


def best_threshold(same: np.ndarray, different: np.ndarray) -> float:
    cuts = np.sort(np.concatenate([same, different]))
    hits = 1 - np.searchsorted(np.sort(same), cuts, "left") / len(same)
    rejected = np.searchsorted(np.sort(different), cuts, "left") / len(different)
    return float(cuts[int(np.argmax(hits + rejected))])


def by_folds(found: Pairs) -> tuple[float, float]:
    """(Cllr, balanced accuracy) by cross-validation over people."""
    same_fold = found.same_person % FOLDS
    first, second = (found.different_people % FOLDS).T
    costs, accuracies = [], []
    for fold in range(FOLDS):
        same_in, different_in = same_fold == fold, (first == fold) & (second == fold)
        same_out, different_out = same_fold != fold, (first != fold) & (second != fold)
        if not (same_in.any() and different_in.any() and same_out.any() and different_out.any()):
            continue
        slope, intercept = fit_logistic(found.same[same_out], found.different[different_out])
        costs.append(cllr(slope * found.same[same_in] + intercept, slope * found.different[different_in] + intercept))
        cut = best_threshold(found.same[same_out], found.different[different_out])
        accuracies.append(((found.same[same_in] >= cut).mean() + (found.different[different_in] < cut).mean()) / 2)
    return float(np.mean(costs)), float(np.mean(accuracies))


def sum_up(found: Pairs) -> Comparisons:
    slope, intercept = fit_logistic(found.same, found.different)
    cost, accuracy = by_folds(found)
    rates = supported(RATES, len(found.different))
    # the smallest similarity that at most this share of pairs of different people reaches
    thresholds = {f"{rate:g}": float(np.quantile(found.different, 1 - rate, method="higher")) for rate in rates}
    quantiles = [q for q in DIFFERENT if q == 1.0 or 1 - q >= 3 / len(found.different)]
    return Comparisons(
        references=found.references,
        pairs_different=len(found.different),
        pairs_same=len(found.same),
        different={f"{q:g}": _round(np.quantile(found.different, q)) for q in quantiles},
        same={f"{q:g}": _round(np.quantile(found.same, q)) for q in SAME},
        thresholds={rate: _round(value) for rate, value in thresholds.items()},
        missed={rate: _round((found.same < value).mean()) for rate, value in thresholds.items()},
        slope=_round(slope / np.log(10)),
        intercept=_round(intercept / np.log(10)),
        cllr=_round(cost),
        accuracy=_round(accuracy),
    )


def by_face_height(one: Judge, people: list[list[Path]], *, most: int) -> tuple[dict[str, float], float | None]:
    """({face height in px: share of the similarity of one person's photos that is left}, the smallest height that keeps
    KEEPS_SHARE of it).

    One photo is scaled until its face has this height; the other photo is not changed. A face that is not found counts
    0.
    """
    import cv2

    full: list[float] = []
    left: dict[int, list[float]] = {height: [] for height in FACE_HEIGHTS_PX}
    for files in [files for files in people if len(files) > 1][:most]:
        image = decode(files[1])
        other, probe = one.look(decode(files[0])), one.look(image)
        if other.vector is None or probe.vector is None or not probe.face_px:
            continue
        full.append(one.similarity(other.vector, probe.vector))
        for height in FACE_HEIGHTS_PX:
            ratio = height / probe.face_px
            size = (max(16, round(image.shape[1] * ratio)), max(16, round(image.shape[0] * ratio)))
            kind = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
            seen = one.look(np.ascontiguousarray(cv2.resize(image, size, interpolation=kind)))
            left[height].append(0.0 if seen.vector is None else one.similarity(other.vector, seen.vector))
    shares = {str(height): _round(np.mean(values) / np.mean(full)) for height, values in left.items()}
    keeping = [height for height in FACE_HEIGHTS_PX if shares[str(height)] >= KEEPS_SHARE]
    return shares, float(min(keeping)) if keeping else None


def by_group(one: Judge, portraits: Path, *, most: int) -> dict[str, object]:
    """Similarities of different people within each group, from portraits.csv (it has one photo per person, so there is
    no figure for one person).
    """
    import csv

    rows = list(csv.DictReader((portraits / "portraits.csv").open()))
    groups: dict[str, list[np.ndarray]] = {}
    taken: dict[str, int] = {}
    for row in rows:
        year = int(row["birth_year"] or 0)
        names = [row["gender"]] + (["born before 1950" if year < 1950 else "born from 1950 on"] if year else [])
        if all(taken.get(name, 0) >= most for name in names):
            continue
        seen = one.look(decode(portraits / row["file"]))
        for name in names:
            taken[name] = taken.get(name, 0) + 1
            if seen.vector is not None:
                groups.setdefault(name, []).append(seen.vector)
    out: dict[str, object] = {}
    for name, vectors in sorted(groups.items()):
        cosines = (np.array(vectors) @ np.array(vectors).T)[np.triu_indices(len(vectors), 1)]
        found = similarities(one, cosines)
        out[name] = {
            "people": len(vectors),
            "pairs_different": len(found),
            "mean": _round(found.mean()),
            "0.99": _round(np.quantile(found, 0.99)),
        }
    return out


def _round(value) -> float:
    return round(float(value), 4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, required=True, help="folder with one folder of photos per person")
    parser.add_argument("--people", type=Path, help="list of people (test_people.txt in --lfw)")
    parser.add_argument("--judges", default="arcface-mini,dlib", help="comma-separated names")
    parser.add_argument("--face-models", type=Path, help="folder that holds models/<pack>/*.onnx")
    parser.add_argument("--portraits", type=Path, help="folder with portraits.csv, for the figures by group")
    parser.add_argument("--limit", type=int, default=100_000, help="people at most")
    parser.add_argument("--photos", type=int, default=8, help="photos per person at most (8)")
    parser.add_argument("--heights", type=int, default=100, help="pairs for the figures by face height (100)")
    parser.add_argument("--write", action="store_true", help="store the figures in presets/judges/")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    people_file = options.people or options.lfw / "test_people.txt"
    people = people_of(options.lfw, people_file, options.limit)
    for name in options.judges.split(","):
        one = judge_named(name, options.face_models)
        detector = getattr(one, "detector", "dlib" if name == "dlib" else "scrfd")
        vectors, who, missed = embed(one, people, options.photos)
        kinds = tuple(sum_up(pairs(one, vectors, who, count)) for count in (1, SEVERAL))
        heights, smallest = by_face_height(one, people, most=options.heights)
        command = f"python tools/calibrate_judge.py --lfw LFW --judges {name}"
        command += " --face-models FOLDER" if options.face_models else ""
        command += " --portraits PORTRAITS" if options.portraits else ""
        command += f" --limit {options.limit}" if options.limit < len(people) + 1 else ""
        made = Calibration(
            judge=name,
            weights_sha256=one.weights_sha256,
            detector=detector,
            source=f"LFW {people_file.name}: {len(people)} people, {len(vectors)} photos, {missed} without a face, "
            f"{datetime.date.today().isoformat()}: {command} --write",
            comparisons=kinds,
            face_height=heights,
            smallest_face_px=smallest,
            groups=by_group(one, options.portraits, most=200) if options.portraits else {},
        )
        text = json.dumps({"schema": 1, **asdict(made)}, indent=1) + "\n"
        print(text, flush=True)
        if options.write:
            stem = name if detector != "scrfd" or name != "arcface-mini" else f"{name}-scrfd"
            write_text(calibration.FOLDER / f"{stem}.json", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
