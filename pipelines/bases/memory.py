"""How a training fits into a GPU's memory: what it needs, what is free, and how to save memory so that it fits.

In: a base, a recipe and the free memory in GB. Out: a `MemoryPlan` with its reason in words. Pure arithmetic, no torch.
Try it: `memory_plan(memory_needs(find_base("sdxl"), recipe), free_gb=24.0)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.bases.registry import BaseRow, Footprint
from pipelines.core.records import CHECKPOINTING, METHOD_ROWS, Recipe, UserError

CONTEXT_GB = 0.6  # the CUDA context, with the workspaces of its libraries
USABLE = 0.95  # share of the free memory that is planned: the allocator loses some between its blocks


@dataclass(frozen=True)
class MemoryNeeds:
    """What one training keeps on a GPU, in GB (10^9 bytes)."""

    resident_gb: float  # for every step: denoiser, learned parameters, their gradients and moments
    leaving_gb: float  # VAE, frozen encoders, image filter: used before the first step, for previews and at the end
    activations_gb: float  # kept for the backward pass
    checkpointed_gb: float  # the same with gradient checkpointing
    decode_gb: float  # for decoding one preview
    denoiser_gb: float = 0.0  # the part of resident_gb that can leave the GPU while a preview is decoded
    vae_gb: float = 0.0  # the VAE's part of leaving_gb
    visiting_gb: float = 0.0  # largest part of leaving_gb that is used beside the denoiser: encoders, or the filter
    drawing_gb: float = 0.0  # for the denoiser, besides its weights, while pictures are drawn

    def peak_gb(self, *, checkpointing: bool, offload: bool) -> float:
        """The most memory that a training uses, in GB.

        Before the first step (latents, text, class images) and after the last one (verification) unused parts are
        always off the GPU, and the denoiser that learns is replaced by another one of the same size: this needs no more
        than a preview with `offload`.
        """
        step = self.resident_gb + (self.checkpointed_gb if checkpointing else self.activations_gb)
        if not offload:
            preview = self.resident_gb + max(self.drawing_gb, self.decode_gb)
            return CONTEXT_GB + self.leaving_gb + max(step, preview)
        drawn = self.resident_gb + max(self.visiting_gb, self.drawing_gb)
        decoded = self.resident_gb - self.denoiser_gb + self.vae_gb + self.decode_gb
        return CONTEXT_GB + max(step, drawn, decoded)


@dataclass(frozen=True)
class MemoryPlan:
    """How a training fits into a GPU's memory, with the reason in words."""

    checkpointing: bool
    offload: bool  # parts that a step does not use are in main memory
    peak_gb: float | None  # None: unknown
    reason: str


def memory_plan(needs: MemoryNeeds | None, free_gb: float | None, wish: str = "auto") -> MemoryPlan:
    """The fastest plan that fits: everything on the GPU; else unused parts in main memory; else also gradient
    checkpointing (about a third slower). `wish`: one of CHECKPOINTING. `free_gb` None: no GPU, or unknown.
    """
    if wish not in CHECKPOINTING:
        raise UserError(f"Gradient checkpointing is one of {', '.join(CHECKPOINTING)}, not {wish}.")
    switch = {"on": (True,), "off": (False,), "auto": (False, True)}[wish]
    said = {"on": "Gradient checkpointing is on as asked", "off": "Gradient checkpointing is off as asked"}
    if free_gb is None:
        because = said.get(wish, "Gradient checkpointing is off: no GPU's memory has to be shared")
        return MemoryPlan(
            switch[0], False, needs.peak_gb(checkpointing=switch[0], offload=False) if needs else None, f"{because}."
        )
    if needs is None:
        because = said.get(wish, "Gradient checkpointing is off: what this base needs was not counted")
        return MemoryPlan(switch[0], False, None, f"{because}. {free_gb:.1f} GB are free.")
    ways = [(checkpointing, offload) for checkpointing in switch for offload in (False, True)]
    peaks = {way: needs.peak_gb(checkpointing=way[0], offload=way[1]) for way in ways}
    fitting = next((way for way in ways if peaks[way] <= USABLE * free_gb), None)
    checkpointing, offload = fitting or min(ways, key=lambda way: peaks[way])
    peak = peaks[checkpointing, offload]
    least = min(peak for way, peak in peaks.items() if not way[0]) if not all(switch) else peak
    parts = [f"{peak:.1f} GB are needed and {free_gb:.1f} GB are free"]
    if wish in said:
        parts.insert(0, said[wish])
    elif checkpointing:
        parts.insert(0, f"Gradient checkpointing is on: without it {least:.1f} GB would be needed")
    else:
        parts.insert(0, "Gradient checkpointing is off: memory is enough without")
    if offload:
        parts.append("what a step does not need waits outside the GPU")
    if fitting is None:
        parts.append("that will probably not fit: choose a smaller batch or another method")
    return MemoryPlan(checkpointing, offload, peak, "; ".join(parts) + ".")


# -- what a base and a recipe need ---------------------------------------------------------------------------------

HEADROOM = (
    1.5  # activations are counted in bfloat16; autocast keeps norms in float32, and memory blocks are never quite full
)
BYTES = {"adamw": 16, "adamw8bit": 10, "prodigy": 24}  # per learned parameter: weight, gradient and moments
FROZEN_BYTES = {"bfloat16": 2, "float32": 4}  # per parameter that does not learn, by compute dtype
CHECKER_M = 304  # parameters of the image filter, millions, in float16
DRAWN_TOGETHER = 4  # pictures in a batch at most, each with and without its prompt


def roomy_gb(size: Footprint, dtype: str, *, text_learns: bool) -> float:
    """GB that a GPU needs to draw portraits without moving modules to main memory: the base, a second denoiser with a
    person learned (`text_learns`: also second encoders), and the float32 copies that are merged before.
    """
    each, text_m = FROZEN_BYTES[dtype], size.text_m if text_learns else 0.0
    base = each * (size.denoiser_m + size.text_m) + 4 * size.vae_m + 2 * CHECKER_M
    merged = 4 * (size.denoiser_m + text_m)
    drawn = each * size.denoiser_m + 4 * text_m + 1e3 * max(size.decode_gb, _drawing_gb(size, dtype, DRAWN_TOGETHER))
    return CONTEXT_GB + (base + max(merged, drawn)) / 1e3


def _drawing_gb(size: Footprint, dtype: str, pictures: int) -> float:
    return HEADROOM * 2 * pictures * size.drawing_gb * FROZEN_BYTES[dtype] / 2


def memory_needs(row: BaseRow, recipe: Recipe, dtype: str = "bfloat16") -> MemoryNeeds | None:
    """What a training keeps on a GPU that computes in `dtype`; None if the base has no `footprint`. Calculated, not
    measured; LoRA is counted as if it were on attention and feed-forward layers.
    """
    size = row.footprint
    if size is None:
        return None
    frozen = FROZEN_BYTES[dtype]
    learns = METHOD_ROWS[recipe.method].learns
    full, adapters = "weights" in learns, "adapters" in learns
    text_learns = recipe.text_learning_rate > 0 and (full or adapters)
    words = "words" in learns
    each = BYTES[recipe.optimizer] + (4 if recipe.ema > 0 else 0)
    learned_m = size.denoiser_m if full else size.lora_m_per_rank * recipe.rank if adapters else 0.0
    denoiser = 0.0 if full else frozen * size.denoiser_m
    if full:  # autocast's half-size copies of the weights exist during a step
        learned_m, denoiser = 0.0, (each + (2 if frozen == 2 else 0)) * size.denoiser_m
    text = 0.0
    if text_learns:
        text = (each if full else 4) * size.text_m
    elif words:
        text = frozen * size.text_m
    rows = recipe.batch + (max(1, recipe.batch // 2) if recipe.prior_weight > 0 else 0)
    frozen_text = 0.0 if words and not text_learns else frozen * size.text_m
    looks = recipe.watch_every > 0 or recipe.choose_strength
    together = max(DRAWN_TOGETHER if looks else 1, recipe.batch if recipe.prior_weight > 0 else 1)
    return MemoryNeeds(
        resident_gb=(denoiser + each * learned_m + text) / 1e3,
        leaving_gb=(4 * size.vae_m + frozen_text + 2 * CHECKER_M) / 1e3,
        activations_gb=HEADROOM * rows * size.activations_gb * frozen / 2,
        checkpointed_gb=HEADROOM * rows * size.checkpointed_gb * frozen / 2,
        decode_gb=size.decode_gb,
        denoiser_gb=(4 if full else frozen) * size.denoiser_m / 1e3,
        vae_gb=4 * size.vae_m / 1e3,
        visiting_gb=max(frozen_text, 2 * CHECKER_M) / 1e3,
        drawing_gb=_drawing_gb(size, dtype, together),
    )


# The needs are calculated, not measured: a training that exceeds the free memory by less than a tenth is tried.
TRIED_UP_TO = 1.1


def too_large(row: BaseRow, recipe: Recipe, free_gb: float | None, dtype: str = "bfloat16") -> str | None:
    """A sentence that says why a training can't fit into the GPU's free memory with any plan; None if it can."""

    def least(tried: Recipe) -> float:
        return memory_plan(memory_needs(row, tried, dtype), free_gb).peak_gb or 0.0

    if free_gb is None or (peak := least(recipe)) <= TRIED_UP_TO * free_gb:
        return None
    smaller = recipe.replaced(optimizer="adamw8bit")
    instead = f", or the optimizer adamw8bit ({found:.0f} GB)" if (found := least(smaller)) <= free_gb else ""
    return (
        f"it needs about {peak:.0f} GB of the GPU's memory on {row.title}, and {free_gb:.1f} GB are free. Choose "
        f"another method or a smaller base{instead}."
    )
