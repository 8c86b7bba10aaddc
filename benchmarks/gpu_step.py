"""One training step on a GPU: full-size SD 1.5 and SDXL with random weights, ours beside the scripts' at their best.

    python benchmarks/gpu_step.py [--cases sd15-lora-1,sdxl-lora-4] [--json F]
    python benchmarks/gpu_step.py --tiny        # the same code on a CPU in seconds; its figures mean nothing

In: nothing; the models are built from their configurations, so nothing is downloaded. Out: per case the step's time,
arithmetic (`torch.utils.flop_counter`) and its rate beside what the card reaches on a large bfloat16 product, and peak
memory. "script" is the body of the loop of diffusers' train_dreambooth_lora.py / train_dreambooth.py with every flag
that helps (bf16, TF32, precomputed text embeddings): the VAE encodes in each step, AdamW is PyTorch's default. Reading
photos is in neither. LoRA is rank 16 on attention in both.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.bases.registry import BASES
from pipelines.runtime import Device, pick_device
from pipelines.schema import Recipe

if TYPE_CHECKING:
    from pipelines.bases.family import Family

MEMORY_BARS_GB = {"sd15-lora-1": 6.0, "sdxl-lora-1": 12.0}
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
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TINY_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 8, "block_out_channels": (16, 16), "layers_per_block": 1, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8, "cross_attention_dim": 16,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}  # fmt: skip
TINY_UNETS["sdxl"] = TINY_UNETS["sd15"] | {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
    "use_linear_projection": True,
}  # fmt: skip
TOKENS = 77
DEFAULT_CASES = (
    "sd15-lora-1", "sd15-lora-8", "sd15-dreambooth-1", "sd15-dreambooth-8", "sdxl-lora-1", "sdxl-lora-4"
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One side of one case."""

    case: str
    who: str
    step_ms: float
    step_tflop: float
    tflop_per_s: float
    share_of_card: float  # of what a large matrix product reaches here
    peak_gb: float | None  # None on a CPU


def build_family(kind: str, device: Device, *, tiny: bool) -> Family:
    """A base of this architecture with random weights. Its text side is a stub: conditioning is made up below."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from pipelines.bases.family import Family

    torch.manual_seed(0)
    frozen = torch.float16 if device.kind == "cuda" else torch.float32  # as the real ones are stored
    with torch.device(device.name):
        unet = UNet2DConditionModel(**(TINY_UNETS if tiny else UNETS)[kind]).to(frozen)
        vae = AutoencoderKL(**(VAE | (TINY_VAE if tiny else {})))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler}
    for name in ("text_encoder", "text_encoder_2"):
        parts[name] = torch.nn.Linear(1, 1)
    parts |= {"tokenizer": None, "tokenizer_2": None}
    pipeline = SimpleNamespace(components=parts, scheduler=scheduler, config={})
    row = replace(BASES[kind], resolution_px=64, buckets=()) if tiny else BASES[kind]
    return Family(row, device, pipeline, None)


def conditioning(family: Family, batch: int) -> Any:
    """Random text states of the right shape."""
    import torch

    from pipelines.bases.text import Conditioning

    config: Any = family.shared().unet.config
    device, dtype = family.device.name, family.device.torch_dtype
    states = torch.randn(batch, TOKENS, config.cross_attention_dim, device=device, dtype=dtype)
    if not family.architecture.size_conditioned:
        return Conditioning(states)
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return Conditioning(states, torch.randn(batch, width, device=device, dtype=dtype))


def ours(family: Family, method: str, batch: int) -> Callable[[], None]:
    """The body of `pipelines.training`'s loop: cached latents and words, frozen weights in bfloat16, fused AdamW."""
    import torch

    from pipelines.methods import method as find_method
    from pipelines.methods.base import trained

    recipe = Recipe(family.row.name, method, batch=batch, rank=16, alpha=16.0, targets="attention")
    learner = find_method(method).learner(family, recipe)
    groups = learner.groups()
    parameters = trained(groups)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=family.device.kind in ("cpu", "cuda"))
    told, shape = conditioning(family, batch), (batch, *family.latent_shape())
    latents = torch.randn(shape, device=family.device.name)

    def step() -> None:
        noise = torch.randn(shape, device=family.device.name)
        timesteps = torch.randint(0, len(family.schedule), (batch,), device=family.device.name)
        losses = family.objective(learner.modules.unet, latents, told, noise, timesteps, snr_gamma=recipe.snr_gamma)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def script(family: Family, method: str, batch: int) -> Callable[[], None]:
    """The body of the example scripts' loop, with their best flags."""
    import copy

    import torch
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    device, dtype = family.device, family.device.torch_dtype
    unet: Any = copy.deepcopy(family._clean_unet)
    if method == "lora":
        unet.requires_grad_(False).to(device.name, dtype)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets))
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
    else:
        unet.to(device.name, torch.float32).requires_grad_(True)
        parameters = list(unet.parameters())
    unet.train()
    vae: Any = copy.deepcopy(family.vae)
    vae_dtype = torch.float32 if family.architecture.size_conditioned else dtype  # SDXL's script keeps it in float32
    vae.to(device.name, vae_dtype)
    scheduler = DDPMScheduler.from_config(family.scheduler_config)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    told = conditioning(family, batch)
    _, height, width = family.latent_shape()
    scale = family.pixels_per_latent
    pixels = torch.rand(batch, 3, height * scale, width * scale, device=device.name) * 2 - 1
    added = None
    if family.architecture.size_conditioned:
        sizes = torch.tensor([height * scale, width * scale, 0, 0, height * scale, width * scale], device=device.name)
        added = {"text_embeds": told.pooled, "time_ids": sizes.expand(batch, 6)}

    def step() -> None:
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae_dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), device=device.name)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with device.autocast():
            predicted = unet(noisy.to(dtype), timesteps, told.states, added_cond_kwargs=added).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.detach().item()

    return step


def matrix_rate(device: Device, side: int) -> float:
    """TFLOP/s of one large product in the compute format: what this card reaches, whatever its data sheet says."""
    import torch

    a, b = (torch.randn(side, side, device=device.name, dtype=device.torch_dtype) for _ in range(2))
    seconds = timed(lambda: a @ b, device, repeats=20)
    return 2 * side**3 / seconds / 1e12


def timed(work: Callable[[], Any], device: Device, *, repeats: int) -> float:
    """Median seconds of one call; the first three warm up."""
    import statistics

    import torch

    wait = torch.cuda.synchronize if device.kind == "cuda" else (lambda: None)
    seconds = []
    for index in range(repeats + 3):
        wait()
        started = time.perf_counter()
        work()
        wait()
        if index >= 3:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(case: str, who: str, family: Family, make: Any, *, rate: float, repeats: int) -> Figures:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    _, method, batch = case.split("-")
    on_gpu = family.device.kind == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = make(family, method, int(batch))
    seconds = timed(step, family.device, repeats=repeats)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    with FlopCounterMode(display=False) as counter:
        step()
    tflop = counter.get_total_flops() / 1e12
    return Figures(case, who, seconds * 1e3, tflop, tflop / seconds, tflop / seconds / rate, peak_gb)


def table(found: Sequence[Figures]) -> str:
    lines = [
        "| case | who | step | arithmetic | rate | of the card's matrix rate | peak memory | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        bar = MEMORY_BARS_GB.get(each.case) if each.who == "likeness" else None
        held = (
            "" if bar is None or each.peak_gb is None else f"{'within' if each.peak_gb <= bar else 'ABOVE'} {bar:g} GB"
        )
        peak = "-" if each.peak_gb is None else f"{each.peak_gb:.2f} GB"
        lines.append(
            f"| {each.case} | {each.who} | {each.step_ms:.1f} ms | {each.step_tflop:.3g} TFLOP | "
            f"{each.tflop_per_s:.3g} TFLOP/s | {each.share_of_card:.0%} | {peak} | {held} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(DEFAULT_CASES), help="BASE-METHOD-BATCH, comma-separated")
    parser.add_argument("--repeats", type=int, default=20, help="steps whose median counts (20)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: whether this program runs, nothing more")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    from benchmarks.compare_draft import conditions

    device = pick_device("cpu" if options.tiny else None)
    if device.kind != "cuda" and not options.tiny:
        parser.error("there is no NVIDIA GPU here; --tiny runs this program without one")
    found: list[Figures] = []
    rate = matrix_rate(device, 256 if options.tiny else 8192)
    about = conditions() | {"matrix_tflop_per_s": round(rate, 3), "tiny": options.tiny}
    print(json.dumps(about, indent=1), flush=True)
    for case in options.cases.split(","):
        kind = case.split("-")[0]
        for who, make in (("likeness", ours), ("script", script)):
            family = build_family(kind, device, tiny=options.tiny)
            found.append(measure(case, who, family, make, rate=rate, repeats=options.repeats))
            print(found[-1], flush=True)
            del family
    print("\n" + table(found))
    if options.json:
        saved = {"conditions": about, "figures": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(saved, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
