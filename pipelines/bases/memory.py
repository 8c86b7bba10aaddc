"""How a training fits into a GPU's memory: what it needs, what is free, and what to give up so that it fits.

In: a `MemoryNeeds` and the free memory in GB. Out: a `MemoryPlan` with its reason in words. Pure arithmetic, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.core.records import CHECKPOINTING, UserError

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
