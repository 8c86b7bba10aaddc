"""Renders: prompts and seeds -> pictures of one subject, or of the untrained base.

In: samplings and a subject's folder (None = the base itself). Out: pictures one by one, saved with their settings
inside. The same seed gives the same noise with every method, so columns differ only by what was learned.
A sampling with a `source` varies one of the run's own pictures instead of starting from noise alone.
Try it: `Generator(find_base("portrait-128")).render([Sampling("portrait of {subject}")], None, class_word="man")`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin

from pipelines.bases import sampling as sampler
from pipelines.bases.family import Family, Modules
from pipelines.bases.loading import load_family
from pipelines.bases.registry import BaseRow
from pipelines.core import inscription
from pipelines.core.decode import check_record, check_variation, limits
from pipelines.core.device import Device
from pipelines.core.files import write_file
from pipelines.core.records import Render, Sampling, Subject, UserError, sampling_fields
from pipelines.core.safety import check_prompt
from pipelines.methods import drafts
from pipelines.methods import method as find_method
from pipelines.methods.base import digest
from pipelines.methods.lora_files import Layers
from pipelines.training.subjects import load_subject

SCHEDULERS: tuple[str, ...] = sampler.SCHEDULERS


class Generator:
    """Holds one loaded base, which never changes. A subject is applied to a new copy of it, and the copy is dropped
    when the subject changes, so that no person's learned weights are in another person's pictures."""

    def __init__(self, row: BaseRow, device: Device | None = None, *, family: Family | None = None) -> None:
        self.family = family or load_family(row, device)
        self._applied: tuple[tuple[str, str, float], Modules] | None = None
        self._distilled: Layers | None = None

    def render(
        self,
        samplings: Sequence[Sampling],
        subject_folder: Path | None,
        *,
        class_word: str,
        sources: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
        batch: int = 4,
    ) -> Iterator[tuple[Sampling, PIL.Image.Image | None]]:
        """Draw in order, up to `batch` at once if steps, size, scheduler, strength, change and draft are equal; ends
        early when `stop()` is true. `sources`: the run's folder, which has the samplings' `source`s.

        A picture that the base's image filter refuses is None.
        Raises UserError for settings out of range, a subject that is missing, damaged or of another base, or a source
        that is not a picture of the run.
        """
        for each in samplings:
            check(each)
        varied = {each.source: _picture(each.source, sources) for each in samplings if each.source is not None}
        subject = load_subject(subject_folder) if subject_folder is not None else None
        phrase = subject.phrase if subject else class_word
        start = 0
        while start < len(samplings) and not stop():
            first = samplings[start]
            end = start + 1
            while end < len(samplings) and end - start < batch and _key(samplings[end]) == _key(first):
                end += 1
            part = samplings[start:end]
            frames = self._draw(part, phrase, subject, subject_folder, varied, stop)
            if frames is None:
                return
            for each, frame, refused in zip(part, frames, self.family.refused(frames), strict=True):
                yield each, None if refused else PIL.Image.fromarray(frame)
            start = end

    def _draw(
        self,
        part: Sequence[Sampling],
        phrase: str,
        subject: Subject | None,
        folder: Path | None,
        varied: dict[str, PIL.Image.Image],
        stop: Callable[[], bool],
    ) -> np.ndarray | None:
        """Draw one batch: uint8 (b, H, W, 3), or None when stopped. A function of its own, so that no variable keeps
        its modules in memory while the next batch's are made.
        """
        first = part[0]
        modules = self._modules(subject, folder, first.strength)
        rows = [
            sampler.Row(each.prompt.replace("{subject}", phrase), each.seed, each.negative_prompt, each.guidance)
            for each in part
        ]
        with drafts.distilled(self.family, modules.unet, self._draft_layers() if first.draft else None):
            return sampler.sample(
                self.family,
                modules,
                rows,
                steps=first.steps,
                scheduler_name=first.scheduler,
                height_px=first.height_px,
                width_px=first.width_px,
                sources=self._frames(part, varied) if first.change < 1 else None,
                change=first.change,
                stop=stop,
            )

    def _draft_layers(self) -> Layers:
        if self._distilled is None:
            self._distilled = drafts.load(self.family.row)
        if self._distilled is None:
            raise drafts.missing(self.family.row)
        return self._distilled

    def _frames(self, part: Sequence[Sampling], varied: dict[str, PIL.Image.Image]) -> np.ndarray:
        """The sources of samplings of one size, (b, H, W, 3) uint8 of that size; other shapes are cropped."""
        _, height, width = self.family.latent_shape(part[0].height_px, part[0].width_px)
        scale = self.family.pixels_per_latent
        size = (width * scale, height * scale)
        lanczos = PIL.Image.Resampling.LANCZOS
        return np.stack([np.asarray(PIL.ImageOps.fit(varied[str(each.source)], size, lanczos)) for each in part])

    def _modules(self, subject: Subject | None, folder: Path | None, strength: float) -> Modules:
        if subject is None or folder is None:
            self._applied = None
            return self.family.shared()
        key = (str(Path(folder).resolve()), subject.sha256, strength)
        if self._applied is None or self._applied[0] != key:
            self._applied = None  # free the last person's copy before the next one is made
            _check_subject(subject, Path(folder), self.family.row)
            applied = find_method(subject.method).apply(self.family, Path(folder), subject.recipe, strength=strength)
            self._applied = (key, applied)
        return self._applied[1]


def _key(each: Sampling) -> tuple[object, ...]:
    return each.steps, each.scheduler, each.height_px, each.width_px, each.strength, each.change, each.draft


def _picture(source: str, sources: Path | None) -> PIL.Image.Image:
    """One of the run's own pictures, RGB. No symbolic link is followed, so that no file outside the run is read."""
    if sources is None:
        raise UserError("Without a run there are no pictures to vary. Name the run's folder, or draw without a source.")
    folder = sources.resolve()
    path = folder / source
    if path.resolve() != path:
        raise UserError("The picture to vary does not lie in this run. Choose one of its pictures.")
    if not path.is_file():
        raise UserError("The picture to vary is not there any more. Choose another one of this run.")
    if read_settings(path) is None:
        raise UserError("The picture to vary is not one that was drawn here. Choose one of the run's renders.")
    try:
        with PIL.Image.open(path) as image:
            if max(image.size) > limits(Sampling, "width_px")[1]:
                raise UserError("The picture to vary is too large. Choose one of the run's renders.")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError("The picture to vary is damaged. Choose another one of this run.") from error


def _check_subject(subject: Subject, folder: Path, row: BaseRow) -> None:
    if (subject.base, subject.base_revision) != (row.name, row.revision):
        raise UserError(f"This likeness was learned on {subject.base}, not on {row.title}. Choose its base.")
    try:
        learned = json.loads((folder / "subject.json").read_text()).get("learned", [subject.artifact])
        same = digest(folder, learned) == subject.sha256
    except OSError as error:
        raise UserError(f"Files learned by {subject.method} are missing from {folder.name}. Train again.") from error
    if not same:
        raise UserError(f"The files learned by {subject.method} were changed or damaged after training. Train again.")


def check(sampling: Sampling) -> None:
    """Raises UserError for a setting that is not a number in its range or not a known scheduler (it names the setting),
    and for a prompt that is refused.
    """
    check_record(sampling)
    check_variation(sampling)
    if sampling.scheduler not in SCHEDULERS:
        raise UserError(f"There is no scheduler {sampling.scheduler}. Choose one of: {', '.join(SCHEDULERS)}.")
    if not sampling.prompt.strip():
        raise UserError("The prompt is empty. Describe the picture, or pick a style.")
    check_prompt(sampling.prompt, sampling.negative_prompt)


def save_render(image: PIL.Image.Image, drawn: inscription.Inscription, path: Path, *, method: str) -> Render:
    """Write a PNG whose text chunk "likeness" has the settings as JSON. No reader sees a half-written file."""
    settings: dict[str, object] = {"schema": 1, "method": method, "base": drawn.base, "subject": drawn.subject}
    settings["sampling"] = sampling_fields(drawn.sampling)
    if drawn.source_sha256 is not None:
        settings["source_sha256"] = drawn.source_sha256
    chunks = PIL.PngImagePlugin.PngInfo()
    chunks.add_text(inscription.TEXT_CHUNK, json.dumps(settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda partial: image.save(partial, format="PNG", pnginfo=chunks))
    return Render(str(path), method, drawn.subject, drawn.sampling)


def read_settings(path: Path) -> Sampling | None:
    """The settings inside a PNG that this project drew, checked like typed ones; None if there are no valid ones."""
    found = inscription.read(path)
    try:
        if found is not None:
            check(found.sampling)
    except (UserError, ValueError, TypeError):
        return None
    return found.sampling if found is not None else None
