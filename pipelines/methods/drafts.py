"""Drafts in four steps, where a base's distilled LoRA (LCM-LoRA, Luo et al. 2023) lies on this machine.

In: a base's row. Out: hooks that add that LoRA to a denoiser while a draft is drawn, on top of what was learned; no
weight changes. Only drafts and the previews of a training use it.
Try it: `python -m pipelines generate RUN --draft`. Light until `load`: no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.bases.registry import BaseRow
from pipelines.core.records import UserError

if TYPE_CHECKING:
    import torch

    from pipelines.bases.family import Family
    from pipelines.methods.lora_files import Layers

FOLDER, FILE = "lcm_lora", "pytorch_lora_weights.safetensors"
STEPS, SCHEDULER = 4, "lcm"
GUIDANCE = 1.0  # no guidance, as the authors of LCM-LoRA do beside other LoRAs; negative prompts have no effect


def find(row: BaseRow) -> Path | None:
    """The file: `lcm_lora/` in a local base's folder, or beside a checkpoint; else the hub's cache. No network."""
    from huggingface_hub import try_to_load_from_cache

    if row.folder is not None:
        own = row.folder.with_suffix("") if row.is_single_file else row.folder
        if (own / FOLDER / FILE).is_file():
            return own / FOLDER / FILE
    if row.draft_lora is None:
        return None
    repo, revision = row.draft_lora
    cached = try_to_load_from_cache(repo, FILE, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def missing(row: BaseRow) -> UserError:
    if row.draft_lora is None:
        return UserError(f"There are no drafts in {STEPS} steps for {row.title}. Draw without.")
    repo, revision = row.draft_lora
    return UserError(
        f"What drafts in {STEPS} steps need is not on this machine. Get it with: hf download {repo} {FILE} --revision "
        f"{revision} - or draw without."
    )


def load(row: BaseRow) -> Layers | None:
    """The LoRA's layers, on the CPU; None where it is not on this machine. The file is checked like an imported one:
    raises UserError when it does not fit.
    """
    file = find(row)
    if file is None:
        return None
    from safetensors.torch import load_file

    from pipelines.methods import imports, lora_files, lora_names

    layout = lora_names.layout(row)
    checked = imports.look(file, row, layout)
    alphas = {name.removesuffix(".alpha"): number for name, number in checked.numbers.items()}
    layers = lora_files.from_kohya(load_file(str(file)), layout, alphas) if checked.kind == "lora" else {}
    if not layers or any(not path.startswith("unet.") or each.magnitude is not None for path, each in layers.items()):
        raise UserError(f"{file.name} in {file.parent.name} is no LoRA that makes drafts. Get it again.")
    return layers


def load_quietly(row: BaseRow) -> Layers | None:
    """`load` for previews: None also when it does not fit."""
    try:
        return load(row)
    except UserError:
        return None


@contextlib.contextmanager
def distilled(family: Family, unet: torch.nn.Module, layers: Layers | None) -> Iterator[None]:
    """Context in which each layer's output is what it would be with the LoRA merged into its weight."""
    handles = []
    try:
        for path, layer in (layers or {}).items():
            module: Any = unet.get_submodule(path.removeprefix("unet."))
            plain = getattr(module, "base_layer", module)  # the layer inside PEFT's wrapper
            shape = plain.weight.shape
            down = layer.down.reshape(layer.rank, *shape[1:]).to(family.device.name, family.device.torch_dtype)
            up = layer.up.reshape(shape[0], layer.rank, *(1 for _ in shape[2:]))
            up = (layer.scale * up.float()).to(family.device.name, family.device.torch_dtype)
            handles.append(module.register_forward_hook(_adding(plain, down, up)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(plain: Any, down: torch.Tensor, up: torch.Tensor) -> Any:
    from torch.nn import functional

    def add(_module: Any, given: tuple[torch.Tensor, ...], answer: torch.Tensor) -> torch.Tensor:
        if down.ndim == 2:
            return answer + functional.linear(functional.linear(given[0], down), up)
        inner = functional.conv2d(given[0], down, None, plain.stride, plain.padding, plain.dilation)
        return answer + functional.conv2d(inner, up)

    return add
