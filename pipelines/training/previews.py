"""Pictures of a training: previews, validation pictures, and the check that the saved artefact draws the same picture.

In: modules in their present state and rows to draw. Out: uint8 RGB frames (n, H, W, 3), or a preview as a PNG file.
Try it: `frame_of(family, family.shared(), Row("portrait of man", 0))`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.bases.family import Family, Modules
from pipelines.bases.sampling import Row, sample_latents
from pipelines.core.device import derived_seed, noise
from pipelines.core.files import write_file
from pipelines.core.records import Event, Recipe, UserError, title_of
from pipelines.methods import drafts
from pipelines.methods.base import Learner, Method
from pipelines.methods.lora_files import Layers

PREVIEW_STEPS = 8  # of denoising: enough to recognise somebody, at a third of a training step's cost each
# A reloaded artefact must draw the live modules' picture: mean difference in grey levels of 255, and the denoiser's
# answers, as a share of what was learned plus a share of their own size (float16 on disk, bfloat16 in the arithmetic).
SAME_PICTURE_LEVELS, SAME_ANSWER_OF_LEARNED, SAME_ANSWER_OF_ALL = 3.0, 0.1, 0.02


def frames_of(
    family: Family,
    modules: Modules,
    rows: Sequence[Row],
    *,
    steps: int = PREVIEW_STEPS,
    scheduler: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """One picture per row, (n, H, W, 3) uint8, with the modules in their present state; None when stopped.

    `scheduler`: a name as in `Sampling`; None takes the architecture's `quick_scheduler`.
    """
    parts = (modules.unet, *modules.text.encoders)
    training = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        quick = scheduler or family.architecture.quick_scheduler
        latents = sample_latents(family, modules, rows, steps=steps, scheduler_name=quick, stop=stop)
        if latents is None:
            return None
        with family.aside(*family.own(modules)):
            return family.decode(latents)
    finally:
        for part, was_training in zip(parts, training, strict=True):
            part.train(was_training)


def frame_of(family: Family, modules: Modules, row: Row) -> np.ndarray:
    """One quick picture (H, W, 3) uint8."""
    frames = frames_of(family, modules, [row])
    assert frames is not None
    return frames[0]


def preview(family: Family, modules: Modules, row: Row, distilled: Layers | None) -> np.ndarray:
    """One picture (H, W, 3) uint8 during a training; in fewer steps with the base's few-step LoRA (`distilled`)."""
    if distilled is None:
        return frame_of(family, modules, row)
    row = replace(row, guidance=drafts.GUIDANCE)
    with drafts.distilled(family, modules.unet, distilled):
        frames = frames_of(family, modules, [row], steps=drafts.STEPS, scheduler=drafts.SCHEDULER)
    assert frames is not None
    return frames[0]


def save_preview(family: Family, frame: np.ndarray, path: Path) -> Event:
    """Write one picture (H, W, 3) as PNG, unless the image filter refuses it; the event says which of the two."""
    from PIL import Image

    if family.refused(frame[None])[0]:
        return Event("note", text="The image filter refused a preview, so it is not shown")
    write_file(path, lambda partial: Image.fromarray(frame).save(partial, format="PNG"))
    return Event("preview", path=str(path))


def verify(family: Family, method: Method, learner: Learner, out: Path, recipe: Recipe, row: Row) -> np.ndarray:
    """Reload the artefact in `out` as generation will and compare it with the live modules; the live picture (H, W, 3).

    Raises UserError when the reloaded one draws another picture, or its denoiser answers differently.
    """
    live, answers = frame_of(family, learner.modules, row), _answers(family, learner.modules, row, recipe)
    with family.aside(*family.own(learner.modules)):  # only one denoiser is on the device at a time
        plain = _answers(family, family.shared(), row, recipe)
        saved = method.apply(family, out, recipe)
        levels = float(np.abs(live.astype(np.float32) - frame_of(family, saved, row)).mean())
        again = _answers(family, saved, row, recipe)
        del saved
    size = float(answers.norm().clamp(min=1e-12))
    learned, lost = float((answers - plain).norm()) / size, float((answers - again).norm()) / size
    if not (levels <= SAME_PICTURE_LEVELS and lost <= SAME_ANSWER_OF_LEARNED * learned + SAME_ANSWER_OF_ALL):
        raise UserError(
            f"{title_of(recipe.method)} was saved but does not draw the same picture when reloaded ({levels:.1f} of "
            f"255 grey levels apart, {lost:.3f} of the answer lost). Start again; it continues from its last "
            "checkpoint."
        )
    return live


@torch.no_grad()
def _answers(family: Family, modules: Modules, row: Row, recipe: Recipe) -> torch.Tensor:
    """The denoiser's answers to the same noise at four noise levels, (4, c, h, w)."""
    latents = noise(derived_seed(recipe.seed, 6), (4, *family.latent_shape()), device=family.device.name)
    timesteps = family.schedule.timesteps(torch.tensor([0.2, 0.4, 0.6, 0.8], device=family.device.name))
    with family.awake(*modules.text.encoders):
        told = modules.text.encode(modules.text.ids([row.prompt] * len(latents)))
        return family.predict(modules.unet, latents, timesteps, told).float()
