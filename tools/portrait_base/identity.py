"""A small network that estimates dlib's descriptor from latents, for an identity term in the denoiser's loss.

In: latents (b, c, 16, 16) and the descriptors that dlib measured on their frames. Out: descriptors (b, 128),
standardised. The denoising loss alone hardly depends on the identity; with this term the denoiser learns it. The
network is used only to build the base and is no part of the product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.training.checkpoints import load_tensors, save_tensors

EPOCHS, BATCH, LEARNING_RATE = 20, 64, 2e-3


class LatentRecogniser(nn.Module):
    """0.9 M parameters; a forward and backward pass takes about a twentieth of a denoiser step."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def block(inside: int, outside: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.GroupNorm(8, outside), nn.SiLU()
            )

        self.body = nn.Sequential(
            block(channels, 64, 1), block(64, 96, 1), block(96, 128, 2), block(128, 128, 1), block(128, 192, 2)
        )
        # faces are aligned, so each position of the 4x4 map has its own weights
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(192 * 16, 128))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(latents))


def standardise(descriptors: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return (descriptors - mean) / std


def likeness(guess: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cosine of two standardised descriptors (b, 128) -> (b,)."""
    return F.cosine_similarity(guess, target, dim=1)


def same_latents(known: Mapping, key: dict) -> bool:
    """Whether two `denoiser.latents_key`s are of the same latents; with another thread count sums round differently."""
    sums = known.get("vae", []), key["vae"]
    alike = len(sums[0]) == len(sums[1]) and np.allclose(*sums, rtol=1e-4)
    return bool(alike) and known.get("frames") == key["frames"]


def train(
    latents: torch.Tensor, descriptors: torch.Tensor, folder: Path, *, key: dict, device: str = "cpu"
) -> LatentRecogniser:
    """Fit it to (latents, standardised descriptors); saved in `folder` beside the latents of `key`."""
    net = LatentRecogniser(latents.shape[1]).to(device)
    file = folder / "latent_recogniser.safetensors"
    if file.is_file():
        tensors, known = load_tensors(file)
        if same_latents(known, key):
            net.load_state_dict(tensors)
            return net.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    rounds = math.ceil(len(latents) / BATCH)
    started, shown = time.monotonic(), 0.0
    for step in range(EPOCHS * rounds):
        generator = torch.Generator().manual_seed(step)
        index = torch.randint(0, len(latents), (BATCH,), generator=generator)
        x = latents[index].float()
        # the denoiser's early predictions are blurred and noisy
        soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        share = torch.rand(BATCH, 1, 1, 1, generator=generator) * (
            torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        )
        x = x + share * (soft - x)
        x = x + 0.5 * torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / EPOCHS / rounds))
        same = likeness(net(x.to(device)), descriptors[index].to(device)).mean()
        optimizer.zero_grad(set_to_none=True)
        (1 - same).backward()
        optimizer.step()
        shown += 0.01 * (same.item() - shown)
        if step % 500 == 499:
            print(f"latent recogniser step {step + 1} {time.monotonic() - started:.0f}s cosine {shown:.3f}", flush=True)
    save_tensors(file, dict(net.state_dict()), key)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def ranks(net: LatentRecogniser, latents: torch.Tensor, targets: torch.Tensor, own: np.ndarray) -> np.ndarray:
    """Rank (1 = best) of row `own[k]` of `targets` for latent k, by cosine."""
    guess = F.normalize(net(latents.float()), dim=1)
    scores = guess @ F.normalize(targets, dim=1).T
    return (scores > scores[torch.arange(len(own)), torch.tensor(own)][:, None]).sum(1).numpy() + 1
