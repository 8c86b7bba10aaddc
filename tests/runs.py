"""Runs for tests: photos without a person in them, ready to train on.

In: an empty folder. Out: a `Run` whose photos were "taken in" already. The pictures are coloured noise with eyes said
to be in the middle: enough for training, which looks at no face, and nobody's portrait.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.core.records import Photo, PhotoSet
from pipelines.core.run import Run, run_at, save_photo_set
from pipelines.runs.jobspec import JobSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"
PEOPLE = SHARED / "data" / "people"


def make_run(folder: Path, *, photos: int = 5, seed: int = 0) -> Run:
    """A run at `folder` with synthetic photos: the last one held out, the one before it for validation."""
    run = run_at(folder)
    run.photos.mkdir()
    rng = np.random.default_rng(seed)
    made = []
    for index in range(photos):
        coarse = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        path = run.photos / f"{index:02d}.png"
        Image.fromarray(coarse).resize((160, 180), Image.Resampling.BICUBIC).save(path)
        made.append(
            Photo(
                name=f"photo {index}.jpg",
                path=str(path),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                width_px=160,
                height_px=180,
                face_box=(50.0, 50.0, 110.0, 120.0),
                eyes=((65.0, 75.0), (95.0, 76.0)),
                eye_distance_px=30.0,
            )
        )
    save_photo_set(run, PhotoSet(tuple(made[:-2]), (made[-2],), (made[-1],), weak=True))
    return run


def quick(
    method: str = "lora", **changes: int | float | str | bool | None
) -> dict[str, dict[str, int | float | str | bool | None]]:
    """Settings for a `JobSpec` that make one method train in moments."""
    first: dict[str, int | float | str | bool | None] = {"steps": 4, "batch": 2, "preview_every_s": 0.0}
    return {method: first | changes}


def train_spec(base: Path, method: str = "lora", **changes: int | float | str | bool | None) -> JobSpec:
    return JobSpec("train", str(base), "man", (method,), "draft", settings=quick(method, **changes))
