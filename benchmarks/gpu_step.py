"""Time of a training step on a GPU, ours and of diffusers' scripts: full-size SD 1.5 and SDXL with random weights.

    python benchmarks/gpu_step.py [--cases sd15-lora-1,sdxl-lora-4] [--json F]
    python benchmarks/gpu_step.py --tiny        # the same code on a CPU in seconds; its figures mean nothing

In: nothing; the bases are made from their published configurations in a temporary folder, so nothing is downloaded
(9 GB of disk). Out: per case the step's time, arithmetic (`torch.utils.flop_counter`), its rate as a share of that of a
large bfloat16 product on this GPU, peak memory, and whether the bars hold; exit code 1 if one does not.

"likeness" is the app's own `load_family` and `train`, stopped after the timed steps, with memory plan, cached latents
and text, saving and verification; its peak is that of the whole training. "script" is the loop body of diffusers'
train_dreambooth_lora.py, train_dreambooth_lora_sdxl.py and train_dreambooth.py with bfloat16, TF32 and precomputed
text, with each combination of --gradient_checkpointing, --enable_xformers_memory_efficient_attention and
--use_8bit_adam that is possible here; its best is the fastest that fits. Only the denoiser and the VAE, which its loop
needs, are on the GPU. Reading photos is not timed in either. LoRA has rank 16 on attention in both; text encoders do
not train.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.bases.memory import CONTEXT_GB
from pipelines.bases.registry import BASES, BaseRow, find_base
from pipelines.core import presets
from pipelines.core.device import Device, is_worth_compiling, pick_device, tune
from pipelines.core.records import Recipe, UserError

FASTER = 2.0  # bar: the script's step time / ours
WITHIN_GB = {"sd15-lora": 6.0, "sdxl-lora": 12.0}  # bar: the shipped recipe trains on a GPU of that size
WARM = 5
TRAINED_TIMESTEPS = 1000
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
# The published configurations of stable-diffusion-v1-5 and stable-diffusion-xl-base-1.0.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu",
}  # fmt: skip
CHECKER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14,
}  # fmt: skip
TINY_PX = 64
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TINY_CLIP = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "projection_dim": 16, "vocab_size": 600,
}  # fmt: skip
TINY_CHECKER = TINY_CLIP | {"image_size": 32, "patch_size": 16}
TINY_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 8, "block_out_channels": (16, 16), "layers_per_block": 1, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8, "cross_attention_dim": 16,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}  # fmt: skip
TINY_UNETS["sdxl"] = TINY_UNETS["sd15"] | {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
    "use_linear_projection": True, "cross_attention_dim": 32,
}  # fmt: skip
DEFAULT_CASES = (
    "sd15-lora-1", "sd15-lora-8", "sd15-dreambooth-1", "sd15-dreambooth-8", "sdxl-lora-1", "sdxl-lora-4"
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One way of training in one case."""

    case: str
    who: str  # "likeness" | "script"
    how: str  # the script's flags, or what the app chose
    step_ms: float
    step_tflop: float
    tflop_per_s: float
    share_of_card: float  # its rate / that of a large matrix product on this GPU
    peak_gb: float | None  # None on a CPU
    first_step_s: float  # from the first event to that of the first step, with compiling, if any
    shipped: bool = True  # likeness: what the app would do here; script: its fastest


@dataclass(frozen=True)
class Bar:
    case: str
    what: str
    figure: str
    met: bool


# -- the bases -----------------------------------------------------------------------------------------------------


def write_base(kind: str, folder: Path, device: Device, *, tiny: bool) -> BaseRow:
    """Write a base of this architecture with random weights, in the format of the real one; returns its row."""
    import diffusers
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from pipelines.bases.family import moved
    from pipelines.core.device import quiet

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder / "tokenizer")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first, second = (TINY_CLIP, TINY_CLIP) if tiny else (CLIP_L, CLIP_G)
    seeing = TINY_CHECKER if tiny else CHECKER
    filtered = CLIPConfig(text_config=first, vision_config=seeing, projection_dim=first["projection_dim"])
    makers: dict[str, Callable[[], Any]] = {
        "vae": lambda: diffusers.AutoencoderKL(**(VAE | (TINY_VAE if tiny else {}))),
        "unet": lambda: diffusers.UNet2DConditionModel(**(TINY_UNETS if tiny else UNETS)[kind]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**first, **ids)),
    }
    if kind == "sdxl":
        makers["text_encoder_2"] = lambda: CLIPTextModelWithProjection(CLIPTextConfig(**second, **ids))
    else:  # SDXL would use SD 1.5's image filter, which is missing here: 0.6 GB less
        makers["safety_checker"] = lambda: StableDiffusionSafetyChecker(filtered)
    parts: dict[str, Any] = {}
    for name, make in makers.items():
        with torch.device(device.name):
            part = make()
        parts[name] = moved(part, "cpu", torch.float32 if tiny else torch.float16)
    if kind == "sdxl":
        parts["tokenizer_2"] = tokenizer
    else:
        side = {"shortest_edge": seeing["image_size"]}
        parts["feature_extractor"] = CLIPImageProcessor(size=side, crop_size=seeing["image_size"])
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    maker = diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
    with quiet():
        maker(tokenizer=tokenizer, scheduler=scheduler, **parts).save_pretrained(folder)
    row = replace(BASES[kind], repo=None, revision=None, variant=None, path=str(folder))
    return replace(row, resolution_px=TINY_PX, buckets=(), footprint=None) if tiny else row


def _tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer with single letters: here only the number of tokens matters, 77."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)


# -- ours ----------------------------------------------------------------------------------------------------------


def shipped_recipe(case: str) -> Recipe:
    """The shipped recipe for this base and method."""
    kind, method = case.split("-")[:2]
    return presets.recipe(find_base(kind), method, "good", class_word="man")


def compared_recipe(case: str) -> Recipe:
    """The shipped recipe with the script's settings of this case."""
    return shipped_recipe(case).replaced(
        batch=int(case.split("-")[2]), rank=16, alpha=16.0, targets="attention", text_learning_rate=0.0,
        prior_weight=0.0,
    )  # fmt: skip


def ours(
    case: str, row: BaseRow, recipe: Recipe, device: Device, *, repeats: int, rate: float, how: str = "as shipped",
    compiled: bool = False, card_gb: float | None = None,
) -> Figures:  # fmt: skip
    """A training by the app's own code on a GPU of `card_gb` (None: this one), stopped after the timed steps."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipelines.bases.loading import load_family
    from pipelines.core.control import Control
    from pipelines.training.batches import TrainingData
    from pipelines.training.loop import train

    height, width = row.shapes[0]
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    data = TrainingData(frames, ("portrait of {subject}",) * 4, frames[:0])
    # no previews, checkpoints or validation during the timed steps
    recipe = recipe.replaced(preview_every_s=0.0, checkpoint_every=recipe.steps, watch_every=0)
    last = WARM + repeats
    reached = 0
    with (
        tempfile.TemporaryDirectory(prefix="likeness-gpu-") as folder,
        card_of(card_gb, device),
        patch("pipelines.core.device.COMPILE_FROM_TFLOP", 0.0 if compiled else math.inf),
    ):
        forget(device)
        family = load_family(row, device)
        # one step more, not timed, to count its arithmetic
        events = train(
            recipe, data, Path(folder), family=family, control=Control(stop=lambda: reached > last),
        )  # fmt: skip
        begun = time.perf_counter()
        first = since = until = 0.0
        tflop = 0.0
        for event in events:
            if event.kind != "step":
                if event.kind == "start":
                    how += f"; {event.data.memory}"
                    begun = time.perf_counter()
                continue
            reached = event.step
            if reached in (1, WARM, last):
                wait(device)
                first, since, until = (
                    time.perf_counter() if reached == at else before
                    for at, before in zip((1, WARM, last), (first, since, until), strict=True)
                )
            if reached == last:
                # the counter does not count compiled code
                with FlopCounterMode(display=False) if not compiled else contextlib.nullcontext() as counter:
                    reached = next(events).step
                tflop = counter.get_total_flops() / 1e12 if counter is not None else 0.0
        peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.kind == "cuda" else None
        del events, family
    seconds = (until - since) / repeats
    return _figures(case, "likeness", how, seconds, tflop, rate, peak_gb, first - begun)


@contextlib.contextmanager
def card_of(card_gb: float | None, device: Device) -> Iterator[None]:
    """Context in which PyTorch gets only as much memory as a GPU of that size has, less the CUDA context."""
    import torch

    if card_gb is None or device.kind != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    total, index = torch.cuda.get_device_properties(device.name).total_memory, torch.device(device.name).index
    torch.cuda.set_per_process_memory_fraction(min(1.0, (card_gb - CONTEXT_GB) * 1e9 / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


# -- the script's --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    checkpointing: bool
    xformers: bool
    eight_bits: bool

    def __str__(self) -> str:
        said = {
            "--gradient_checkpointing": self.checkpointing,
            "--enable_xformers_memory_efficient_attention": self.xformers,
            "--use_8bit_adam": self.eight_bits,
        }
        return " ".join(["--mixed_precision bf16 --allow_tf32", *(flag for flag, on in said.items() if on)])


def possible_flags(device: Device) -> list[Flags]:
    def installed(name: str) -> tuple[bool, ...]:
        there = device.kind == "cuda" and importlib.util.find_spec(name) is not None
        return (False, True) if there else (False,)

    return [Flags(*each) for each in itertools.product((False, True), installed("xformers"), installed("bitsandbytes"))]


def script_step(case: str, row: BaseRow, device: Device, flags: Flags, *, tiny: bool) -> Callable[[], None]:
    """The loop body of the example scripts, with only the modules on the GPU that it needs."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig

    from pipelines.bases.family import moved

    kind, method, count = case.split("-")
    batch, dtype, config = int(count), device.torch_dtype, (TINY_UNETS if tiny else UNETS)[kind]
    with torch.device(device.name):
        unet: Any = UNet2DConditionModel(**config)
        # SDXL's script keeps it in float32
        vae: Any = AutoencoderKL(**(VAE | (TINY_VAE if tiny else {})))
    moved(vae, device.name, torch.float32 if kind == "sdxl" else dtype).requires_grad_(False)
    if method == "lora":
        moved(unet, device.name, dtype).requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets))
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.train()
    if flags.checkpointing:
        unet.enable_gradient_checkpointing()
    if flags.xformers:
        unet.enable_xformers_memory_efficient_attention()
    if flags.eight_bits:
        from bitsandbytes.optim import AdamW8bit

        optimizer: Any = AdamW8bit(parameters, lr=1e-4)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    height, width = row.shapes[0]
    pixels = torch.rand(batch, 3, height, width, device=device.name) * 2 - 1
    states = torch.randn(batch, 77, config["cross_attention_dim"], device=device.name, dtype=dtype)
    added = None
    if kind == "sdxl":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sizes = torch.tensor([height, width, 0, 0, height, width], device=device.name)
        added = {
            "text_embeds": torch.randn(batch, pooled, device=device.name, dtype=dtype),
            "time_ids": sizes.expand(batch, 6),
        }

    def step() -> None:
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
        latents = latents.to(dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, TRAINED_TIMESTEPS, (batch,), device=device.name)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with device.autocast():
            predicted = unet(noisy, timesteps, states, added_cond_kwargs=added).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.detach().item()  # for its progress bar

    return step


def script(
    case: str,
    row: BaseRow,
    device: Device,
    flags: Flags,
    *,
    repeats: int,
    rate: float,
    tiny: bool,
    counted_tflop: float,
) -> Figures | None:
    """Figures of the script; None if it does not fit. `counted_tflop`: used when its arithmetic can't be counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    forget(device)
    try:
        begun = time.perf_counter()
        step = script_step(case, row, device, flags, tiny=tiny)
        if device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, first = timed(step, device, repeats=repeats)
        peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.kind == "cuda" else None
        with FlopCounterMode(display=False) as counter:
            step()
    except torch.cuda.OutOfMemoryError:
        return None
    # the counter does not count xformers' attention
    tflop = counted_tflop if flags.xformers else counter.get_total_flops() / 1e12
    return _figures(case, "script", str(flags), seconds, tflop, rate, peak_gb, first - begun)


# -- measuring -----------------------------------------------------------------------------------------------------


def _figures(
    case: str, who: str, how: str, seconds: float, tflop: float, rate: float, peak_gb: float | None, first_s: float
) -> Figures:
    return Figures(case, who, how, seconds * 1e3, tflop, tflop / seconds, tflop / seconds / rate, peak_gb, first_s)


def wait(device: Device) -> None:
    import torch

    if device.kind == "cuda":
        torch.cuda.synchronize(device.name)


def forget(device: Device) -> None:
    """Free the GPU memory of the previous measurement and reset the peak."""
    import torch

    gc.collect()
    if device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matrix_rate(device: Device, side: int) -> float:
    """Measured TFLOP/s of one large matrix product in the compute dtype on this GPU."""
    import torch

    a, b = (torch.randn(side, side, device=device.name, dtype=device.torch_dtype) for _ in range(2))
    seconds, _ = timed(lambda: a @ b, device, repeats=20)
    return 2 * side**3 / seconds / 1e12


def timed(work: Callable[[], Any], device: Device, *, repeats: int) -> tuple[float, float]:
    """(median seconds of one call after some to warm up, the time at which the first had ended)."""
    seconds, first = [], 0.0
    for index in range(WARM + repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        ended = time.perf_counter()
        first = first or ended
        if index >= WARM:
            seconds.append(ended - started)
    return statistics.median(seconds), first


def measure(case: str, row: BaseRow, device: Device, *, repeats: int, rate: float, tiny: bool) -> list[Figures]:
    """All figures of one case; one of each side is marked as `shipped`."""
    import torch

    scripts: list[Figures] = []
    counted: dict[bool, float] = {}
    for flags in possible_flags(device):
        found = script(
            case, row, device, flags, repeats=repeats, rate=rate, tiny=tiny,
            counted_tflop=counted.get(flags.checkpointing, 0.0),
        )  # fmt: skip
        if found is not None:
            counted.setdefault(flags.checkpointing, found.step_tflop)
            scripts.append(found)
    best = min(scripts, key=lambda each: each.step_ms, default=None)
    recipe = compared_recipe(case)
    work = recipe.steps * recipe.batch * (row.forward_tflop or 0.0)
    compiles = is_worth_compiling(device, work)
    try:
        own = [ours(case, row, recipe, device, repeats=repeats, rate=rate)]
    except (UserError, torch.cuda.OutOfMemoryError) as error:
        print(f"{case}: {error}", flush=True)
        own = []
    if own and device.kind == "cuda" and importlib.util.find_spec("triton") is not None:
        found = ours(case, row, recipe, device, repeats=repeats, rate=rate, how="compiled", compiled=True)
        # the arithmetic is that of the uncompiled run
        own.append(_figures(
            case, "likeness", found.how, found.step_ms / 1e3, own[0].step_tflop, rate, found.peak_gb, found.first_step_s
        ))  # fmt: skip
    own = [replace(each, shipped=compiles == each.how.startswith("compiled")) for each in own]
    if best is not None and best.peak_gb is not None and any((each.peak_gb or 0.0) > best.peak_gb for each in own):
        # this GPU may be larger: check that our training also runs with the script's memory
        with contextlib.suppress(UserError, torch.cuda.OutOfMemoryError):
            own.append(replace(
                ours(case, row, recipe, device, repeats=repeats, rate=rate, how=WITHIN_THEIRS,
                     card_gb=best.peak_gb + CONTEXT_GB),
                shipped=False,
            ))  # fmt: skip
    return [*(replace(each, shipped=each is best) for each in scripts), *own]


WITHIN_THEIRS = "with no more memory than the script"


def within(kind_method: str, row: BaseRow, device: Device, *, repeats: int, rate: float) -> tuple[Figures | None, Bar]:
    """Figures and bar of the shipped recipe on a GPU of the bar's size."""
    import torch

    case, size = f"{kind_method}-{shipped_recipe(kind_method).batch}", WITHIN_GB[kind_method]
    what = f"the shipped recipe trains within {size:g} GB"
    try:
        found = ours(
            case, row, shipped_recipe(kind_method), device, repeats=repeats, rate=rate, how=f"on {size:g} GB",
            card_gb=size,
        )  # fmt: skip
    except (UserError, torch.cuda.OutOfMemoryError) as error:
        return None, Bar(case, what, str(error), met=False)
    needed = (found.peak_gb or 0.0) + CONTEXT_GB
    return replace(found, shipped=False), Bar(case, what, f"{needed:.2f} GB with CUDA's own", met=needed <= size)


def bars(found: Sequence[Figures]) -> list[Bar]:
    """Ours against the script's best, per case. No bars without a GPU, or if no script fits."""
    judged = []
    for case in dict.fromkeys(each.case for each in found):
        best = next((each for each in found if (each.case, each.who, each.shipped) == (case, "script", True)), None)
        own = next((each for each in found if (each.case, each.who, each.shipped) == (case, "likeness", True)), None)
        if best is None or best.peak_gb is None:
            continue
        if own is None:
            judged.append(Bar(case, "it trains where the script does", "it does not", met=False))
            continue
        ratio = best.step_ms / own.step_ms
        judged.append(
            Bar(case, f"a step {FASTER:g} times as fast as the script's best", f"{ratio:.2f}x", ratio >= FASTER)
        )
        tight = [each for each in found if each.case == case and each.how.startswith(WITHIN_THEIRS)]
        least = min(each.peak_gb or math.inf for each in (own, *tight))
        judged.append(
            Bar(
                case, "peak memory at most the script's", f"{least:.2f} of {best.peak_gb:.2f} GB", least <= best.peak_gb
            )
        )
    return judged


def table(found: Sequence[Figures]) -> str:
    lines = [
        "| case | who | how | step | ratio | arithmetic | rate | of the card's | peak memory | first step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        best = next((f for f in found if (f.case, f.who, f.shipped) == (each.case, "script", True)), None)
        ratio = "" if best is None or each.who == "script" else f"{best.step_ms / each.step_ms:.2f}x"
        peak = "-" if each.peak_gb is None else f"{each.peak_gb:.2f} GB"
        who = f"**{each.who}**" if each.shipped else each.who
        lines.append(
            f"| {each.case} | {who} | {each.how} | {each.step_ms:.1f} ms | {ratio} | {each.step_tflop:.3g} TFLOP | "
            f"{each.tflop_per_s:.3g} TFLOP/s | {each.share_of_card:.0%} | {peak} | {each.first_step_s:.1f} s |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(DEFAULT_CASES), help="BASE-METHOD-BATCH, comma-separated")
    parser.add_argument("--repeats", type=int, default=20, help="steps whose time counts (20)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: whether this program runs, nothing more")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    from benchmarks.compare_draft import conditions

    device = pick_device("cpu" if options.tiny else None)
    if device.kind != "cuda" and not options.tiny:
        parser.error("there is no NVIDIA GPU here; --tiny runs this program without one")
    tune(device)
    rate = matrix_rate(device, 256 if options.tiny else 8192)
    about = conditions() | {"device": device.reason, "matrix_tflop_per_s": round(rate, 3), "tiny": options.tiny}
    print(json.dumps(about, indent=1), flush=True)
    found: list[Figures] = []
    judged: list[Bar] = []
    cases = options.cases.split(",")
    for kind in dict.fromkeys(case.split("-")[0] for case in cases):
        with tempfile.TemporaryDirectory(prefix=f"likeness-{kind}-") as folder:
            row = write_base(kind, Path(folder), device, tiny=options.tiny)
            for case in (each for each in cases if each.startswith(f"{kind}-")):
                found += measure(case, row, device, repeats=options.repeats, rate=rate, tiny=options.tiny)
                print(table(found).splitlines()[-1], flush=True)
            if f"{kind}-lora" in WITHIN_GB and device.kind == "cuda":
                figures, bar = within(f"{kind}-lora", row, device, repeats=options.repeats, rate=rate)
                found += [] if figures is None else [figures]
                judged.append(bar)
    judged = [*bars(found), *judged]
    print("\n" + table(found) + "\n")
    for bar in judged:
        print(f"{'held' if bar.met else 'MISSED'}: {bar.case}: {bar.what}: {bar.figure}")
    if options.json:
        saved = {"conditions": about, "figures": [asdict(each) for each in found], "bars": [asdict(b) for b in judged]}
        options.json.write_text(json.dumps(saved, indent=1) + "\n")
    return 0 if all(bar.met for bar in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
