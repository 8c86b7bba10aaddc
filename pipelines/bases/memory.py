"""How a training fits into a GPU's memory: what it needs, what is free, and what to give up so that it fits.

In: a base, a recipe and the free memory in GB. Out: a `MemoryPlan` with its reason in words. Pure arithmetic, no torch.
Try it: `memory_plan(memory_needs(find_base("sdxl"), recipe), free_gb=24.0)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.bases.registry import BaseRow, Footprint
from pipelines.core.records import CHECKPOINTING, METHOD_ROWS, Recipe, UserError

CONTEXT_GB = 0.6  # CUDA's own, with its libraries' workspaces
USABLE = 0.95  # of free memory: the allocator's blocks never fit to the last byte


@dataclass(frozen=True)
class MemoryNeeds:
    """What one training keeps on a GPU, in GB (10^9 bytes)."""

    resident_gb: float  # what every step needs: the denoiser, what learns, its gradients and moments
    leaving_gb: float  # VAE, frozen encoders, image filter: needed before the first step, for previews and at the end
    activations_gb: float  # kept for the way back
    checkpointed_gb: float  # the same with gradient checkpointing
    decode_gb: float  # what decoding one preview takes
    denoiser_gb: float = 0.0  # of resident_gb: what can step aside while a preview is decoded
    vae_gb: float = 0.0  # of leaving_gb
    visiting_gb: float = 0.0  # of leaving_gb the largest that comes back beside the denoiser: encoders, or the filter
    drawing_gb: float = 0.0  # what the denoiser takes besides its weights while pictures are drawn

    def peak_gb(self, *, checkpointing: bool, offload: bool) -> float:
        """Before the first step (latents, words, class pictures) and after the last (reading back) idle parts are
        always away and what learns steps aside for another denoiser, which is no larger: no more lies there than in a
        preview with `offload`.
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
    offload: bool  # what a step does not need waits in the machine's own memory
    peak_gb: float | None  # None: not known
    reason: str


def memory_plan(needs: MemoryNeeds | None, free_gb: float | None, wish: str = "auto") -> MemoryPlan:
    """The cheapest way that fits: everything on the GPU; idle parts off it; then layers computed twice (about a third
    slower). `wish`: one of CHECKPOINTING. `free_gb` None: computing elsewhere, or nobody knows. Pure arithmetic.
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
    1.5  # activations are counted in bfloat16; autocast keeps norms in float32, and blocks are never filled whole
)
BYTES = {"adamw": 16, "adamw8bit": 10, "prodigy": 24}  # per learned parameter: weight, gradient and moments
FROZEN_BYTES = {"bfloat16": 2, "float32": 4}  # per parameter that does not learn, by the format that is computed in
CHECKER_M = 304  # parameters of the image filter, in float16
DRAWN_TOGETHER = 4  # pictures at most, each with and without its prompt


def roomy_gb(size: Footprint, dtype: str, *, text_learns: bool) -> float:
    """What a GPU has to hold so that nothing ever has to leave it while portraits are drawn: the base, its denoiser and
    encoders once more with somebody's likeness (`text_learns`: also the encoders), and the float32 copies that are
    merged before.
    """
    each, text_m = FROZEN_BYTES[dtype], size.text_m if text_learns else 0.0
    base = each * (size.denoiser_m + size.text_m) + 4 * size.vae_m + 2 * CHECKER_M
    merged = 4 * (size.denoiser_m + text_m)
    drawn = each * size.denoiser_m + 4 * text_m + 1e3 * max(size.decode_gb, _drawing_gb(size, dtype, DRAWN_TOGETHER))
    return CONTEXT_GB + (base + max(merged, drawn)) / 1e3


def _drawing_gb(size: Footprint, dtype: str, pictures: int) -> float:
    return HEADROOM * 2 * pictures * size.drawing_gb * FROZEN_BYTES[dtype] / 2


def memory_needs(row: BaseRow, recipe: Recipe, dtype: str = "bfloat16") -> MemoryNeeds | None:
    """What a training keeps on a GPU that computes in `dtype`; None where nobody counted the base. Arithmetic, no
    measure: LoRA counts as if on attention and feed-forward layers.
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
    if full:  # autocast's copies in half the size live through a step
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


# The arithmetic is no measure: what exceeds the free memory by less than a tenth is said and tried.
TRIED_UP_TO = 1.1


def too_large(row: BaseRow, recipe: Recipe, free_gb: float | None, dtype: str = "bfloat16") -> str | None:
    """Why a training can't fit into the GPU's free memory however that is spared, in a sentence; else None."""

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
