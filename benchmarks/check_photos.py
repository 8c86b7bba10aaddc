"""How long does it take to check a set of phone photos? Prints seconds, memory and the machine.

    python benchmarks/check_photos.py [--photos 20]

In: nothing; pictures of the sample person are enlarged to 12-megapixel JPEGs with noise. Out: one line per figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.photos import intake


def phone_photos(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 4000 x 3000 with a face of about 1,100 pixels."""
    sources = sorted((ROOT / "presets" / "sample_person").glob("*.png"))
    rng = np.random.default_rng(0)
    out = []
    for k in range(count):
        face = Image.open(sources[k % len(sources)]).convert("RGB").resize((2000, 2000), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (4000, 3000), tuple(int(v) for v in rng.integers(60, 200, 3)))
        canvas.paste(face, (800 + 20 * k, 500))
        grain = rng.integers(-6, 7, (750, 1000, 1), dtype=np.int16).repeat(4, 0).repeat(4, 1)
        pixels = np.clip(np.asarray(canvas).astype(np.int16) + grain, 0, 255).astype(np.uint8)
        out.append(folder / f"photo{k:02d}.jpg")
        Image.fromarray(pixels).save(out[-1], quality=90)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # made in a process of its own, so that its memory is not in the peak memory of checking
        maker = multiprocessing.get_context("spawn").Process(target=phone_photos, args=(Path(folder), options.photos))
        maker.start()
        maker.join()
        files = sorted(Path(folder).glob("*.jpg"))
        intake.check(sorted((ROOT / "presets" / "sample_person").glob("*.png"))[:1])  # loads the models first
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        each: list[float] = []
        started = last = time.perf_counter()

        def progress(done: int, total: int, name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            each.append(now - last)
            last = now

        found, report = intake.check(files, progress=progress)
        seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{machine()}, {date.today().isoformat()}")
    print(f"{len(files)} photos of 12 megapixels checked in {seconds:.1f} s, the slowest in {max(each):.2f} s")
    print(f"memory grew by {grown:.0f} MB beyond the loaded models")
    print(f"{report.good + report.usable} can be used, {report.left_out} left out")
    return 0 if len(found) == options.photos else 1


if __name__ == "__main__":
    raise SystemExit(main())
