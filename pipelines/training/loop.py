"""One training loop for every base and every method; it holds no code for a particular one.

In: a recipe, aligned photos with captions, an empty (or interrupted) folder. Out: a stream of events, and in the folder
the artefact under stock file names, `subject.json` and previews. Everything random derives from (seed, step): a run
resumed at step k is bit-equal to one that never stopped. Several `train` generators may be advanced in turn in one
process.

Try it: `for event in train(recipe, data, Path("out")): print(event)`.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.bases.family import Family, checkpointed, running
from pipelines.bases.loading import load_family
from pipelines.bases.memory import memory_needs, memory_plan, too_large
from pipelines.bases.registry import find_base
from pipelines.bases.sampling import Row
from pipelines.core.control import Clock, Control
from pipelines.core.device import free_memory_gb, peak_memory_mb
from pipelines.core.files import is_full, sha
from pipelines.core.records import (
    Event,
    Look,
    OutOfMemory,
    Recipe,
    Started,
    Subject,
    UserError,
    Validated,
    Watch,
    title_of,
)
from pipelines.core.run import STRENGTHS_FILE, WATCH_FILE
from pipelines.methods import drafts
from pipelines.methods import method as find_method
from pipelines.methods.base import Learner, digest, load_into, trained
from pipelines.training import optimizers, previews, world
from pipelines.training.batches import (
    CLASS_IMAGES,
    Batches,
    Shape,
    TrainingData,
    check,
    check_shapes,
    class_images,
    fingerprint,
)
from pipelines.training.checkpoints import CHECKPOINT, State, has_checkpoint, resume, save_checkpoint
from pipelines.training.subjects import ended, finished, load_subject, save_subject, trained_before
from pipelines.training.watch import STRENGTHS_TRIED, Viewer, Watched

FADE_SHARE, FADE_TO = 0.3, 0.1  # the learning rate falls to a tenth over the last 30% of the steps
READ_LOSS_EVERY = {"cpu": 1}  # steps; on a GPU reading the loss waits for the device, so it is read less often
READ_LOSS_DEFAULT = 10


def train(
    recipe: Recipe,
    data: TrainingData,
    out: Path,
    *,
    family: Family | None = None,
    watch: Watch | None = None,
    control: Control | None = None,
) -> Iterator[Event]:
    """Train one method; resumes from `out/checkpoint.safetensors` where that belongs to the same recipe and photos.

    The last event is "done", or "stopped" (within one step of `control.stopped`; what was learned is saved all the
    same), or "paused" (within one step, of training or of denoising, of `control.paused`: only what is needed to
    continue is saved). `seconds` count this method's time only, not that of others in between. `family`: a base that
    is loaded already; None loads the recipe's. With `watch`, the recipe's `watch_every`, `patience` and
    `choose_strength` hold: the best checkpoint is kept, not the last; `watch.json` in `out` says what was seen. Without
    it they are ignored. Processes that were launched together (`training/world.py`) train together.
    Raises UserError: a base or photos that do not fit, a loss that is no number, a full disk, too little GPU memory, an
    artefact that does not draw the same picture after reloading. The last checkpoint is kept in each case.
    """
    clock = Clock()
    run = _Training(recipe, data, Path(out), watch, control or Control(), clock).run(family)
    title = title_of(recipe.method)
    try:
        while True:
            clock.start()
            try:
                event = next(run)
            except StopIteration:
                return
            except torch.cuda.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)  # they keep trained tensors in the GPU's memory
                raise OutOfMemory(
                    f"The GPU's memory is not enough for {title} with batch {recipe.batch}. Choose a smaller batch, a "
                    "smaller base or another method."
                ) from error
            except Exception as error:
                if _is_disk_full(error):
                    raise UserError(
                        f"The disk is full: {title} could not be saved. Free some space and start again; it continues "
                        "from its last checkpoint."
                    ) from error
                raise
            finally:
                clock.pause()
            yield event
    finally:
        run.close()
        if family is not None:
            family.unpark()  # back on the device, as the caller gave it


class _Training:
    """One training, from its checks to its card; `run` calls the parts in order."""

    def __init__(
        self, recipe: Recipe, data: TrainingData, out: Path, watch: Watch | None, control: Control, clock: Clock
    ) -> None:
        self.recipe, self.data, self.out, self.watch, self.control, self.clock = (
            recipe,
            data,
            out,
            watch,
            control,
            clock,
        )
        self.world = world.current()
        self.title = title_of(recipe.method)

    def run(self, family: Family | None) -> Generator[Event, None, None]:
        recipe, out = self.recipe, self.out
        check(recipe, self.data)
        if recipe.batch < self.world.size:
            raise UserError(f"A batch of {recipe.batch} can't be shared by {self.world.size} processes. Start fewer.")
        out.mkdir(parents=True, exist_ok=True)
        self.world.wait()  # until the first process has written its files
        if (subject := finished(out, recipe, self.data.photo_digest)) is not None:
            yield ended("done", subject, out)
            return
        if family is None:
            row = find_base(recipe.base)
            yield Event("phase", recipe.method, steps=recipe.steps, text=f"Loading {row.title}")
            family = load_family(row)
        self.family = family
        self._check_fit()
        yield from self._prepare()
        yield from self._encode()
        yield from self._learn()
        yield from self._keep()

    def _event(self, kind: str, **more: Any) -> Event:
        step = self.state.step
        return Event(kind, self.recipe.method, step, self.recipe.steps, seconds=self.clock.seconds, **more)

    def _check_fit(self) -> None:
        row, device = self.family.row, self.family.device
        if self.recipe.method not in row.offered:
            offered = ", ".join(row.offered)
            raise UserError(f"{self.title} is not offered for {row.title}. Choose one of: {offered}.")
        if (why := too_large(row, self.recipe, free_memory_gb(device), device.dtype)) is not None:
            raise UserError(f"{self.title} does not fit here: {why}")
        check_shapes(row, self.data)

    def _prepare(self) -> Iterator[Event]:
        """Make the learner, its optimizer and the memory plan, and load the checkpoint of the same training."""
        recipe, family, out = self.recipe, self.family, self.out
        if family.sparing:
            family.park()  # frees the GPU's memory for the learner
        self.method = find_method(recipe.method)
        learner = self.method.learner(family, recipe, identity=self.data.identity)
        self.compiled = family.compiled_for(learner.modules.unet, recipe.steps * recipe.batch)
        self.mark = fingerprint(recipe, self.data, family)
        if recipe.start_from and not has_checkpoint(out, self.mark):
            self._start_from(learner)
        self.groups = learner.groups()
        self.parameters = trained(self.groups)
        optimizer = optimizers.make(recipe.optimizer, self.groups, family.device)
        needs = memory_needs(family.row, recipe, family.device.dtype)
        self.plan = memory_plan(needs, free_memory_gb(family.device), recipe.gradient_checkpointing)
        average = {key: value.detach().clone() for key, value in learner.tensors().items()} if recipe.ema > 0 else {}
        watched = None
        if self.watch is not None and recipe.watch_every > 0:
            watched = Watched(self.watch, out if self.world.first else None)
        self.state = State(learner, optimizer, average, watched)
        note = resume(out, self.mark, self.state, self.clock)
        if self.state.step == 0 and self.world.first:
            for stale in (WATCH_FILE, STRENGTHS_FILE):  # what an earlier training chose
                (out / stale).unlink(missing_ok=True)
        self.size = sum(parameter.numel() for parameter in self.parameters)
        yield self._event(
            "start",
            text=note or f"{self.title} learns {self.size:,} numbers from {len(self.data.frames)} photos",
            data=Started(self.size, self.plan.reason),
        )
        if self.plan.checkpointing or self.plan.offload:
            yield self._event("note", text=self.plan.reason)

    def _start_from(self, learner: Learner) -> None:
        """Start from what this method learned in an earlier training. Raises UserError when that is gone."""
        before, row = load_subject(self.out), self.family.row
        if (before.sha256, before.base, before.base_revision) != (self.recipe.start_from, row.name, row.revision):
            raise UserError(f"What {self.title} learned before is not there any more. Train it afresh.")
        learner.start_from(self.out)

    def _encode(self) -> Iterator[Event]:
        """Encode photos and captions, and draw class images; a small GPU does not hold the learner meanwhile."""
        recipe, family, learner = self.recipe, self.family, self.state.learner
        self.kept = (learner.modules.unet, *(learner.modules.text.encoders if learner.live_text else ()))
        apart = self.plan.offload or family.short
        if apart or family.sparing:
            family.park(self.kept)
        self.own = family.own(learner.modules)
        class_latents: dict[Shape, torch.Tensor] = {}
        if recipe.prior_weight > 0:
            if self.state.step == 0 or not (self.out / CLASS_IMAGES).is_file():
                text = f"Drawing {recipe.prior_images} pictures of a {recipe.class_word} in general"
                yield self._event("phase", text=text)
            draw = partial(class_images, family, recipe, self.data, self.out, self.control)
            with family.aside(*self.own):
                if self.world.from_first(lambda: bool(draw())):  # {} when stopped or paused: no step follows
                    class_latents = draw()
        phrase = self.method.phrase(family.row, recipe)
        with family.aside(*self.own), family.awake(*learner.modules.text.encoders):
            self.batches = Batches(family, learner, recipe, self.data, phrase, class_latents)
        self.row = Row(self.batches.head, recipe.seed, guidance=family.architecture.guidance)
        if not apart:
            family.unpark()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _learn(self) -> Iterator[Event]:
        recipe, family, state, control = self.recipe, self.family, self.state, self.control
        wants_previews = recipe.preview_every_s > 0 and self.world.first
        distilled = drafts.load_quietly(family.row) if wants_previews else None
        losses: list[tuple[int, torch.Tensor]] = []
        read_every = READ_LOSS_EVERY.get(family.device.kind, READ_LOSS_DEFAULT)
        shown_at, session, first = time.monotonic(), self.clock.seconds, state.step
        looked = self._look()  # the last session may have ended between a checkpoint and its validation pictures
        if looked is not None:
            yield self._event("watch", data=looked)
        self.fresh = looked is not None  # True when something is not in the last checkpoint yet
        while state.step < recipe.steps and not self._is_over():
            losses.append((state.step + 1, self._step()))
            state.step += 1
            self.fresh = True
            control.keep()
            looked = self._look()

            validated = None
            last = state.step == recipe.steps
            checkpoint = state.step % recipe.checkpoint_every == 0 and not last
            read = None
            if checkpoint or last or len(losses) >= read_every:
                read = self._read(losses)
            if checkpoint and self.world.first:
                self._save()
            if (checkpoint or last) and len(self.data.validation):
                validated = Validated(self.batches.validation_loss(state.learner))
            left_s = (self.clock.seconds - session) / (state.step - first) * (recipe.steps - state.step)
            yield self._event("step", loss=read, seconds_left=left_s, data=validated)
            if looked is not None:
                yield self._event("watch", data=looked)
            if wants_previews and recipe.preview_every_s <= time.monotonic() - shown_at and not last:
                frame = previews.preview(family, state.learner.modules, self.row, distilled)
                event = previews.save_preview(family, frame, self.out / f"preview_{state.step:05d}.png")
                shown_at = time.monotonic()
                yield self._told(event)
        if losses:
            self._read(losses)

    def _is_over(self) -> bool:
        if self.control.paused() or self.world.any(self.control.stopped(self.recipe.method)):
            return True
        return self._is_enough()

    def _is_enough(self) -> bool:
        return self.state.watched is not None and self.state.watched.is_enough(self.recipe.patience)

    def _step(self) -> torch.Tensor:
        """Take one optimizer step; returns the loss and the gradients' norm, (2,) float32 on the device."""
        recipe, state = self.recipe, self.state
        assert state.optimizer is not None
        for group, settings in zip(self.groups, state.optimizer.param_groups, strict=True):
            factor = learning_rate_factor(state.step, recipe)
            settings["lr"] = optimizers.rate(recipe.optimizer, group, factor, state.step / recipe.steps)
        with checkpointed(state.learner.modules, self.plan.checkpointing), running(self.compiled):
            loss = self.batches.loss(state.learner, state.step, self.world)
            loss.backward()
        self.world.add_gradients(self.parameters)
        loss = self.world.total(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.learner.after_step()
        _follow(state.average, state.learner, recipe.ema, state.step)
        return torch.stack([loss.detach().float(), norm.detach().float()])

    def _look(self) -> Look | None:
        """Draw and judge this step's validation pictures; None when they are not due, and when stopped or paused."""
        state = self.state
        if state.watched is None or not state.watched.is_due(state.step, self.recipe):
            return None
        found = self.world.from_first(lambda: self._viewer().look(state.average))
        if found is not None:
            state.watched.add(found, state.step, self.clock.seconds, state.average or state.learner.tensors())
            self.control.keep()
        return found

    def _viewer(self) -> Viewer:
        assert self.watch is not None
        return Viewer(self.family, self.state.learner, self.watch, self.batches.phrase, self.recipe, self.control)

    def _read(self, losses: list[tuple[int, torch.Tensor]]) -> float:
        """Read the losses from the device, empty the list, and return their mean. UserError for NaN or infinity."""
        values = torch.stack([pair for _, pair in losses]).cpu()
        for (step, _), (loss, norm) in zip(losses, values.tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._no_number(f"the loss became {loss} (gradient {norm})", step)
        losses.clear()
        return float(values[:, 0].mean())

    def _check_numbers(self) -> None:
        """Raise UserError for weights that are NaN or infinite: they can be, although the last loss was a number."""
        norms = torch._foreach_norm([tensor.detach() for tensor in self.state.learner.tensors().values()])
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            raise self._no_number("the weights left the range of numbers", self.state.step)

    def _no_number(self, what: str, step: int) -> UserError:
        return UserError(
            f"{self.title} stopped at step {step}: {what}. Lower the learning rate ({self.recipe.learning_rate:g}) and "
            "start again."
        )

    def _save(self) -> None:
        self._check_numbers()
        save_checkpoint(self.out, self.mark, self.state, self.clock)

    # -- saving --------------------------------------------------------------------------------------------------

    def _keep(self) -> Iterator[Event]:
        """Save what was learned and check the file; when the slice is over, save only a checkpoint."""
        recipe, state, out, learner = self.recipe, self.state, self.out, self.state.learner
        complete = state.step >= recipe.steps or self._is_enough()
        choosing = complete and self.watch is not None and recipe.choose_strength
        leaving = self._leaving()
        # a slice may end while pictures for the strength are drawn: the next slice must not train again
        if self.fresh and self.world.first and (leaving or (choosing and learner.scales())):
            self._save()
        if leaving:
            yield self._event("paused")
            return
        if not self.world.first:
            self.world.wait()  # until the first process has saved
            yield ended("done" if complete else "stopped", load_subject(out), out)
            return
        if complete:
            state.optimizer = None  # no step follows, so its moments are not saved
        self._save()
        before = None if complete else trained_before(out, self.family.row, self.data.photo_digest)
        if before is not None:  # an unfinished training does not replace a complete one
            self.world.wait()
            text = f"Stopped after {state.step} of {recipe.steps} steps, to be continued; what was trained before stays"
            event = replace(ended("stopped", before, out), step=state.step, steps=recipe.steps)
            yield replace(event, seconds=self.clock.seconds, text=text)
            return
        yield from self._choose(choosing)
        if choosing and self._leaving():
            yield self._event("paused")
            return
        yield from self._export(complete)

    def _leaving(self) -> bool:
        """True when the slice is over and nobody asked to stop."""
        return self.control.paused() and not self.control.stopped(self.recipe.method)

    def _choose(self, choosing: bool) -> Iterator[Event]:
        """Load the weights to be kept into the learner: the average, or the best checkpoint, at the best strength."""
        state, learner = self.state, self.state.learner
        if state.average:
            load_into(learner.tensors(), state.average)
        if state.watched and state.watched.best:
            load_into(learner.tensors(), state.watched.best)
            said = f"Of {len(state.watched.looks)} checkpoints the one of step {state.watched.chosen} is kept"
            yield self._event("note", text=said + ("; more steps did not help" * self._is_enough()))
        if choosing and learner.scales():
            yield from self._viewer().choose_strength(self.out, sha(self.mark, state.step))
        elif choosing and self.recipe.dora:
            yield self._event("note", text="The strength stays as it was learned: DoRA's change can't be scaled")

    def _export(self, complete: bool) -> Iterator[Event]:
        """Write the artefact, load it again to check it, and write its card."""
        recipe, family, state, out = self.recipe, self.family, self.state, self.out
        yield self._event("phase", text="Saving, and reading it back to be sure")
        state.optimizer = None  # frees memory for the denoiser that is loaded to check
        if family.sparing:
            family.park(self.kept)
        with family.aside(*self.own):
            artifact = state.learner.export(out)
        frame = previews.verify(family, self.method, state.learner, out, recipe, self.row)
        yield self._told(previews.save_preview(family, frame, out / f"preview_{state.step:05d}.png"))
        learned = digest(out, artifact.learned)
        subject = Subject(
            id=f"{recipe.method}-{learned[:12]}",
            method=recipe.method,
            base=family.row.name,
            base_revision=family.row.revision,
            class_word=recipe.class_word,
            phrase=self.method.phrase(family.row, recipe),
            recipe=recipe,
            photo_digest=self.data.photo_digest,
            artifact=artifact.file,
            sha256=learned,
            steps=state.step,
            train_s=round(self.clock.seconds, 3),
            peak_mem_mb=round(peak_memory_mb(), 1),
            artifact_bytes=sum((out / name).stat().st_size for name in artifact.learned),
            trainable_params=self.size,
            complete=complete,
        )
        save_subject(out, subject, artifact.learned)
        if complete:
            for done in (CHECKPOINT, CLASS_IMAGES, STRENGTHS_TRIED):
                (out / done).unlink(missing_ok=True)
        self.control.keep()
        self.world.wait()
        yield ended("done" if complete else "stopped", subject, out)

    def _told(self, event: Event) -> Event:
        """A preview's event with the training's step and seconds."""
        step, steps = self.state.step, self.recipe.steps
        return replace(event, method=self.recipe.method, step=step, steps=steps, seconds=self.clock.seconds)


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate at a step: linear warm-up, then 1, then linear to `FADE_TO` at the end."""
    left = (recipe.steps - step) / max(1.0, FADE_SHARE * recipe.steps)
    return min(1.0, (step + 1) / max(1, recipe.warmup_steps)) * min(1.0, FADE_TO + (1 - FADE_TO) * left)


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], learner: Learner, decay: float, step: int) -> None:
    """Update the exponential moving average (EMA); early its decay is smaller, so the first weights are forgotten."""
    if average:
        live = learner.tensors()
        share = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([average[key] for key in live], [value.detach() for value in live.values()], share)


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports the system's error as text only
    return is_full(error) or (error.__cause__ is not None and is_full(error.__cause__)) or "No space left" in str(error)
