"""The optimizers: AdamW, AdamW with 8-bit moments, or Prodigy, which finds its learning rate itself.

In: groups of parameters with their rates. Out: a torch optimizer whose state `checkpoints` saves and puts back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.core.device import Device
from pipelines.core.records import OPTIMIZERS, UserError
from pipelines.methods.base import Group

BETAS = (0.9, 0.99)  # 0.999 averages over about 1000 steps, more than many of these trainings have


def make(name: str, groups: Sequence[Group], device: Device) -> torch.optim.Optimizer:
    """The optimizer of that name. Raises UserError when it is not installed or can't work here."""
    parts: list[dict[str, Any]] = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    if name == "adamw":
        return torch.optim.AdamW(parts, betas=BETAS, fused=device.kind in ("cpu", "cuda"))
    if name == "adamw8bit":
        if device.kind != "cuda":
            raise UserError("8-bit AdamW needs an NVIDIA GPU, and this runs without one. Choose the optimizer adamw.")
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UserError(
                "8-bit AdamW needs bitsandbytes, which is not installed. Add it with: pip install -r "
                "requirements-gpu.txt - or choose the optimizer adamw."
            ) from error
        eight: torch.optim.Optimizer = AdamW8bit(parts, betas=BETAS)
        return eight
    if name == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise UserError(
                "Prodigy needs prodigyopt, which is not installed. Add it with: pip install prodigyopt - or choose the "
                "optimizer adamw."
            ) from error
        own: torch.optim.Optimizer = Prodigy(
            [part | {"lr": 1.0} for part in parts], betas=BETAS, use_bias_correction=True, safeguard_warmup=True
        )
        return own
    raise UserError(f"There is no optimizer {name}. Choose one of: {', '.join(OPTIMIZERS)}.")


def rate(name: str, group: Group, factor: float, share: float) -> float:
    """The group's learning rate when `share` of the steps is done. For Prodigy, which multiplies its own rate by this,
    it is `factor` for every group that learns.
    """
    if share >= group.until:
        return 0.0
    return factor if name == "prodigy" and group.learning_rate > 0 else factor * group.learning_rate
