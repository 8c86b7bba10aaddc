"""The enlarger, in two stages: `pixels` (L1 alone), then `gan`.

The second starts from the first's averaged weights, and adds a face network's features and a patch critic with the
relativistic average loss of ESRGAN (Wang et al. 2018) and a small weight. All random numbers depend on the step.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pipelines.faces import arcface_mini
from pipelines.finishing.nets import DEFAULT_SHAPE, Critic, Enlarger, Shape
from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.upscaler import data
from tools.upscaler.features import Features, from_onnx

# Every fourth step shows whole frames, the others crops; both are about 25,000 small pixels.
CROP_PX, CROPS, FRAMES = 56, 8, 2
EMA = 0.998
PIXELS = {"rate": 1e-3, "features": 0.0, "gan": 0.0}
GAN = {"rate": 4e-4, "features": 0.05, "gan": 0.02}
CRITIC_RATE = 6e-4
VALIDATION = 24  # training portraits that are used for validation; the held-out ones are only for the final figures


def parts(portraits: data.Portraits) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the portraits for training, indices of those for validation)."""
    rest = np.random.default_rng(1).permutation(np.flatnonzero(~portraits.held_out))
    return rest[VALIDATION:], rest[:VALIDATION]


def train(
    portraits: data.Portraits, folder: Path, *, stage: str, budget_s: float, device: str, shape: Shape = DEFAULT_SHAPE
) -> None:
    """Train `stage` ("pixels" or "gan") until `budget_s` of wall clock (all runs of it together) is used."""
    weights = {"pixels": PIXELS, "gan": GAN}[stage]
    against = stage == "gan"
    net = Enlarger(shape).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = Critic().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if against:
        net.load_state_dict(averaged(folder, "pixels").state_dict())
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    fused = {"betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}
    optimizer = torch.optim.AdamW(net.parameters(), lr=weights["rate"], **fused)  # type: ignore[arg-type]
    judging = torch.optim.AdamW(critic.parameters(), lr=CRITIC_RATE, **fused)  # type: ignore[arg-type]
    step, spent_s, checkpoint = 0, 0.0, folder / f"{stage}.safetensors"
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        net.load_state_dict(_under("model.", tensors))
        average = {k: v.to(device) for k, v in _under("ema.", tensors).items()}
        load_optimizer(optimizer, _under("made.", tensors))
        if against:
            critic.load_state_dict(_under("critic.", tensors))
            load_optimizer(judging, _under("judged.", tensors))
        step, spent_s = meta["step"], meta["spent_s"]
    teaching, watched = parts(portraits)
    features = Features(from_onnx(arcface_mini.MODEL)).to(device).eval()
    features.fit(data.tensor(portraits.large[teaching[:16]]).to(device))
    shown: dict[str, float] = {}
    started, saved = time.monotonic() - spent_s, time.monotonic()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in net.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
        tensors |= {f"made.{k}": v for k, v in optimizer_tensors(optimizer).items()}
        if against:
            tensors |= {f"critic.{k}": v for k, v in critic.state_dict().items()}
            tensors |= {f"judged.{k}": v for k, v in optimizer_tensors(judging).items()}
        save_tensors(checkpoint, tensors, {"step": step, "spent_s": spent_s, "shape": list(shape)})

    while spent_s < budget_s:
        rng = np.random.default_rng([7 if against else 3, step])
        whole = step % 4 == 3
        chosen = teaching[rng.integers(0, len(teaching), FRAMES if whole else CROPS)]
        small, large = (
            part.to(device, memory_format=torch.channels_last)
            for part in data.pairs(portraits, chosen, rng, crop_px=None if whole else CROP_PX)
        )
        rate = min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * spent_s / budget_s)))
        for group in optimizer.param_groups:
            group["lr"] = weights["rate"] * rate
        with torch.autocast(device, torch.bfloat16):
            made = net(small)
            # half of the batch: for all of it this term would take longer than the enlarger itself
            half = max(1, len(made) // 2)
            seen = features.distance(made[:half], large[:half]) if against else made.new_zeros(())
        made = made.float()
        losses = {"l1": (made - large).abs().mean()}
        if against:
            losses["features"] = weights["features"] * seen
            critic.requires_grad_(False)
            with torch.autocast(device, torch.bfloat16):
                fake, real = critic(made), critic(large)
            fake, real = fake.float(), real.float()
            losses["gan"] = weights["gan"] * relativistic(fake, real.detach())
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the enlarger's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if against:
            critic.requires_grad_(True)
            with torch.autocast(device, torch.bfloat16):
                fake, real = critic(made.detach()), critic(large)
            losses["critic"] = relativistic(real.float(), fake.float())
            judging.zero_grad(set_to_none=True)
            losses["critic"].backward()
            judging.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in net.named_parameters():
                average[name].lerp_(p, 1 - decay)
        for name, value in losses.items():
            shown[name] = shown.get(name, value.item()) + 0.03 * (value.item() - shown.get(name, value.item()))
        spent_s = time.monotonic() - started
        if step % 50 == 0:
            print(
                f"{stage} step {step} {spent_s:.0f}s " + " ".join(f"{k} {v:.4f}" for k, v in shown.items()), flush=True
            )
        if step % 400 == 0:
            found = watch(averaged(folder, stage, (average, shape)), portraits, watched)
            print(f"{stage} watched: " + " ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            save()
    save()


def relativistic(wanted: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The RaGAN loss: low when `wanted` patches look more like photos than the mean of `other` ones, and these less."""
    return 0.5 * (F.softplus(other.mean() - wanted).mean() + F.softplus(other - wanted.mean()).mean())


def averaged(folder: Path, stage: str, average: tuple[dict[str, torch.Tensor], Shape] | None = None) -> Enlarger:
    """The averaged enlarger: with the weights of `average`, else of the stage's last checkpoint."""
    if average is None:
        tensors, meta = load_tensors(folder / f"{stage}.safetensors")
        average = _under("ema.", tensors), Shape(*meta["shape"])
    net = Enlarger(average[1])
    net.load_state_dict({k: v.detach().float().cpu() for k, v in average[0].items()})
    return net.eval()


def trained_critic(folder: Path) -> Critic:
    """The critic of the `gan` stage, still with spectral norm."""
    critic = Critic()
    critic.load_state_dict(_under("critic.", load_tensors(folder / "gan.safetensors")[0]))
    return critic


@torch.no_grad()
def watch(net: Enlarger, portraits: data.Portraits, chosen: np.ndarray) -> dict[str, float]:
    """PSNR compared with bicubic's, and sharpness: on clean small pictures, and on those of the base's autoencoder."""
    out = {}
    true = data.tensor(portraits.large[chosen])
    for name, source in (("clean", portraits.large), ("rebuilt", portraits.rebuilt)):
        small = data.tensor(np.stack([data.resized(source[k], data.SMALL_PX) for k in chosen]))
        made, plain = net(small).clamp(0, 1), data.bicubic(small)
        sharp = data.gradient_energy(true)
        out[f"{name}_gain_db"] = float((data.psnr(made, true) - data.psnr(plain, true)).mean())
        out[f"{name}_sharpness"] = float((data.gradient_energy(made) / sharp).mean())
        out[f"{name}_bicubic_sharpness"] = float((data.gradient_energy(plain) / sharp).mean())
    return out


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
