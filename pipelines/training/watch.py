"""Which checkpoint of a training is kept, and at which strength: the one whose validation pictures look best.

In: a `Watch`, which judges pictures, and a learner in its present state. Out: `Look`s, the best checkpoint's tensors,
and `watch.json` and `strengths.json` with the looks. Used by `training/loop.py` where a recipe asks for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.bases.family import Family
from pipelines.bases.sampling import Row
from pipelines.core.control import Control
from pipelines.core.device import derived_seed
from pipelines.core.files import read_json, write_json
from pipelines.core.records import Event, Look, Recipe, UserError, Watch
from pipelines.core.run import STRENGTHS_FILE, WATCH_FILE
from pipelines.methods.base import Learner, load_into
from pipelines.training.previews import frames_of

WATCH_STEPS = 12  # of denoising, per validation picture
STRENGTHS = (0.6, 0.8, 1.0, 1.2, 1.4)  # of a learned change, as shares of what training ended with
STRENGTHS_TRIED = "checkpoint_strengths.json"  # the looks so far, while a strength is being chosen


class Watched:
    """The looks at a run's checkpoints so far, and the best one's tensors."""

    def __init__(self, watch: Watch, out: Path | None) -> None:
        """`out`: the folder for `watch.json`; None writes nothing."""
        self.watch, self._file = watch, None if out is None else out / WATCH_FILE
        self.looks: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def chosen(self) -> int:
        """The step of the look with the highest value; of equal ones the highest identity, then the last step."""
        return int(max(self.looks, key=lambda look: (look["value"], look["identity"], look["step"]))["step"])

    def add(self, look: Look, step: int, seconds: float, tensors: Mapping[str, torch.Tensor]) -> None:
        """Note a look at the checkpoint of `step`; its `tensors` are copied where it is the best so far."""
        self.looks.append({"step": step, "seconds": round(seconds, 3), **asdict(look)})
        if self.chosen == step:
            # on the CPU: a GPU may have no memory for a second copy
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        if self._file is not None:
            write_json(self._file, {"judge": self.watch.judge, "chosen": self.chosen, "looks": self.looks})

    def is_due(self, step: int, recipe: Recipe) -> bool:
        """True when the checkpoint of this step should be looked at and was not yet."""
        due = step > 0 and (step % recipe.watch_every == 0 or step == recipe.steps)
        return due and not any(look["step"] == step for look in self.looks)

    def is_enough(self, patience: int) -> bool:
        """True when the last `patience` looks were no better than an earlier one. Never with a patience of 0, and not
        before the first look with a value above 0.
        """
        if not patience or len(self.looks) <= patience or not max(look["value"] for look in self.looks) > 0:
            return False
        return self.chosen <= self.looks[-1 - patience]["step"]


@dataclass(frozen=True)
class Viewer:
    """Draws the validation prompts with a learner in its present state, and has the pictures judged."""

    family: Family
    learner: Learner
    watch: Watch
    phrase: str  # what "{subject}" becomes
    recipe: Recipe
    control: Control

    def look(self, average: dict[str, torch.Tensor]) -> Look | None:
        """Draw with the `average` weights, or with the live ones when it is empty. None when stopped or paused."""
        rows = [
            Row(
                prompt.replace("{subject}", self.phrase),
                derived_seed(self.recipe.seed, index, 7),
                guidance=self.family.architecture.guidance,
            )
            for index, prompt in enumerate(self.watch.prompts)
        ]
        tensors = self.learner.tensors()
        live = {name: tensor.detach().clone() for name, tensor in tensors.items()} if average else {}
        if average:
            load_into(tensors, average)
        try:
            frames = frames_of(self.family, self.learner.modules, rows, steps=WATCH_STEPS, stop=self._ended)
            return None if frames is None else self.watch.look(frames)
        finally:
            if live:
                load_into(tensors, live)

    def _ended(self) -> bool:
        return self.control.ended(self.recipe.method)

    def choose_strength(self, out: Path, stamp: str) -> Iterator[Event]:
        """Scale the learned change to the strength whose look has the highest value; `strengths.json` has all looks.

        When it is stopped, the change stays as it was. When it is paused, the looks so far are saved for the next
        slice; `stamp` says which training they belong to.
        """
        every, scales = self.learner.tensors(), self.learner.scales()
        scaled = {name: tensor for name, tensor in every.items() if name in scales}
        ended = {name: tensor.detach().clone() for name, tensor in scaled.items()}
        tried = _read(out / STRENGTHS_TRIED)
        looks = list(tried["looks"]) if tried.get("stamp") == stamp else []
        for index, strength in enumerate(STRENGTHS[len(looks) :], start=len(looks) + 1):
            yield Event("phase", self.recipe.method, text=f"Trying strength {index} of {len(STRENGTHS)}")
            load_into(scaled, {name: strength * tensor for name, tensor in ended.items()})
            looked = self.look({})
            if looked is None:
                load_into(scaled, ended)
                return
            looks.append({"strength": strength, **asdict(looked)})
            write_json(out / STRENGTHS_TRIED, {"stamp": stamp, "looks": looks})
            self.control.keep()
        # of equal values the strength nearest to 1, which training ended with
        chosen = float(max(looks, key=lambda look: (look["value"], -abs(look["strength"] - 1)))["strength"])
        load_into(scaled, {name: chosen * tensor for name, tensor in ended.items()})
        write_json(out / STRENGTHS_FILE, {"judge": self.watch.judge, "chosen": chosen, "looks": looks})
        yield Event("note", self.recipe.method, text=f"Strength {chosen:g} is kept")


def _read(file: Path) -> dict[str, Any]:
    """An object that `write_json` wrote; {} where there is none that can be read."""
    with contextlib.suppress(UserError):
        return dict(read_json(file) or {})
    return {}
