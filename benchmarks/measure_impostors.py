"""What similarity do different people reach, and the same person? Measured through Likeness' own judges.

In: a folder of Labeled Faces in the Wild (one folder per person) and a list of its people. Out: the numbers in
presets/judges.json, printed and, with --write, stored there. Only quantiles leave this program, never an embedding.

    python benchmarks/measure_impostors.py --lfw ../shared/data/lfw --face-models ../shared/models --write

The comparisons are those of a render: one picture against the normalised mean of three photos. People with four photos
or more give a reference (three photos) and a probe (the fourth); everybody else gives a probe. Same person: probe and
reference of one person. Different people: every probe against every other person's reference.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.faces import JUDGE_FIGURES_PATH, Judge, judge
from pipelines.photos import decode

REFERENCE_PHOTOS = 3
DIFFERENT_QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
SAME_QUANTILES = (0.05, 0.5, 0.95)


def choose_people(lfw: Path, people_file: Path, limit: int) -> tuple[list[list[Path]], list[Path]]:
    """(four photos of each person who has them, one photo of each of the others), `limit` people in all."""
    names = [line.strip() for line in people_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    photos = {name: sorted((lfw / name).glob("*.jpg")) for name in sorted(names)}
    several = [files[: REFERENCE_PHOTOS + 1] for files in photos.values() if len(files) > REFERENCE_PHOTOS]
    single = [files[0] for files in photos.values() if 1 <= len(files) <= REFERENCE_PHOTOS]
    several = several[:limit]
    # Evenly through the alphabet, so that a cap does not pick one part of it.
    room = max(0, limit - len(several))
    step = np.linspace(0, len(single) - 1, min(room, len(single))).astype(int) if single and room else []
    return several, [single[i] for i in step]


def measure(one: Judge, several: list[list[Path]], single: list[Path]) -> dict[str, object]:
    """Quantiles of both kinds of comparison, and how many pictures showed this judge no face."""
    no_face = 0
    started = time.perf_counter()

    def vector(path: Path) -> np.ndarray | None:
        nonlocal no_face
        found, _ = one.embed(decode(path))
        no_face += found is None
        return found

    references: dict[int, np.ndarray] = {}
    probes: list[tuple[int, np.ndarray]] = []
    for person, files in enumerate(several):
        vectors = [vector(path) for path in files]
        kept = [v for v in vectors[:REFERENCE_PHOTOS] if v is not None]
        if kept:
            mean = np.mean(kept, axis=0)
            references[person] = mean / np.linalg.norm(mean)
        if vectors[-1] is not None:
            probes.append((person, vectors[-1]))
        if person % 25 == 24:
            print(f"{one.name}: {person + 1} of {len(several)} people", file=sys.stderr, flush=True)
    for person, path in enumerate(single, start=len(several)):
        found = vector(path)
        if found is not None:
            probes.append((person, found))
        if person % 50 == 49:
            print(f"{one.name}: {person + 1} people", file=sys.stderr, flush=True)
    same = [one.similarity(v, references[p]) for p, v in probes if p in references]
    different = [one.similarity(v, mean) for p, v in probes for owner, mean in references.items() if p != owner]
    return {
        "impostor": round(float(np.quantile(different, 0.999)), 3),
        "measured": True,
        "different_people": {f"{q:g}": round(float(np.quantile(different, q)), 3) for q in DIFFERENT_QUANTILES},
        "same_person": {f"{q:g}": round(float(np.quantile(same, q)), 3) for q in SAME_QUANTILES},
        "comparisons_different": len(different),
        "comparisons_same": len(same),
        "pictures": len(several) * (REFERENCE_PHOTOS + 1) + len(single),
        "pictures_without_face": no_face,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lfw", type=Path, required=True, help="folder with one folder of photos per person")
    parser.add_argument("--people", type=Path, help="list of people (default: test_people.txt in --lfw)")
    parser.add_argument("--judges", default="buffalo_sc,dlib", help="comma-separated names")
    parser.add_argument("--face-models", type=Path, help="folder that holds models/<pack>/*.onnx")
    parser.add_argument("--limit", type=int, default=400, help="people at most (default: 400)")
    parser.add_argument("--write", action="store_true", help="store the numbers in presets/judges.json")
    options = parser.parse_args()
    people = options.people or options.lfw / "test_people.txt"
    several, single = choose_people(options.lfw, people, options.limit)
    for name in options.judges.split(","):
        figures = measure(judge(name, options.face_models), several, single)
        figures["source"] = (
            f"LFW {people.name}, {len(several) + len(single)} people, {datetime.date.today().isoformat()}: "
            f"python benchmarks/measure_impostors.py --lfw LFW --face-models FACE_MODELS --judges {name} "
            f"--limit {options.limit} --write"
        )
        print(json.dumps({name: figures}, indent=2), flush=True)
        if options.write:
            table = json.loads(JUDGE_FIGURES_PATH.read_text(encoding="utf-8"))
            table["judges"].setdefault(name, {}).update(figures)
            JUDGE_FIGURES_PATH.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
