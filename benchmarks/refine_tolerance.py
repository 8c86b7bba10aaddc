"""How much does a judge's similarity change when the face does not? A refinement may lower it by as much.

    python benchmarks/refine_tolerance.py [--people FOLDER] [--judges NAMES] [--face-models FOLDER] [--write]

In: the synthetic sample person, or with --people one folder of photos per person. Every photo is compared with the mean
of that person's other photos (at most 3), as a render with the held-out photos: unchanged, saved as JPEG (quality 90),
and also shifted by one pixel. All are measured at 128 px, which the embedded base draws, and at 512. Out: per judge how
much similarity is lost; --write stores the tolerance (the 99th percentile, rounded up to 0.01) in
presets/refining.json. No data about a face is written.
"""

from __future__ import annotations

import argparse
import math
import sys
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.core.files import read_json, write_json
from pipelines.evaluation import references
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, Judge, align_by_eyes
from pipelines.faces.judges import judge_named
from pipelines.finishing import refine
from pipelines.photos.decode import decode
from pipelines.photos.gather import photo_files

SIDES_PX = (128, 512)
SHARE = 0.99


def portrait(image: np.ndarray, side_px: int) -> np.ndarray | None:
    """A photo in the embedded base's framing, (side, side, 3) uint8; None without a face."""
    found = detect_faces(image)
    if not found:
        return None
    scale = side_px / PORTRAIT_SIZE_PX
    middle = (PORTRAIT_EYES_MID[0] * scale, PORTRAIT_EYES_MID[1] * scale)
    return align_by_eyes(
        image, found[0].eyes, size_px=side_px, midpoint=middle, apart_px=PORTRAIT_EYES_APART_PX * scale
    )


def losses(judge: Judge, pictures: list[np.ndarray]) -> list[float]:
    """How much similarity every picture loses by each harmless change; if no face is found, all of it."""
    seen = [judge.look(picture).vector for picture in pictures]
    out = []
    for place, (picture, vector) in enumerate(zip(pictures, seen)):
        others = [each for n, each in enumerate(seen) if n != place and each is not None][:3]
        if vector is None or not others:
            continue
        reference = references.Reference(judge, references.mean_vector(others), len(others))
        before = reference.similarity(vector)
        for copy in refine.harmless_copies(picture):
            after = judge.look(copy).vector
            out.append(before if after is None else before - reference.similarity(after))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=Path, help="one folder of photos per person")
    parser.add_argument("--judges", default="arcface-mini,dlib")
    parser.add_argument("--face-models", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    folders = [ROOT / "presets" / "sample_person"]
    if options.people:
        folders = sorted(path for path in options.people.iterdir() if path.is_dir())
    people = [[decode(path) for path in photo_files(folder)[:8]] for folder in folders]
    found: dict[str, float] = {}
    print(f"{machine()}, {date.today().isoformat()}; {len(people)} people, {sum(map(len, people))} photos")
    for name in options.judges.split(","):
        judge = judge_named(name, options.face_models)
        every: list[float] = []
        for side_px in SIDES_PX:
            made = [[cut for image in each if (cut := portrait(image, side_px)) is not None] for each in people]
            each_side = [loss for pictures in made for loss in losses(judge, pictures)]
            every += each_side
            share = {q: float(np.quantile(each_side, q)) for q in (0.5, 0.9, SHARE, 1.0)}
            said = ", ".join(f"{q:.0%} below {value:.4f}" for q, value in share.items())
            print(f"{name}, {side_px} px, {len(each_side)} comparisons: loss {said}")
        found[name] = max(0.01, math.ceil(100 * float(np.quantile(every, SHARE))) / 100)
        print(f"{name}: tolerance {found[name]:.2f}")
    if options.write:
        saved = read_json(refine.FILE) or {"schema": 1, "tolerance": {}}
        saved["tolerance"] |= found
        command = "python benchmarks/refine_tolerance.py --people PEOPLE" if options.people else "the sample person"
        saved["source"] = (
            f"{SHARE:.0%} of JPEG q90 and 1 px shifts lose less; {len(people)} people, "
            f"{sum(map(len, people))} photos, {date.today().isoformat()}: {command}"
        )
        write_json(refine.FILE, saved)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
