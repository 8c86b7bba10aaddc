"""Draw pictures from noise: one sampler for previews, verification, class images, renders and variations of renders.

In: modules, prompts, seeds; for variations the pictures to start from. Out: uint8 RGB frames.
The same seed gives the same noise with every method, device and batch. Each row is drawn as the stock pipeline draws it
(a test compares them), but has its own guidance and seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipelines.bases.architectures import DIFFUSION_SCHEDULERS
from pipelines.bases.family import Family, Modules
from pipelines.bases.text import Conditioning
from pipelines.core.device import derived_seed, noise
from pipelines.core.records import UserError
from pipelines.core.safety import check_prompt

SCHEDULERS: tuple[str, ...] = ("default", *DIFFUSION_SCHEDULERS)
# For drafts with 4 to 8 steps and guidance near 1, only with weights that were distilled for it (Luo et al. 2023, Zheng
# et al. 2024): a merged checkpoint, or a base with such a LoRA fused. Other weights give pale, blurred pictures.
DISTILLED = ("lcm", "tcd")
ETA = {"tcd": 0.3}  # share of new noise per step, its authors' default; other schedulers add none


@dataclass(frozen=True)
class Row:
    """One picture to draw."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    guidance: float = 3.0


def scheduler(family: Family, name: str = "default") -> Any:
    """A new scheduler with the base's noise schedule. Raises UserError for a name that the base does not have."""
    options: dict[str, Any] = {}
    own = family.architecture.schedulers
    if name == "default":
        cls = str(family.scheduler_config.get("_class_name", "DDIMScheduler"))
    elif name in own:
        cls, options = own[name]
    elif name in SCHEDULERS:
        raise UserError(f"{family.row.title} draws with its own scheduler only. Choose default.")
    else:
        raise UserError(f"There is no scheduler {name}. Choose one of: {', '.join(SCHEDULERS)}.")
    return family.scheduler_class(cls).from_config(family.scheduler_config, **options)


@torch.no_grad()
def sample_latents(
    family: Family,
    modules: Modules,
    rows: Sequence[Row],
    *,
    steps: int = 20,
    scheduler_name: str = "default",
    height_px: int | None = None,
    width_px: int | None = None,
    sources: np.ndarray | None = None,
    change: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> torch.Tensor | None:
    """Draw `rows` as one batch: latents (b, c, h, w), or None when `stop()` became true.

    With `sources`, uint8 RGB frames (b, H, W, 3) of the size that is drawn, each row varies its own source: noise is
    added to it, and only the last part of the schedule, a share of `change` (0..1], is run (SDEdit, Meng et al. 2022).
    With `change` 1 nothing of the source remains: the result is equal to the bit to one without a source.

    Raises UserError for a prompt that is refused.
    """
    for row in rows:  # all drawing passes here, so no prompt misses the check
        check_prompt(row.prompt, row.negative_prompt)
    shape = family.latent_shape(height_px, width_px)
    device = torch.device(family.device.name)
    sampler = scheduler(family, scheduler_name)
    family.set_timesteps(sampler, steps, shape)
    latents = torch.cat([noise(row.seed, (1, *shape), device=device) for row in rows])
    timesteps = sampler.timesteps
    if sources is None or change >= 1:
        latents = latents * sampler.init_noise_sigma
    else:
        timesteps = _last_part(sampler, steps, max(1, round(steps * change)))
        with family.aside(*family.own(modules)):
            pictures = family.encode_images(sources).latents(None).to(device)
        latents = sampler.add_noise(pictures, latents, timesteps[:1].repeat(len(rows)))
    weights = [family.guidance_weight(row.guidance) for row in rows]
    guided = any(weight > 1 for weight in weights)
    with family.awake(*modules.text.encoders):
        told = modules.text.encode(modules.text.ids([row.prompt for row in rows]))
        if guided:
            told = Conditioning.joined([modules.text.negative([row.negative_prompt for row in rows]), told])
    if modules.image_embeds is not None:  # of no picture where nothing is asked for, as stock pipelines do it
        shown = [part.expand(len(rows), -1, -1, -1) for part in modules.image_embeds.split(1)]
        told = replace(told, image_embeds=torch.cat(shown if guided else shown[1:]))
    if guided:
        strength = torch.tensor(weights, device=device)[:, None, None, None]
    extra: dict[str, Any] = {}
    accepted = inspect.signature(sampler.step).parameters
    if "eta" in accepted:
        extra["eta"] = ETA.get(scheduler_name, 0.0)
    if "generator" in accepted:  # used only by samplers that add noise: per row, on the CPU, from the row's seed
        extra["generator"] = [torch.Generator().manual_seed(derived_seed(row.seed, 1)) for row in rows]
    for timestep in timesteps:
        if stop():
            return None
        noisy = sampler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
        predicted = family.predict(modules.unet, noisy, timestep, told).float()
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + strength * (with_prompt - without)
        latents = sampler.step(predicted, timestep, latents, **extra).prev_sample
    return latents


def _last_part(sampler: Any, steps: int, kept: int) -> torch.Tensor:
    """The timesteps of the last `kept` of `steps` levels; also tells the sampler that it begins there."""
    timesteps: torch.Tensor = sampler.timesteps
    if len(timesteps) == steps + 1:  # PNDM's warm-up uses its second level twice, also when it begins later
        levels = torch.cat([timesteps[:1], timesteps[2:]])[steps - kept :]
        return torch.cat([levels[:2], levels[1:]])
    begin = (steps - kept) * getattr(sampler, "order", 1)
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(begin)
    return timesteps[begin:]


def sample(family: Family, modules: Modules, rows: Sequence[Row], **options: Any) -> np.ndarray | None:
    """`sample_latents`, and decode them: uint8 RGB frames (b, H, W, 3), or None when stopped."""
    latents = sample_latents(family, modules, rows, **options)
    if latents is None:
        return None
    with family.aside(*family.own(modules)):
        return family.decode(latents)
