"""Tensors on disk: one atomic safetensors file that holds weights, optimizer moments and a little JSON.

In: a flat dict of tensors. Out: the same dict. No pickle anywhere. A reader never sees half a file, and a full
disk leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipelines.core.control import Clock
from pipelines.core.files import write_file
from pipelines.methods.base import Learner, load_into
from pipelines.training.watch import Watched

CHECKPOINT = "checkpoint.safetensors"

# Prodigy's estimate of its learning rate, which it stores in the parameter groups.
GROUP_STATE = ("k", "d", "d_max", "d_numerator", "d_denom", "d_hat")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, object] | None = None) -> None:
    """Write `tensors` and JSON-able `meta` to `path` atomically (temporary file, fsync, rename)."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_file(path, lambda partial: save_file(plain, str(partial), metadata={"json": json.dumps(meta or {})}))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        meta = json.loads((file.metadata() or {}).get("json", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118 - a safe_open handle is no dict


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments as a flat dict, keyed by parameter order."""
    saved = optimizer.state_dict()
    found = {
        f"optimizer.{index}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in saved["state"].items()
        for name, value in _flat(entry).items()
    }
    for index, group in enumerate(saved["param_groups"]):
        for name in GROUP_STATE:
            if name in group:  # float64 holds Python's numbers to the bit
                found[f"group.{index}.{name}"] = torch.tensor(group[name], dtype=torch.float64)
    return found


def _flat(entry: dict[str, object]) -> dict[str, object]:
    """`entry` without inner dictionaries: bitsandbytes (0.50) saves 8-bit moments in one but loads them without."""
    inner = {name: value for each in entry.values() if isinstance(each, dict) for name, value in each.items()}
    return {name: value for name, value in entry.items() if not isinstance(value, dict)} | inner


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put moments saved by `optimizer_tensors` back; learning rates stay as they are.

    Each moment gets the memory layout of its parameter: fused optimizers read both in memory order, so a contiguous
    moment of a channels_last parameter would be applied to the wrong weights without an error.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            # a step count becomes an int again: some optimizers pass it to C code
            plain = value.ndim == 0 and value.dtype == torch.int64
            state.setdefault(int(index), {})[key] = int(value) if plain else value
    groups = optimizer.state_dict()["param_groups"]
    for name, value in tensors.items():
        if name.startswith("group."):
            _, index, key = name.split(".", 2)
            groups[int(index)][key] = int(value) if key == "k" else float(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# -- a training's checkpoint -------------------------------------------------------------------------------------


@dataclass
class State:
    """All of a training that a checkpoint holds."""

    learner: Learner
    optimizer: torch.optim.Optimizer | None  # None: no step follows, so no moments are kept
    average: dict[str, torch.Tensor]  # the exponential average of the weights; {} where the recipe wants none
    watched: Watched | None = None
    step: int = 0  # optimizer steps taken


def save_checkpoint(out: Path, mark: str, state: State, clock: Clock) -> None:
    """Write `out/checkpoint.safetensors` atomically. `mark` is the training's `fingerprint`."""
    tensors = {f"model.{key}": value.detach() for key, value in state.learner.tensors().items()}
    tensors |= {f"average.{key}": value for key, value in state.average.items()}
    meta = {"fingerprint": mark, "step": state.step, "seconds": clock.seconds}
    if state.watched:
        tensors |= {f"best.{key}": value for key, value in state.watched.best.items()}
        meta["looks"] = state.watched.looks
    if state.optimizer is not None:
        tensors |= optimizer_tensors(state.optimizer)
    save_tensors(out / CHECKPOINT, tensors, meta)


def resume(out: Path, mark: str, state: State, clock: Clock) -> str | None:
    """Load the checkpoint of the same training into `state` and `clock`; a sentence about it, None without a file."""
    file = out / CHECKPOINT
    if not file.is_file():
        return None
    try:
        tensors, meta = load_tensors(file)
    except (OSError, ValueError, SafetensorError):
        return "The checkpoint can't be read: starting again"
    if meta.get("fingerprint") != mark:
        return "The checkpoint is of other photos or another recipe: starting again"
    load_into(state.learner.tensors(), {key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    if state.average:
        load_into(state.average, {key[8:]: value for key, value in tensors.items() if key.startswith("average.")})
    if state.optimizer is not None:
        load_optimizer(state.optimizer, tensors)
    if state.watched:
        state.watched.looks = list(meta.get("looks", []))
        state.watched.best = {key[5:]: value for key, value in tensors.items() if key.startswith("best.")}
    clock.before += float(meta["seconds"])
    state.step = int(meta["step"])
    return f"Continuing at step {state.step}"


def has_checkpoint(out: Path, mark: str) -> bool:
    """True when `resume` will find a checkpoint of this training."""
    try:
        return bool(load_tensors(out / CHECKPOINT)[1].get("fingerprint") == mark)
    except (OSError, ValueError, SafetensorError):
        return False
