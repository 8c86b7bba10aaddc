"""A DreamBooth as a LoRA: each layer's learned change, cut to its largest singular directions (Eckart and Young 1936).

In: a DreamBooth folder and its base. Out: `<name>.safetensors` (kohya's names) and `<name>_diffusers.safetensors`,
which are much smaller, and how much of the change they miss: relative Frobenius errors per layer and over all layers,
measured on the stored numbers. A LoRA can't hold changes of biases, norms and embeddings; their share is given.
Try it: `python -m pipelines extract RUN --rank 32`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.bases.family import PARKED, Family, Modules
from pipelines.core.files import write_file
from pipelines.core.records import Subject, UserError
from pipelines.methods import lora_files
from pipelines.methods.base import sort_header
from pipelines.methods.dreambooth import DreamBooth
from pipelines.methods.lora_files import Layer, Layers
from pipelines.methods.lora_names import path_of

MAX_RANK = 4096
# Where the rank follows from an error, layers differ in rank and share one alpha: diffusers 0.42.1 reads differing
# alphas of a file with kohya's names for attention layers wrongly (lora_conversion_utils.py, `_get_alpha_name`).
ALPHA = 32.0
UNMAPPED = "text_projection"  # no web UI has a LoRA name for SDXL's text projection
# Beyond this many times the wanted rank a randomized decomposition (Halko et al. 2011) is many times faster than a
# whole one. Its error is measured like any other.
RANDOMIZED_FROM = 6
OVERSAMPLING, POWER_ITERATIONS = 16, 4


@dataclass(frozen=True)
class Extracted:
    """The LoRA that was made of a DreamBooth, and its errors."""

    layers: Layers
    errors: dict[str, float]  # path -> ||change - stored|| / ||change||
    error: float  # the same over all layers together
    left_out: float  # share of the whole change that biases, norms and embeddings hold, as a ratio of norms
    ranks: tuple[int, int]  # smallest and largest

    def metadata(self) -> dict[str, str]:
        """The errors as texts, for the file's metadata."""
        return {
            "likeness.extracted_from": "DreamBooth, by singular value decomposition of each layer's change",
            "likeness.error": f"{self.error:.6f}",
            "likeness.left_out": f"{self.left_out:.6f}",
            "likeness.layer_errors": json.dumps({path: round(e, 6) for path, e in sorted(self.errors.items())}),
        }


@torch.no_grad()
def extract(
    family: Family,
    folder: Path,
    subject: Subject,
    *,
    rank: int | None = None,
    error: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extracted:
    """Decompose what DreamBooth learned in `folder`. Give a `rank` for every layer, or the relative `error` allowed.

    Raises UserError for neither or both, values out of range, a folder of another base, and when nothing was learned.
    """
    if (rank is None) == (error is None):
        raise UserError("Give either a rank or an error, not both.")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise UserError(f"The rank is a number from 1 to {MAX_RANK}, not {rank}.")
    if error is not None and not 0 < error < 1:
        raise UserError(f"The error is a number between 0 and 1, such as 0.05, not {error}.")
    # in float32: bfloat16 keeps two digits of a weight, and a change may be smaller than that
    learned = DreamBooth().apply(family, folder, subject.recipe, exact=True)
    changes = list(_changes(family, learned))
    layers: Layers = {}
    errors: dict[str, float] = {}
    whole = missed = aside = 0.0
    for index, (path, change) in enumerate(changes):
        progress(index, len(changes))
        size = float(torch.linalg.vector_norm(change))
        if change.ndim not in (2, 4) or path.endswith(UNMAPPED) or ".embeddings." in path:
            aside += size**2
            continue
        if size == 0.0:
            continue
        layer = _decomposed(change, rank, error)
        left = float(torch.linalg.vector_norm(change - layer.change(change.shape).to(change.device)))
        layers[path], errors[path] = layer, left / size
        whole, missed = whole + size**2, missed + left**2
    progress(len(changes), len(changes))
    if not layers:
        raise UserError("DreamBooth changed no layer, so there is nothing to extract. Train it first.")
    ranks = [layer.rank for layer in layers.values()]
    return Extracted(
        layers, errors, math.sqrt(missed / whole), math.sqrt(aside / (whole + aside)), (min(ranks), max(ranks))
    )


def _changes(family: Family, learned: Modules) -> Iterator[tuple[str, torch.Tensor]]:
    """(path, learned minus base) of every parameter, float32; one at a time, so that no second copy is held."""
    base = Modules(family.new_unet(trainable=True, device=PARKED).requires_grad_(False), family.text)
    if learned.text is not family.text:
        base = Modules(base.unet, family.new_text(device=PARKED))
    names = [name for _, name in family.architecture.text_parts]
    pairs = [("unet", base.unet, learned.unet)]
    pairs += list(zip(names, base.text.encoders, learned.text.encoders, strict=True))
    for part, before, after in pairs:
        if before is after:
            continue
        weights = dict(after.named_parameters())
        for name, weight in before.named_parameters():
            yield path_of(part, name).removesuffix(".weight"), (weights[name] - weight).to(family.device.name)


def _decomposed(change: torch.Tensor, rank: int | None, error: float | None) -> Layer:
    """The nearest product of two thin matrices, stored in float16. All layers have one alpha."""
    matrix = change.flatten(1)
    full = min(matrix.shape)
    if rank is not None and full > RANDOMIZED_FROM * rank:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=min(full, rank + OVERSAMPLING), niter=POWER_ITERATIONS)
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.mT
    kept = min(full, rank) if rank is not None else _needed(s, float(error or 0.0))
    alpha = float(rank or ALPHA)
    root = s[:kept].sqrt()  # both factors get about the same size, so that both fit into float16's range
    up = (u[:, :kept] * root * (kept / alpha)).half().cpu().contiguous()
    down = (v[:, :kept] * root).mT.half().cpu().contiguous()
    if change.ndim == 4:
        up, down = up[:, :, None, None], down.reshape(kept, *change.shape[1:])
    return Layer(down, up, alpha)


def _needed(values: torch.Tensor, error: float) -> int:
    """The smallest rank that misses at most `error` of the change."""
    tail = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    allowed = error**2 * float(tail[0])
    return max(1, int((tail > allowed).sum()))


def write(extracted: Extracted, path: Path, family: Family, phrase: str) -> tuple[Path, Path]:
    """Both files: `path` under kohya's names, and beside it the same as diffusers names it. Returns their paths."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} does not end in .safetensors. Name the file so.")
    layout = lora_files.layout_of(family.shared(), family)
    said = extracted.metadata()
    lora_files.write(
        path,
        extracted.layers,
        layout,
        family.row,
        phrase=phrase,
        prediction=str(family.scheduler_config.get("prediction_type", "epsilon")),
        title="Likeness LoRA, extracted from DreamBooth",
        more=said,
    )
    state: dict[str, torch.Tensor] = {}
    for name, layer in extracted.layers.items():
        part, _, module = name.partition(".")
        stem = name if part == "unet" else f"{part}.text_model.{module}"
        # this format has no alpha and loaders use the rank instead, so the weights are multiplied by the scale
        up = (layer.up.float() * layer.scale).half()
        state |= {f"{stem}.lora_A.weight": layer.down, f"{stem}.lora_B.weight": up}
    beside = path.with_name(f"{path.stem}_diffusers.safetensors")

    def fill(partial: Path) -> None:
        save_file(state, str(partial), {"format": "pt"} | said)
        sort_header(partial)

    write_file(beside, fill)
    return path, beside
