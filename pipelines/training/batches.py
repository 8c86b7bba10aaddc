"""The batch of a training step, and its loss: photos as latents, captions as conditioning, and class images.

In: a recipe, aligned photos with captions, a base. Out: the `Batch` of any step, which depends on (seed, step) alone,
and its loss, the weighted sum of `bases/objective.py`'s losses of its rows. Pictures and texts that never change are
encoded once. Used by `training/loop.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipelines.bases.family import Family, Moments
from pipelines.bases.objective import Schedule
from pipelines.bases.registry import BaseRow
from pipelines.bases.sampling import Row, sample_latents
from pipelines.bases.text import Conditioning
from pipelines.core.control import Control
from pipelines.core.device import derived_seed, noise
from pipelines.core.files import sha
from pipelines.core.records import CHECKPOINTING, OPTIMIZERS, Recipe, UserError, recipe_fields
from pipelines.core.safety import check_prompt
from pipelines.methods.base import Learner
from pipelines.training.checkpoints import load_tensors, save_tensors
from pipelines.training.world import World

ALONE = World()
CLASS_IMAGES = "class_images.safetensors"
CLASS_IMAGE_STEPS = 16
# Settings that do not change what is learned, so they are no part of a fingerprint.
SAME_LEARNING = ("checkpoint_every", "preview_every_s", "gradient_checkpointing")
Shape = tuple[int, int]  # (height, width) of a picture in pixels


@dataclass(frozen=True)
class TrainingData:
    """The photos as all methods train on them."""

    frames: Sequence[np.ndarray]  # n pictures, (H, W, 3) uint8, each in one of the base's shapes
    captions: tuple[str, ...]  # one per frame, each with "{subject}"
    validation: np.ndarray  # (m, H, W, 3) uint8, m may be 0: for the validation loss only
    heads: tuple[np.ndarray, ...] = ()  # one per frame, (H, W) from 0 to 1: where the head is; () = not known
    photo_digest: str = ""  # of the photos they come from; part of what a checkpoint and a subject belong to
    # dlib's descriptor of the person, (128,), for methods that start from it. In memory only.
    identity: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """One step's rows: first the photos, then the class images (prior preservation), which have another weight."""

    latents: torch.Tensor  # (b, c, h, w)
    texts: torch.Tensor  # (b,) indices into the captions
    noise: torch.Tensor  # (b, c, h, w)
    timesteps: torch.Tensor  # (b,)
    weights: torch.Tensor  # (b,), sums to 1 + prior weight
    masks: torch.Tensor | None = None  # (b, 1, h, w), mean 1 in each row: the loss's weight at each place; None = all 1

    def rows(self, world: World) -> Batch:
        """The rows of this process."""
        own = world.share(len(self.weights))
        masks = None if self.masks is None else self.masks[own]
        return Batch(self.latents[own], self.texts[own], self.noise[own], self.timesteps[own], self.weights[own], masks)


@dataclass(frozen=True)
class Bucket:
    """The photos of one shape (height, width): all pictures of a batch have the same shape."""

    photos: torch.Tensor  # (k,) indices into all n photos
    place: torch.Tensor  # (n,) a photo's index into `photos`
    moments: Moments  # of the k photos, then, with mirroring, of their mirror images
    class_latents: torch.Tensor | None  # (m, c, h, w)
    masks: torch.Tensor | None = None  # (k, 1, h, w), with mirroring twice as many, as `moments`


class Batches:
    """Makes the batch of any step from (seed, step) alone: the same photos, noise and timesteps for every method."""

    def __init__(
        self,
        family: Family,
        learner: Learner,
        recipe: Recipe,
        data: TrainingData,
        phrase: str,
        class_latents: dict[Shape, torch.Tensor],
    ) -> None:
        self._family, self._recipe, self._count = family, recipe, len(data.frames)
        self.phrase = phrase
        self._buckets: list[Bucket] = []
        self._bucket_of = [0] * self._count
        for shape, photos in by_shape(data.frames).items():
            frames = np.stack([data.frames[index] for index in photos])
            if recipe.mirror:  # both are encoded once and kept
                frames = np.concatenate([frames, frames[:, :, ::-1]])
            place = torch.zeros(self._count, dtype=torch.long)
            place[photos] = torch.arange(len(photos))
            for index in photos:
                self._bucket_of[index] = len(self._buckets)
            moments = family.encode_images(frames)
            masks = None
            if recipe.weighs_faces:
                seen = np.stack([data.heads[index] for index in photos])
                if recipe.mirror:
                    seen = np.concatenate([seen, seen[:, :, ::-1]])
                masks = loss_masks(seen, (moments.mean.shape[-2], moments.mean.shape[-1]), recipe).to(
                    moments.mean.device
                )
            self._buckets.append(Bucket(torch.tensor(photos), place, moments, class_latents.get(shape), masks))
        self._validation = family.encode_images(data.validation) if len(data.validation) else None
        # three groups: the whole captions, their first parts alone ("portrait of {subject}"), those of class images
        heads = [caption.split(",")[0] for caption in data.captions]
        self.captions = [text.replace("{subject}", phrase) for text in (*data.captions, *heads)]
        self.head = self.captions[self._count]
        if class_latents:
            self.captions += [text.replace("{subject}", recipe.class_word) for text in data.captions]
        self._ids = learner.modules.text.ids(self.captions)
        self._cached: Conditioning | None = None
        if not learner.live_text:
            with torch.no_grad():
                self._cached = learner.modules.text.encode(self._ids)

    def at(self, step: int) -> Batch:
        recipe, count = self._recipe, self._count
        generator = torch.Generator().manual_seed(derived_seed(recipe.seed, step, 1))
        photos = self._photos(step)
        bucket = self._buckets[self._bucket_of[int(photos[0])]]
        mirrored = torch.rand(len(photos), generator=generator) < 0.5
        short = torch.rand(len(photos), generator=generator) < recipe.caption_dropout
        texts = photos + count * short
        entries = bucket.place[photos]
        if recipe.mirror:
            entries = entries + len(bucket.photos) * mirrored
        shape = bucket.moments.mean.shape[1:]
        drawn = torch.randn((len(photos), *shape), generator=generator)
        sampled = drawn if self._family.architecture.sampled_latents else None
        device = bucket.moments.mean.device
        latents = bucket.moments[entries.to(device)].latents(None if sampled is None else sampled.to(device))
        noised = torch.randn((len(photos), *shape), generator=generator)
        timesteps = _spread(len(photos), self._family.schedule, generator, recipe.noise_from)
        weights = torch.full((len(photos),), 1 / len(photos))
        masks = None if bucket.masks is None else bucket.masks[entries.to(device)]
        if bucket.class_latents is not None:
            generator.manual_seed(derived_seed(recipe.seed, step, 2))
            extra = max(1, len(photos) // 2)
            chosen = torch.randint(0, len(bucket.class_latents), (extra,), generator=generator)
            latents = torch.cat([latents, bucket.class_latents[chosen.to(device)]])
            texts = torch.cat([texts, 2 * count + chosen % count])
            noised = torch.cat([noised, torch.randn((extra, *shape), generator=generator)])
            more = _spread(extra, self._family.schedule, generator, recipe.noise_from)
            timesteps = torch.cat([timesteps, more])
            weights = torch.cat([weights, torch.full((extra,), recipe.prior_weight / extra)])
            if masks is not None:  # class images have no mask
                masks = torch.cat([masks, torch.ones_like(masks[:1]).expand(extra, -1, -1, -1)])
        return Batch(latents, texts.to(device), noised.to(device), timesteps.to(device), weights.to(device), masks)

    def _photos(self, step: int) -> torch.Tensor:
        """Indices (b,) of a step's photos, all of one shape. Each round goes through all photos in a new random order.

        With several shapes each step takes the next photo of the round, and the next ones of its shape fill the batch:
        a shape's share of the steps is its share of the photos.
        """
        batch, count = self._recipe.batch, self._count
        if len(self._buckets) == 1:
            places = range(step * batch, (step + 1) * batch)
            orders = {each: self._order(each) for each in {place // count for place in places}}
            return torch.stack([orders[place // count][place % count] for place in places])
        order = self._order(step // count)
        leader = order[step % count]
        alike = self._buckets[self._bucket_of[int(leader)]].photos
        turned = torch.roll(order, -(step % count))
        return turned[torch.isin(turned, alike)].repeat(batch // len(alike) + 1)[:batch]

    def _order(self, round_: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self._recipe.seed, round_, 3))
        return torch.randperm(self._count, generator=generator)

    def conditioning(self, learner: Learner, texts: torch.Tensor) -> Conditioning:
        if self._cached is not None:
            return self._cached[texts]
        return learner.modules.text.encode([ids[texts] for ids in self._ids])

    def loss(self, learner: Learner, step: int, world: World = ALONE) -> torch.Tensor:
        """The loss of this process's rows, a scalar; the sum over all processes is the step's loss."""
        batch = self.at(step).rows(world)
        told = self.conditioning(learner, batch.texts)
        losses = self._family.objective(
            learner.modules.unet,
            batch.latents,
            told,
            batch.noise,
            batch.timesteps,
            snr_gamma=self._recipe.snr_gamma,
            **({} if batch.masks is None else {"mask": batch.masks}),
        )
        return (losses * batch.weights).sum()

    @torch.no_grad()
    def validation_loss(self, learner: Learner) -> float:
        """The loss on photos that are not trained on, at fixed noise and timesteps. Comparable within one run only."""
        assert self._validation is not None
        places = self._family.schedule.timesteps(torch.tensor([0.2, 0.4, 0.6, 0.8]))
        latents = self._validation.mean.repeat_interleave(len(places), 0)
        timesteps = places.repeat(len(self._validation.mean)).to(latents.device)
        texts = torch.full((len(latents),), self._count, device=latents.device)
        still = noise(derived_seed(self._recipe.seed, 4), latents.shape, device=latents.device)
        told = self.conditioning(learner, texts)
        return float(
            self._family.objective(learner.modules.unet, latents, told, still, timesteps, snr_gamma=None).mean()
        )


def loss_masks(heads: np.ndarray, size: tuple[int, int], recipe: Recipe) -> torch.Tensor:
    """The loss's weight at each latent, (n, 1, h, w), from `heads`, (n, H, W): 1 where a head is, else 0.

    Each mask has mean 1, so that the loss is as large as without masks and needs no other learning rate.
    """
    head = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(heads)).float(), size)
    counts = recipe.background_weight + (recipe.face_weight - recipe.background_weight) * head[:, None]
    means = counts.mean((1, 2, 3), keepdim=True)
    # a photo that has weight 0 everywhere is trained without a mask
    return torch.where(means > 0, counts / means.clamp(min=1e-12), torch.ones_like(counts))


def by_shape(frames: Sequence[np.ndarray]) -> dict[Shape, list[int]]:
    """Shape -> indices of the pictures that have it."""
    found: dict[Shape, list[int]] = {}
    for index, frame in enumerate(frames):
        found.setdefault((frame.shape[0], frame.shape[1]), []).append(index)
    return found


def _spread(count: int, schedule: Schedule, generator: torch.Generator, share: float = 0.0) -> torch.Tensor:
    """Random timesteps (count,) above `share` of the schedule, one from each of `count` equal parts of it: the loss
    then varies less than with independent timesteps.
    """
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    places = share + (1 - share) * places
    return schedule.timesteps(places)[torch.randperm(count, generator=generator)]


def class_images(
    family: Family, recipe: Recipe, data: TrainingData, out: Path, control: Control
) -> dict[Shape, torch.Tensor]:
    """Class images: what the untrained base draws for the class word, as latents (n, c, h, w) per shape, which has the
    same share of them as of the photos. Kept in `out` until training ends. {} when stopped or paused.
    """
    file, row = out / CLASS_IMAGES, family.row
    shapes = {shape: len(photos) / len(data.frames) for shape, photos in by_shape(data.frames).items()}
    stamp = sha(
        row.name, row.revision, recipe.class_word, recipe.seed, recipe.prior_images, data.captions, list(shapes)
    )
    drawn: dict[Shape, list[torch.Tensor]] = {shape: [] for shape in shapes}
    if file.is_file():
        tensors, meta = load_tensors(file)
        if meta.get("stamp") == stamp:
            for shape in shapes:
                drawn[shape] = [each.to(family.device.name) for each in tensors.get(_name(shape), ())]
    first = 0  # of this shape's pictures among all
    for shape, share in shapes.items():
        last = first + max(1, round(recipe.prior_images * share))
        for start in range(first + len(drawn[shape]), last, recipe.batch):
            rows = [
                Row(
                    data.captions[index % len(data.captions)].replace("{subject}", recipe.class_word),
                    derived_seed(recipe.seed, index, 5),
                    guidance=family.architecture.guidance,
                )
                for index in range(start, min(start + recipe.batch, last))
            ]
            latents = sample_latents(
                family,
                family.shared(),
                rows,
                steps=CLASS_IMAGE_STEPS,
                height_px=shape[0],
                width_px=shape[1],
                stop=partial(control.ended, recipe.method),
            )
            if latents is None:
                return {}
            drawn[shape] += list(latents)
            kept = {_name(each): torch.stack(found) for each, found in drawn.items() if found}
            save_tensors(file, kept, {"stamp": stamp})
            control.keep()
        first = last
    return {shape: torch.stack(latents) for shape, latents in drawn.items()}


def _name(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


# -- checks --------------------------------------------------------------------------------------------------------


def check(recipe: Recipe, data: TrainingData) -> None:
    """Raises UserError for settings that are not allowed, and ValueError for data that do not fit together."""
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


def check_shapes(row: BaseRow, data: TrainingData) -> None:
    """Raises ValueError for a picture in a shape that the base is not trained with."""
    square = (row.resolution_px, row.resolution_px)
    for frames, shapes in ((data.frames, (*row.shapes, square)), (tuple(data.validation), (square,))):
        for height, width in by_shape(frames):
            if (height, width) not in shapes:
                takes = " or ".join(f"{h}x{w}" for h, w in dict.fromkeys(shapes))
                raise ValueError(f"{row.name} takes {takes} frames, not {height}x{width}")


def fingerprint(recipe: Recipe, data: TrainingData, family: Family) -> str:
    """A hash of everything that decides what is learned; a checkpoint belongs to one fingerprint."""
    settings = {k: v for k, v in recipe_fields(recipe).items() if k not in SAME_LEARNING}
    frames = hashlib.sha256()
    for frame in data.frames:
        frames.update(str(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    if recipe.weighs_faces:
        for head in data.heads:
            frames.update(np.ascontiguousarray(head).tobytes())
    row = family.row
    return sha(settings, data.captions, data.photo_digest, frames.hexdigest(), row.name, row.revision)
