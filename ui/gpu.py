"""Hosts that lend a GPU for a short request at a time (Hugging Face's ZeroGPU): jobs are done in slices of a request.

In: the host's environment. Out: `slicer()`, a function that does one slice of a run's job, or None where a worker
process does the jobs. The page asks for slice after slice as long as it is open; checkpoints carry the work over.
Not tried on ZeroGPU itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

ZERO_ENV = "SPACES_ZERO_GPU"  # set by the host
SLICE_S = 60  # asked of the host ...
WORK_S = 45.0  # ... and used: a picture or a checkpoint that was begun still has to end


def slicer() -> Callable[[str, str], None] | None:
    """`(run folder, slot) -> None` on ZeroGPU, else None. Imports `spaces`, which must come before torch."""
    if os.environ.get(ZERO_ENV, "").lower() not in ("1", "true"):
        return None
    import spaces

    decorated: Callable[[str, str], None] = spaces.GPU(duration=SLICE_S)(work)
    return decorated


def work(folder: str, slot: str) -> None:
    """One slice, in the process that holds the GPU."""
    from pipelines import worker
    from pipelines.workspace import Run

    deadline = time.monotonic() + WORK_S
    worker.work_slice(Run(Path(folder), slot), over=lambda: time.monotonic() > deadline)
