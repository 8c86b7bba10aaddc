"""Measure the time of a training step of the embedded base, for estimates on machines that have not measured it yet.

    python benchmarks/measure_paces.py [PHOTOS] [--class-word woman]

In: photos of one person (default: the sample person). Out: `presets/paces.json`: seconds per step, batch and peak
memory of each method with the draft recipe, this machine's speed of matrix products, its name and the date. Run it
while nothing else runs. The methods train side by side, as in the app, so the memory is that of all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.bases.registry import find_base
from pipelines.core import presets
from pipelines.core.device import machine
from pipelines.core.files import jsonable
from pipelines.core.run import record_consent, run_at
from pipelines.photos.gather import photo_files
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec
from pipelines.training import estimates
from pipelines.training.subjects import load_subject

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("photos", nargs="?", type=Path, default=ROOT / "presets" / "sample_person")
    ask.add_argument("--class-word", default="woman")
    ask.add_argument("--base", default="portrait-128")
    asked = ask.parse_args()
    row, paces = find_base(asked.base), {}
    speed = estimates.gflops()
    with tempfile.TemporaryDirectory() as folder:
        run = run_at(Path(folder) / "run")
        record_consent(run, means="benchmark", statement="Synthetic pictures, or photos with consent.")
        files = tuple(str(path.resolve()) for path in photo_files(asked.photos))
        # as in the app: validation pictures are scored five times
        recipes = {m: presets.recipe(row, m, "draft", class_word=asked.class_word) for m in row.methods}
        settings = {m: {"watch_every": max(10, recipe.steps // 5)} for m, recipe in recipes.items()}
        jobs.start(
            run,
            JobSpec(
                "train", asked.base, asked.class_word, row.methods, "draft", photos=files,
                settings=settings,
            ),
        )  # fmt: skip
        for _ in jobs.follow(run):
            pass
        if jobs.status(run).state != "done":
            print(jobs.status(run).reason, file=sys.stderr)
            return 1
        for method in row.methods:
            subject = load_subject(run.method(method))
            pace = estimates.Pace(round(subject.train_s / subject.steps, 4), subject.recipe.batch, subject.peak_mem_mb)
            paces[estimates.key(row, method)] = jsonable(pace)
            print(f"{method}: {pace.step_s:.3f} s a step of {pace.batch}", file=sys.stderr)
    measured = {
        "machine": machine(), "date": time.strftime("%Y-%m-%d"), "gflops": round(speed, 1), "paces": paces,
    }  # fmt: skip
    estimates.REFERENCE.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
