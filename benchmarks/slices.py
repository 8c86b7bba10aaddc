"""How long is the longest slice of a comparison on a host that lends a GPU in slices, and how many slices are there?

    python benchmarks/slices.py [PHOTOS] --class-word woman --limit 20

In: photos of one person (default: the sample person). Out: one line per slice (its seconds, and how many steps,
pictures and scores it did) and a JSON record. Each slice is a process of its own that does what the app does on ZeroGPU
(`gpu.work`) with `--limit` instead of `WORK_S`, with importing torch and loading the base. Exit code 1 when a slice
takes more than `--margin` seconds longer than the limit, or does nothing. A host ends a slice that takes 15 s longer.
If other programs use the machine, `--clock processor` with OMP_NUM_THREADS=1 counts CPU seconds, also for the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from compare_draft import conditions

from pipelines.bases.registry import find_base
from pipelines.core.run import run_at, save_photo_set
from pipelines.photos.gather import photo_files
from pipelines.photos.intake import intake
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec
from ui.page.gpu import SLICE_S, WORK_S

SLICE = """
import sys, time
from types import SimpleNamespace
from ui.page import gpu
gpu.WORK_S = float(sys.argv[2])
clock = time.process_time if sys.argv[3] == "processor" else time.monotonic
gpu.time = SimpleNamespace(monotonic=clock)
since = clock()
gpu.work(sys.argv[1], "")
print(clock() - since)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", default=ROOT / "presets" / "sample_person")
    parser.add_argument("--class-word", default="woman")
    parser.add_argument("--base", default="portrait-128")
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--methods", help="comma-separated; all by default")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--limit", type=float, default=WORK_S, help="seconds after which a slice is over")
    parser.add_argument("--margin", type=float, default=SLICE_S - WORK_S, help="seconds that it may take longer")
    options = parser.parse_args()
    measured = conditions()
    seconds: list[float] = []
    kept: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        run, row = run_at(Path(folder) / "run"), find_base(options.base)
        files = photo_files(options.photos)
        save_photo_set(run, intake(files, run.photos, min_eye_distance_px=row.min_eye_distance_px))
        methods = tuple(options.methods.split(",")) if options.methods else row.methods
        spec = JobSpec("compare", options.base, options.class_word, methods, options.quality)
        jobs.enqueue(run, spec, owner="benchmark", serve=False)
        began = time.monotonic()
        while (before := jobs.status(run)).waits:
            command = [sys.executable, "-c", SLICE, str(run.folder), str(options.limit), options.clock]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            after = jobs.status(run)
            seconds.append(float(done.stdout.split()[-1]))
            kept.append(after.kept - before.kept)
            print(f"slice {len(kept)}: {seconds[-1]:.1f} s, {kept[-1]} kept; {after.phase or after.state}", flush=True)
            if not kept[-1] and after.waits:
                break
        wall_s, ended = time.monotonic() - began, jobs.status(run)
    found = {
        "conditions": measured,
        "clock": options.clock,
        "limit_s": options.limit,
        "slices": len(seconds),
        "longest_s": round(max(seconds), 1),
        "shortest_s": round(min(seconds), 1),
        "wall_s": round(wall_s, 1),
        "kept": sum(kept),
        "least_kept": min(kept),
        "ended": ended.state if ended.reason is None else f"{ended.state}: {ended.reason}",
    }
    print(json.dumps(found, indent=1))
    return int(ended.state != "done" or max(seconds) > options.limit + options.margin)


if __name__ == "__main__":
    raise SystemExit(main())
