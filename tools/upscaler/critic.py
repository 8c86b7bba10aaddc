"""Train the critic to find flaws: starts from the critic of the `gan` stage, then learns drawn pictures against photos.

A critic learns the easiest difference. So both kinds are processed in the same way - shrunk by the same kernels,
enlarged by the same methods, with the same noise, blur, JPEG, light and colour - so that only the differences of
drawing remain. Photos with a wrong patch (decoded by the autoencoder, or distorted) teach it to find places.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pipelines.finishing.nets import Critic
from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.upscaler import data, training

BATCH, RATE, EMA = 8, 3e-4, 0.997
WATCHED = 40  # drawings for validation, not used for training
PHOTO, DRAWN, REBUILT, SPLICED = "photo", "drawn", "rebuilt", "spliced"
# the kinds in each batch: half are photos, half have something wrong
KINDS = (PHOTO, PHOTO, PHOTO, PHOTO, DRAWN, DRAWN, REBUILT, SPLICED)


def enlarged(net: Callable[[torch.Tensor], torch.Tensor], image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale a picture to LARGE_PX in a random way: mostly by the enlarger, else by plain resizing."""
    small = data.resized(image, data.SMALL_PX, data.KERNELS[rng.integers(len(data.KERNELS))])
    if rng.random() < 0.7:
        with torch.inference_mode():
            large = net(data.tensor(small[None]))[0].clamp(0, 1)
        return (large * 255).round().byte().permute(1, 2, 0).contiguous().numpy()  # type: ignore[no-any-return]
    return data.resized(small, data.LARGE_PX, data.KERNELS[rng.integers(2)])


def finished(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The processing of every picture, the same for both kinds: light and colour, blur, noise, JPEG."""
    out: np.ndarray = image.astype(np.float32)
    if rng.random() < 0.25:
        out = out.mean(2, keepdims=True).repeat(3, 2)
    elif rng.random() < 0.7:  # so that the background's colour does not show what was drawn
        grey = out.mean(2, keepdims=True)
        out = grey + (out - grey) @ data.hue_turn(float(rng.uniform(0, 2 * math.pi))) * rng.uniform(0.3, 1.2)
    out = 255 * (np.clip(out, 0, 255) / 255) ** np.exp(rng.uniform(-0.3, 0.3)) * np.exp(rng.uniform(-0.15, 0.15))
    if rng.random() < 0.3:
        out = data.blurred(out, float(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.5:
        out = out + rng.normal(0, rng.uniform(0.5, 4.0), out.shape[:2] + (1,))
    done = np.clip(out, 0, 255).round().astype(np.uint8)
    return data.jpeg(done, int(rng.integers(70, 98))) if rng.random() < 0.5 else done


def spot(rng: np.random.Generator, size_px: int = data.LARGE_PX) -> np.ndarray:
    """A soft-edged ellipse somewhere on head and shoulders, (size, size) float 0..1."""
    yy, xx = np.mgrid[:size_px, :size_px].astype(np.float32)
    x, y = rng.uniform(0.25, 0.75, 2) * size_px
    wide, high = rng.uniform(0.1, 0.22, 2) * size_px
    distance = np.sqrt(((xx - x) / wide) ** 2 + ((yy - y) / high) ** 2)
    return np.clip((1.1 - distance) / 0.2, 0, 1).astype(np.float32)  # type: ignore[no-any-return]


def bent(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture with its parts under the mask distorted by several pixels."""
    import cv2

    size = image.shape[0]
    push = rng.normal(0, 1, (5, 5, 2)).astype(np.float32) * float(rng.uniform(5, 11))
    push = cv2.resize(push, (size, size), interpolation=cv2.INTER_CUBIC) * mask[..., None]
    yy, xx = np.mgrid[:size, :size].astype(np.float32)
    return cv2.remap(  # type: ignore[no-any-return]
        image, xx + push[..., 0], yy + push[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


def example(
    kind: str,
    photo: np.ndarray,
    rebuilt: np.ndarray,
    drawn: np.ndarray,
    net: Callable[[torch.Tensor], torch.Tensor],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One picture (LARGE_PX square, uint8), and for each pixel 1 = photo, 0 = wrong, (LARGE_PX, LARGE_PX)."""
    right = np.ones((data.LARGE_PX, data.LARGE_PX), np.float32)
    untouched = rng.random() < 0.25
    if kind == PHOTO:
        # some photos keep their own detail, so that a drawing with as much detail is not called wrong
        picture = photo if untouched else enlarged(net, photo, rng)
    elif kind == DRAWN:
        picture, right = enlarged(net, drawn, rng), right * 0
    elif kind == REBUILT:
        picture, right = enlarged(net, rebuilt, rng), right * 0
    else:
        mask = spot(rng)
        if rng.random() < 0.5:
            wrong = data.resized(rebuilt, data.LARGE_PX)
            mixed = photo * (1 - mask[..., None]) + wrong * mask[..., None]
            source = mixed.round().astype(np.uint8)
        else:
            source = bent(photo, mask, rng)
        picture, right = enlarged(net, source, rng), 1 - mask
    return finished(picture, rng), right


def batch(
    portraits: data.Portraits,
    chosen: np.ndarray,
    drawn: np.ndarray,
    net: Callable[[torch.Tensor], torch.Tensor],
    rng: np.random.Generator,
    kinds: tuple[str, ...] = KINDS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (b, 3, LARGE_PX, LARGE_PX) in 0..1, and the target of each cell of the critic's map, (b, 1, 28, 28)."""
    pictures, rights = [], []
    for kind, k in zip(kinds, chosen, strict=True):
        one = drawn[rng.integers(len(drawn))]
        picture, right = example(kind, portraits.large[k], portraits.rebuilt[k], one, net, rng)
        if rng.random() < 0.5:
            picture, right = picture[:, ::-1], right[:, ::-1]
        pictures.append(picture)
        rights.append(right)
    cells = torch.tensor(np.ascontiguousarray(np.stack(rights)))[:, None]
    return data.tensor(np.stack(pictures)), cells


def on_cells(right: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return F.adaptive_avg_pool2d(right, (shape[-2], shape[-1]))


def train(portraits: data.Portraits, drawn: np.ndarray, folder: Path, *, budget_s: float, device: str) -> None:
    """Train until `budget_s` of wall clock (all runs together) is used; starts from the `gan` stage's critic."""
    enlarger = training.averaged(folder, "gan")

    def net(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return enlarger(x).float()  # type: ignore[no-any-return]

    critic = training.trained_critic(folder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: p.detach().clone() for name, p in critic.named_parameters()}
    optimizer = torch.optim.AdamW(critic.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    step, spent_s, checkpoint = 0, 0.0, folder / "critic.safetensors"
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        critic.load_state_dict(training._under("model.", tensors))
        average = {k: v.to(device) for k, v in training._under("ema.", tensors).items()}
        load_optimizer(optimizer, tensors)
        step, spent_s = meta["step"], meta["spent_s"]
    teaching, watched = training.parts(portraits)
    pool, unseen = drawn[: data.SAMPLES - WATCHED], drawn[data.SAMPLES - WATCHED : data.SAMPLES]
    started, saved, shown = time.monotonic() - spent_s, time.monotonic(), 0.0

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in critic.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in average.items()} | optimizer_tensors(optimizer)
        save_tensors(checkpoint, tensors, {"step": step, "spent_s": spent_s})

    while spent_s < budget_s:
        rng = np.random.default_rng([11, step])
        chosen = teaching[rng.integers(0, len(teaching), BATCH)]
        pictures, right = batch(portraits, chosen, pool, net, rng)
        rate = min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * spent_s / budget_s)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        with torch.autocast(device, torch.bfloat16):
            logits = critic(pictures.to(device, memory_format=torch.channels_last))
        logits = logits.float()
        cells = on_cells(right.to(device), logits.shape)
        # for each cell, and for the whole picture, whose score is the mean
        loss = F.binary_cross_entropy_with_logits(logits, cells)
        loss = loss + F.binary_cross_entropy_with_logits(logits.mean((1, 2, 3)), cells.mean((1, 2, 3)))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the critic's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        with torch.no_grad():
            for name, p in critic.named_parameters():
                average[name].lerp_(p, 1 - min(EMA, (1 + step) / (10 + step)))
        shown += (0.03 if step > 1 else 1.0) * (loss.item() - shown)
        spent_s = time.monotonic() - started
        if step % 50 == 0:
            print(f"critic step {step} {spent_s:.0f}s loss {shown:.4f}", flush=True)
        if step % 200 == 0:
            found = separates(averaged(folder, average), net, portraits, watched, unseen)
            print("critic watched: " + " ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            save()
    save()


def averaged(folder: Path, average: dict[str, torch.Tensor] | None = None) -> Critic:
    """The averaged critic with spectral norm merged: with the weights of `average`, else of the last checkpoint."""
    critic = Critic()
    if average is None:
        tensors, _ = load_tensors(folder / "critic.safetensors")
        critic.load_state_dict(training._under("model.", tensors))
        average = training._under("ema.", tensors)
    else:
        tensors, _ = {}, None
    state = critic.state_dict() | {k: v.detach().float().cpu() for k, v in average.items()}
    critic.load_state_dict(state)
    # calculate the norm of the averaged weights: the power iteration runs only in training mode
    with torch.no_grad():
        for _ in range(30):
            critic.train()(torch.zeros(1, 3, 32, 32))
    return critic.eval().plain()


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The share of (right, wrong) pairs in which the right one has the higher value; ties count half."""
    order = np.sort(wrong)
    below = np.searchsorted(order, right, "left") + np.searchsorted(order, right, "right")
    return float(below.mean() / (2 * len(wrong)))


@torch.no_grad()
def separates(
    critic: Critic,
    net: Callable[[torch.Tensor], torch.Tensor],
    portraits: data.Portraits,
    chosen: np.ndarray,
    drawn: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """AUC for pictures (photos against drawn, and against decoded ones, processed alike), and for places in spliced
    photos.
    """
    rng = np.random.default_rng([13, seed])

    def means(kind: str, count: int) -> np.ndarray:
        out = []
        for k in range(count):
            index = chosen[k % len(chosen)]
            picture, _ = example(
                kind, portraits.large[index], portraits.rebuilt[index], drawn[k % len(drawn)], net, rng
            )
            out.append(float(critic(data.tensor(picture[None])).mean()))
        return np.array(out)

    photos = means(PHOTO, len(chosen))
    places = []
    for index in chosen:
        picture, right = example(SPLICED, portraits.large[index], portraits.rebuilt[index], drawn[0], net, rng)
        logits = critic(data.tensor(picture[None]))
        cells = on_cells(torch.tensor(right)[None, None], logits.shape).numpy().ravel()
        values = logits.numpy().ravel()
        places.append(auc(values[cells > 0.9], values[cells < 0.1]))
    return {
        "photo_drawn": auc(photos, means(DRAWN, len(drawn))),
        "photo_rebuilt": auc(photos, means(REBUILT, len(chosen))),
        "place": float(np.mean(places)),
    }
