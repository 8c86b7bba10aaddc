"""Hosts that lend a GPU for a short request at a time (Hugging Face's ZeroGPU): jobs are done in slices of a request.

In: the host's environment. Out: `slicer()`, a function that does one slice of a run's job, or None where a worker
process does the jobs. The page asks for slice after slice as long as it is open; what was done is kept for the next.
Not tried on ZeroGPU itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

ZERO_ENV = "SPACES_ZERO_GPU"  # set by the host
SLICE_S = 60  # asked of the host ...
WORK_S = 45.0  # ... and used: a step, a score or a checkpoint that was begun still has to end
MISSING = (
    "This host lends its GPU through the package spaces, which is not installed. Add a line with `spaces` to "
    "requirements.txt."
)


def slicer() -> Callable[[str, str], None] | None:
    """`(run folder, slot) -> None` on ZeroGPU, else None. Imports `spaces`, which must come before torch; ends the app
    with a sentence where that is missing.
    """
    if os.environ.get(ZERO_ENV, "").lower() not in ("1", "true"):
        return None
    try:
        import spaces
    except ImportError:
        raise SystemExit(MISSING) from None

    decorated: Callable[[str, str], None] = spaces.GPU(duration=SLICE_S)(work)
    return decorated


def work(folder: str, slot: str) -> None:
    """One slice, in the process that holds the GPU."""
    from pipelines.core.run import Run
    from pipelines.runs import worker

    deadline = time.monotonic() + WORK_S
    worker.work_slice(Run(Path(folder), slot), over=lambda: time.monotonic() > deadline)
