"""Stage 1, the autoencoder: 128x128 pixels <-> 16x16x16 latents.

Loss: L1 + SSIM + a little KL on random crops; every second step on whole faces, plus an identity term - the cosine
between a frozen recogniser's view of the original and of the rebuilt face. The latents' normalisation is folded
into `quant_conv` / `post_quant_conv`, because stock pipelines ignore `latents_mean`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.portrait_base import data, variants
from tools.portrait_base.recogniser import IdentityNet

CROP_PX, CROPS, FACES = 64, 24, 8
LEARNING_RATE, EMA, IDENTITY_WEIGHT, COLOUR_WEIGHT = 1.5e-3, 0.999, 0.3, 2.0


def new(latent_channels: int = 16) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
    )


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of two batches in 0..1, 7x7 windows (Wang et al. 2004)."""
    c1, c2 = 0.01**2, 0.03**2

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, 1)

    mu_a, mu_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2
    cov = blur(a * b) - mu_a * mu_b
    return (((2 * mu_a * mu_b + c1) * (2 * cov + c2)) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean()


def colour_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean difference of two batches in the two opponent colours (red - green, blue - yellow), over 8x8 pixels.

    Without it the autoencoder keeps one colour axis of two: studio portraits hold hardly any green or magenta, and
    the little that L1 pays for them never got it started (measured: green backgrounds came back grey, teal blue).
    """
    red, green, blue = F.avg_pool2d(a - b, 8).unbind(1)
    return (red - green).abs().mean() + (blue - (red + green) / 2).abs().mean()


@torch.no_grad()
def rebuild(vae: AutoencoderKL, frames: np.ndarray, batch: int = 16) -> np.ndarray:
    """uint8 frames (n, h, w, 3) through the autoencoder and back, without sampling noise."""
    device = next(vae.parameters()).device
    out = []
    for part in np.array_split(frames, max(1, math.ceil(len(frames) / batch))):
        x = torch.tensor(part, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image, dB."""
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-9))


def train(
    portraits: data.Portraits,
    folder: Path,
    *,
    budget_s: float,
    recogniser: Path | None,
    device: str,
    refine: AutoencoderKL | None = None,
    start_from: Path | None = None,
    coloured: variants.Variants | None = None,
) -> AutoencoderKL:
    """Train until `budget_s` of wall clock (all runs together) is used; returns the averaged (EMA) weights.

    Every fourth step shows `coloured` frames, all background and jacket colours equally often: see `colour_error`.

    With `refine` (a finished autoencoder) only its decoder goes on learning: the latents, and so the denoiser and
    everything that people trained on them, stay valid.
    """
    if refine is not None:
        vae = refine
    elif start_from is not None:  # an exported model folder instead of noise
        vae = AutoencoderKL.from_pretrained(start_from, subfolder="vae").float()
    else:
        vae = new()
    vae = vae.to(device, memory_format=torch.channels_last)
    if refine is not None:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        vae.float().train()
    identity = IdentityNet(recogniser).to(device).requires_grad_(False) if recogniser else None
    learning = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in vae.named_parameters()}
    step, spent_s, checkpoint = 0, 0.0, folder / ("vae.safetensors" if refine is None else "vae-decoder.safetensors")
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        vae.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        load_optimizer(optimizer, tensors)
        step, spent_s = meta["step"], meta["spent_s"]
    pixels = torch.tensor(portraits.pixels[~portraits.held_out]).permute(0, 3, 1, 2)
    test = portraits.frame(portraits.held_out)
    chances = torch.tensor(variants.balanced(coloured.words)) if coloured is not None else torch.ones(1)
    started, shown, said, saved = time.monotonic() - spent_s, {"l1": 0.0, "ssim": 0.0, "id": 0.0}, 0.0, time.monotonic()

    def averaged() -> AutoencoderKL:
        copy = new().to(device, memory_format=torch.channels_last)
        copy.load_state_dict(average)
        return copy.eval()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in vae.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
        save_tensors(checkpoint, tensors | optimizer_tensors(optimizer), {"step": step, "spent_s": spent_s})

    while spent_s < budget_s:
        # everything random derives from the step, so a resumed run sees what an uninterrupted one would
        generator = torch.Generator().manual_seed(1_000_003 * 7 + step)
        whole = identity is not None and step % 2 == 1
        count = FACES if whole else CROPS
        colours = coloured is not None and step % 4 == 2
        if coloured is not None and colours:
            chosen = torch.multinomial(chances, count, replacement=True, generator=generator)
            frames = torch.tensor(coloured.frames[chosen.numpy()]).permute(0, 3, 1, 2).float() / 255
            batch = F.pad(frames, (data.MARGIN_PX,) * 4, mode="replicate")
        else:
            batch = pixels[torch.randint(len(pixels), (count,), generator=generator)].float() / 255
        if whole:
            views, where = data.sample_views(batch, 128, generator, zoom=(0.97, 1.03), turn=0.04, shift_px=1.5)
        else:
            views, where = data.sample_views(batch, CROP_PX, generator, zoom=(0.6, 1.5), turn=0.25, shift_px=34)
        # a third of the crops stay as they are: the studio's own look matters most
        plain = (torch.rand(count, 1, 1, 1, generator=generator) < 0.35).float()
        if not colours:
            views = views * plain + data.recolour(views, where, generator) * (1 - plain)
        views = views.to(device, memory_format=torch.channels_last)
        progress = spent_s / budget_s
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        noise = torch.Generator(device).manual_seed(step)
        with torch.autocast(device, torch.bfloat16):
            with torch.set_grad_enabled(refine is None):
                posterior = vae.encode(views * 2 - 1).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=noise, device=device)
            rebuilt = (vae.decode(z).sample.float() + 1) / 2
        l1 = (rebuilt - views).abs().mean()
        structure = 1 - ssim(rebuilt, views)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = l1 + 0.3 * structure + COLOUR_WEIGHT * colour_error(rebuilt, views) + 1e-4 * kl
        if whole and identity is not None:
            with torch.autocast(device, torch.bfloat16):
                with torch.no_grad():
                    target = identity(views)
                got = identity(rebuilt)
            same = (got * target).sum(1).mean()
            loss = loss + IDENTITY_WEIGHT * (1 - same)
            shown["id"] += 0.1 * (same.item() - shown["id"])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the autoencoder's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in vae.named_parameters():
                average[name].lerp_(p, 1 - decay)
        shown["l1"] += 0.05 * (l1.item() - shown["l1"])
        shown["ssim"] += 0.05 * (1 - structure.item() - shown["ssim"])
        spent_s = time.monotonic() - started
        if step % 50 == 0:
            text = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"vae step {step} {spent_s:.0f}s kl {kl.item():.2f} {text}", flush=True)
        if spent_s - said > 300:
            said = spent_s
            model = averaged()
            rebuilt_test = rebuild(model, test)
            a, b = (torch.tensor(x).permute(0, 3, 1, 2).float() / 255 for x in (test, rebuilt_test))
            print(f"vae held-out: {psnr(test, rebuilt_test).mean():.2f} dB SSIM {ssim(a, b):.4f}", flush=True)
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save()
    save()
    return averaged()


def averaged(folder: Path) -> AutoencoderKL:
    """The averaged autoencoder of the last checkpoint, before folding."""
    tensors, _ = load_tensors(folder / "vae.safetensors")
    vae = new()
    vae.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return vae.eval()


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, frames: np.ndarray) -> None:
    """Make the latents of `frames` zero-mean and unit-variance per channel, inside the 1x1 convolutions."""
    device = next(vae.parameters()).device
    latents = []
    for part in np.array_split(frames, math.ceil(len(frames) / 32)):
        x = torch.tensor(part, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(vae.encode(x).latent_dist.mode().float().cpu())
    z = torch.cat(latents)
    mean, std = z.mean((0, 2, 3)).to(device), z.std((0, 2, 3)).to(device)
    c = len(mean)
    assert vae.quant_conv is not None and vae.post_quant_conv is not None
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    weight[:c] /= std[:, None, None, None]
    bias[:c] = (bias[:c] - mean) / std
    bias[c:] -= 2 * std.log()
    back = vae.post_quant_conv
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]
