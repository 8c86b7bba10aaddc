"""Teach: train every method on the same photos, side by side or one after another.

In: a run, the album of its photos, one recipe per method and a loaded base. Out: events, and in `methods/<name>` of the
run what each method learned; `Taught` says how it went. When one method fails, the others go on.
Try it: `for event in teach(run, album, {"lora": recipe}, family, control=Control()): print(event)`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.bases.memory import too_large as why_too_large
from pipelines.core.control import SAVE_EVERY_S, Control, Stopped
from pipelines.core.records import (
    ALL_METHODS,
    METHOD_ROWS,
    Event,
    Failed,
    OutOfMemory,
    Recipe,
    Started,
    Subject,
    UserError,
    title_of,
)
from pipelines.core.run import Run
from pipelines.training.subjects import SUBJECT, load_subject
from pipelines.training.world import World, join

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.bases.registry import BaseRow
    from pipelines.core.device import Device
    from pipelines.core.records import Watch
    from pipelines.photos.album import Album
    from pipelines.training.batches import TrainingData


@dataclass
class Taught:
    """How a training went."""

    subjects: dict[str, Subject] = field(default_factory=dict)  # by method: complete, and by the recipe that was asked
    problems: list[str] = field(default_factory=list)  # one sentence per method that could not be taught
    left: list[str] = field(default_factory=list)  # one sentence per method that a person stopped
    memory: dict[str, str] = field(default_factory=dict)  # method -> how it fitted into the GPU's memory


def subject_of(run: Run, method: str) -> Subject | None:
    """The card of a method or imported column of the run; None when there is none. UserError when it is damaged."""
    folder = run.method(method)
    return load_subject(folder) if (folder / SUBJECT).is_file() else None


def subjects_of(run: Run) -> dict[str, Subject]:
    """The cards of all methods that were taught in the run."""
    return {name: card for name in ALL_METHODS if (card := subject_of(run, name)) is not None}


def leave_out_too_large(
    run: Run, recipes: Mapping[str, Recipe], row: BaseRow, device: Device
) -> Generator[Event, None, dict[str, str]]:
    """{method: why it can't fit into the GPU's memory}, with an event each; known before the base is downloaded.

    Raises UserError when that is all of them, and where several processes teach together.
    """
    from pipelines.core.device import free_memory_gb

    free_gb, too_large = free_memory_gb(device), dict[str, str]()
    for name, recipe in recipes.items():
        card = subject_of(run, name)
        done = card is not None and card.complete and card.recipe == recipe
        if done or (why := why_too_large(row, recipe, free_gb, device.dtype)) is None:
            continue
        too_large[name] = f"{title_of(name)} was not trained: {why}"
        if join(device.kind).size > 1:  # the others would wait for this one
            raise UserError(too_large[name])
        yield Event("failed", name, text=too_large[name])
    if len(too_large) == len(recipes):
        raise UserError(" ".join(too_large.values()))
    return too_large


def teach(
    run: Run,
    album: Album,
    recipes: Mapping[str, Recipe],
    family: Family,
    *,
    control: Control,
    find_watch: Callable[[], Watch | None] = lambda: None,
) -> Generator[Event, None, Taught]:
    """Teach every method of `recipes`. Where processes were launched together, they teach together.

    `find_watch` is called once, and only when a recipe has its checkpoint or its strength chosen.
    Raises Stopped when a person stopped it or its slice is over; what was learned is kept, and the next call continues.
    """
    from pipelines.training.encode import encode
    from pipelines.training.loop import train

    world = join(family.device.kind)
    control.check(world.any)
    taught = Taught()
    instant = {
        name: encode(recipe, album, run.method(name), family)
        for name, recipe in recipes.items()
        if not METHOD_ROWS[name].learns
    }
    yield from in_turn(instant, taught, family.row, control, world)
    if trained := {name: recipe for name, recipe in recipes.items() if name not in instant}:
        control.check(world.any)
        yield Event("phase", text="Preparing the photos")
        data = training_data(album, trained, family.row)
        wanted = any(recipe.watch_every or recipe.choose_strength for recipe in trained.values())
        watch = find_watch() if wanted else None
        if wanted and watch is None:
            text = "Without a photo for validation (8 are needed) and a second judge the last checkpoint is kept"
            yield Event("note", text=text)
        learners = {
            name: train(recipe, data, run.method(name), family=family, watch=watch, control=control)
            for name, recipe in trained.items()
        }
        yield Event("phase", text=f"Learning the face: {', '.join(title_of(name) for name in learners)}")
        yield from _side_by_side(learners, taught, family.row, control, world)
    cards = {name: subject_of(run, name) for name in recipes}
    taught.subjects = {
        name: card
        for name, card in cards.items()
        if card is not None and card.recipe == recipes[name] and card.complete
    }
    return taught


def _side_by_side(
    learners: Mapping[str, Iterator[Event]], taught: Taught, row: BaseRow, control: Control, world: World
) -> Iterator[Event]:
    """Advance the learners to their ends, and note how it went. Raises Stopped where somebody ended it."""
    stopped = False
    for event in in_turn(learners, taught, row, control, world):
        if event.method and isinstance(event.data, Started):
            taught.memory[event.method] = event.data.memory
        if event.kind == "stopped" and event.method and control.left(event.method) and not control.stopped():
            taught.left.append(f"{title_of(event.method)} was stopped at step {event.step} of {event.steps}")
        else:
            stopped |= event.kind in ("stopped", "paused")
        if world.first:
            control.clock.save(every_s=SAVE_EVERY_S)
        yield event
    if stopped:
        raise Stopped


def training_data(album: Album, recipes: Mapping[str, Recipe], row: BaseRow) -> TrainingData:
    """What all methods learn from; with dlib's descriptor of the person where a recipe starts from it."""
    from pipelines.photos.captions import training_captions
    from pipelines.photos.framing import heads
    from pipelines.training.batches import TrainingData

    photos = album.photos
    pictures = tuple(album.crops(photos.train, row))
    words = [each for each in recipes.values() if "words" in METHOD_ROWS[each.method].learns]
    return TrainingData(
        pictures,
        training_captions(photos.train, pictures),
        album.frames(photos.validation, row),
        tuple(heads(photos.train, row)) if any(each.weighs_faces for each in recipes.values()) else (),
        photos.digest,
        album.descriptor() if any(recipe.init == "zero_shot" for recipe in words) else None,
    )


def in_turn(
    learners: Mapping[str, Iterator[Event]], taught: Taught, row: BaseRow, control: Control, world: World
) -> Iterator[Event]:
    """Advance the trainings: with a small base always the one with the smallest share of its steps done, so that they
    run side by side; with a large base one after another. The sentence of a UserError goes into `taught.problems`.
    """
    share = dict.fromkeys(learners, 0.0)  # of its steps that each has done
    begun: set[str] = set()
    while share:
        name = min(share, key=lambda each: share[each]) if row.is_small else next(iter(share))
        if name not in begun and control.paused():  # not begun, so nothing to save
            del share[name]
            yield Event("paused", name)
            continue
        begun.add(name)
        try:
            event = next(learners[name])
        except StopIteration:
            del share[name]
            continue
        except UserError as problem:
            if world.size > 1:  # the other processes wait for this one: the launcher ends them all
                raise
            del share[name]
            sentence = f"{title_of(name)} was not trained: {problem}"
            taught.problems.append(sentence)
            yield Event("failed", name, text=sentence, data=Failed(isinstance(problem, OutOfMemory)))
            continue
        if event.steps:
            share[name] = event.step / event.steps
        yield event
