"""A loaded base model: encodes text and images, predicts, and hands out clean copies of its weights.

In: a `BaseRow`. Out: a `Family`. Its own weights never change: who trains or applies something asks for a copy.
Try it: `load_family(find_base("portrait-128")).pipeline()("portrait of man").images[0]`.

Families differ in how text is encoded and what the denoiser is told besides (`FAMILIES`), not in how they are trained.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.bases.objective import NoiseSchedule
from pipelines.bases.registry import BASES, BaseRow
from pipelines.bases.text import Conditioning, LearnedRows, Text
from pipelines.runtime import Device, is_worth_compiling, pick_device, tune
from pipelines.schema import ATTENTIONS, UserError

Progress = Callable[[str, float | None], None]  # a sentence, and the share done where it is known

# What a diffusers folder needs besides the weights; previews, ONNX and OpenVINO copies stay on the hub.
HUB_FILES = ("*.json", "*.txt")
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# Up to this many tokens per picture plain matrix products train at least as fast on a CPU as torch's fused attention:
# level in float32, 7-25% faster in bfloat16 (a step of the embedded base, one thread, torch 2.13); above it the
# (tokens x tokens) matrix costs too much memory.
PLAIN_ATTENTION_MAX_TOKENS = 1024
VAE_BATCH = 8


@dataclass(frozen=True)
class Architecture:
    """What the code of one family has to know."""

    pipeline: str  # stock class in diffusers
    text_parts: tuple[tuple[str, str], ...]  # (tokenizer, encoder) attributes of the pipeline
    penultimate: bool
    sampled_latents: bool  # train on samples of the VAE's posterior, or on its mean as the base itself was
    size_conditioned: bool  # the denoiser is told the picture's size and crop (SDXL)
    guidance: float  # that previews and class images are drawn with


FAMILIES: dict[str, Architecture] = {
    "portrait": Architecture("StableDiffusionPipeline", (("tokenizer", "text_encoder"),), False, False, False, 3.0),
    "sd15": Architecture("StableDiffusionPipeline", (("tokenizer", "text_encoder"),), False, True, False, 7.0),
    "sdxl": Architecture(
        "StableDiffusionXLPipeline",
        (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")),
        True,
        True,
        True,
        6.0,
    ),
}


@dataclass(frozen=True)
class Modules:
    """What draws: a denoiser and a text side. The base's own, or with one person learned."""

    unet: nn.Module
    text: Text


@dataclass(frozen=True)
class Moments:
    """The VAE's posterior of n pictures in the denoiser's scale: mean and standard deviation, each (n, c, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Moments:
        return Moments(self.mean[rows], self.std[rows])

    def latents(self, noise: torch.Tensor | None) -> torch.Tensor:
        """A sample, or with `None` the mean."""
        return self.mean if noise is None else self.mean + self.std * noise


class Family:
    """One loaded base. Share it freely: nothing here changes after loading."""

    def __init__(self, row: BaseRow, device: Device, pipeline: Any, folder: Path | None) -> None:
        self.row, self.device, self.folder = row, device, folder
        self.architecture = FAMILIES[row.family]
        self._parts: dict[str, Any] = dict(pipeline.components)
        for part in self._parts.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self._clean_unet: nn.Module = self._parts["unet"]
        self._shared_unet: nn.Module | None = None
        self.scheduler_config = dict(pipeline.scheduler.config)
        # half formats cost likeness, and overflow in SDXL
        self.vae: Any = moved(self._parts["vae"], device.name, torch.float32)
        self.zero_empty = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self.text = self._text(self._encoders(frozen=True))
        self.schedule = NoiseSchedule(_alphas(self.scheduler_config).to(device.name), self._prediction)

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def _prediction(self) -> str:
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def latent_channels(self) -> int:
        return int(self._clean_unet.config.in_channels)  # type: ignore[union-attr, arg-type]

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height_px: int | None = None, width_px: int | None = None) -> tuple[int, int, int]:
        """(c, h, w) for a picture; sizes are rounded down to what the network can divide."""
        step = self.pixels_per_latent * 2 ** (len(self._clean_unet.config.block_out_channels) - 1)  # type: ignore
        sides = [side or own for side, own in zip((height_px, width_px), self.row.shapes[0])]
        height, width = (max(1, side // step) * step // self.pixels_per_latent for side in sides)
        return self.latent_channels, height, width

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return self.device.autocast()

    # -- copies --------------------------------------------------------------------------------------------------

    def shared(self) -> Modules:
        """The untrained base, in the compute format, shared by everybody who does not change it."""
        if self._shared_unet is None:
            self._shared_unet = self.new_unet(trainable=False)
        return Modules(self._shared_unet, self.text)

    def new_unet(self, *, trainable: bool) -> nn.Module:
        """A copy of the clean denoiser on the device: float32 to be trained, else in the compute format.

        Frozen weights are cast once here: autocast would cast them again in every forward pass, which on a CPU costs
        about as much as the multiplications of a small batch.
        """
        unet = copy.deepcopy(self._clean_unet)
        dtype = torch.float32 if trainable else self.device.torch_dtype
        channels_last(moved(unet, self.device.name, dtype))
        self.use_plain_attention(unet)
        return unet.requires_grad_(trainable)

    def use_plain_attention(self, unet: nn.Module) -> None:
        """Choose the attention that is fastest here. Has no effect on the result beyond rounding."""
        from diffusers.models.attention_processor import AttnProcessor

        side = self.row.resolution_px // self.pixels_per_latent
        if self.device.kind == "cpu" and side * side <= PLAIN_ATTENTION_MAX_TOKENS:
            unet.set_attn_processor(AttnProcessor())  # type: ignore[operator]

    def compile_for(self, unet: nn.Module, steps: int) -> None:
        """Compile the repeated blocks of an own copy in place where so many steps repay it. Names, weights and saved
        files stay as they are; where the compiler fails, PyTorch goes on without it.
        """
        if unet is self._shared_unet or not is_worth_compiling(self.device, steps):
            return
        torch._dynamo.config.suppress_errors = True
        unet.compile_repeated_blocks()  # type: ignore[operator]

    def new_text(self) -> Text:
        """A copy of the text side with float32 encoders of its own, to be trained or adapted."""
        return self._text(self._encoders(frozen=False))

    def text_with(self, learned: LearnedRows) -> Text:
        """The shared encoders with learned rows; the tokenizers are copies that know the new tokens."""
        text = self._text(self.text.encoders)
        text.tokenizers = tuple(copy.deepcopy(tokenizer) for tokenizer in text.tokenizers)
        for tokenizer in text.tokenizers:
            tokenizer.add_tokens(list(learned.tokens))
        text.learned = learned
        return text

    def _encoders(self, *, frozen: bool) -> tuple[nn.Module, ...]:
        # on a CPU the encoders stay in float32: they are a hundredth of the work
        dtype = self.device.torch_dtype if frozen and self.device.kind == "cuda" else torch.float32
        names = [encoder for _, encoder in self.architecture.text_parts]
        return tuple(moved(copy.deepcopy(self._parts[name]), self.device.name, dtype) for name in names)

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
        parts["unet"] = modules.unet if modules else self.new_unet(trainable=True).requires_grad_(False)
        for (tokenizer, encoder), own_tokenizer, own_encoder in zip(
            self.architecture.text_parts, text.tokenizers, text.encoders, strict=True
        ):
            parts[tokenizer], parts[encoder] = own_tokenizer, own_encoder
        parts["scheduler"] = type(parts["scheduler"]).from_config(self.scheduler_config)
        options = {} if self.architecture.size_conditioned else {"requires_safety_checker": False}
        if self.architecture.size_conditioned:
            options = {"force_zeros_for_empty_prompt": self.zero_empty, "add_watermarker": False}
        return getattr(diffusers, self.architecture.pipeline)(**parts, **options)

    # -- pictures ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, frames: np.ndarray) -> Moments:
        """uint8 RGB frames (n, H, W, 3) -> the VAE's posterior, scaled as the denoiser expects it."""
        means, stds = [], []
        for start in range(0, len(frames), VAE_BATCH):
            part = torch.from_numpy(np.ascontiguousarray(frames[start : start + VAE_BATCH])).to(self.device.name)
            posterior = self.vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
            means.append((posterior.mean - self._shift) * self._scale)
            stds.append(posterior.std * self._scale)
        return Moments(torch.cat(means), torch.cat(stds))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (n, c, h, w) -> uint8 RGB frames (n, H, W, 3)."""
        frames = []
        for part in latents.float().split(VAE_BATCH if self.device.kind == "cpu" else 1):
            pixels = self.vae.decode(part / self._scale + self._shift).sample
            frames.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.cat(frames).numpy()

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
        """The denoiser's answer (b, c, h, w) for noisy latents (b, c, h, w) at `timesteps` (b,) or ()."""
        added = None
        if self.architecture.size_conditioned:
            height, width = (side * self.pixels_per_latent for side in noisy.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device, dtype=torch.float32)
            added = {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(noisy), 6)}
        with self.autocast():
            noisy = noisy.to(memory_format=torch.channels_last)
            return unet(noisy, timesteps, conditioning.states, added_cond_kwargs=added).sample

    def objective(
        self,
        unet: nn.Module,
        latents: torch.Tensor,
        conditioning: Conditioning,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        snr_gamma: float | None,
    ) -> torch.Tensor:
        """The weighted loss of each sample, (b,)."""
        noisy = self.schedule.noisy(latents, noise, timesteps)
        predicted = self.predict(unet, noisy, timesteps, conditioning)
        return self.schedule.losses(predicted, latents, noise, timesteps, snr_gamma=snr_gamma)


def moved(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """`module.to(device, dtype)`, without diffusers' override, which logs advice about nothing each time."""
    return nn.Module.to(module, device, dtype)


def channels_last(module: nn.Module) -> nn.Module:
    """Convolution weights in the layout in which convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _alphas(config: dict[str, Any]) -> torch.Tensor:
    """The base's alpha-bar per training timestep, zero terminal SNR included where the base has it."""
    from diffusers import DDIMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    schedule: Any = DDIMScheduler(**{key: config[key] for key in keys if config.get(key) is not None})
    alphas: torch.Tensor = schedule.alphas_cumprod
    return alphas.float()


# -- loading -----------------------------------------------------------------------------------------------------


def load_family(
    row: BaseRow, device: Device | None = None, *, progress: Progress | None = None, attention: str = "sdpa"
) -> Family:
    """Load a base onto `device` (default: the best here). `attention`: one of ATTENTIONS.

    Raises UserError when its files are missing and the hub does not answer, when they are damaged, and where xformers
    was asked for and is not there.
    """
    import diffusers

    device = device or pick_device()
    tune(device)
    report = progress or (lambda _text, _share: None)
    pipeline_class = getattr(diffusers, FAMILIES[row.family].pipeline)
    # float16 is how the real bases are stored; a small base, or a CPU, takes float32 and no rounding
    dtype = torch.float16 if device.kind == "cuda" and row.family != "portrait" else torch.float32
    options: dict[str, Any] = {"dtype": {"vae": torch.float32, "default": dtype}, "local_files_only": True}
    if not FAMILIES[row.family].size_conditioned:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        options |= {"add_watermarker": False}
    folder: Path | None
    with quiet():
        if row.is_single_file:
            configuration = _single_file_configuration(row, report)
            report(f"loading {row.title}", None)
            options["dtype"] = dtype
            folder = None
            pipeline = _load(row, pipeline_class.from_single_file, row.path, config=str(configuration), **options)
        else:
            folder = _local_folder(row, report)
            variant = row.variant if row.repo else _variant_of(folder)
            report(f"loading {row.title}", None)
            pipeline = _load(row, pipeline_class.from_pretrained, str(folder), variant=variant, **options)
    choose_attention(pipeline.unet, device, attention)
    report(f"{row.title} is ready", 1.0)
    return Family(row, device, pipeline, folder)


def choose_attention(unet: nn.Module, device: Device, attention: str) -> None:
    """PyTorch's own attention, or xformers' on an NVIDIA GPU. Every copy of `unet` keeps the choice."""
    if attention == "sdpa":
        return
    if attention not in ATTENTIONS:
        raise UserError(f"There is no attention {attention}. Choose one of: {', '.join(ATTENTIONS)}.")
    if device.kind != "cuda":
        raise UserError("xformers needs an NVIDIA GPU, and this runs without one. Leave --attention out.")
    if importlib.util.find_spec("xformers") is None:
        raise UserError("xformers is not installed. Add it with: pip install -r requirements-gpu.txt")
    # `set_attention_backend` does nothing on these UNets and says so nowhere (diffusers 0.42.1)
    unet.enable_xformers_memory_efficient_attention()  # type: ignore[operator]


def _load(row: BaseRow, loader: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return loader(*args, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{row.title} can't be loaded: {reason} Check its files, or choose another base.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and advice of the libraries meanwhile: what a person should know are our events and errors."""
    import diffusers
    import transformers

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [(logger.is_progress_bar_enabled(), logger.get_verbosity()) for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, (shown, verbosity) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if shown:
                logger.enable_progress_bar()


def _local_folder(row: BaseRow, report: Progress) -> Path:
    """The folder of a row's files, fetched from the hub when they are not here."""
    if row.repo is None:
        folder = row.folder
        if folder is None or not (folder / "model_index.json").is_file():
            raise UserError(
                f"{row.name} is missing: there is no {folder and folder.name}/model_index.json. Get the whole "
                "repository again, or rebuild it with: python tools/build_portrait_base.py"
            )
        return folder
    suffix = f".{row.variant}" if row.variant else ""
    return _from_hub(row, (*HUB_FILES, f"*/*{suffix}.safetensors"), report, complete=_has_weights)


def _has_weights(folder: Path) -> bool:
    encoders = [part for part in ("text_encoder", "text_encoder_2") if (folder / part / "config.json").is_file()]
    return (folder / "model_index.json").is_file() and all(
        any((folder / part).glob("*.safetensors")) for part in ("unet", "vae", *(encoders or ["text_encoder"]))
    )


def _from_hub(row: BaseRow, patterns: Sequence[str], report: Progress, *, complete: Callable[[Path], bool]) -> Path:
    """A snapshot of the row's pinned revision: from the hub's cache on this machine, else downloaded with progress."""
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    assert row.repo is not None and row.revision is not None
    short = row.repo.split("/")[-1]
    wanted: dict[str, Any] = {
        "revision": row.revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": ["safety_checker/*", "vae_*/*"],
    }
    with contextlib.suppress(OSError):
        folder = Path(snapshot_download(row.repo, local_files_only=True, **wanted))
        if complete(folder):
            return folder

    class Reported(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                report(f"downloading {short}: {self.n:.0f} of {self.total:.0f} {self.unit}", self.n / self.total)
            return shown

    report(f"downloading {short}", 0.0)
    try:
        folder = Path(snapshot_download(row.repo, tqdm_class=Reported, etag_timeout=5, **wanted))
        if complete(folder):
            return folder
        reason: Exception | None = None
    except Exception as error:  # the hub's own, httpx's and the system's errors: to the person all mean one thing
        reason = error
    include = " ".join(f'"{pattern}"' for pattern in patterns)
    raise UserError(
        f"{short} is not on this machine and the hub did not answer; pick portrait-128 or download it with: "
        f"hf download {row.repo} --revision {row.revision} --include {include}"
    ) from reason


def _variant_of(folder: Path) -> str | None:
    """ "fp16" for a local folder that holds only that variant."""
    plain = [file for file in (folder / "unet").glob("*.safetensors") if ".fp16" not in file.name]
    return None if plain else "fp16"


def _single_file_configuration(row: BaseRow, report: Progress) -> Path:
    """Configuration and tokenizers for a single-file checkpoint: the folder beside it, else the hub's cache."""
    assert row.path is not None
    beside = Path(row.path).with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    like = next(known for known in BASES.values() if known.family == row.family)
    try:
        return _from_hub(like, HUB_FILES, report, complete=lambda folder: (folder / "model_index.json").is_file())
    except UserError as error:
        raise UserError(
            f"{Path(row.path).name} needs the configuration and tokenizer of {like.title} (2 MB), which are not on "
            f"this machine, and the hub did not answer. Put them into a folder {beside.name}/ beside it, or download "
            f"them with: "
            f'hf download {like.repo} --revision {like.revision} --include "*.json" "*.txt"'
        ) from error
