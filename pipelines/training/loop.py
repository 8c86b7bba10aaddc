"""One training loop for every base and every method. It knows neither.

In: a recipe, aligned photos with captions, an empty (or interrupted) folder. Out: a stream of events, and in the folder
the artefact under stock file names, `subject.json` and previews. Everything random derives from (seed, step): a run
resumed at step k is bit-equal to one that never stopped. Several `train` generators may be advanced in turn in one
process.

Try it: `for event in train(recipe, data, Path("out"), photo_digest="..."): print(event)`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from pipelines.bases.family import Family, Modules, checkpointed, load_family, running
from pipelines.bases.registry import find_base
from pipelines.bases.sampling import Row, sample_latents
from pipelines.core.fingerprints import sha
from pipelines.core.runtime import Device, derived_seed, free_memory_gb, memory_plan, noise, peak_memory_mb
from pipelines.core.safety import check_prompt
from pipelines.core.schema import (
    CHECKPOINTING,
    OPTIMIZERS,
    Event,
    OutOfMemory,
    Recipe,
    Subject,
    UserError,
    recipe_fields,
)
from pipelines.core.slices import Slice
from pipelines.core.workspace import STRENGTHS_FILE, WATCH_FILE, write_file
from pipelines.methods import drafts
from pipelines.methods import method as find_method
from pipelines.methods.base import Artifact, Learner, Method, digest, load_into, trained
from pipelines.methods.lora_files import Layers
from pipelines.training import optimizers
from pipelines.training.batches import ALONE, CLASS_IMAGES, Batches, Shape, TrainingData, by_shape, class_images
from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from pipelines.training.estimates import memory_needs, too_large
from pipelines.training.world import World

WATCH_STEPS = 12
STRENGTHS = (0.6, 0.8, 1.0, 1.2, 1.4)  # of a learned change, as shares of what training ended with
CHECKPOINT, SUBJECT = "checkpoint.safetensors", "subject.json"
STRENGTHS_TRIED = "checkpoint_strengths.json"  # so far, while they are being chosen from
# how often it is saved and shown, and what only costs time or memory
SAME_LEARNING = ("checkpoint_every", "preview_every_s", "gradient_checkpointing")
PREVIEW_STEPS = 8  # enough to recognise somebody, at a third of a training step's cost each
FADE_SHARE, FADE_TO = 0.3, 0.1  # the learning rate falls to a tenth over the last 30% of the steps
READ_LOSS_EVERY = {"cpu": 1}  # elsewhere reading the loss waits for the device, so it is read in packs
READ_LOSS_DEFAULT = 10
# A reloaded artefact must draw the live modules' picture: mean difference in grey levels of 255, and the denoiser's
# answers, as a share of what was learned plus a share of their own size (float16 on disk, bfloat16 in the arithmetic).
SAME_PICTURE_LEVELS, SAME_ANSWER_OF_LEARNED, SAME_ANSWER_OF_ALL = 3.0, 0.1, 0.02


@dataclass(frozen=True)
class Look:
    """How the validation pictures of one checkpoint, or one strength, turned out."""

    value: float  # what is maximised: identity (at least 0) x prompt-following
    identity: float  # mean similarity to the validation photos; a picture without a face counts as 0
    following: float | None  # mean share of what was asked and is shown
    trained: float  # mean similarity to the training photos


@dataclass(frozen=True)
class Watch:
    """Who looks at checkpoints. The loop knows nothing of faces: it draws `prompts` and hands the pictures over."""

    judge: str  # its name, for the record; never the one that the report's first figures come from
    prompts: tuple[str, ...]  # each with "{subject}"
    look: Callable[[np.ndarray], Look]  # of one frame per prompt, (n, H, W, 3) uint8


def train(
    recipe: Recipe,
    data: TrainingData,
    out: Path,
    *,
    photo_digest: str,
    device: Device | None = None,
    stop: Callable[[], bool] = lambda: False,
    family: Family | None = None,
    identity: np.ndarray | None = None,
    watch: Watch | None = None,
    world: World = ALONE,
    pause: Slice | None = None,
) -> Iterator[Event]:
    """Train one method; resumes from `out/checkpoint.safetensors` where that belongs to the same recipe and photos.

    The last event is "done", or "stopped" (within one step of `stop()`; what was learned is saved all the same), or
    "paused" (within one step, of training or of denoising, of `pause()`: only what is needed to continue is saved).
    `seconds` count this method's own time only, whoever else runs in between. `identity` are dlib descriptors of the
    photos, (128,) or (n, 128), for methods that start from them; they are used and forgotten. With `watch`, the
    recipe's `watch_every`, `patience` and `choose_strength` hold: the best checkpoint is kept, not the last;
    `watch.json` in `out` says what was seen. Without it they are ignored.
    Raises UserError: a base or photos that do not fit, a loss that is no number, a full disk, too little GPU memory, an
    artefact that does not draw the same picture after reloading. The last checkpoint is kept in each case.
    """
    clock = _Clock()
    pause = pause or Slice()
    run = _run(recipe, data, Path(out), photo_digest, device, stop, family, identity, watch, world, pause, clock)
    try:
        while True:
            clock.start()
            try:
                event = next(run)
            except StopIteration:
                return
            except torch.cuda.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)  # they hold what learned, in the way of who comes next
                raise OutOfMemory(
                    f"The GPU's memory is not enough for {_title(recipe)} with batch {recipe.batch}. Choose a smaller "
                    "batch, a smaller base or another method."
                ) from error
            except Exception as error:
                if _is_disk_full(error):
                    raise UserError(
                        f"The disk is full: {_title(recipe)} could not be saved. Free some space and start again; it "
                        "continues from its last checkpoint."
                    ) from error
                raise
            finally:
                clock.pause()
            yield event
    finally:
        run.close()
        if family is not None:
            family.unpark()  # whoever comes next finds it as it was


def load_subject(folder: Path) -> Subject:
    """The card of a trained method. Raises UserError when there is none or it can't be read."""
    file = Path(folder) / SUBJECT
    try:
        saved = json.loads(file.read_text())
        known = [field.name for field in fields(Recipe)]  # a setting that came later has its default
        recipe = Recipe(**{key: saved["recipe"][key] for key in known if key in saved["recipe"]})
        names = [field.name for field in fields(Subject) if field.name != "recipe"]
        return Subject(recipe=recipe, **{name: saved[name] for name in names})
    except FileNotFoundError as error:
        raise UserError(f"Nothing is trained in {file.parent.name} yet. Train first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.parent.name}/{SUBJECT} can't be read ({error}). Train again.") from error


class _Clock:
    """Seconds of one method's own work."""

    def __init__(self) -> None:
        self.before = 0.0  # of earlier sessions of this run
        self._spent, self._since = 0.0, time.monotonic()

    def start(self) -> None:
        self._since = time.monotonic()

    def pause(self) -> None:
        self._spent += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Valid while running."""
        return self.before + self._spent + time.monotonic() - self._since


def _run(
    recipe: Recipe,
    data: TrainingData,
    out: Path,
    photo_digest: str,
    device: Device | None,
    stop: Callable[[], bool],
    family: Family | None,
    identity: np.ndarray | None,
    watch: Watch | None,
    world: World,
    pause: Slice,
    clock: _Clock,
) -> Generator[Event, None, None]:
    name, steps = recipe.method, recipe.steps
    ends = partial(_any, stop, pause)
    _check(recipe, data)
    if recipe.batch < world.size:
        raise UserError(f"A batch of {recipe.batch} can't be shared by {world.size} processes. Start fewer.")
    out.mkdir(parents=True, exist_ok=True)
    world.wait()  # for what the first process still writes
    if (finished := _finished(out, recipe, photo_digest)) is not None:
        yield _end("done", finished, out)
        return

    if family is None:
        yield Event("phase", name, steps=steps, text=f"Loading {find_base(recipe.base).title}")
        family = load_family(find_base(recipe.base), device)
    _check_fit(family, recipe, data)

    # what learns, and where it stands
    if family.sparing:
        family.park()  # nothing of what was done before lies beside it
    method = find_method(name)
    learner = method.learner(family, recipe, identity=identity)
    compiled = family.compiled_for(learner.modules.unet, steps * recipe.batch)
    fingerprint = _fingerprint(recipe, data, photo_digest, family)
    if recipe.start_from and not _has_checkpoint(out, fingerprint):
        _start_from(learner, out, recipe, family)
    groups = learner.groups()
    parameters = trained(groups)
    optimizer = optimizers.make(recipe.optimizer, groups, family.device)
    needs = memory_needs(family.row, recipe, family.device.dtype)
    plan = memory_plan(needs, free_memory_gb(family.device), recipe.gradient_checkpointing)
    average = {key: value.detach().clone() for key, value in learner.tensors().items()} if recipe.ema > 0 else {}
    watched = _Watched(watch, out if world.first else None) if watch is not None and recipe.watch_every > 0 else None
    first, note = _resume(out, fingerprint, learner, optimizer, average, watched, clock)
    if first == 0 and world.first:  # what an earlier training chose
        for stale in (WATCH_FILE, STRENGTHS_FILE):
            (out / stale).unlink(missing_ok=True)
    size = sum(parameter.numel() for parameter in parameters)
    yield Event(
        "start",
        name,
        first,
        steps,
        seconds=clock.seconds,
        text=note or f"{_title(recipe)} learns {size:,} numbers from {len(data.frames)} photos",
        data={
            "trainable_params": size,
            "device": family.device.name,
            "dtype": family.device.dtype,
            "memory": plan.reason,
        },
    )
    if plan.checkpointing or plan.offload:
        yield Event("note", name, first, steps, seconds=clock.seconds, text=plan.reason)

    # what it learns from; what learns makes room meanwhile
    kept = (learner.modules.unet, *(learner.modules.text.encoders if learner.live_text else ()))
    apart = plan.offload or family.short
    if apart or family.sparing:
        family.park(kept)
    own = family.own(learner.modules)
    class_latents: dict[Shape, torch.Tensor] = {}
    if recipe.prior_weight > 0:
        if first == 0 or not (out / CLASS_IMAGES).is_file():
            text = f"Drawing {recipe.prior_images} pictures of a {recipe.class_word} in general"
            yield Event("phase", name, first, steps, seconds=clock.seconds, text=text)
        # none when stopped or paused: no step follows
        with family.aside(*own):
            if world.from_first(lambda: bool(class_images(family, recipe, data, out, stop, pause))):
                class_latents = class_images(family, recipe, data, out, stop, pause)
    with family.aside(*own), family.awake(*learner.modules.text.encoders):
        batches = Batches(family, learner, recipe, data, method.phrase(family.row, recipe), class_latents)
    preview = Row(batches.head, recipe.seed, guidance=family.architecture.guidance)
    distilled = drafts.load_quietly(family.row) if recipe.preview_every_s > 0 and world.first else None
    if not apart:
        family.unpark()

    # the loop
    losses: list[tuple[int, torch.Tensor]] = []
    read_every = READ_LOSS_EVERY.get(family.device.kind, READ_LOSS_DEFAULT)
    shown_at, session = time.monotonic(), clock.seconds
    step = first

    def look() -> Look | None:
        """At what would be kept now; None when stopped or paused in between."""
        assert watched is not None
        looking = partial(_look, family, learner, average, watched.watch, batches.phrase, recipe, ends)
        found = world.from_first(looking)
        if found is not None:
            watched.add(found, step, clock.seconds, average or learner.tensors())
            pause.keep()
        return found

    looked = look() if watched and watched.owes(step, recipe) else None  # this checkpoint was left before its pictures
    if looked is not None:
        yield Event("watch", name, step, steps, seconds=clock.seconds, data=asdict(looked))
    fresh = looked is not None  # whether there is more than the last checkpoint holds
    while step < steps and not (pause() or world.any(stop()) or (watched and watched.is_enough(recipe.patience))):
        for group, parameter_group in zip(groups, optimizer.param_groups, strict=True):
            factor = _learning_rate_factor(step, recipe)
            parameter_group["lr"] = optimizers.rate(recipe.optimizer, group, factor, step / steps)
        with checkpointed(learner.modules, plan.checkpointing), running(compiled):
            loss = batches.loss(learner, step, world)
            loss.backward()
        world.add_gradients(parameters)
        loss = world.total(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.after_step()
        _follow(average, learner, recipe.ema, step)
        step += 1
        fresh = True
        pause.keep()
        losses.append((step, torch.stack([loss.detach().float(), norm.detach().float()])))
        looked = look() if watched and watched.owes(step, recipe) else None

        extra: dict[str, Any] = {}
        checkpoint = step % recipe.checkpoint_every == 0 and step < steps
        read = None
        if checkpoint or step == steps or len(losses) >= read_every:
            read = _read(losses, recipe)
        if checkpoint and world.first:
            _check_numbers(learner, step, recipe)
            _save_checkpoint(out, fingerprint, learner, optimizer, average, watched, step, clock)
        if (checkpoint or step == steps) and len(data.validation):
            extra["validation_loss"] = batches.validation_loss(learner)
        rate = (clock.seconds - session) / (step - first)
        yield Event("step", name, step, steps, read, clock.seconds, seconds_left=rate * (steps - step), data=extra)
        if looked is not None:
            yield Event("watch", name, step, steps, seconds=clock.seconds, data=asdict(looked))
        if world.first and 0 < recipe.preview_every_s <= time.monotonic() - shown_at and step < steps:
            path = out / f"preview_{step:05d}.png"
            drawn = _save_preview(family, _draft(family, learner.modules, preview, distilled), path)
            shown_at = time.monotonic()
            yield replace(drawn, method=name, step=step, steps=steps, seconds=clock.seconds)
    if losses:
        _read(losses, recipe)
    enough = watched is not None and watched.is_enough(recipe.patience)
    complete = step >= steps or enough
    choosing = complete and watch is not None and recipe.choose_strength
    leaving = pause() and not stop()
    if fresh and world.first and (leaving or (choosing and learner.scales())):  # pictures follow: they may be left
        _check_numbers(learner, step, recipe)
        _save_checkpoint(out, fingerprint, learner, optimizer, average, watched, step, clock)
    if leaving:
        yield Event("paused", name, step, steps, seconds=clock.seconds)
        return

    # keep it, and prove it
    if not world.first:
        world.wait()  # until the first process has
        yield _end("done" if complete else "stopped", load_subject(out), out)
        return
    _check_numbers(learner, step, recipe)
    # of a whole training no step follows: only what goes wrong from here on needs its checkpoint, and no moments
    _save_checkpoint(out, fingerprint, learner, None if complete else optimizer, average, watched, step, clock)
    if not complete and (before := _trained_before(out, family, photo_digest)) is not None:
        # half a training is no reason to lose a whole one
        world.wait()
        text = f"Stopped after {step} of {steps} steps, to be continued; what was trained before stays"
        ended = _end("stopped", before, out)
        yield replace(ended, step=step, steps=steps, seconds=clock.seconds, text=text)
        return
    if average:
        load_into(learner.tensors(), average)
    if watched and watched.best:
        load_into(learner.tensors(), watched.best)
        said = f"Of {len(watched.looks)} checkpoints the one of step {watched.chosen} is kept"
        yield Event(
            "note", name, step, steps, seconds=clock.seconds, text=said + ("; more steps did not help" * enough)
        )
    if choosing and watch is not None and learner.scales():
        stamp = sha(fingerprint, step)
        yield from _choose_strength(family, learner, watch, batches.phrase, recipe, stop, pause, out, stamp)
        if pause() and not stop():
            yield Event("paused", name, step, steps, seconds=clock.seconds)
            return
    elif choosing and recipe.dora:
        said = "The strength stays as it was learned: DoRA's change can't be scaled"
        yield Event("note", name, step, steps, seconds=clock.seconds, text=said)
    yield Event("phase", name, step, steps, seconds=clock.seconds, text="Saving, and reading it back to be sure")
    del optimizer  # its moments lie where another denoiser will
    if family.sparing:
        family.park(kept)
    with family.aside(*own):
        artifact = learner.export(out)
    frame = _verify(family, method, learner, out, recipe, preview)
    path = out / f"preview_{step:05d}.png"
    yield replace(_save_preview(family, frame, path), method=name, step=step, steps=steps, seconds=clock.seconds)
    subject = _write_subject(out, recipe, family, method, artifact, photo_digest, step, clock, size, complete)
    if complete:
        for done in (CHECKPOINT, CLASS_IMAGES, STRENGTHS_TRIED):
            (out / done).unlink(missing_ok=True)
    pause.keep()
    world.wait()
    yield _end("done" if complete else "stopped", subject, out)


def _any(*asked: Callable[[], bool]) -> bool:
    return any(each() for each in asked)


def _learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Up over the warm-up, level, down over the last part."""
    left = (recipe.steps - step) / max(1.0, FADE_SHARE * recipe.steps)
    return min(1.0, (step + 1) / max(1, recipe.warmup_steps)) * min(1.0, FADE_TO + (1 - FADE_TO) * left)


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], learner: Learner, decay: float, step: int) -> None:
    """Exponential average; early on it follows faster, so that the start is forgotten."""
    if average:
        live = learner.tensors()
        share = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([average[key] for key in live], [value.detach() for value in live.values()], share)


def _read(losses: list[tuple[int, torch.Tensor]], recipe: Recipe) -> float:
    """Wait for the losses so far, empty the list, and return their mean. Raises UserError at one that is no number."""
    values = torch.stack([pair for _, pair in losses]).cpu()
    for (step, _), (loss, norm) in zip(losses, values.tolist(), strict=True):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _no_number(f"the loss became {loss} (gradient {norm})", step, recipe)
    losses.clear()
    return float(values[:, 0].mean())


def _check_numbers(learner: Learner, step: int, recipe: Recipe) -> None:
    """The last update can spoil the weights after a loss that was still a number: look before keeping them."""
    norms = torch._foreach_norm([tensor.detach() for tensor in learner.tensors().values()])
    if not bool(torch.isfinite(torch.stack(norms)).all()):
        raise _no_number("the weights left the range of numbers", step, recipe)


def _no_number(what: str, step: int, recipe: Recipe) -> UserError:
    return UserError(
        f"{_title(recipe)} stopped at step {step}: {what}. Lower the learning rate ({recipe.learning_rate:g}) and "
        "start again."
    )


# -- choosing ------------------------------------------------------------------------------------------------------


class _Watched:
    """What was seen of a run's checkpoints so far, and the best one's tensors."""

    def __init__(self, watch: Watch, out: Path | None) -> None:
        self.watch, self._file = watch, None if out is None else out / WATCH_FILE
        self.looks: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def chosen(self) -> int:
        """The step of the best look. Where nothing is alike yet (value 0) the most alike counts; of equals the last."""
        return int(max(self.looks, key=lambda look: (look["value"], look["identity"], look["step"]))["step"])

    def add(self, look: Look, step: int, seconds: float, tensors: dict[str, Any]) -> None:
        self.looks.append({"step": step, "seconds": round(seconds, 3), **asdict(look)})
        if self.chosen == step:
            # beside the weights in training there is no room for another copy on a GPU
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        if self._file is not None:
            _write_json(self._file, {"judge": self.watch.judge, "chosen": self.chosen, "looks": self.looks})

    def owes(self, step: int, recipe: Recipe) -> bool:
        """Whether the checkpoint of this step is to be looked at and was not yet."""
        due = step > 0 and (step % recipe.watch_every == 0 or step == recipe.steps)
        return due and not any(look["step"] == step for look in self.looks)

    def is_enough(self, patience: int) -> bool:
        """Whether the last `patience` looks were no better than an earlier one; 0 is never, nor is it before the first
        look that is alike at all.
        """
        if not patience or len(self.looks) <= patience or not max(look["value"] for look in self.looks) > 0:
            return False
        return self.chosen <= self.looks[-1 - patience]["step"]


def _look(
    family: Family,
    learner: Learner,
    average: dict[str, torch.Tensor],
    watch: Watch,
    phrase: str,
    recipe: Recipe,
    stop: Callable[[], bool],
) -> Look | None:
    """Draw the validation prompts with what would be kept now, and have them looked at; None when stopped.

    The seeds are the run's own.
    """
    rows = [
        Row(
            prompt.replace("{subject}", phrase),
            derived_seed(recipe.seed, index, 7),
            guidance=family.architecture.guidance,
        )
        for index, prompt in enumerate(watch.prompts)
    ]
    live = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()} if average else {}
    if average:
        load_into(learner.tensors(), average)
    try:
        frames = _frames(family, learner.modules, rows, steps=WATCH_STEPS, stop=stop)
        return None if frames is None else watch.look(frames)
    finally:
        if live:
            load_into(learner.tensors(), live)


def _choose_strength(
    family: Family,
    learner: Learner,
    watch: Watch,
    phrase: str,
    recipe: Recipe,
    stop: Callable[[], bool],
    pause: Slice,
    out: Path,
    stamp: str,
) -> Iterator[Event]:
    """Scale the learned change, not its factors, to the strength that looks best; strengths.json in `out` says why.
    Stopped in between, the change stays as it is; paused, what was seen so far of this training (`stamp`) is kept.
    """
    scaled = {name: tensor for name, tensor in learner.tensors().items() if name in learner.scales()}
    ended = {name: tensor.detach().clone() for name, tensor in scaled.items()}
    tried = _read_json(out / STRENGTHS_TRIED)
    looks = list(tried["looks"]) if tried.get("stamp") == stamp else []
    for index, strength in enumerate(STRENGTHS[len(looks) :], start=len(looks) + 1):
        yield Event("phase", recipe.method, text=f"Trying strength {index} of {len(STRENGTHS)}")
        load_into(scaled, {name: strength * tensor for name, tensor in ended.items()})
        looked = _look(family, learner, {}, watch, phrase, recipe, partial(_any, stop, pause))
        if looked is None:
            load_into(scaled, ended)
            return
        looks.append({"strength": strength, **asdict(looked)})
        _write_json(out / STRENGTHS_TRIED, {"stamp": stamp, "looks": looks})
        pause.keep()
    # of equal ones the one nearest to what training ended with
    chosen = float(max(looks, key=lambda look: (look["value"], -abs(look["strength"] - 1)))["strength"])
    load_into(scaled, {name: chosen * tensor for name, tensor in ended.items()})
    _write_json(out / STRENGTHS_FILE, {"judge": watch.judge, "chosen": chosen, "looks": looks})
    yield Event("note", recipe.method, text=f"Strength {chosen:g} is kept")


# -- checks --------------------------------------------------------------------------------------------------------


def _title(recipe: Recipe) -> str:
    return {
        "textual_inversion": "Textual inversion",
        "dreambooth": "DreamBooth",
        "lora": "LoRA",
        "pivotal": "Pivotal tuning",
    }.get(recipe.method, recipe.method)


def _check(recipe: Recipe, data: TrainingData) -> None:
    if not len(data.frames):
        raise UserError("There are no photos to learn from. Add at least 5 photos of one person.")
    if len(data.captions) != len(data.frames) or not all("{subject}" in caption for caption in data.captions):
        raise ValueError("one caption per frame, each with {subject}")
    for caption in data.captions:
        check_prompt(caption)
    for frame in data.frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(f"frames are (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
    if recipe.watch_every < 0 or recipe.patience < 0:
        raise UserError("A recipe's watch_every and patience must be whole numbers from 0 up.")
    numbers = {"steps": recipe.steps, "batch": recipe.batch, "checkpoint_every": recipe.checkpoint_every}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"A recipe's {name} must be at least 1, not {value}.")
    shares = {"face_weight": recipe.face_weight, "background_weight": recipe.background_weight,
              "vector_learning_rate": recipe.vector_learning_rate}  # fmt: skip
    for name, number in shares.items():
        if not (math.isfinite(number) and number >= 0):
            raise UserError(f"A recipe's {name} must be a number from 0 up, not {number}.")
    if not 0 <= recipe.freeze_vectors_after <= 1:
        raise UserError(f"A recipe's freeze_vectors_after is a share from 0 to 1, not {recipe.freeze_vectors_after}.")
    for name, choice, known in (
        ("optimizer", recipe.optimizer, OPTIMIZERS),
        ("gradient_checkpointing", recipe.gradient_checkpointing, CHECKPOINTING),
    ):
        if choice not in known:
            raise UserError(f"A recipe's {name} is one of {', '.join(known)}, not {choice}.")
    if recipe.weighs_faces and len(data.heads) != len(data.frames):
        raise UserError(
            "Nobody knows where the faces are in these photos, so they can't count more. Leave face_weight and "
            "background_weight at 1."
        )
    for head, frame in zip(data.heads, data.frames):
        if head.shape != frame.shape[:2]:
            raise ValueError(f"heads are as large as their frames, not {head.shape} beside {frame.shape}")
    rates = (recipe.learning_rate, recipe.text_learning_rate, recipe.weight_decay, recipe.clip_norm)
    if not all(math.isfinite(rate) and rate >= 0 for rate in (*rates, recipe.prior_weight)):
        raise UserError("A recipe's learning rates, weight decay, clipping and prior weight must be numbers from 0 up.")


def _check_fit(family: Family, recipe: Recipe, data: TrainingData) -> None:
    row = family.row
    if recipe.method not in row.offered:
        raise UserError(f"{_title(recipe)} is not offered for {row.title}. Choose one of: {', '.join(row.offered)}.")
    if (why := too_large(row, recipe, free_memory_gb(family.device), family.device.dtype)) is not None:
        raise UserError(f"{_title(recipe)} does not fit here: {why}")
    square = (row.resolution_px, row.resolution_px)
    for frames, shapes in ((data.frames, (*row.shapes, square)), (tuple(data.validation), (square,))):
        for height, width in by_shape(frames):
            if (height, width) not in shapes:
                takes = " or ".join(f"{h}x{w}" for h, w in dict.fromkeys(shapes))
                raise ValueError(f"{row.name} takes {takes} frames, not {height}x{width}")


def _fingerprint(recipe: Recipe, data: TrainingData, photo_digest: str, family: Family) -> str:
    """What a checkpoint belongs to."""
    settings = {k: v for k, v in recipe_fields(recipe).items() if k not in SAME_LEARNING}
    frames = hashlib.sha256()
    for frame in data.frames:
        frames.update(str(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    if recipe.weighs_faces:
        for head in data.heads:
            frames.update(np.ascontiguousarray(head).tobytes())
    return sha(settings, data.captions, photo_digest, frames.hexdigest(), family.row.name, family.row.revision)


def _is_disk_full(error: Exception) -> bool:
    # safetensors reports the system's error as text only
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(error)


# -- saving --------------------------------------------------------------------------------------------------------


def _save_checkpoint(
    out: Path,
    fingerprint: str,
    learner: Learner,
    optimizer: torch.optim.Optimizer | None,
    average: dict[str, torch.Tensor],
    watched: _Watched | None,
    step: int,
    clock: _Clock,
) -> None:
    tensors = {f"model.{key}": value.detach() for key, value in learner.tensors().items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    meta = {"fingerprint": fingerprint, "step": step, "seconds": clock.seconds}
    if watched:
        tensors |= {f"best.{key}": value for key, value in watched.best.items()}
        meta["looks"] = watched.looks
    if optimizer is not None:
        tensors |= optimizer_tensors(optimizer)
    save_tensors(out / CHECKPOINT, tensors, meta)


def _resume(
    out: Path,
    fingerprint: str,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    watched: _Watched | None,
    clock: _Clock,
) -> tuple[int, str | None]:
    """Put a checkpoint back; the step to go on from, and a sentence about it."""
    file = out / CHECKPOINT
    if not file.is_file():
        return 0, None
    try:
        tensors, meta = load_tensors(file)
    except (OSError, ValueError, SafetensorError):
        return 0, "The checkpoint can't be read: starting again"
    if meta.get("fingerprint") != fingerprint:
        return 0, "The checkpoint is of other photos or another recipe: starting again"
    load_into(learner.tensors(), {key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    if average:
        load_into(average, {key[8:]: value for key, value in tensors.items() if key.startswith("average.")})
    load_optimizer(optimizer, tensors)
    if watched:
        watched.looks = list(meta.get("looks", []))
        watched.best = {key[5:]: value for key, value in tensors.items() if key.startswith("best.")}
    clock.before += float(meta["seconds"])
    return int(meta["step"]), f"Continuing at step {meta['step']}"


def _has_checkpoint(out: Path, fingerprint: str) -> bool:
    """Whether `_resume` will find something of this training."""
    try:
        return bool(load_tensors(out / CHECKPOINT)[1].get("fingerprint") == fingerprint)
    except (OSError, ValueError, SafetensorError):
        return False


def _start_from(learner: Learner, out: Path, recipe: Recipe, family: Family) -> None:
    """Begin where an earlier training of this method ended. Raises UserError when that is not there any more."""
    before, row = load_subject(out), family.row
    if (before.sha256, before.base, before.base_revision) != (recipe.start_from, row.name, row.revision):
        raise UserError(f"What {_title(recipe)} learned before is not there any more. Train it afresh.")
    learner.start_from(out)


def _trained_before(out: Path, family: Family, photo_digest: str) -> Subject | None:
    """What this method learned of the same photos on the same base in an earlier, complete training."""
    try:
        before = load_subject(out)
    except UserError:
        return None
    row = family.row
    same = (before.base, before.base_revision, before.photo_digest) == (row.name, row.revision, photo_digest)
    return before if same and before.complete and (out / before.artifact).is_file() else None


def _finished(out: Path, recipe: Recipe, photo_digest: str) -> Subject | None:
    """The subject in `out` when it is already what is asked for."""
    if not (out / SUBJECT).is_file():
        return None
    try:
        subject = load_subject(out)
    except UserError:
        return None
    same = subject.complete and subject.recipe == recipe and subject.photo_digest == photo_digest
    return subject if same and (out / subject.artifact).is_file() else None


def _write_subject(
    out: Path,
    recipe: Recipe,
    family: Family,
    method: Method,
    artifact: Artifact,
    photo_digest: str,
    step: int,
    clock: _Clock,
    size: int,
    complete: bool,
) -> Subject:
    learned = digest(out, artifact.learned)
    subject = Subject(
        id=f"{recipe.method}-{learned[:12]}",
        method=recipe.method,
        base=family.row.name,
        base_revision=family.row.revision,
        class_word=recipe.class_word,
        phrase=method.phrase(family.row, recipe),
        recipe=recipe,
        photo_digest=photo_digest,
        artifact=artifact.file,
        sha256=learned,
        steps=step,
        train_s=round(clock.seconds, 3),
        peak_mem_mb=round(peak_memory_mb(), 1),
        artifact_bytes=sum((out / name).stat().st_size for name in artifact.learned),
        trainable_params=size,
        complete=complete,
    )
    text = json.dumps(asdict(subject) | {"schema": 1, "learned": artifact.learned}, indent=2) + "\n"
    write_file(out / SUBJECT, lambda path: _write_text(path, text))
    return subject


def _write_json(path: Path, saved: dict[str, Any]) -> None:
    write_file(path, lambda partial: _write_text(partial, json.dumps(saved, indent=1) + "\n"))


def _read_json(path: Path) -> dict[str, Any]:
    """What `_write_json` wrote; {} where there is nothing that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _end(kind: str, subject: Subject, out: Path) -> Event:
    return Event(
        kind,
        subject.method,
        subject.steps,
        subject.recipe.steps,
        seconds=subject.train_s,
        seconds_left=0.0,
        path=str(out / SUBJECT),
        text=None if subject.complete else f"Stopped after {subject.steps} of {subject.recipe.steps} steps; kept",
        data={"subject": asdict(subject)},
    )


# -- looking at it -------------------------------------------------------------------------------------------------


def _frame(family: Family, modules: Modules, row: Row) -> np.ndarray:
    """One quick picture (H, W, 3) with the modules as they are."""
    frames = _frames(family, modules, [row], steps=PREVIEW_STEPS)
    assert frames is not None
    return frames[0]


def _draft(family: Family, modules: Modules, row: Row, distilled: Layers | None) -> np.ndarray:
    """One picture (H, W, 3) to follow a training by: in fewer steps where the base has what it takes."""
    if distilled is None:
        return _frame(family, modules, row)
    row = replace(row, guidance=drafts.GUIDANCE)
    with drafts.distilled(family, modules.unet, distilled):
        frames = _frames(family, modules, [row], steps=drafts.STEPS, scheduler=drafts.SCHEDULER)
    assert frames is not None
    return frames[0]


def _frames(
    family: Family,
    modules: Modules,
    rows: Sequence[Row],
    *,
    steps: int,
    scheduler: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Quick pictures (n, H, W, 3); None when stopped."""
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


def _save_preview(family: Family, frame: np.ndarray, path: Path) -> Event:
    """Write one picture (H, W, 3) and say so, unless the image filter refuses it."""
    if family.refused(frame[None])[0]:
        return Event("note", text="The image filter refused a preview, so it is not shown")
    _save_png(frame, path)
    return Event("preview", path=str(path))


def _save_png(frame: np.ndarray, path: Path) -> None:
    from PIL import Image

    write_file(path, lambda partial: Image.fromarray(frame).save(partial, format="PNG"))


def _verify(family: Family, method: Method, learner: Learner, out: Path, recipe: Recipe, row: Row) -> np.ndarray:
    """Reload the artefact as generation will and compare it with the live modules; the live picture.

    Raises UserError when it draws another picture or the denoiser answers differently.
    """
    live, answers = _frame(family, learner.modules, row), _answers(family, learner.modules, row, recipe)
    with family.aside(*family.own(learner.modules)):  # one denoiser after the other
        plain = _answers(family, family.shared(), row, recipe)
        saved = method.apply(family, out, recipe)
        levels = float(np.abs(live.astype(np.float32) - _frame(family, saved, row)).mean())
        again = _answers(family, saved, row, recipe)
        del saved
    size = float(answers.norm().clamp(min=1e-12))
    learned, lost = float((answers - plain).norm()) / size, float((answers - again).norm()) / size
    if not (levels <= SAME_PICTURE_LEVELS and lost <= SAME_ANSWER_OF_LEARNED * learned + SAME_ANSWER_OF_ALL):
        raise UserError(
            f"{_title(recipe)} was saved but does not draw the same picture when reloaded ({levels:.1f} of 255 grey "
            f"levels apart, {lost:.3f} of the answer lost). Start again; it continues from its last checkpoint."
        )
    return live


@torch.no_grad()
def _answers(family: Family, modules: Modules, row: Row, recipe: Recipe) -> torch.Tensor:
    """What the denoiser says to the same noise at four levels, (4, c, h, w)."""
    latents = noise(derived_seed(recipe.seed, 6), (4, *family.latent_shape()), device=family.device.name)
    timesteps = family.schedule.timesteps(torch.tensor([0.2, 0.4, 0.6, 0.8], device=family.device.name))
    with family.awake(*modules.text.encoders):
        told = modules.text.encode(modules.text.ids([row.prompt] * len(latents)))
        return family.predict(modules.unet, latents, timesteps, told).float()
