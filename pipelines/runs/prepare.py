"""One job, and what it needs before its stages: the person's photos, a device, and the base in memory.

In: a run and its spec. Out: a `Job`; events, then an `Album`, a `Device`, a `Family`.
Try it: `for event in take_in(run, spec, find_base(spec.base)): print(event.text)`.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.bases.architectures import FAMILIES
from pipelines.bases.registry import BaseRow, find_base
from pipelines.core import presets
from pipelines.core.control import Control
from pipelines.core.files import file_sha256, read_json, sha, timestamp, write_json
from pipelines.core.records import Counted, Event, PhotoSet, Recipe, UserError
from pipelines.core.run import Run, load_photo_set, save_photo_set
from pipelines.evaluation.judge import Terms
from pipelines.runs.jobspec import JobSpec
from pipelines.training.teach import leave_out_too_large
from pipelines.training.world import World, join

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.core.device import Device
    from pipelines.photos.album import Album

T = TypeVar("T")


class Resident:
    """Keeps the base of the last job in memory for the next one. Jobs train copies of it and never change it."""

    def __init__(self) -> None:
        self._key: object = None
        self._family: Family | None = None

    def family(self, key: object, load: Callable[[], Family]) -> Family:
        if self._key != key or self._family is None:
            self._key = self._family = None  # free the last one before loading the next
            self._family = load()
            self._key = key
        return self._family


@dataclass
class Job:
    """One running job: its spec, its control, and the sentences that its report will show."""

    run: Run
    spec: JobSpec
    control: Control
    resident: Resident
    world: World = field(default_factory=World)  # the processes that teach together
    started: str = field(default_factory=timestamp)  # UTC
    problems: list[str] = field(default_factory=list)  # one sentence per method that failed
    left: list[str] = field(default_factory=list)  # one sentence per method that a person stopped
    notes: list[str] = field(default_factory=list)
    memory: dict[str, str] = field(default_factory=dict)  # method -> how it fitted into the GPU's memory

    @cached_property
    def row(self) -> BaseRow:
        return find_base(self.spec.base)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """By method. `load` removes those that can't fit into the GPU's memory."""
        return {name: self.recipe(name) for name in self.spec.methods}

    def recipe(self, method: str) -> Recipe:
        spec = self.spec
        usual = presets.recipe(self.row, method, spec.quality, class_word=spec.class_word, seed=spec.seed)
        return usual.replaced(**spec.settings.get(method, {}))

    @cached_property
    def terms(self) -> Terms:
        return Terms(
            class_word=self.spec.class_word,
            stylised=tuple(dict.fromkeys((*self.spec.stylised, *presets.stylised()))),
            others=tuple(map(Path, self.spec.others)),
            ask_clip=FAMILIES[self.row.family].clip_judges,
            download=self.spec.download_judge,
        )

    @property
    def errors(self) -> tuple[str, ...]:
        return (*self.problems, *self.left)

    def raise_problems(self, rest: str) -> None:
        """Raises UserError when a method could not be taught; `rest`: a sentence about the other methods."""
        if self.problems:
            raise UserError(f"{' '.join(self.problems)} {rest}")


def join_in(job: Job) -> Generator[Event, None, Album]:
    """Take the photos in. Of processes that train together the first one does; the others wait and read them."""
    job.world = join(job.spec.device)
    if job.world.first:
        if job.world.size > 1:
            yield Event("note", text=f"{job.world.size} processes teach together")
        photos = yield from take_in(job.run, job.spec, job.row)
        job.world.wait()
        return album_of(photos)
    job.world.wait()
    known = load_photo_set(job.run)
    assert known is not None, "the first process stored them"
    return album_of(known)


def album_of(photos: PhotoSet) -> Album:
    """An album of the photos: each is decoded, searched for faces and embedded once per job, when first needed."""
    from pipelines.photos.album import Album

    return Album(photos)


def take_in(run: Run, spec: JobSpec, row: BaseRow) -> Generator[Event, None, PhotoSet]:
    """The run's photos: those taken in before, unless other files or another seed are named now.

    Raises UserError when there are none, or too few good ones.
    """
    from pipelines.photos import intake

    known = load_photo_set(run)
    if not spec.photos:
        if known is None:
            raise UserError("There are no photos in this run. Add 5 to 15 photos of one person.")
        return known
    paths = [Path(each) for each in spec.photos]
    source = _source(paths, spec.split, spec.keep)
    record = run.folder / "source.json"
    if known is not None and (source is None or (read_json(record) or {}).get("sha256") == source):
        return known
    yield Event("phase", text=f"Looking at {len(paths)} photos")

    def look(tell: Callable[[Event], None]) -> PhotoSet:
        def progress(done: int, total: int, name: str) -> None:
            tell(Event("note", step=done, steps=total, text=f"{name} looked at", data=Counted("photos")))

        return intake.intake(
            paths,
            run.photos,
            seed=spec.split,
            min_eye_distance_px=row.min_eye_distance_px,
            keep=spec.keep,
            progress=progress,
        )

    found = yield from _told_live(look)
    save_photo_set(run, found)
    write_json(record, {"sha256": source})
    for name, reason in sorted(found.rejected.items()):
        yield Event("note", text=f"{name}: {reason}")
    for photo in found.photos:
        for note in photo.notes:
            yield Event("note", text=f"{photo.name}: {note}")
    if found.weak:
        yield Event("note", text="Only one photo can be held out, so the verdict will be weak; more photos help")
    return found


def load(job: Job) -> Generator[Event, None, tuple[Device, Family]]:
    """A device, and the base in memory, fetched first where it is not on this machine.

    Methods that can't fit into the GPU's memory are left out before anything is fetched. Raises Stopped before anything
    heavy is imported, and UserError when the base can't be loaded.
    """
    job.control.check(job.world.any)
    from pipelines.core.device import pick_device, uncollected

    with uncollected():
        from pipelines.bases.loading import load_family

    yield Event("phase", text=f"Loading {job.row.title}")
    wanted = job.spec.device
    if job.world.size > 1 and wanted in (None, "cuda") and pick_device(wanted).kind == "cuda":
        wanted = f"cuda:{job.world.local}"  # the current device is a thread's own, so it is named
    device = pick_device(wanted)
    yield Event("note", text=f"Computing on {device.name} in {device.dtype}: {device.reason}")
    if job.spec.kind != "generate":
        too_large = yield from leave_out_too_large(job.run, job.recipes, job.row, device)
        job.problems += too_large.values()
        for name in too_large:
            del job.recipes[name]

    def work(tell: Callable[[Event], None]) -> Family:
        def progress(text: str, share: float | None) -> None:
            tell(Event("note", text=text))

        def fresh() -> Family:
            with uncollected():  # the classes are imported as they are named
                return load_family(job.row, device, attention=job.spec.attention, progress=progress)

        return job.resident.family((job.row, device, job.spec.attention), fresh)

    family = yield from _told_live(work)
    if family.unfiltered:
        job.notes.append(family.unfiltered)
    return device, family


def _told_live(work: Callable[[Callable[[Event], None]], T]) -> Generator[Event, None, T]:
    """Run `work` in a thread, and yield the events that it sends while it runs; returns its result."""
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, told.put)
        while not (future.done() and told.empty()):
            with contextlib.suppress(queue.Empty):
                yield told.get(timeout=0.1)
    return future.result()


def _source(paths: Sequence[Path], seed: int, keep: Sequence[str]) -> str | None:
    """A hash of the files that the photos are made from; None when one is no longer where it was."""
    try:
        return sha(sorted([path.name, file_sha256(path)] for path in paths), seed, sorted(keep))
    except OSError:
        return None
