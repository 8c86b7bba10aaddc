"""Stage 1, the autoencoder: 128x128 pixels <-> 16x16x16 latents.

Loss: L1 + SSIM + a small KL term on random crops; every second step on whole faces, with an identity term: the cosine
between a frozen recogniser's embeddings of the original and of the decoded face. The normalisation of the latents is in
the weights of `quant_conv` / `post_quant_conv`, because stock pipelines ignore `latents_mean`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.portrait_base import data, variants
from tools.portrait_base.recogniser import IdentityNet, unlike

CROP_PX, CROPS, FACES = 64, 24, 8
LEARNING_RATE, EMA, IDENTITY_WEIGHT, COLOUR_WEIGHT = 1.5e-3, 0.999, 0.3, 2.0
REFINE_RATE, CRITIC_FROM = 3e-4, 200
REFINE_TERMS = {"l1": 1.0, "ssim": 0.3, "colour": 2.0, "identity": 0.5, "middle": 0.5, "critic": 0.02}


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

    Without it the autoencoder learns only one of the two colour axes: studio portraits have almost no green or magenta,
    and L1 counts them too little (measured: decoded green backgrounds were grey, teal ones blue).
    """
    red, green, blue = F.avg_pool2d(a - b, 8).unbind(1)
    return (red - green).abs().mean() + (blue - (red + green) / 2).abs().mean()


@torch.no_grad()
def rebuild(vae: AutoencoderKL, frames: np.ndarray, batch: int = 16) -> np.ndarray:
    """Encode and decode uint8 frames (n, h, w, 3), without sampling noise."""
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
    made: variants.Variants,
    folder: Path,
    *,
    budget_s: float,
    recogniser: Path | None,
    device: str,
    start_from: Path | None = None,
) -> AutoencoderKL:
    """Train until `budget_s` of CPU time (all runs together) is used; returns the averaged (EMA) weights.

    Every fourth step uses frames of `made`, with all background and jacket colours equally often: see `colour_error`.
    """
    # from an exported model folder, or from random weights
    vae = AutoencoderKL.from_pretrained(start_from, subfolder="vae").float() if start_from else new()
    vae = vae.to(device, memory_format=torch.channels_last)
    identity = IdentityNet(recogniser).to(device).requires_grad_(False) if recogniser else None
    learning = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in vae.named_parameters()}
    step, spent_s, checkpoint = 0, 0.0, folder / "vae.safetensors"
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        vae.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        load_optimizer(optimizer, tensors)
        step, spent_s = meta["step"], meta["spent_s"]
    pixels = torch.tensor(portraits.pixels[~portraits.held_out]).permute(0, 3, 1, 2)
    test = portraits.frame(portraits.held_out)
    started, saved, said = time.process_time() - spent_s, time.process_time(), 0.0
    shown = {"l1": 0.0, "ssim": 0.0, "id": 0.0}

    def averaged() -> AutoencoderKL:
        copy = new().to(device, memory_format=torch.channels_last)
        copy.load_state_dict(average)
        return copy.eval()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in vae.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
        save_tensors(checkpoint, tensors | optimizer_tensors(optimizer), {"step": step, "spent_s": spent_s})

    while spent_s < budget_s:
        # all random numbers depend on the step, so that a resumed run is equal to an uninterrupted one
        generator = torch.Generator().manual_seed(1_000_003 * 7 + step)
        whole = identity is not None and step % 2 == 1
        count = FACES if whole else CROPS
        colours = step % 4 == 2
        if colours:
            batch = _chosen(made, count, step)
        else:
            batch = pixels[torch.randint(len(pixels), (count,), generator=generator)].float() / 255
        if whole:
            views, where = data.sample_views(batch, 128, generator, zoom=(0.97, 1.03), turn=0.04, shift_px=1.5)
        else:
            views, where = data.sample_views(batch, CROP_PX, generator, zoom=(0.6, 1.5), turn=0.25, shift_px=34)
        # a third of the crops are not changed, because studio portraits matter most
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
        spent_s = time.process_time() - started
        if step % 50 == 0:
            text = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"vae step {step} {spent_s:.0f}s kl {kl.item():.2f} {text}", flush=True)
        if spent_s - said > 300:
            said = spent_s
            model = averaged()
            rebuilt_test = rebuild(model, test)
            a, b = (torch.tensor(x).permute(0, 3, 1, 2).float() / 255 for x in (test, rebuilt_test))
            print(f"vae held-out: {psnr(test, rebuilt_test).mean():.2f} dB SSIM {ssim(a, b):.4f}", flush=True)
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save()
    save()
    return averaged()


def _chosen(made: variants.Variants, count: int, step: int) -> torch.Tensor:
    """`count` frames with repeated margins, (count, 3, PACKED_PX, PACKED_PX) in 0..1."""
    index = np.random.default_rng((13, step)).choice(len(made.chances), count, p=made.chances)
    frames = torch.tensor(made.frames[index]).permute(0, 3, 1, 2).float() / 255
    return F.pad(frames, (data.MARGIN_PX,) * 4, mode="replicate")


class Critic(nn.Module):
    """Separates photos from decoded ones, by patches of about 30 px: (b, 3, h, w) in 0..1 -> (b, 1, h/4, w/4)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def conv(inside: int, outside: int, stride: int) -> nn.Module:
            return nn.utils.parametrizations.spectral_norm(
                nn.Conv2d(inside, outside, 4 if stride == 2 else 3, stride, 1)
            )

        self.layers = nn.Sequential(
            *(conv(3, width, 2), nn.LeakyReLU(0.2)),
            *(conv(width, 2 * width, 2), nn.LeakyReLU(0.2)),
            *(conv(2 * width, 4 * width, 1), nn.LeakyReLU(0.2)),
            *(conv(4 * width, 4 * width, 1), nn.LeakyReLU(0.2)),
            conv(4 * width, 1, 1),
        )

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.layers(views * 2 - 1)


def refine(
    vae: AutoencoderKL,
    made: variants.Variants,
    folder: Path,
    *,
    budget_s: float,
    recogniser: Path,
    device: str,
) -> None:
    """Train only the decoder, for `budget_s` of CPU time, so that the latents do not change and the denoiser and
    everything that people trained stay valid. Saved in `folder`.

    The loss has also the recogniser's inner and final features, and a critic: with L1 and SSIM alone the decoder gives
    the mean of all pictures that fit a latent, which is blurred.
    """
    vae = vae.to(device, memory_format=torch.channels_last).float().requires_grad_(False)
    vae.decoder.requires_grad_(True)
    judge, critic = IdentityNet(recogniser).to(device).requires_grad_(False), Critic().to(device)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=REFINE_RATE, betas=(0.5, 0.99), weight_decay=1e-4)
    opponent = torch.optim.AdamW(critic.parameters(), lr=2 * REFINE_RATE, betas=(0.5, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in vae.decoder.named_parameters()}
    step, spent_s, checkpoint, rival = 0, 0.0, folder / "vae-decoder.safetensors", folder / "vae-critic.safetensors"
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        vae.decoder.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        load_optimizer(optimizer, tensors)
        tensors, _ = load_tensors(rival)
        critic.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        load_optimizer(opponent, tensors)
        step, spent_s = meta["step"], meta["spent_s"]
    started, saved, shown = time.process_time() - spent_s, time.process_time(), dict.fromkeys(REFINE_TERMS, 0.0)

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in critic.state_dict().items()} | optimizer_tensors(opponent)
        save_tensors(rival, tensors)
        tensors = {f"model.{k}": v for k, v in vae.decoder.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in average.items()} | optimizer_tensors(optimizer)
        save_tensors(checkpoint, tensors, {"step": step, "spent_s": spent_s})

    while spent_s < budget_s:
        generator = torch.Generator().manual_seed(1_000_003 * 17 + step)
        batch = _chosen(made, FACES, step)
        views, where = data.sample_views(batch, 128, generator, zoom=(0.97, 1.03), turn=0.04, shift_px=1.5)
        plain = (torch.rand(FACES, 1, 1, 1, generator=generator) < 0.6).float()
        views = views * plain + data.recolour(views, where, generator) * (1 - plain)
        views = views.to(device, memory_format=torch.channels_last)
        fade = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * spent_s / budget_s)) + 0.01
        for each, rate in ((optimizer, REFINE_RATE), (opponent, 2 * REFINE_RATE)):
            for group in each.param_groups:
                group["lr"] = rate * fade
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                posterior = vae.encode(views * 2 - 1).latent_dist
                seen, maps = judge.look(views)
                noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
                z = posterior.mean + posterior.std * noise
            rebuilt = (vae.decode(z).sample.float() + 1) / 2
            same, middle = judge.look(rebuilt)
            critic.requires_grad_(False)
            fooled = -critic(rebuilt).float().mean()
            critic.requires_grad_(True)
            real, made_up = critic(views).float(), critic(rebuilt.detach()).float()
        terms = {
            "l1": (rebuilt - views).abs().mean(),
            "ssim": 1 - ssim(rebuilt, views),
            "colour": colour_error(rebuilt, views),
            "identity": (1 - (same * seen).sum(1)).mean(),
            "middle": unlike(middle, maps),
            "critic": fooled,
        }
        trained = {name: REFINE_TERMS[name] * value for name, value in terms.items()}
        if step < CRITIC_FROM:
            trained.pop("critic")
        loss = torch.stack(list(trained.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the decoder's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        opponent.zero_grad(set_to_none=True)
        (F.relu(1 - real).mean() + F.relu(1 + made_up).mean()).backward()
        opponent.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in vae.decoder.named_parameters():
                average[name].lerp_(p, 1 - decay)
        for name, value in terms.items():
            shown[name] += 0.05 * (value.item() - shown[name])
        spent_s = time.process_time() - started
        if step % 50 == 0:
            text = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            apart = real.mean().item() - made_up.mean().item()
            print(f"decoder step {step} {spent_s:.0f}s {text} critic apart {apart:.2f}", flush=True)
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save()
    save()


def averaged(folder: Path) -> AutoencoderKL:
    """The averaged autoencoder of the last checkpoint, before `fold_normalisation`."""
    tensors, _ = load_tensors(folder / "vae.safetensors")
    vae = new()
    vae.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return vae.eval()


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, frames: np.ndarray) -> None:
    """Change the 1x1 convolutions so that the latents of `frames` have mean 0 and variance 1 per channel."""
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


def finished(
    folder: Path, start_from: Path | None, portraits: data.Portraits, *, refined: bool = False
) -> AutoencoderKL:
    """The autoencoder for the denoiser: from `folder` if it was trained there, else from `start_from`.

    With `refined` it has the refined decoder, if there is one.
    """
    if (folder / "vae.safetensors").is_file() or start_from is None:
        vae = averaged(folder)
        fold_normalisation(vae, portraits.frame(~portraits.held_out))
    else:
        vae = new()  # so that its configuration has no path of this machine
        vae.load_state_dict(AutoencoderKL.from_pretrained(start_from, subfolder="vae").state_dict())
    if refined and (folder / "vae-decoder.safetensors").is_file():
        tensors, _ = load_tensors(folder / "vae-decoder.safetensors")
        vae.decoder.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return vae.eval()
