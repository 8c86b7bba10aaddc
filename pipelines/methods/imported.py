"""LoRAs and embeddings that were not trained here, as `importing` stored them. Nothing of them trains.

In: the folder of an imported column. Out: the base with it put on. The numbers are added to the weights by our own
arithmetic (`kohya.merge`); no loader of another library sees a stranger's file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.bases.family import PARKED, Family, Modules, moved
from pipelines.bases.registry import BaseRow
from pipelines.bases.text import LearnedRows
from pipelines.core.records import Recipe, UserError
from pipelines.methods import kohya
from pipelines.methods.base import Learner
from pipelines.methods.importing import FILE, tokens
from pipelines.methods.kohya import Layer


class _Imported:
    """What both have in common: they can be applied and nothing else."""

    name = "imported"

    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        raise UserError("What stands for the person in an imported file is noted on its card.")

    def learner(self, family: Family, recipe: Recipe, *, identity: np.ndarray | None = None) -> Learner:
        raise UserError("An imported file is compared as it is. Choose a method to train.")


class ImportedLoRA(_Imported):
    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        layers = _layers(folder)
        where = PARKED if family.parked else None  # float32 copies are twice what is drawn with
        names = [name for _, name in family.architecture.text_parts]
        changes_text = any(path.partition(".")[0] in names for path in layers)
        unet = family.new_unet(trainable=True, device=where).requires_grad_(False)
        modules = Modules(unet, family.new_text(device=where) if changes_text else family.text)
        parts = {family.architecture.denoiser: modules.unet} | dict(zip(names, modules.text.encoders, strict=True))
        try:
            kohya.merge(parts, layers, strength=strength)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{folder.name} was not made for {family.row.title}. Choose its base.") from error
        moved(modules.unet, family.device.name, family.device.torch_dtype).requires_grad_(False).eval()
        for encoder in modules.text.encoders if changes_text else ():
            moved(encoder, family.device.name, family.text_dtype).requires_grad_(False).eval()
        return modules


class ImportedEmbedding(_Imported):
    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """`strength` has no meaning here: the words are there or not."""
        saved = _load(folder, "embedding")
        rows = []
        for (_, name), encoder in zip(family.architecture.text_parts, family.text.encoders, strict=True):
            row = saved.get(name)
            if row is None or row.shape[-1] != encoder.get_input_embeddings().weight.shape[1]:  # type: ignore[operator]
                raise UserError(f"{folder.name} was not made for {family.row.title}. Choose its base.")
            rows.append(row.reshape(-1, row.shape[-1]).to(family.device.name, torch.float32))
        first_ids = tuple(len(tokenizer) for tokenizer in family.text.tokenizers)
        learned = LearnedRows(tokens(folder.name, len(rows[0])), tuple(rows), first_ids)
        return Modules(family.shared().unet, family.text_with(learned))


def _layers(folder: Path) -> kohya.Layers:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _load(folder, "lora").items():
        path, _, role = name.rpartition(".")
        found.setdefault(path, {})[role] = tensor
    layers = {}
    for path, each in found.items():
        lengths = each.get("inputs", each.get("outputs"))
        lengths = None if lengths is None else lengths.reshape(-1)
        layers[path] = Layer(each["down"], each["up"], float(each["alpha"]), lengths, "inputs" in each)
    return layers


def _load(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(str(folder / FILE[kind]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{FILE[kind]} is missing or damaged in {folder.name}. Import it again.") from error
