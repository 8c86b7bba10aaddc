"""A loaded base model: encodes text and images, predicts noise, and gives copies of its weights.

In: a `BaseRow`. Out: a `Family`. Its own weights never change: code that trains them or applies a LoRA uses a copy.
Try it: `load_family(find_base("portrait-128")).decode(latents)`; `loading.py` makes a `Family`.

Families differ in how text is encoded, what conditions the denoiser, and which noise schedule the loss uses; all are
trained alike. Their data is in `architectures.FAMILIES`; their code is the methods here, overridden where a family
differs (`z_image.py`). How to add one: docs/extend.md.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.bases import checker as checkers
from pipelines.bases.architectures import FAMILIES
from pipelines.bases.checker import ImageFilter
from pipelines.bases.memory import USABLE, roomy_gb
from pipelines.bases.objective import NoiseSchedule, Schedule
from pipelines.bases.registry import BaseRow
from pipelines.bases.text import Conditioning, LearnedRows, Text
from pipelines.core.device import Device, free_memory_gb, is_worth_compiling

CompiledBlocks = dict[nn.Module, Callable[..., Any]]  # a block -> its forward pass, compiled

# Up to so many tokens per picture, attention by plain matrix products is at least as fast on a CPU as torch's fused
# attention: equal in float32, 7-25% faster in bfloat16 (a training step of the embedded base, one thread, torch 2.13).
# Above it the (tokens x tokens) matrix takes too much memory.
PLAIN_ATTENTION_MAX_TOKENS = 1024
VAE_BATCH = 8
PARKED = "cpu"  # the device of modules that are not in use, see `Family.park`


@dataclass(frozen=True)
class Modules:
    """A denoiser and text encoders, which draw: the base's own, or those with one person learned."""

    unet: nn.Module  # the denoiser: a transformer in some families
    text: Text
    image_embeds: torch.Tensor | None = None  # (2, n, t, d), IP-Adapter: of no picture, and of n pictures of a face


@dataclass(frozen=True)
class Moments:
    """The VAE's posterior of n pictures, scaled for the denoiser: mean and standard deviation, each (n, c, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Moments:
        return Moments(self.mean[rows], self.std[rows])

    def latents(self, noise: torch.Tensor | None) -> torch.Tensor:
        """A sample (n, c, h, w) with `noise` of the same shape; with None the mean."""
        return self.mean if noise is None else self.mean + self.std * noise


class Family:
    """One loaded base. It can be shared: its weights do not change after loading."""

    def __init__(
        self,
        row: BaseRow,
        device: Device,
        pipeline: Any,
        folder: Path | None,
        *,
        image_filter: ImageFilter | None = None,
        unfiltered: str | None = None,
    ) -> None:
        self.row, self.device, self.folder = row, device, folder
        self.architecture = FAMILIES[row.family]
        self._filter = image_filter
        self.unfiltered = unfiltered  # why there is no image filter although there should be one; a sentence
        self._parts: dict[str, Any] = dict(pipeline.components)
        for part in self._parts.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self._clean_unet: nn.Module = self._parts[self.architecture.denoiser]
        self._shared_unet: nn.Module | None = None
        self._parked: tuple[nn.Module, ...] = ()
        self.short = self._is_short()
        place = PARKED if self.short else device.name
        self.scheduler_config = dict(pipeline.scheduler.config)
        # in half precision the VAE loses similarity, and SDXL's overflows
        self.vae: Any = moved(self._parts["vae"], place, torch.float32)
        self.zero_empty = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self.text = self._text(self._encoders(frozen=True, device=place))
        self.schedule = self._schedule()
        self.unpark()

    # -- facts ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> Schedule:
        prediction = str(self.scheduler_config.get("prediction_type", "epsilon"))
        return NoiseSchedule(_alphas(self.scheduler_config).to(self.device.name), prediction)

    @property
    def latent_channels(self) -> int:
        return int(self._clean_unet.config.in_channels)  # type: ignore[union-attr, arg-type]

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def pixels_per_step(self) -> int:
        """The sides of pictures are multiples of this."""
        levels = len(self._clean_unet.config.block_out_channels)  # type: ignore[union-attr, arg-type]
        return int(self.pixels_per_latent * 2 ** (levels - 1))

    def latent_shape(self, height_px: int | None = None, width_px: int | None = None) -> tuple[int, int, int]:
        """Shape (c, h, w) of a picture's latents; sizes are rounded down to multiples that the network can use."""
        step = self.pixels_per_step
        sides = [side or own for side, own in zip((height_px, width_px), self.row.shapes[0])]
        height, width = (max(1, side // step) * step // self.pixels_per_latent for side in sides)
        return self.latent_channels, height, width

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return self.device.autocast()

    def loaded(self, part: str) -> Any:
        """A part of the pipeline as it was loaded, in the format of its file. Do not change it."""
        return self._parts[part]

    # -- copies --------------------------------------------------------------------------------------------------

    def shared(self) -> Modules:
        """The untrained base, in the compute dtype, shared by all code that does not change it."""
        if self._shared_unet is None:
            self._shared_unet = self.new_unet(trainable=False)
        return Modules(self._shared_unet, self.text)

    def new_unet(self, *, trainable: bool, device: str | None = None) -> nn.Module:
        """A copy of the untrained denoiser on the device: float32 if `trainable`, else in the compute dtype.

        Frozen weights are cast once here. Autocast would cast them in every forward pass, which on a CPU takes about as
        long as the multiplications of a small batch.
        """
        if self.parked:
            self._shared_unet = None  # the device has memory for only one denoiser
        unet = copy.deepcopy(self._clean_unet)
        dtype = torch.float32 if trainable else self.device.torch_dtype
        channels_last(moved(unet, device or self.device.name, dtype))
        self.use_plain_attention(unet)
        return unet.requires_grad_(trainable)

    def use_plain_attention(self, unet: nn.Module) -> None:
        """Choose the fastest attention for this device. Results change only by rounding."""
        from diffusers.models.attention_processor import AttnProcessor

        side = self.row.resolution_px // self.pixels_per_latent
        if self.device.kind == "cpu" and side * side <= PLAIN_ATTENTION_MAX_TOKENS:
            unet.set_attn_processor(AttnProcessor())  # type: ignore[operator]

    def compiled_for(self, unet: nn.Module, pictures: int) -> CompiledBlocks:
        """The denoiser's repeated blocks, compiled, if this saves time in a training on so many pictures; else none."""
        if not is_worth_compiling(self.device, pictures * (self.row.forward_tflop or 0.0)):
            return {}
        torch._dynamo.config.suppress_errors = True  # if the compiler fails, PyTorch runs the block uncompiled
        return compiled_blocks(unet)

    def new_text(self, *, device: str | None = None) -> Text:
        """A copy of the text encoders in float32, to be trained or adapted."""
        return self._text(self._encoders(frozen=False, device=device))

    def text_with(self, learned: LearnedRows) -> Text:
        """The shared encoders with learned rows; the tokenizers are copies that know the new tokens."""
        text = self._text(self.text.encoders)
        text.tokenizers = tuple(copy.deepcopy(tokenizer) for tokenizer in text.tokenizers)
        for tokenizer in text.tokenizers:
            tokenizer.add_tokens(list(learned.tokens))
        text.learned = learned
        return text

    def _encoders(self, *, frozen: bool, device: str | None = None) -> tuple[nn.Module, ...]:
        dtype = self.text_dtype if frozen else torch.float32
        names = [encoder for _, encoder in self.architecture.text_parts]
        return tuple(moved(copy.deepcopy(self._parts[name]), device or self.device.name, dtype) for name in names)

    @property
    def text_dtype(self) -> torch.dtype:
        """The dtype of encoders that do not learn. On a CPU float32: they are a hundredth of the work."""
        return self.device.torch_dtype if self.device.kind == "cuda" else torch.float32

    def _text(self, encoders: tuple[nn.Module, ...]) -> Text:
        return Text(
            tokenizers=tuple(self._parts[tokenizer] for tokenizer, _ in self.architecture.text_parts),
            encoders=encoders,
            penultimate=self.architecture.penultimate,
            zero_empty=self.zero_empty,
            autocast=self.device.autocast(self.device.kind == "cuda"),
        )

    def pipeline(self, modules: Modules | None = None) -> Any:
        """A stock diffusers pipeline of these modules (default: copies of the base's own)."""
        import diffusers

        parts = {name: part for name, part in self._parts.items() if name != "image_encoder"}
        text = modules.text if modules else self.new_text()
        parts[self.architecture.denoiser] = (
            modules.unet if modules else self.new_unet(trainable=True).requires_grad_(False)
        )
        for (tokenizer, encoder), own_tokenizer, own_encoder in zip(
            self.architecture.text_parts, text.tokenizers, text.encoders, strict=True
        ):
            parts[tokenizer], parts[encoder] = own_tokenizer, own_encoder
        parts["scheduler"] = type(parts["scheduler"]).from_config(self.scheduler_config)
        # leave out options for parts that are in `components` already
        options = {name: value for name, value in self.architecture.loading.items() if name not in parts}
        if parts.get(checkers.CHECKER) is not None:
            options["requires_safety_checker"] = True
        if self.architecture.size_conditioned:
            options["force_zeros_for_empty_prompt"] = self.zero_empty
        return getattr(diffusers, self.architecture.pipeline)(**parts, **options)

    # -- memory --------------------------------------------------------------------------------------------------

    # Parked: modules that are not in use are in main memory (RAM), and the GPU has one denoiser at a time. A GPU that
    # can't hold everything at once (`short`) always works like this, others only between `park` and `unpark`.

    @property
    def sparing(self) -> bool:
        """Whether GPU memory is planned: on a GPU, for a base whose memory was counted."""
        return self.device.kind == "cuda" and self.row.footprint is not None

    def _is_short(self) -> bool:
        free_gb = free_memory_gb(self.device) if self.sparing else None
        if free_gb is None or self.row.footprint is None:
            return False
        needed = roomy_gb(self.row.footprint, self.device.dtype, text_learns=self.architecture.text_learns)
        return needed > USABLE * free_gb

    @property
    def parked(self) -> bool:
        return bool(self._parked)

    def park(self, kept: Sequence[nn.Module] = ()) -> None:
        """Move modules that are not in use (VAE, frozen encoders, image filter, shared denoiser) to main memory, except
        `kept`. They are moved back only while a method here uses them.
        """
        checker = () if self._filter is None else (self._filter.checker,)
        idle = _without((self.vae, *self.text.encoders, *checker), kept)
        coming, leaving = _without(self._parked, idle), _without(idle, self._parked)
        self._parked = idle
        if not any(self._shared_unet is other for other in kept):
            self._shared_unet = None  # `shared` makes it again
        self._place(leaving, PARKED)
        self._place(coming, self.device.name)

    def own(self, modules: Modules) -> tuple[nn.Module, ...]:
        """Those of `modules` that are copies, not the base's own."""
        base = (*self.text.encoders, *(() if self._shared_unet is None else (self._shared_unet,)))
        return _without((modules.unet, *modules.text.encoders), base)

    def unpark(self) -> None:
        """Move everything back, as it was after loading."""
        if self.short:
            self.park()
            return
        parts, self._parked = self._parked, ()
        self._place(parts, self.device.name)

    @contextlib.contextmanager
    def awake(self, *parts: nn.Module) -> Iterator[None]:
        """Context in which the parked ones of `parts` are on the device."""
        called = [part for part in self._parked if any(part is other for other in parts)]
        self._place(called, self.device.name)
        try:
            yield
        finally:
            self._place(called, PARKED)

    @contextlib.contextmanager
    def aside(self, *parts: nn.Module) -> Iterator[None]:
        """Context in which `parts` are in main memory; does nothing unless modules are parked."""
        leaving = parts if self.parked else ()
        self._place(leaving, PARKED)
        try:
            yield
        finally:
            if leaving and not any(self._shared_unet is part for part in leaving):
                self._shared_unet = None  # it may have been made meanwhile
            self._place(leaving, self.device.name)

    def _place(self, parts: Sequence[nn.Module], device: str) -> None:
        for part in parts:
            nn.Module.to(part, device)
        if parts and device == PARKED and self.device.kind == "cuda":
            torch.cuda.empty_cache()

    # -- pictures ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, frames: np.ndarray) -> Moments:
        """uint8 RGB frames (n, H, W, 3) -> the VAE's posterior, scaled for the denoiser."""
        means, stds = [], []
        batch = VAE_BATCH if self.device.kind == "cpu" else 1  # one picture is enough work for a GPU
        with self._vae_awake():
            for start in range(0, len(frames), batch):
                part = torch.from_numpy(np.ascontiguousarray(frames[start : start + batch])).to(self.device.name)
                posterior = self.vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
                means.append((posterior.mean - self._shift) * self._scale)
                stds.append(posterior.std * self._scale)
        return Moments(torch.cat(means), torch.cat(stds))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (n, c, h, w) -> uint8 RGB frames (n, H, W, 3)."""
        frames = []
        with self._vae_awake():
            for part in latents.float().split(VAE_BATCH if self.device.kind == "cpu" else 1):
                pixels = self.vae.decode(part / self._scale + self._shift).sample
                frames.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.cat(frames).numpy()

    def refused(self, frames: np.ndarray) -> list[bool]:
        """Whether the image filter refuses each of the uint8 frames (n, H, W, 3): such are neither kept nor shown."""
        if self._filter is None:
            return [False] * len(frames)
        with self.awake(self._filter.checker):
            return self._filter.refused(frames)

    @contextlib.contextmanager
    def _vae_awake(self) -> Iterator[None]:
        # it needs more memory than the denoiser leaves; a caller with a denoiser of its own calls `aside` for it
        shared = () if self._shared_unet is None else (self._shared_unet,)
        with self.aside(*shared), self.awake(self.vae):
            yield

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    # -- the denoiser --------------------------------------------------------------------------------------------

    def predict(
        self, unet: nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The denoiser's prediction (b, c, h, w) for noisy latents (b, c, h, w) at `timesteps` (b,) or ()."""
        added: dict[str, Any] = {}
        if self.architecture.size_conditioned:
            height, width = (side * self.pixels_per_latent for side in noisy.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device, dtype=torch.float32)
            added |= {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(noisy), 6)}
        if conditioning.image_embeds is not None:
            added["image_embeds"] = [conditioning.image_embeds]
        with self.autocast():
            noisy = noisy.to(memory_format=torch.channels_last)
            return unet(noisy, timesteps, conditioning.states, added_cond_kwargs=added or None).sample

    def scheduler_class(self, name: str) -> Any:
        """A sampler's class by its diffusers name, with the interface that `bases/sampling.py` uses."""
        import diffusers

        return getattr(diffusers, name)

    def set_timesteps(self, sampler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        """Set the sampler's timesteps as the stock pipeline does, for latents of `shape` (c, h, w)."""
        # distilled samplers choose their steps from these, so there must be at least `steps`
        finer = (
            {"original_inference_steps": steps} if steps > sampler.config.get("original_inference_steps", steps) else {}
        )
        sampler.set_timesteps(steps, device=torch.device(self.device.name), **finer)

    def guidance_weight(self, guidance: float) -> float:
        """The weight w in `without + w * (with - without)` for the stock pipeline's guidance; 1 is no guidance."""
        return max(1.0, guidance)

    def objective(
        self,
        unet: nn.Module,
        latents: torch.Tensor,
        conditioning: Conditioning,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        snr_gamma: float | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted loss of each sample, (b,). `mask` (b, 1, h, w): weight of each position; None = all equal."""
        noisy = self.schedule.noisy(latents, noise, timesteps)
        predicted = self.predict(unet, noisy, timesteps, conditioning)
        return self.schedule.losses(predicted, latents, noise, timesteps, snr_gamma=snr_gamma, mask=mask)


@contextlib.contextmanager
def checkpointed(modules: Modules, switched_on: bool) -> Iterator[None]:
    """Context with gradient checkpointing: a forward pass of `modules` keeps only each block's input, and the backward
    pass computes the block again. Afterwards it is switched off again, because modules may be shared.
    """
    if not switched_on:
        yield
        return
    encoders = modules.text.encoders
    training = [encoder.training for encoder in encoders]
    modules.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    for encoder in encoders:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        encoder.train()  # transformers checkpoints only in training mode; CLIP has no dropout
    try:
        yield
    finally:
        modules.unet.disable_gradient_checkpointing()  # type: ignore[operator]
        for encoder, was_training in zip(encoders, training, strict=True):
            encoder.gradient_checkpointing_disable()  # type: ignore[operator]
            encoder.train(was_training)


def compiled_blocks(unet: nn.Module, *, backend: str = "inductor") -> CompiledBlocks:
    """The blocks that diffusers' `compile_repeated_blocks` compiles; but that would change `unet` for all its users."""
    repeated: Sequence[str] = unet._repeated_blocks  # type: ignore[assignment]
    blocks = [each for each in unet.modules() if type(each).__name__ in repeated]
    return {block: torch.compile(block.forward, backend=backend) for block in blocks}


@contextlib.contextmanager
def running(blocks: CompiledBlocks) -> Iterator[None]:
    """Context in which the blocks run compiled. Outside it they do not: compiled blocks round differently, which other
    users of the denoiser would notice, and each new picture size in a preview would be compiled again.
    """
    for block, forward in blocks.items():
        block.forward = forward  # on the instance; hides the class's
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _without(parts: Sequence[nn.Module], others: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple(part for part in parts if not any(part is other for other in others))


def moved(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """`module.to(device, dtype)`, without diffusers' override, which logs a needless warning each time."""
    return nn.Module.to(module, device, dtype)


def channels_last(module: nn.Module) -> nn.Module:
    """The module with weights in the channels-last layout, in which convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _alphas(config: dict[str, object]) -> torch.Tensor:
    """The base's alpha-bar per training timestep, (T,); with zero terminal SNR if the base has it."""
    from diffusers import DDIMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    schedule: Any = DDIMScheduler(**{key: config[key] for key in keys if config.get(key) is not None})
    alphas: torch.Tensor = schedule.alphas_cumprod
    return alphas.float()
