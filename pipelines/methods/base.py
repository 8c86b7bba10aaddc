"""The interface of a method: which tensors train, how they are saved, and how they are put back on a base.

`Method.learner` makes the trainable parameters on a base; `Method.apply` puts a saved artefact onto a new copy of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipelines.core.records import Recipe, UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipelines.bases.family import Family, Modules
    from pipelines.bases.registry import BaseRow


class Faces(Protocol):
    """A person's training photos, as methods that train nothing read them: `pipelines.photos.album.Album` is one."""

    def descriptor(self) -> np.ndarray:
        """dlib's descriptor (128,) of the person."""

    def best_faces(self, count: int, size_px: int) -> np.ndarray:
        """Up to `count` pictures of the face, clearest first, (n, size, size, 3) uint8."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: tuple[torch.nn.Parameter, ...]
    learning_rate: float
    weight_decay: float
    until: float = 1.0  # share of the steps after which it is frozen


@dataclass(frozen=True)
class Artifact:
    """What was saved. Paths are relative to the subject's folder."""

    file: str  # the main file
    learned: tuple[str, ...]  # every file that holds something learned


class Learner:
    """One method attached to one base, while it trains."""

    modules: Modules  # live: previews and the loss use them as they are
    live_text = False  # False: the text encoders do not change, so each prompt is encoded once

    def groups(self) -> list[Group]:
        """The trainable parameters, one group per learning rate."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        """Everything that trains, by name: the checkpoint, the average (EMA) and the export all use this dict."""
        raise NotImplementedError

    def export(self, folder: Path) -> Artifact:
        """Save what was learned in `folder`, under stock file names."""
        raise NotImplementedError

    def scales(self) -> tuple[str, ...]:
        """Names of the tensors that the learned change is proportional to; () where there are none."""
        return ()

    def start_from(self, folder: Path) -> None:
        """Load the artefact in `folder`, so that training continues from it. Raises UserError when it does not fit."""
        raise UserError("This method can't go on from an earlier training. Train it afresh.")

    def after_step(self) -> None:
        """Called after each optimizer step, to keep the tensors within bounds."""


class Method:
    """The code of a method. Its data are a `MethodRow`."""

    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        """What `{subject}` becomes in a prompt."""
        return f"{row.identifier} {recipe.class_word}"

    def learner(self, family: Family, recipe: Recipe, *, identity: np.ndarray | None = None) -> Learner:
        """Make the trainable parameters. `identity`: the person's dlib descriptor (128,)."""
        raise UserError("Nothing of this method trains. Choose another one to train.")

    def encode(self, family: Family, folder: Path, faces: Faces) -> Artifact:
        """Where nothing trains: save in `folder` what stands for the person."""
        raise UserError("This method has to be trained first.")

    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """Copies of the base's modules with the artefact in `folder`. Raises UserError when it does not fit."""
        raise NotImplementedError


def trained(groups: Iterable[Group]) -> list[torch.nn.Parameter]:
    return [parameter for group in groups for parameter in group.parameters]


def load_into(live: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    """Copy saved tensors into the live ones; names must match exactly."""
    import torch

    if missing := sorted(set(live) ^ set(saved)):
        raise ValueError(f"saved tensors do not fit: {', '.join(missing[:3])}")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])


def sort_header(path: Path) -> None:
    """Order a safetensors file's header by name: its writer orders metadata at random, so equal runs would differ."""
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    text = json.dumps(json.loads(blob[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's own padding: tensors start at a multiple of 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])


def digest(folder: Path, artifact: Iterable[str]) -> str:
    """SHA-256 of the learned files together, in the given order."""
    total = hashlib.sha256()
    for name in artifact:
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
