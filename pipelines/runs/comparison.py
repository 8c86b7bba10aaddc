"""The whole comparison: photos -> three methods learn side by side -> the same pictures from each -> who looks alike.

In: a person's photos and a `JobSpec`. Out: a stream of events, and a run's folder with everything, manifest.json last.
Every stage reads only what earlier ones wrote, so a stopped or killed run continues: finished methods are not trained
again and pictures that are there are not drawn again.

    for event in compare("photos/", class_word="man", out="run"):
        print(event.kind, event.method, event.step, event.text or "")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import queue
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.training import estimates
from pipelines.core import inscription, presets, workspace
from pipelines.training import world
from pipelines.bases.registry import BASES, default_base, find_base
from pipelines.core.fingerprints import base_sha256, file_sha256, sha, threads, versions
from pipelines.runs.jobspec import RENDERS, JobSpec, Setting, default_samplings, samplings_of
from pipelines.training.world import World
from pipelines.core.schema import (
    ALL_METHODS,
    COLUMNS,
    COMPOSED,
    Event,
    OutOfMemory,
    PhotoSet,
    Recipe,
    Sampling,
    Score,
    Subject,
    UserError,
    is_imported,
    place_of,
    sampling_fields,
)
from pipelines.core.slices import Slice
from pipelines.core.workspace import STRENGTHS_FILE, WATCH_FILE, Run

if TYPE_CHECKING:
    import numpy as np

    from pipelines.evaluation import metrics
    from pipelines.bases.family import Family
    from pipelines.faces.faces import Judge
    from pipelines.reports.report import Cell, Findings
    from pipelines.core.runtime import Device
    from pipelines.evaluation.scoring import Marks

# Methods of bases up to this size train side by side, step by step in turn; of larger ones one after another, so that
# only one of them is in memory at a time.
SIDE_BY_SIDE_UP_TO_GB = 2.0
OTHERS = 3  # photos of other people in a heatmap
SMALL_BASE_BATCH, LARGE_BASE_BATCH = 8, 4
CONSENT = "Whoever started this states that the person shown agrees to have their face learned."
T = TypeVar("T")
Drawn = tuple[str, Sampling, Path]  # column, what was asked for, where it lies


# ------------------------------------------------------------------------------------------------- the doors


def compare(
    photos: Path | str | Sequence[Path | str] | Run,
    *,
    class_word: str,
    methods: Sequence[str] | None = None,
    base: str | None = None,
    quality: str = "good",
    seed: int = 0,
    out: Path | str | None = None,
    prompts: Sequence[str] = (),
    renders: int = RENDERS,
    settings: dict[str, dict[str, Setting]] | None = None,
    device: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Do the whole job in this process. `photos` is a folder, a list of files, or a run whose photos were taken in.

    The last event is "done" (its `path` is report.json) or "stopped". Raises UserError for anything a person can act
    on. Calling it again with the same `out` continues or, when nothing is left to do, returns at once. By calling it
    you state that the person shown consents; that is noted in the run.
    """
    row = find_base(base or default_base())
    if isinstance(photos, Run):
        run, paths = photos, []
    else:
        from pipelines.photos.gather import photo_files

        single = Path(photos) if isinstance(photos, str | Path) else None
        paths = photo_files(single) if single is not None else [Path(each) for each in photos]  # type: ignore[union-attr]
        run = workspace.run_at(Path(out)) if out is not None else workspace.new_run()
    if not run.consent.exists():
        workspace.record_consent(run, means="Python API", statement=CONSENT)
    chosen = tuple(methods) if methods is not None else row.usual
    spec = JobSpec(
        base=base or row.name,
        class_word=class_word,
        methods=chosen,
        quality=quality,
        seed=seed,
        photos=tuple(str(path.resolve()) for path in paths),
        samplings=samplings_of(row, prompts, renders=renders, seed=seed) if prompts else (),
        renders=renders,
        settings=settings or {},
        device=device,
    )
    spec.check()
    workspace.require_space(run.folder, spec.disk_bytes(), purpose="This comparison")
    workspace.write_json(run.spec, spec)
    yield from perform(run, spec, stop=stop)


class Resident:
    """Keeps the clean base of the last job in memory for the next one. Jobs never change it: they learn on copies."""

    def __init__(self) -> None:
        self._key: object = None
        self._family: Family | None = None

    def family(self, key: object, load: Callable[[], Family]) -> Family:
        if self._key != key or self._family is None:
            self._key = self._family = None  # let the last one go before the next comes
            self._family = load()
            self._key = key
        return self._family


def perform(
    run: Run,
    spec: JobSpec,
    *,
    stop: Callable[[], bool] = lambda: False,
    leave: Callable[[str], bool] = lambda method: False,
    pause: Slice | None = None,
    resident: Resident | None = None,
) -> Iterator[Event]:
    """Do one job in a run. The last event is "done" or "stopped" with no method; see `compare` for errors.

    `leave(method)` says whether to go on without that method: what it learned so far is kept. `pause()` is like
    `stop()` but quicker, for whoever continues soon: nothing is saved but what that needs.
    """
    spec.check()
    flow = _Flow(run, spec, stop, leave, pause, resident)
    jobs = {"compare": flow.compare, "train": flow.train_only, "generate": flow.generate_only}
    jobs |= {"finish": flow.finish_only}
    try:
        yield from jobs[spec.kind]()
    except _Stopped as stopped:
        yield Event("stopped", text=str(stopped))
    finally:
        if flow.world.first:
            flow.clock.save()


# ------------------------------------------------------------------------------------------------- the flow


class _Stopped(Exception):
    """A person asked to stop, and what was learned so far is saved."""


REFUSED = "The image filter took this picture for sexual content, so it was not saved. Try another prompt or seed."
STOPPED = "Stopped. What was learned so far is kept; start again to continue."


class _Clock:
    """Seconds spent on one job over all its sessions. Kept on disk every few seconds, so that a kill loses little."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        saved = workspace.read_json(path) or {}
        self._before = float(saved["wall_s"]) if saved.get("key") == key else 0.0
        self._since = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._since

    def save(self, *, every_s: float = 0.0) -> bool:
        """Whether it was time to."""
        if time.monotonic() - self._saved < every_s:
            return False
        with contextlib.suppress(OSError, UserError):
            workspace.write_json(self._path, {"key": self._key, "wall_s": round(self.seconds, 3)})
        self._saved = time.monotonic()
        return True


class _Flow:
    """One job's stages. Each is a generator of events that returns what the next one needs."""

    def __init__(
        self,
        run: Run,
        spec: JobSpec,
        stop: Callable[[], bool],
        leave: Callable[[str], bool] = lambda method: False,
        pause: Slice | None = None,
        resident: Resident | None = None,
    ) -> None:
        self.run, self.spec, self.resident = run, spec, resident or Resident()
        self.stop, self.leave, self.pause = stop, leave, pause or Slice()
        self.row = find_base(spec.base)
        self.clock = _Clock(run.job_folder / "clock.json", sha(workspace.plain(spec)))
        self.started = workspace.timestamp()
        self.world = World()  # alone, until `join_in` has looked
        self.problems: list[str] = []  # of single methods; the others went on
        self.left: list[str] = []  # methods that a person stopped; the others went on
        self.left_out: list[str] = []  # methods that can't fit into the GPU's memory
        self.notes: list[str] = []
        self.refused: dict[tuple[str, Sampling], None] = {}  # pictures (column, sampling) the image filter refused
        self.memory: dict[str, str] = {}  # method -> how it fitted into the GPU's memory
        self.judges: list[Judge] = []

    @cached_property
    def stylised(self) -> tuple[str, ...]:
        """Prompts that no recogniser can judge: those named in the spec and the styles that are no photographs."""
        return tuple(dict.fromkeys((*self.spec.stylised, *presets.stylised())))

    # -- kinds of jobs -----------------------------------------------------------------------------------------

    def compare(self) -> Iterator[Event]:
        samplings = self.spec.samplings or default_samplings(self.row, renders=self.spec.renders, seed=self.spec.seed)
        photos = yield from self.join_in()
        imported = self._imported()
        columns = ("none", *self.spec.methods, *imported, *self.spec.images)
        key = _key_of(self.run, self.spec, photos)
        if self._is_complete(key):
            yield Event("note", text="This comparison is complete already; nothing was done again")
            yield self._done()
            return
        self._forget_report()
        device, family = yield from self.load()
        subjects = yield from self.train(photos, device, family)
        if not self.world.first:  # the first process draws and judges
            yield Event("done", text="Taught together", seconds=self.clock.seconds)
            return
        drawn = yield from self.draw(("none", *subjects, *imported), samplings, family)
        if not drawn:
            raise UserError("The image filter refused every picture, so nothing can be compared. Try other prompts.")
        drawn += self.brought()
        scores, marks = yield from self.judge(photos, family, wanted=[path for _, _, path in drawn])
        findings = self._findings(photos, columns, drawn, scores, marks, subjects)
        findings = yield from self.look_closer(photos, findings)
        self._stop_here()
        yield Event("phase", text="Writing the report")
        self._write(findings, photos, device, samplings, key)
        self._raise_problems("The report shows the others.")
        yield self._done(findings)

    def train_only(self) -> Iterator[Event]:
        photos = yield from self.join_in()
        device, family = yield from self.load()
        before = {name: self._subject(name) for name in self.spec.methods}
        subjects = yield from self.train(photos, device, family)
        if any(subjects.get(name) != before[name] for name in self.spec.methods):  # what a report said is past
            self._forget_report()
        self._raise_problems("The others are trained.")
        said = ". ".join([f"Trained: {', '.join(subjects)}", *self.left])
        yield Event("done", text=said, seconds=self.clock.seconds)

    def generate_only(self) -> Iterator[Event]:
        photos = workspace.load_photo_set(self.run)
        columns = tuple(sorted(set(self.spec.methods), key=place_of))
        for name in columns:
            if is_imported(name) and self._subject(name) is None:
                raise UserError("An imported file is no longer in this run. Import it again, or leave it out.")
            if name != "none" and self._subject(name) is None:
                raise UserError(f"{_title(name)} is not trained in this run yet. Train it first, or leave it out.")
        device, family = yield from self.load()
        samplings = tuple(dict.fromkeys(self.spec.samplings))
        drawn = yield from self.draw(columns, samplings, family)
        if photos is None:
            yield Event("note", text="There are no photos in this run, so the pictures have no score")
        elif everything := self._current_renders():
            scores, marks = yield from self.judge(
                photos, family, wanted=[path for _, _, path in drawn], all_of=everything
            )
            if (workspace.read_json(self.run.manifest) or {}).get("kind") != "compare":
                present = tuple(sorted({column for column, _, _ in everything}, key=place_of))
                subjects = {name: card for name in ALL_METHODS if (card := self._subject(name)) is not None}
                findings = self._findings(photos, present, everything, scores, marks, subjects)
                findings = yield from self.look_closer(photos, findings)
                self._stop_here()
                yield Event("phase", text="Writing the report")
                asked = tuple(dict.fromkeys(sampling for _, sampling, _ in everything))
                self._write(findings, photos, device, asked, _key_of(self.run, self.spec, photos))
        gone = sum(sampling in samplings and column in columns for column, sampling in self.refused)
        said = f"{len(drawn)} pictures are ready" + (f"; the image filter refused {gone} others" if gone else "")
        yield Event("done", text=said, seconds=self.clock.seconds)

    def finish_only(self) -> Iterator[Event]:
        from pipelines.finishing import stage

        assert self.spec.finish is not None, "checked"
        all_of_them = yield from stage.finish_pictures(self.run, self.spec.finish, stop=self.stop, pause=self.pause)
        if not all_of_them:
            raise _Stopped(STOPPED)
        yield Event("done", text="The pictures are finished", seconds=self.clock.seconds)

    # -- stages ------------------------------------------------------------------------------------------------

    def join_in(self) -> Generator[Event, None, PhotoSet]:
        """`take_in` by the first of the processes that teach together; the others wait and read what it stored."""
        self.world = world.join(self.spec.device)
        if self.world.first:
            if self.world.size > 1:
                yield Event("note", text=f"{self.world.size} processes teach together")
            photos = yield from self.take_in()
            self.world.wait()
            return photos
        self.world.wait()
        known = workspace.load_photo_set(self.run)
        assert known is not None, "the first process stored them"
        return known

    def take_in(self) -> Generator[Event, None, PhotoSet]:
        """The run's photos: those taken in before, unless other files or another seed are named now."""
        from pipelines.photos import intake

        known = workspace.load_photo_set(self.run)
        if not self.spec.photos:
            if known is None:
                raise UserError("There are no photos in this run. Add 5 to 15 photos of one person.")
            return known
        paths = [Path(each) for each in self.spec.photos]
        source = _source(paths, self.spec.split, self.spec.keep)
        record = self.run.folder / "source.json"
        if known is not None and (source is None or (workspace.read_json(record) or {}).get("sha256") == source):
            return known
        yield Event("phase", text=f"Looking at {len(paths)} photos")

        def look(tell: Callable[[Event], None]) -> PhotoSet:
            def progress(done: int, total: int, name: str) -> None:
                tell(Event("note", step=done, steps=total, text=f"{name} looked at", data={"stage": "photos"}))

            return intake.intake(
                paths,
                self.run.photos,
                seed=self.spec.split,
                min_eye_distance_px=self.row.min_eye_distance_px,
                keep=self.spec.keep,
                progress=progress,
            )

        found = yield from _live(look)
        workspace.save_photo_set(self.run, found)
        workspace.write_json(record, {"sha256": source})
        for name, reason in sorted(found.rejected.items()):
            yield Event("note", text=f"{name}: {reason}")
        for photo in found.photos:
            for note in photo.notes:
                yield Event("note", text=f"{photo.name}: {note}")
        if found.weak:
            yield Event("note", text="Only one photo can be held out, so the verdict will be weak; more photos help")
        return found

    def load(self) -> Generator[Event, None, tuple[Device, Family]]:
        self._stop_together()  # before anything heavy is imported
        from pipelines.core.runtime import pick_device, uncollected

        with uncollected():
            from pipelines.bases.family import load_family

        yield Event("phase", text=f"Loading {self.row.title}")
        wanted = self.spec.device
        if self.world.size > 1 and wanted in (None, "cuda") and pick_device(wanted).kind == "cuda":
            wanted = f"cuda:{self.world.local}"  # the current device is a thread's own, so it is named
        device = pick_device(wanted)
        yield Event("note", text=f"Computing on {device.name} in {device.dtype}: {device.reason}", data=asdict(device))
        if self.spec.kind != "generate":
            yield from self._leave_out_too_large(device)

        def load(tell: Callable[[Event], None]) -> Family:
            def progress(text: str, share: float | None) -> None:
                tell(Event("note", text=text, data={"stage": "base", "share": share}))

            def fresh() -> Family:
                with uncollected():  # the classes are imported as they are named
                    return load_family(self.row, device, attention=self.spec.attention, progress=progress)

            return self.resident.family((self.row, device, self.spec.attention), fresh)

        family = yield from _live(load)
        if family.unfiltered:
            self.notes.append(family.unfiltered)
        return device, family

    def _leave_out_too_large(self, device: Device) -> Iterator[Event]:
        """Before a base is fetched: methods that can't fit into the GPU's memory are named, and the others go on."""
        from pipelines.core.runtime import free_memory_gb

        free_gb = free_memory_gb(device)
        for name in self.spec.methods:
            recipe, card = self._recipe(name), self._subject(name)
            done = card is not None and card.complete and card.recipe == recipe
            if done or (why := estimates.too_large(self.row, recipe, free_gb, device.dtype)) is None:
                continue
            sentence = f"{_title(name)} was not trained: {why}"
            if self.world.size > 1:  # the others would wait for this one
                raise UserError(sentence)
            self.left_out.append(name)
            self.problems.append(sentence)
            yield Event("failed", name, text=sentence)
        if len(self.left_out) == len(self.spec.methods):
            raise UserError(" ".join(self.problems))

    def train(self, photos: PhotoSet, device: Device, family: Family) -> Generator[Event, None, dict[str, Subject]]:
        """Teach every method; returns {method: Subject}. A method that can't is noted and the others go on."""
        import numpy as np

        from pipelines.evaluation import selection
        from pipelines.photos.captions import training_captions
        from pipelines.photos.decode import decode
        from pipelines.photos.framing import crops, frames, heads
        from pipelines.training.loop import TrainingData
        from pipelines.training.loop import train as learn

        self._stop_together()
        yield Event("phase", text="Preparing the photos")
        recipes = {name: self._recipe(name) for name in self.spec.methods if name not in self.left_out}
        words = [each for each in recipes.values() if "textual_inversion" in COMPOSED.get(each.method, (each.method,))]
        descriptors: list[np.ndarray] = []

        def described(path: Path) -> np.ndarray:
            image = decode(path)
            descriptors.extend(_descriptor(image))
            return image

        faces_count = any(recipe.init == "zero_shot" for recipe in words)
        pictures = tuple(crops(photos.train, self.row, read=described if faces_count else decode))
        identity = np.stack(descriptors) if descriptors else None
        data = TrainingData(
            pictures,
            training_captions(photos.train, pictures),
            frames(photos.validation, self.row),
            tuple(heads(photos.train, self.row)) if any(each.weighs_faces for each in recipes.values()) else (),
        )
        watch = None
        if any(recipe.watch_every or recipe.choose_strength for recipe in recipes.values()):
            watch = selection.watch(photos, self.row)
            if watch is None:
                few = "Without a photo for validation (8 are needed) and a second judge the last checkpoint is kept"
                yield Event("note", text=few)
        learners = {
            name: learn(
                recipe,
                data,
                self.run.method(name),
                photo_digest=photos.digest,
                device=device,
                stop=partial(self._stops, name),
                pause=self.pause,
                family=family,
                identity=identity,
                watch=watch,
                world=self.world,
            )
            for name, recipe in recipes.items()
        }
        yield Event("phase", text=f"Learning the face: {', '.join(_title(name) for name in learners)}")
        stopped = False
        for event in self._advance(learners):
            if event.kind == "start" and event.method and event.data.get("memory"):
                self.memory[event.method] = str(event.data["memory"])
            if event.kind == "stopped" and event.method and self.leave(event.method) and not self.stop():
                self.left.append(f"{_title(event.method)} was stopped at step {event.step} of {event.steps}")
            else:
                stopped |= event.kind in ("stopped", "paused")
            if self.world.first:
                self.clock.save(every_s=3.0)
            yield event
        if stopped:
            raise _Stopped(STOPPED)
        subjects = {name: card for name in recipes if (card := self._subject(name)) is not None}
        subjects = {name: card for name, card in subjects.items() if card.recipe == recipes[name] and card.complete}
        if not subjects and self.left and not self.problems:
            raise _Stopped(STOPPED)
        if not subjects:
            raise UserError(" ".join(self.problems) or "Nothing could be trained. Try again.")
        return subjects

    def _ends(self) -> bool:
        return self.stop() or self.pause()

    def _stops(self, method: str) -> bool:
        return self.stop() or self.leave(method)

    def _advance(self, learners: dict[str, Iterator[Event]]) -> Iterator[Event]:
        """Advance the learners: those of a small base in turn, whoever is furthest behind next; else one by one."""
        side_by_side = self.row.vram_gb <= SIDE_BY_SIDE_UP_TO_GB
        share = dict.fromkeys(learners, 0.0)
        begun: set[str] = set()
        while share:
            name = min(share, key=lambda each: share[each]) if side_by_side else next(iter(share))
            if name not in begun and self.pause():  # has nothing to save yet
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
                if self.world.size > 1:  # the others wait for this one's numbers: end all, and the launcher sees to it
                    raise
                del share[name]
                sentence = f"{_title(name)} was not trained: {problem}"
                self.problems.append(sentence)
                data = {"out_of_memory": True} if isinstance(problem, OutOfMemory) else {}
                yield Event("failed", name, text=sentence, data=data)
                continue
            if event.steps:
                share[name] = event.step / event.steps
            yield event

    def draw(
        self, columns: Sequence[str], samplings: Sequence[Sampling], family: Family
    ) -> Generator[Event, None, list[Drawn]]:
        """Every column draws every sampling; returns [(column, sampling, path)] in the order of the report.

        A picture that the image filter refuses is not among them: it is noted in `self.refused`, and the others go on.
        """
        from pipelines.generation.generation import Generator, save_render

        self._stop_here()
        for unknown in dict.fromkeys(word for each in samplings for word in self.row.unknown_words(each.prompt)):
            yield Event("note", text=f"{self.row.name} does not know: {unknown}", data={"unknown": unknown})
        self._set_aside_old_renders()
        workspace.repair_lines(self._refusals_file)
        self.refused = self._refusals()
        generator = Generator(self.row, family=family)
        drawn: list[Drawn] = []
        total = len(columns) * len(samplings)
        batch = SMALL_BASE_BATCH if self.row.vram_gb <= SIDE_BY_SIDE_UP_TO_GB else LARGE_BASE_BATCH
        yield Event("phase", steps=total, text=f"Drawing {total} pictures")
        for column in columns:
            subject = self._subject(column)
            folder = self.run.method(column) if subject else None
            paths = {each: self.run.renders(column) / render_name(each) for each in samplings}
            missing = [
                each
                for each in samplings
                if (column, each) not in self.refused and not self._is_drawn(each, paths[each])
            ]
            fresh = generator.render(
                missing,
                folder,
                class_word=self.spec.class_word,
                sources=self.run.folder,
                stop=self._ends,
                batch=batch,
            )
            for sampling, image in fresh:
                self.pause.keep()
                if image is None:
                    self._note_refused(column, sampling, subject.id if subject else None)
                    continue
                save_render(
                    image,
                    sampling,
                    paths[sampling],
                    method=column,
                    base=self.row.name,
                    subject_id=subject.id if subject else None,
                    source_sha256=file_sha256(self.run.folder / sampling.source) if sampling.source else None,
                )
                yield self._rendered(column, sampling, paths[sampling], len(drawn), total)
                drawn.append((column, sampling, paths[sampling]))
                self.clock.save(every_s=3.0)
            self._stop_here()
            for sampling in samplings:
                if (column, sampling) in self.refused:
                    data = {"seed": sampling.seed, "prompt": sampling.prompt}
                    yield Event("refused", column, len(drawn), total, text=REFUSED, data=data)
                elif sampling not in missing:
                    yield self._rendered(column, sampling, paths[sampling], len(drawn), total)
                    drawn.append((column, sampling, paths[sampling]))
        order = {sampling: index for index, sampling in enumerate(samplings)}
        return sorted(drawn, key=lambda each: (list(columns).index(each[0]), order[each[1]]))

    @property
    def _refusals_file(self) -> Path:
        return self.run.folder / "refused.jsonl"

    def _note_refused(self, column: str, sampling: Sampling, subject: str | None) -> None:
        """Remember it, or every job that continues would draw the picture again."""
        self.refused[column, sampling] = None
        line = {"column": column, "base": self.row.name, "subject": subject, "sampling": sampling_fields(sampling)}
        workspace.append_line(self._refusals_file, line)

    def _refusals(self) -> dict[tuple[str, Sampling], None]:
        """Pictures (column, sampling) that were refused with what the columns are now."""
        subjects = {name: card.id if (card := self._subject(name)) else None for name in COLUMNS if name != "none"}
        subjects["none"] = None
        found: dict[tuple[str, Sampling], None] = {}
        for line in workspace.read_lines(self._refusals_file):
            with contextlib.suppress(KeyError, TypeError):
                column, subject = line["column"], line["subject"]
                if line["base"] == self.row.name and subjects.get(column, "") == subject:
                    found[column, Sampling(**line["sampling"])] = None
        return found

    def _is_drawn(self, sampling: Sampling, path: Path) -> bool:
        """Whether the picture is there. A variation whose source was drawn anew meanwhile is out of date."""
        saved = inscription.read(path, whole=True)
        if saved is None or sampling.source is None:
            return saved is not None
        source = self.run.folder / sampling.source
        return not source.is_file() or saved.source_sha256 == file_sha256(source)

    def brought(self) -> list[Drawn]:
        """Pictures made elsewhere, copied into the run so that its report stays whole. A damaged one keeps its place:
        it has no face.
        """
        import numpy as np
        from PIL import Image

        from pipelines.photos.decode import decode

        drawn: list[Drawn] = []
        for name, files in self.spec.images.items():
            folder = self.run.renders(name)
            folder.mkdir(parents=True, exist_ok=True)
            for index, file in enumerate(files):
                path = folder / f"{index:03d}.png"
                if not path.is_file():
                    try:
                        picture = decode(Path(file))
                    except UserError as problem:
                        self.notes.append(f"{name}: {problem}")
                        picture = np.zeros((64, 64, 3), np.uint8)
                    given = Image.fromarray(picture)
                    workspace.write_file(path, lambda partial, given=given: given.save(partial, format="PNG"))  # type: ignore[misc]
                drawn.append((name, Sampling("", seed=index), path))
        return drawn

    def _rendered(self, column: str, sampling: Sampling, path: Path, before: int, total: int) -> Event:
        data = {"seed": sampling.seed, "prompt": sampling.prompt}
        return Event("render", column, before + 1, total, seconds=self.clock.seconds, path=str(path), data=data)

    def judge(
        self,
        photos: PhotoSet,
        family: Family,
        *,
        wanted: Sequence[Path],
        all_of: Sequence[Drawn] = (),
    ) -> Generator[Event, None, tuple[dict[Path, list[Score]], dict[str, Marks]]]:
        """Score `wanted`, and of `all_of` what has no score against these photos yet; returns (scores, marks).

        A picture that these judges scored as it is now is not scored again: a job continues there.
        scores: {path: [Score per judge]}; marks: {judge: Marks}. References live in memory only.
        """
        from pipelines.faces import faces
        from pipelines.evaluation import scoring
        from pipelines.photos.framing import frames

        self._stop_here()
        yield Event("phase", text="Comparing the pictures with photos that training never saw")
        said: list[str] = []
        judges = faces.available_judges(allow_download=self.spec.download_judge, on_problem=said.append)
        references = []
        for judge in judges:
            try:
                references.append(scoring.reference(judge, photos.held_out))
            except UserError as problem:
                said.append(f"{judge.name} does not judge: {problem}")
        self.notes += said
        for sentence in said:
            yield Event("note", text=sentence)
        if not references:
            raise UserError("No recogniser finds a face in the held-out photos. Replace the photos and start again.")
        self.judges = [reference.judge for reference in references]

        known = self._known_scores(photos)
        stamp = sha(*([each.name, each.weights_sha256, workspace.plain(each.calibration)] for each in self.judges))
        seen = self._seen_by(stamp) if known else {}
        todo = list(wanted)
        for _, _, path in all_of:
            scored = {score.judge for score in known.get(path, ())}
            if path not in todo and any(judge.name not in scored for judge in self.judges):
                todo.append(path)
        scores: dict[Path, list[Score]] = {
            path: found for _, _, path in all_of if (found := known.get(path)) and path not in todo
        }
        try:
            for index, path in enumerate(todo):
                self._stop_here()
                name, picture = self.run.relative(path), file_sha256(path) if path.is_file() else ""
                scores[path] = known.get(path, []) if seen.get(name) == picture else []
                if not scores[path]:
                    scores[path] = [scoring.score_renders([path], reference)[0] for reference in references]
                    seen[name] = picture
                    self.pause.keep()
                    if self.clock.save(every_s=3.0):
                        self._save_scores(scores, photos, stamp, seen)
                for score in scores[path]:
                    data = {
                        "judge": score.judge,
                        "similarity": score.similarity,
                        "reason": score.reason,
                        "verdict": score.verdict,
                        "in_words": scoring.in_words(score),
                        "note": score.note,
                    }
                    yield Event("score", path.parent.name, index + 1, len(todo), path=str(path), data=data)
        finally:
            self._save_scores(scores, photos, stamp, seen)

        self._stop_here()
        rebuilt = family.decode(family.encode_images(frames(photos.held_out, self.row)).latents(None))
        drawn = {path: inscription.read(path, whole=True) for path in scores if path.parent == self.run.renders("none")}
        # a variation by the untrained base shows whoever its source shows: that is no floor
        untrained = {path for path, saved in drawn.items() if saved is None or saved.sampling.source is None}
        marks: dict[str, Marks] = {}
        for judge in self.judges:
            floor = [each for path, found in scores.items() if path in untrained for each in found]
            marks[judge.name] = scoring.marks(
                judge,
                photos,
                floor_scores=[score for score in floor if score.judge == judge.name],
                rebuilt_images=list(rebuilt),
            )
        workspace.write_json(self.run.marks, marks)
        return scores, marks

    def look_closer(self, photos: PhotoSet, findings: Findings) -> Generator[Event, None, Findings]:
        """What else there is to say about the pictures: usable, as asked, varied, copied, drifted."""
        from pipelines.evaluation import metrics, scoring
        from pipelines.photos.decode import decode
        from pipelines.photos.framing import frames

        self._stop_here()
        yield Event("phase", text="Looking for copies and slips")
        shown = frames(photos.train, aligned=True, resolution_px=metrics.FRAME_PX)
        training = {photo.name: metrics.structure(frame) for photo, frame in zip(photos.train, shown, strict=True)}
        judge = self.judges[0]
        try:
            learned_from = scoring.reference(judge, photos.train)
        except UserError:
            learned_from = None
        beside = scoring.vectors_of(judge, photos, self._others(photos))
        facts: dict[str, metrics.Facts] = {}
        trained: dict[str, float | None] = {}
        rows: list[dict[str, Any]] = []
        # pictures that were looked at before are not looked at again: in the app every click adds a few to many
        stamp = sha(photos.digest, judge.name, judge.weights_sha256, [name for _, name, _ in beside])
        before = workspace.read_json(self._closer)
        known = before["pictures"] if isinstance(before, dict) and before.get("stamp") == stamp else {}
        seen_now: dict[str, dict[str, Any]] = {}
        remembered: list[dict[str, Any]] = []  # of each cell's picture
        try:
            for cell in findings.cells:
                self._stop_here()
                image = decode(self.run.folder / cell.path)
                key = f"{cell.path} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"
                if key in known:
                    facts[cell.path] = metrics.restored(known[key]["facts"], image)
                    trained[cell.path], values = known[key]["trained"], known[key]["values"]
                else:
                    facts[cell.path] = metrics.facts(image, cell.sampling, training)
                    vector = judge.look(image).vector
                    alike = None if learned_from is None or vector is None else learned_from.similarity(vector)
                    trained[cell.path] = None if alike is None else round(alike, 6)
                    values = [None if vector is None else round(judge.similarity(vector, v), 4) for _, _, v in beside]
                    self.pause.keep()
                plain = metrics.plain(facts[cell.path])
                seen_now[key] = known.get(key, {}) | {"facts": plain, "trained": trained[cell.path], "values": values}
                remembered.append(seen_now[key])
                if metrics.is_counted(cell.sampling, self.stylised):
                    rows.append({"column": cell.column, "file": cell.path, "values": values})
                if key not in known and self.clock.save(every_s=3.0):
                    workspace.write_json(self._closer, {"stamp": stamp, "pictures": known | seen_now})
                yield Event("note", cell.column, len(facts), len(findings.cells), data={"stage": "closer"})
            clip = self._ask_clip(findings, facts, remembered)
            known = {}  # what is no longer in the run
        finally:
            workspace.write_json(self._closer, {"stamp": stamp, "pictures": known | seen_now})
        seen = {
            column: [(cell.sampling, facts[cell.path], cell.scores) for cell in findings.of(column)]
            for column in findings.columns
        }
        worth = {
            column: metrics.worth(
                pictures,
                seen.get("none", []),
                to_training=[trained[cell.path] for cell in findings.of(column)],
                stylised=self.stylised,
            )
            for column, pictures in seen.items()
            if pictures
        }
        shown_beside = [{"name": name, "part": part} for part, name, _ in beside]
        return replace(findings, facts=facts, worth=worth, clip=clip, heat={"photos": shown_beside, "rows": rows})

    @property
    def _closer(self) -> Path:
        return self.run.folder / "closer.json"

    def _ask_clip(
        self, findings: Findings, facts: dict[str, metrics.Facts], remembered: Sequence[dict[str, Any]]
    ) -> str | None:
        """Put CLIP's answers into `facts` where the base knows all words, and into what is `remembered` of each cell's
        picture; the backbone's name, None without it.
        """
        from pipelines.evaluation import clip_text, metrics
        from pipelines.photos.decode import decode

        asked = [cell for cell in findings.cells if cell.sampling.prompt]
        if self.row.family == "portrait" or not asked:  # its words are few, and pixel rules know them all
            return None
        try:
            clip = clip_text.ClipText(allow_download=self.spec.download_judge)
        except UserError as problem:
            self.notes.append(str(problem))
            return None
        prompts = list(dict.fromkeys(cell.sampling.prompt for cell in asked if metrics.is_subject(cell.sampling)))
        if not prompts:
            return None
        words = [prompt.replace("{subject}", self.spec.class_word) for prompt in prompts]
        stamp, texts = sha(clip.name, words), clip.texts(words)
        for cell, known in zip(findings.cells, remembered, strict=True):
            if cell.sampling.prompt not in prompts:
                continue
            self._stop_here()
            answer = known.get("clip") or {}
            if answer.get("stamp") != stamp:
                cosines = texts @ clip.images([decode(self.run.folder / cell.path)])[0]
                own = prompts.index(cell.sampling.prompt)
                # a rank of None: there is no other prompt to compare with
                answer = {"stamp": stamp, "cosine": float(cosines[own]), "rank": clip_text.rank(cosines, own)}
                known["clip"] = answer
                self.pause.keep()
            seen, rank = facts[cell.path], answer["rank"]
            following = seen.following if rank is None else rank if seen.faces else 0.0
            facts[cell.path] = replace(seen, clip_t=answer["cosine"], following=following)
        return clip.name

    def _others(self, photos: PhotoSet) -> list[Path]:
        """Photos of other people: those of the spec, else of the sample person - who is no other to herself."""
        own = {photo.name for photo in photos.photos}
        sample = sorted((presets.PRESETS / "sample_person").glob("*.png"))[:OTHERS]
        found = [Path(each) for each in self.spec.others] or [path for path in sample if path.name not in own]
        return [path for path in found if path.is_file()]

    def _forget_report(self) -> None:
        """What a report said is past."""
        run = self.run
        if not self.world.first:
            return
        for stale in (run.manifest, run.report, run.page, run.cells, run.figures, run.grid):
            stale.unlink(missing_ok=True)

    # -- what is on disk ---------------------------------------------------------------------------------------

    def _recipe(self, method: str) -> Recipe:
        made = presets.recipe(
            self.row.name, method, self.spec.quality, class_word=self.spec.class_word, seed=self.spec.seed
        )
        return made.replaced(**self.spec.settings.get(method, {}))

    def _subject(self, method: str) -> Subject | None:
        from pipelines.training.loop import load_subject

        folder = self.run.method(method)
        if not (folder / "subject.json").is_file():
            return None
        return load_subject(folder)

    def _imported(self) -> tuple[str, ...]:
        """Imported columns that fit this base; of another base they wait until it is chosen again."""
        cards = {name: self._subject(name) for name in workspace.imported(self.run)}
        return tuple(name for name, card in cards.items() if card is not None and card.base == self.row.name)

    def _current_renders(self) -> list[Drawn]:
        """Every picture in the run, oldest first within its column (what is out of date was set aside)."""
        found = []
        for column in workspace.columns(self.run):
            for path in self.run.pictures(column):
                saved = inscription.read(path, whole=True)
                if saved is not None:
                    found.append((column, saved.sampling, path))
        return found

    def _set_aside_old_renders(self) -> None:
        """Pictures of an earlier training or another base move to `earlier/`: they are kept, and mixed with nothing."""
        for column in workspace.columns(self.run):
            subject = self._subject(column) if column != "none" else None
            if column != "none" and subject is None:
                continue
            for path in self.run.pictures(column):
                saved = inscription.read(path, whole=True)
                if saved is None or (saved.base, saved.subject) != (self.row.name, subject.id if subject else None):
                    earlier = path.parent / "earlier"
                    earlier.mkdir(exist_ok=True)
                    os.replace(path, earlier / f"{(saved and saved.subject) or 'untrained'}-{path.name}")

    def _known_scores(self, photos: PhotoSet) -> dict[Path, list[Score]]:
        """Scores in the run, if they were measured against these photos."""
        if (workspace.read_json(self._scored_with) or {}).get("photo_digest") != photos.digest:
            return {}
        known: dict[Path, list[Score]] = {}
        for line in workspace.read_lines(self.run.scores):
            path = self.run.folder / line["render"]
            known.setdefault(path, []).append(Score(**{**line, "render": str(path)}))
        return known

    @property
    def _scored_with(self) -> Path:
        return self.run.folder / "scored_with.json"

    def _seen_by(self, judges: str) -> dict[str, str]:
        """{picture: sha256 of its file} as these very judges scored it."""
        saved = workspace.read_json(self._scored_with) or {}
        return dict(saved.get("pictures", {})) if saved.get("judges") == judges else {}

    def _save_scores(
        self, scores: dict[Path, list[Score]], photos: PhotoSet, judges: str, seen: dict[str, str]
    ) -> None:
        merged = {path: found for path, found in self._known_scores(photos).items() if path.exists()} | scores
        rows = [
            {**asdict(score), "render": self.run.relative(path)} for path, found in merged.items() for score in found
        ]
        workspace.write_text(self.run.scores, "".join(json.dumps(workspace.plain(row)) + "\n" for row in rows))
        workspace.write_json(self._scored_with, {"photo_digest": photos.digest, "judges": judges, "pictures": seen})

    def _findings(
        self,
        photos: PhotoSet,
        columns: Sequence[str],
        drawn: Sequence[Drawn],
        scores: dict[Path, list[Score]],
        marks: dict[str, Marks],
        subjects: dict[str, Subject],
    ) -> Findings:
        from pipelines.reports.report import Cell, Findings

        cells: list[Cell] = [
            Cell(column, sampling, self.run.relative(path), tuple(scores.get(path, ())))
            for column, sampling, path in drawn
        ]
        return Findings(
            base=self.row.name if self.row.name in BASES else Path(self.row.path or self.row.name).name,
            title=self.row.title,
            class_word=self.spec.class_word,
            quality=self.spec.quality,
            seed=self.spec.seed,
            wall_s=self.clock.seconds,
            photo_set=photos,
            columns=tuple(columns),
            cells=tuple(cells),
            marks=marks,
            subjects=subjects,
            errors=(*self.problems, *self.left),
            stylised=self.stylised,
            refused=tuple(self.refused),
            curves={
                name: seen for name in subjects if (seen := workspace.read_json(self.run.method(name) / WATCH_FILE))
            },
            strengths=workspace.read_json(self.run.method("lora") / STRENGTHS_FILE) if "lora" in subjects else None,
            calibration=self.judges[0].calibration if self.judges else None,
            command=self._command(),
        )

    def _command(self) -> str:
        """The command that repeats this. Paths stay out of it: a report may be published."""
        if self.spec.kind != "compare":
            return ""
        base = self.row.name if self.row.name in BASES else "BASE"
        words = [f"python -m pipelines compare PHOTOS --class-word {self.spec.class_word} --base {base}"]
        words.append(f"--methods {','.join(self.spec.methods)} --quality {self.spec.quality} --seed {self.spec.seed}")
        exact = "; to the bit, with every setting: python -m pipelines replay RUN/manifest.json"
        return f"{' '.join(words)} --out RUN{exact}"

    def _write(
        self, findings: Findings, photos: PhotoSet, device: Device, samplings: Sequence[Sampling], key: str
    ) -> None:
        """The report, and after everything else the manifest."""
        from pipelines.reports import report
        from pipelines.photos.framing import frames

        learned_from = dict(zip((photo.name for photo in photos.train), frames(photos.train, self.row), strict=True))
        written = report.write(findings, self.run, frames(photos.held_out, self.row), learned_from)
        workspace.write_json(
            self.run.manifest, self._manifest(findings, photos, device, samplings, key) | {"report": written}
        )

    def _manifest(
        self, findings: Findings, photos: PhotoSet, device: Device, samplings: Sequence[Sampling], key: str
    ) -> dict[str, Any]:
        """What is needed to repeat it, and what came out. Holds no embedding, and no path but a local base's."""
        from pipelines.core.runtime import peak_memory_mb

        against = {
            column: {judge: gain for judge in findings.marks if (gain := findings.against_base(column, judge))}
            for column in findings.columns
        }
        return {
            "schema": 1,
            "kind": self.spec.kind,
            "key": key,
            "consent": workspace.read_json(self.run.consent),
            "started": self.started,
            "finished": workspace.timestamp(),
            "wall_s": round(self.clock.seconds, 3),
            "peak_mem_mb": round(peak_memory_mb(), 1),
            "versions": versions(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": threads()},
            "device": asdict(device),
            "memory": self.memory,
            "base": {
                "name": self.row.name,
                "family": self.row.family,
                "repo": f"{self.row.repo}@{self.row.revision}" if self.row.repo else None,
                "sha256": base_sha256(self.row),
            },
            "class_word": self.spec.class_word,
            "quality": self.spec.quality,
            "seed": self.spec.seed,
            "photos": {
                "digest": photos.digest,
                **{
                    part: [{"name": photo.name, "sha256": photo.sha256} for photo in getattr(photos, part)]
                    for part in ("train", "validation", "held_out")
                },
                "rejected": photos.rejected,
                "weak": photos.weak,
            },
            "methods": {
                name: {"recipe": asdict(card.recipe), "subject": card.id, "artifact": card.artifact,
                       "sha256": card.sha256, "steps": card.steps, "train_s": card.train_s, "phrase": card.phrase}
                for name, card in findings.subjects.items()
            },
            "imported": {
                name: {"subject": card.id, "kind": card.method, "sha256": card.sha256, "phrase": card.phrase}
                for name in findings.columns
                if is_imported(name) and (card := self._subject(name)) is not None
            },
            "samplings": [sampling_fields(each) for each in samplings],
            "renders": {cell.path: file_sha256(self.run.folder / cell.path) for cell in findings.cells},
            "judges": {
                judge.name: {"weights_sha256": judge.weights_sha256, "licence": judge.licence,
                             "marks": workspace.plain(findings.marks[judge.name])}
                for judge in self.judges
            },
            "against_untrained_base": against,
            "refused": [{"column": name, "seed": each.seed, "prompt": each.prompt} for name, each in self.refused],
            "notes": self.notes,
            "errors": [*self.problems, *self.left],
        }  # fmt: skip

    def _is_complete(self, key: str) -> bool:
        return _complete(self.run, key)

    def _done(self, findings: Findings | None = None) -> Event:
        from pipelines.reports.report import verdict

        text = verdict(findings) if findings else "Done"
        return Event("done", seconds=self.clock.seconds, path=str(self.run.report), text=text)

    def _raise_problems(self, rest: str) -> None:
        if self.problems:
            raise UserError(f"{' '.join(self.problems)} {rest}")

    def _stop_together(self) -> None:
        """`_stop_here` where all processes that teach together come by: they stop as one."""
        if self.pause() or self.world.any(self.stop()):
            raise _Stopped(STOPPED)

    def _stop_here(self) -> None:
        if self.stop() or self.pause():
            raise _Stopped(STOPPED)


# ------------------------------------------------------------------------------------------------- helpers


def is_complete(run: Run, spec: JobSpec) -> bool:
    """Whether this very comparison is finished in `run`. Light: no torch."""
    photos = workspace.load_photo_set(run)
    return photos is not None and _complete(run, _key_of(run, spec, photos))


def _key_of(run: Run, spec: JobSpec, photos: PhotoSet) -> str:
    """What determines a report: the job, the photos, and the files that were imported."""
    cards = [workspace.read_json(run.method(name) / "subject.json") or {} for name in workspace.imported(run)]
    imported = [[sorted(card.get(each, "") for card in cards) for each in ("id", "phrase")]] if cards else []
    return sha(workspace.plain(spec), photos.digest, *imported)


def _complete(run: Run, key: str) -> bool:
    saved = workspace.read_json(run.manifest)
    if not isinstance(saved, dict) or saved.get("key") != key or saved.get("errors"):
        return False
    files = [run.report, *(run.folder / path for path in saved.get("renders", {}))]
    return all(path.is_file() for path in files)


def render_name(sampling: Sampling) -> str:
    """The file name of a picture: its seed, and a hash of everything else that determines it."""
    return f"seed{sampling.seed}-{sha(sampling_fields(sampling))[:10]}.png"


def _descriptor(image: np.ndarray) -> list[np.ndarray]:
    """dlib's descriptor (128,) of a photo's face, if there is one, for methods that start from it. In memory only."""
    import numpy as np

    from pipelines.faces.faces import detect_faces, dlib_embed

    return [dlib_embed(np.ascontiguousarray(image), face) for face in detect_faces(image)[:1]]


def _live(work: Callable[[Callable[[Event], None]], T]) -> Generator[Event, None, T]:
    """Run `work` in a thread, yielding the events it tells as they come; returns its result."""
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, told.put)
        while not (future.done() and told.empty()):
            with contextlib.suppress(queue.Empty):
                yield told.get(timeout=0.1)
    return future.result()


def _title(column: str) -> str:
    from pipelines.reports.figures import title_of

    return title_of(column)


def _source(paths: Sequence[Path], seed: int, keep: Sequence[str]) -> str | None:
    """What the photos were made from; None when a file is no longer where it was."""
    try:
        return sha(sorted([path.name, file_sha256(path)] for path in paths), seed, sorted(keep))
    except OSError:
        return None
