"""How long a step takes on this machine, measured from what was done here."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pipelines.bases.registry import BaseRow
from pipelines.core.files import jsonable, read_json, write_json
from pipelines.core.records import UserError
from pipelines.core.run import Run
from pipelines.runs import jobs
from pipelines.training import estimates
from pipelines.training.estimates import Pace
from ui.run.progress import Trained

DRAWING = "drawing"  # among the paces: seconds for one denoiser step of one picture


class Paces:
    """How long steps took on this machine: a file beside the runs. It holds nothing about anybody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._noted: set[str] = set()  # trained methods and jobs whose pace is known

    def known(self) -> dict[str, Any]:
        """What was timed on this machine. How fast it is at its best is noted: a busy moment is no measure."""
        known = read_json(self.file) or {}
        speed = round(estimates.fastest(known), 1)
        if self.folder.is_dir() and speed > float(known.get(estimates.SPEED) or 0.0):
            known |= {estimates.SPEED: speed}
            write_json(self.file, known)
        return dict(known)

    @property
    def file(self) -> Path:
        return self.folder / "paces.json"

    def remember(self, row: BaseRow, cards: dict[str, Trained]) -> None:
        """Seconds a step took and peak memory, per base and method: nothing about anybody."""
        new = {card.id for card in cards.values()} - self._noted
        if not new:
            return
        self._noted |= new
        known = read_json(self.file) or {}
        fresh = {
            estimates.key(row, m): Pace(round(c.train_s / c.steps, 4), c.batch, c.peak_mem_mb)
            for m, c in cards.items()
            if c.id in new and c.steps and c.train_s > 0 and c.complete
        }
        plain = {name: jsonable(pace) for name, pace in fresh.items()}
        if any(known.get(name) != pace for name, pace in plain.items()):
            write_json(self.file, known | plain)

    def remember_drawing(self, row: BaseRow, run: Run) -> None:
        """Seconds that a denoiser step of a picture took, loading and judging included."""
        status = jobs.status(run)
        if (status.kind, status.state) != ("generate", "done") or status.job in self._noted:
            return
        self._noted.add(status.job)
        with contextlib.suppress(UserError):
            spec = jobs.load_spec(run)
            if spec.base == row.name and spec.denoiser_steps:
                pace = Pace(round(status.wall_s / spec.denoiser_steps, 4), 1)
                known = read_json(self.file) or {}
                write_json(self.file, known | {estimates.key(row, DRAWING): jsonable(pace)})
