"""How many photos of another person does intake find in a person's set, and how many right photos does it leave out?

In: a folder with one folder of photos per person. Out: a table on stdout. Each person's set gets one or two photos of
another person (of the same or another gender, each other person in turn). Only counts are printed.

    python benchmarks/measure_intruders.py PEOPLE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.photos import checks
from pipelines.photos.decode import decode
from pipelines.photos.gather import photo_files


def flagged(examined: list[checks.Examined], known) -> list[bool]:
    names = [str(k) for k in range(len(examined))]
    found, _, _ = checks.check_set(names, examined, {}, min_eye_distance_px=0.0, known=known)
    return ["another_person" in check.reasons for check in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("people", type=Path, help="folder with one folder of photos per person")
    parser.add_argument("--sizes", default="6,10,14", help="photos of the person in a set (6,10,14)")
    options = parser.parse_args()
    recogniser = checks.Recogniser()
    if recogniser.calibration is None:
        print("arcface-mini is uncalibrated, so nobody can be called another person. Run tools/calibrate_judge.py.")
        return 1
    sets: list[list[checks.Examined]] = []
    for folder in sorted(path for path in options.people.iterdir() if path.is_dir()):
        sets.append([checks.examine(decode(path), recogniser) for path in photo_files(folder)])
        print(f"{folder.name}: {len(sets[-1])} photos", file=sys.stderr, flush=True)
    rng = np.random.default_rng(0)
    print(
        "| photos of the person | intruders | sets | intruders flagged | true photos flagged |\n|---|---|---|---|---|"
    )
    for size in (int(text) for text in options.sizes.split(",")):
        for intruders in (0, 1, 2):
            hits = total = accused = true = count = 0
            for k, own in enumerate(sets):
                for j, other in enumerate(sets):
                    if j == k or (intruders == 0 and j != (k + 1) % len(sets)):
                        continue
                    mine = [own[i] for i in rng.permutation(len(own))[:size]]
                    theirs = [other[i] for i in rng.permutation(len(other))[:intruders]]
                    found = flagged([*mine, *theirs], recogniser.calibration)
                    accused += sum(found[: len(mine)])
                    hits += sum(found[len(mine) :])
                    true, total, count = true + len(mine), total + len(theirs), count + 1
            share = f"{hits} of {total} ({hits / total:.1%})" if total else "-"
            print(
                f"| {size} | {intruders} | {count} | {share} | {accused} of {true} ({accused / true:.1%}) |", flush=True
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
