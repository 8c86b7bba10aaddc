"""One look at a run, as the pages need it: `Services` reads the files, `View` answers the tabs' questions.

In: a browser's capability. Out: a `View` - photos, progress, trained methods, pictures with scores, and the reason why
a tab is still closed. Everything is read from the run's folder, so a reload, a second tab and a restart see the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.bases import registry
from pipelines.bases.registry import BaseRow
from pipelines.core import inscription, presets, workspace
from pipelines.core.runtime import free_memory_gb, gpu_dtype
from pipelines.core.schema import ALL_METHODS, COLUMNS, Event, Finish, Recipe, Sampling, UserError, place_of
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec, Setting
from pipelines.training import estimates
from pipelines.training.estimates import Pace
from ui import views
from ui.page import gpu
from ui.page.theme import METHOD_NAMES
from ui.run import photobox, pictures
from ui.run.photobox import Box
from ui.run.pictures import Drawing
from ui.run.sessions import Choices, Session, Sessions
from ui.views import Lane, Mark, MethodRow, Shot, StripData
from ui.web.limits import require_room
from ui.web.media import Media
from ui.words.retold import retell
from ui.words.words import tell

log = logging.getLogger("likeness.ui")
Settings = dict[str, dict[str, Setting]]  # method -> changes to its recipe
STRIP = 6  # earlier previews in a lane
TICK = "Tick the consent box in the Upload tab."
WATCHED_FROM = 8  # photos; see pipelines.photos.split.split_sizes
LOOKS = 5  # at validation pictures in a training of the app
MAX_STEPS, MAX_BATCH = 3000, 32
PICTURES = ("render", "finished")  # kinds of events that bring one
DRAWING = "drawing"  # among the paces: seconds for one denoiser step of one picture
FINISH_S = 5.0  # about what finishing a picture takes on two cores
GO_ON_SHARE = 0.5  # of the steps, where a training starts from what was learned before
BASE_ENV = "LIKENESS_BASE"  # a folder or checkpoint the operator adds to the list and makes the default


@dataclass(frozen=True)
class Trained:
    """What the pages say about a trained method; read from its subject.json."""

    method: str
    id: str
    base: str
    complete: bool
    steps: int
    train_s: float
    artifact_bytes: int
    trainable_params: int
    photo_digest: str
    sha256: str = ""
    peak_mem_mb: float | None = None
    batch: int = 1
    class_word: str = ""


@dataclass(frozen=True)
class Progress:
    """The run's job, as its files tell it."""

    state: str = "none"
    kind: str = ""
    text: str = ""
    problem: str | None = None
    asked_at: float = 0.0  # seconds since the epoch
    ahead: int = 0  # jobs before this one, while it waits
    starts_in_s: float | None = None
    left: tuple[str, ...] = ()  # methods that were asked to stop
    methods: tuple[str, ...] = ()  # of the last training
    latest: dict[str, Event] = field(default_factory=dict)  # method -> last "step" event
    preview: dict[str, str] = field(default_factory=dict)  # method -> path inside the run
    ended: dict[str, str] = field(default_factory=dict)  # method -> "done" | "stopped" | "failed"
    losses: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    likeness: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)  # (step, similarity)
    previews: dict[str, tuple[str, ...]] = field(default_factory=dict)  # paths inside the run, oldest first
    drawn: int = 0  # pictures of the current job so far ...
    to_draw: int = 0  # ... and in all
    refused: int = 0  # of them, by the image filter

    @property
    def busy(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def seconds_left(self) -> float | None:
        """Until the methods at work are done. They count their own seconds and take turns, so these add up."""
        left = [event.seconds_left for method, event in self.latest.items() if method not in self.ended]
        known = [each for each in left if each is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class View:
    """A snapshot. Built by `Services.view`."""

    services: Services
    session: Session | None
    row: BaseRow
    base_problem: str | None
    box: Box
    progress: Progress  # of the training
    drawing: Progress  # of the pictures: they are drawn between a training's steps
    trained: dict[str, Trained]
    stale: bool  # something is trained, but on other photos or another base
    pictures: tuple[Shot, ...]  # with the chosen judge's scores
    marks: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, list[float | None]]]  # judge -> method -> similarities; photographs of the person only
    drawings: dict[str, Any] = field(default_factory=dict)  # the report's figures.json; {} before there is a report
    going_on: tuple[str, ...] = ()  # of the `older` ones those that start from what they know, if they are to
    older: tuple[str, ...] = ()  # methods that can be learned on with the photos as they are now
    worst: tuple[str, ...] = ()  # links of the pictures least like the person
    history: tuple[Drawing, ...] = ()  # the run's generation jobs, oldest first
    imported: dict[str, str] = field(default_factory=dict)  # columns that were not trained here -> their card's id

    @property
    def busy(self) -> bool:
        """Anything is being done in this run."""
        return self.progress.busy or self.drawing.busy

    @property
    def safe_to_leave(self) -> str:
        """What happens to the work when the page is closed."""
        if self.services.slice is not None:
            return tell(
                "Keep this page open: here the work goes on only while it is. Nothing is lost when you close it."
            )
        return tell("It is safe to close this tab: the work goes on, and this page shows it again when you come back.")

    @property
    def choices(self) -> Choices:
        return self.session.choices if self.session else Choices()

    # ------------------------------------------------------------------ why a tab is closed

    @property
    def train_blocked(self) -> str | None:
        if self.box.photo_set is None:
            if self.box.problem:
                return tell("The photos can't be used yet; the Upload tab says why.")
            if self.box.missing == 1:
                return tell("Add one more photo in the Upload tab.")
            return tell("Add {count} more photos in the Upload tab.", count=self.box.missing)
        if not self.choices.sample and self.choices.consent_at is None:
            return tell(TICK)
        return self.base_problem

    @property
    def generate_blocked(self) -> str | None:
        if self.train_blocked:
            return self.train_blocked
        if not self.trained and self.progress.busy:
            return tell("Training is under way. Pictures can be drawn as soon as the first method is done.")
        if self.stale:
            return tell("The photos or the base have changed since training. Train again first.")
        if not self.trained:
            return tell("Train at least one method first.")
        return None

    @property
    def score_blocked(self) -> str | None:
        if self.generate_blocked and not self.judges:
            return self.generate_blocked
        return None if self.judges else tell("Generate pictures first: there is nothing to score yet.")

    @property
    def look_blocked(self) -> str | None:
        """Why no picture can be dropped into the Score tab yet: it needs held-out photos and nothing else."""
        photos = self.box.photo_set
        if photos is None or not photos.held_out:
            return self.train_blocked or tell("No photo is held out to compare with. Add photos in the Upload tab.")
        if not self.choices.sample and self.choices.consent_at is None:
            return tell(TICK)
        return None

    @property
    def score_opens(self) -> bool:
        """The Score tab has something to offer from the first photo set on."""
        return self.score_blocked is None or self.box.photo_set is not None

    # ------------------------------------------------------------------ what the tabs show

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(c for c in COLUMNS if c == "none" or c in self.trained), *self.imported)

    @property
    def shots(self) -> tuple[Shot, ...]:
        return self.pictures

    @property
    def shown_job(self) -> Drawing | None:
        """The job the person asked to see again, else the last one."""
        last = self.history[-1] if self.history else None
        return next((job for job in self.history if job.number == self.choices.shown), last)

    @property
    def latest_shots(self) -> tuple[Shot, ...]:
        return self.shown_job.shots if self.shown_job else self.pictures

    @property
    def picked(self) -> Shot | None:
        """The picture to vary."""
        return next((shot for shot in self.pictures if shot.id and shot.id == self.choices.picked), None)

    @property
    def drawn_columns(self) -> tuple[str, ...]:
        there = {shot.method for shot in self.latest_shots}
        return tuple(sorted(there, key=place_of))

    @property
    def drawn_text(self) -> str:
        if not self.drawing.drawn:
            return ""
        return tell("{count} of {all} are there.", count=self.drawing.drawn, all=self.drawing.to_draw)

    @property
    def judges(self) -> tuple[str, ...]:
        """Judges that have scored something; ArcFace packs before dlib."""
        return tuple(sorted(self.scores, key=lambda name: (name == "dlib", name)))

    def judge(self) -> str | None:
        return self.choices.judge if self.choices.judge in self.judges else next(iter(self.judges), None)

    def crop_cards(self) -> str:
        return self.services.crop_cards(self.session.run, self.box) if self.session else ""

    def photo_cards(self) -> str:
        return self.services.photo_cards(self.session.run, self.box) if self.session else ""

    def lane(self, method: str) -> Lane | None:
        progress = self.progress
        step, card = progress.latest.get(method), self.trained.get(method)
        if method not in progress.methods and card is None:
            return None
        preview = progress.preview.get(method)
        link = self.services.link(self.session.run, preview) if preview and self.session else None
        training = progress.busy and method in progress.methods
        state = progress.ended.get(method) or ("training" if training and step else "waiting" if training else "")
        if not state:
            state = "done" if card and card.complete else "stopped"
        likeness, strip = progress.likeness.get(method, ()), self._strip(progress.previews.get(method, ()))
        note = ""
        if card:
            note = tell(
                "{size}, {count} numbers learned.",
                size=views.amount(card.artifact_bytes),
                count=f"{card.trainable_params:,}",
            )
        if step is None:
            steps, seconds = (card.steps, card.train_s) if card else (0, 0.0)
            return Lane(
                method, state, steps, steps, seconds, None, None, link, note, likeness, self._unwatched, strip
            )  # fmt: skip
        left = self.progress.seconds_left if state == "training" else None
        return Lane(
            method, state, step.step, step.steps, step.seconds, left, step.loss, link, note, likeness, self._unwatched,
            strip,
        )  # fmt: skip

    @property
    def _unwatched(self) -> str:
        """Why a training with these photos has no curve of its likeness; "" where it has one."""
        photos = self.box.photo_set
        if photos is None or photos.validation:
            return ""
        missing = WATCHED_FROM - len(photos.photos)
        if missing <= 0:
            return tell(
                "No likeness curve: no photo is left to watch the progress with. Add photos of other moments in the "
                "Upload tab."
            )
        if missing == 1:
            add = tell("Add one more photo in the Upload tab.")
        else:
            add = tell("Add {count} more photos in the Upload tab.", count=missing)
        why = tell("No likeness curve: with fewer than 8 photos none is kept apart to watch the progress.")
        return f"{why} {add}"

    def _strip(self, paths: Sequence[str]) -> tuple[str, ...]:
        """Links of at most `STRIP` earlier previews, spread over the training; the last one is shown large already."""
        earlier = paths[:-1]
        every = max(1, -(-len(earlier) // STRIP))
        run = self.session.run if self.session else None
        links = (self.services.link(run, path) for path in earlier[::every]) if run else ()
        return tuple(link for link in links if link)

    def estimate(
        self, quality: str, methods: Sequence[str], settings: Settings | None = None, *, go_on: bool = False
    ) -> str:
        """With `go_on`, methods that go on from what they know take fewer steps."""
        wanted = [m for m in self.row.offered if m in methods]
        return self.services.estimate(self.row, quality, wanted, settings or {}, self.going_on if go_on else ())

    def judge_facts(self, judge: str) -> str:
        from pipelines.faces import faces

        try:
            licence = tell("Licence of its weights: {licence}.", licence=faces.judge(judge).licence)
        except (UserError, OSError):
            licence = tell("Its weights are not on this machine any more.")
        threshold = self.marks.get(judge, {}).get("threshold")
        same = tell("It is uncalibrated: its numbers have no scale here.")
        if isinstance(threshold, float):
            same = tell(
                "From {value} on it says 'looks like you': 1 in 1000 pictures of strangers gets there.",
                value=f"{threshold:.2f}",
            )
        return f"{licence} {same}"

    def best_score(self, judge: str) -> tuple[str, float] | None:
        """(method, similarity) of the run's best picture to a judge; the untrained base's count as nobody's."""
        every = [
            (value, method)
            for method, values in self.scores.get(judge, {}).items()
            for value in values
            if value is not None and method in ALL_METHODS
        ]
        return (max(every)[1], max(every)[0]) if every else None

    def axis(self, judge: str, measured: Mapping[str, float | None] | None = None) -> StripData:
        """`measured` are the marks where the run holds none of this judge yet."""
        found: Mapping[str, Any] = self.marks.get(judge) or measured or {}

        def figure(name: str) -> float | None:
            value = found.get(name)
            return float(value) if isinstance(value, int | float) else None

        impostor = tell("99.9% of comparisons of different people lie below.")
        if figure("impostor") is None:
            impostor = tell("Not known: this recogniser is uncalibrated here.")
        marks = (
            Mark(tell("Different people"), figure("impostor"), impostor),
            Mark(tell("Untrained base"), figure("floor"), tell("The floor: pictures of nobody in particular.")),
            Mark(
                tell("Best this base can draw"),
                figure("best_possible"),
                tell("Held-out photos, rebuilt by its autoencoder."),
            ),
            Mark(
                tell("This person's own photos"),
                figure("ceiling"),
                tell("The ceiling: real photo against real photo."),
                figure("ceiling_low"),
                figure("ceiling_high"),
            ),
        )
        dots = {
            method: tuple(value for value in values if value is not None)
            for method, values in sorted(self.scores.get(judge, {}).items(), key=lambda item: place_of(item[0]))
        }
        means = {row.method: row.mean for row in self.rows(judge) if row.mean is not None}
        return StripData(judge, marks, dots, means)

    def rows(self, judge: str) -> list[MethodRow]:
        from pipelines.evaluation.scoring import normalised

        found = self.marks.get(judge, {})
        rows = []
        for method, values in sorted(self.scores.get(judge, {}).items(), key=lambda item: place_of(item[0])):
            seen = [value for value in values if value is not None]
            imputed = sum(seen) / len(values) if values else None  # a picture without a face counts 0
            card = self.trained.get(method)
            rows.append(
                MethodRow(
                    method,
                    mean=imputed,
                    best=max(seen, default=None),
                    normalised=normalised(imputed, found.get("floor"), found.get("ceiling")),
                    faces_found=len(seen),
                    renders=len(values),
                    seconds=card.train_s if card else None,
                    megabytes=card.artifact_bytes / 1e6 if card else None,
                    parameters=card.trainable_params if card else None,
                )
            )
        return rows

    def steps_html(self) -> str:
        """The line under the title: where the person stands, and what opens the next step."""
        good = len(self.box.photo_set.photos) if self.box.photo_set else self.box.good
        training = self.progress.busy
        scored = sum(len(values) for values in next(iter(self.scores.values()), {}).values())
        trained = ", ".join(METHOD_NAMES[m] for m in self.trained)
        photos = tell("1 good photo") if good == 1 else tell("{count} good photos", count=good)
        done = (
            photos if self.box.staged else tell("Start here: add photos"),
            tell("Working ...") if training else trained or tell("Ready"),
            tell("{count} pictures", count=len(self.pictures)) if self.pictures else tell("Ready"),
            tell("{count} pictures scored", count=scored),
        )
        names = (tell("Upload"), tell("Train"), tell("Generate"), tell("Score"))
        steps: list[tuple[str, str, bool]] = []
        first = True
        for name, blocked, text in zip(
            names, (None, self.train_blocked, self.generate_blocked, self.score_blocked), done
        ):
            # Only the first closed step says what is missing; those behind it wait for the same thing.
            later = tell("Opens after {step}", step=names[len(steps) - 1])
            reason = text if blocked is None else blocked if first else later
            if name == names[-1] and blocked is not None and self.look_blocked is None:
                reason = tell("Judges any picture now; methods after Generate")
            first = first and blocked is None
            steps.append((name, reason, blocked is None))
        return views.stepper(steps)


def _basis(basis: str) -> str:
    """What an estimate rests on, in the language of who asks."""
    reckoned = re.fullmatch(r"reckoned from (.*); nothing was timed on this machine yet", basis)
    if reckoned:
        return tell("reckoned from {machine}; nothing was timed on this machine yet", machine=reckoned[1])
    return tell(basis)


class Services:
    """What handlers may do. Holds no person's data: everything lies in the runs."""

    def __init__(self, root: Path | None = None) -> None:
        self.sessions = Sessions(root)
        self.media = Media(self.sessions.root)
        self.bases, self.default_base = offered_bases()
        self.slice = gpu.slicer()  # None: a worker process does the jobs
        self._noted: set[str] = set()  # trained methods whose pace is known
        self._events: dict[tuple[str, str], tuple[int, list[Event]]] = {}
        self._guard = threading.Lock()

    def resume(self) -> None:
        """At the start of the app: the line of jobs as the runs' folders say, and a worker for those that wait."""
        if self.sessions.root.is_dir():
            jobs.recover(self.sessions.root)
            if self.slice is None:
                jobs.watch(self.sessions.root)

    # ------------------------------------------------------------------ looking

    def problem(self, base: str) -> str | None:
        """Why this base can't be used on this machine at all, as far as is known without loading it."""
        row = self.bases[base]
        if row.folder is not None and not row.folder.exists():
            return tell("{base} is not in this copy. Get the whole repository, or pick another base.", base=row.title)
        return None

    def view(self, capability: object) -> View:
        session = self.sessions.find(capability)
        chosen = session.choices.base if session else ""
        name = chosen if chosen in self.bases else self.default_base
        if session is None:
            return View(
                self, None, self.bases[name], self.problem(name), Box(), Progress(), Progress(), {}, False, (), {}, {}
            )  # fmt: skip
        run = session.run
        box = photobox.load(run)
        progress = self.progress(run)
        everything = trained(run)
        digest = box.photo_set.digest if box.photo_set else ""
        fits = {m: card for m, card in everything.items() if (card.photo_digest, card.base) == (digest, name)}
        older = self._older(run, box, name, everything, fits)
        return self._with_pictures(
            View(
                self, session, self.bases[name], self.problem(name), box, progress, self.progress(run.drawing), fits,
                bool(everything) and not fits, (), marks(run), {},
                older=older, going_on=_going_on(older, everything, session), imported=imported(run, name),
            )
        )  # fmt: skip

    def _older(
        self, run: workspace.Run, box: Box, base: str, everything: dict[str, Trained], fits: dict[str, Trained]
    ) -> tuple[str, ...]:
        """Methods that learned this base from other photos and may go on with these."""
        older = [m for m, card in everything.items() if m not in fits and card.base == base and card.complete]
        return tuple(m for m in older if photobox.can_go_on(run, box, m))

    def link(self, run: workspace.Run, path: str) -> str | None:
        """A signed link for a file of the run, named relative to it."""
        file = run.folder / path
        return self.media.link(file) if file.is_file() else None

    def photo_cards(self, run: workspace.Run, box: Box) -> str:
        cards = []
        for one in box.staged:
            link = self.link(run, f"{photobox.STAGED}/{one.file}") if one.file else None
            part = photobox.part_of(box, one.name)
            verdict = "overruled" if one.kept else one.verdict
            text = photobox.told(one)
            card = views.PhotoCard(one.name, link, verdict, text, part, one.key, one.can_be_kept, one.pin)
            cards.append(card)
        return views.photo_cards(cards)

    def crop_cards(self, run: workspace.Run, box: Box) -> str:
        return views.crop_cards(
            [
                views.CropCard(
                    one.name, self.media.link(path), text, one.key, learned, one.zoom, one.caption is not None
                )
                for one, path, text, learned in photobox.crops(run, box)
                if path.is_file()
            ]
        )

    def busy(self, run: workspace.Run) -> bool:
        """Whether anything is being done in the run: a training, or drawing."""
        return jobs.status(run).busy or jobs.status(run.drawing).busy

    def events(self, run: workspace.Run) -> list[Event]:
        """All events of the run; only new lines are parsed."""
        with self._guard:
            count, known = self._events.pop((run.id, run.slot), (0, []))
            if not run.events.exists():
                return []
            fresh = jobs.events(run, count)
            self._events[run.id, run.slot] = (count + len(fresh), [*known, *fresh])
            while len(self._events) > 50:
                self._events.pop(next(iter(self._events)))
            return self._events[run.id, run.slot][1]

    def progress(self, run: workspace.Run) -> Progress:
        status = jobs.status(run)
        events = self.events(run)
        spec = workspace.read_json(run.spec) or {}
        training = self._last_training(events)
        latest: dict[str, Event] = {}
        preview: dict[str, str] = {}
        ended: dict[str, str] = {}
        losses: dict[str, list[tuple[int, float]]] = {}
        likeness: dict[str, list[tuple[int, float]]] = {}
        previews: dict[str, list[str]] = {}
        for event in training:
            method = event.method
            if method not in ALL_METHODS:
                continue
            if event.kind == "step":
                latest[method] = event
                if event.loss is not None:
                    losses.setdefault(method, []).append((event.step, event.loss))
            elif event.kind == "preview" and event.path:
                preview[method] = event.path
                previews.setdefault(method, []).append(event.path)
            elif event.kind == "watch":
                likeness.setdefault(method, []).append((event.step, float(event.data["identity"])))
            elif event.kind in ("done", "stopped", "failed"):
                ended[method] = event.kind
            elif event.kind == "start":  # continued from a checkpoint: what came after that is taught again
                ended.pop(method, None)
                for curves in (losses, likeness):
                    curves[method] = [(step, value) for step, value in curves.get(method, []) if step <= event.step]
        this_job = events[status.first_event :]
        methods = tuple(m for m in ALL_METHODS if m in latest or m in preview or m in ended)
        if status.busy and status.kind != "generate":
            methods = tuple(m for m in ALL_METHODS if m in spec.get("methods", ()))
        place = jobs.place(run) if status.waits else None
        return Progress(
            asked_at=status.queued_at,
            ahead=place.ahead if place else 0,
            starts_in_s=place.seconds if place else None,
            left=tuple(m for m in methods if status.busy and jobs.leave_asked(run, m)),
            state=status.state,
            kind=status.kind,
            text=f"{status.phase}." if status.phase and not status.phase.endswith(".") else status.phase or "",
            problem=status.reason if status.state in ("failed", "interrupted") else None,
            methods=methods,
            latest=latest,
            preview=preview,
            ended=ended,
            losses={method: tuple(curve) for method, curve in losses.items()},
            likeness={method: tuple(curve) for method, curve in likeness.items()},
            previews={method: tuple(dict.fromkeys(paths)) for method, paths in previews.items()},
            drawn=max((event.step for event in this_job if event.kind in PICTURES), default=0),
            to_draw=max((event.steps for event in this_job if event.kind in PICTURES), default=0),
            refused=sum(event.kind == "refused" for event in this_job),
        )

    @staticmethod
    def _last_training(events: list[Event]) -> list[Event]:
        """Per method, the events from its last "start" at step 0 on: a continued training keeps its curve."""
        begin: dict[str, int] = {}
        for index, event in enumerate(events):
            if event.kind == "start" and event.method and event.step == 0:
                begin[event.method] = index
        return [event for index, event in enumerate(events) if event.method and index >= begin.get(event.method, 0)]

    def recipes(self, row: BaseRow, quality: str, methods: Sequence[str], settings: Settings) -> dict[str, Recipe]:
        """What would be taught. Raises UserError for a setting that makes no sense."""
        spec = JobSpec(kind="train", base=row.name, methods=tuple(methods), quality=quality, settings=settings)
        spec.check()
        return {
            m: presets.recipe(row.name, m, quality, class_word="person").replaced(**settings.get(m, {}))
            for m in methods
        }

    def estimate(
        self,
        row: BaseRow,
        quality: str,
        methods: Sequence[str],
        settings: Settings,
        going_on: Sequence[str] = (),
    ) -> str:
        """How long training will take and how much memory it needs; never guessed, see `estimates`."""
        if not methods:
            return views.note(tell("Choose at least one method."))
        recipes = {
            m: recipe.replaced(steps=_fewer(recipe.steps)) if m in going_on else recipe
            for m, recipe in self.recipes(row, quality, methods, settings).items()
        }
        free_gb = free_memory_gb() if row.footprint else None
        dtype = gpu_dtype() if free_gb is not None else "bfloat16"
        found = estimates.estimate(row, recipes, self._known_paces(), free_gb=free_gb, dtype=dtype)
        listed = ", ".join(f"{METHOD_NAMES[m]} {recipe.steps}" for m, recipe in recipes.items())
        parts = []
        if found.seconds is not None:
            parts.append(tell("about {time}", time=views.duration(views.rounded(found.seconds))))
        if found.memory_mb is not None:
            parts.append(tell("{size} GB of memory", size=f"{found.memory_mb / 1e3:.1f}"))
        what = tell("{first} and {second}", first=parts[0], second=parts[1]) if len(parts) == 2 else "".join(parts)
        takes = tell("Takes {what} ({why}).", what=what, why=_basis(found.basis))
        return views.note(f"{takes} {tell('Steps:')} {listed}. {retell(found.memory)}".strip())

    def estimated_s(self, row: BaseRow, recipes: dict[str, Recipe]) -> float | None:
        return estimates.estimate(row, recipes, self._known_paces()).seconds

    def _known_paces(self) -> dict[str, Any]:
        """What was timed on this machine. How fast it is at its best is noted: a busy moment is no measure."""
        known = workspace.read_json(self._paces) or {}
        speed = round(estimates.fastest(known), 1)
        if self.sessions.folder.is_dir() and speed > float(known.get(estimates.SPEED) or 0.0):
            known |= {estimates.SPEED: speed}
            workspace.write_json(self._paces, known)
        return dict(known)

    @property
    def _paces(self) -> Path:
        return self.sessions.folder / "paces.json"

    def _remember_pace(self, row: BaseRow, cards: dict[str, Trained]) -> None:
        """Seconds a step took and peak memory, per base and method: nothing about anybody."""
        new = {card.id for card in cards.values()} - self._noted
        if not new:
            return
        self._noted |= new
        known = workspace.read_json(self._paces) or {}
        fresh = {
            estimates.key(row, m): Pace(round(c.train_s / c.steps, 4), c.batch, c.peak_mem_mb)
            for m, c in cards.items()
            if c.id in new and c.steps and c.train_s > 0 and c.complete
        }
        plain = {name: workspace.plain(pace) for name, pace in fresh.items()}
        if any(known.get(name) != pace for name, pace in plain.items()):
            workspace.write_json(self._paces, known | plain)

    def _remember_drawing(self, row: BaseRow, run: workspace.Run) -> None:
        """Seconds that a denoiser step of a picture took, loading and judging included."""
        status = jobs.status(run)
        if (status.kind, status.state) != ("generate", "done") or status.job in self._noted:
            return
        self._noted.add(status.job)
        with contextlib.suppress(UserError):
            spec = jobs.load_spec(run)
            if spec.base == row.name and spec.denoiser_steps:
                pace = Pace(round(status.wall_s / spec.denoiser_steps, 4), 1)
                known = workspace.read_json(self._paces) or {}
                workspace.write_json(self._paces, known | {estimates.key(row, DRAWING): workspace.plain(pace)})

    # ------------------------------------------------------------------ doing

    def start_training(
        self,
        session: Session,
        *,
        methods: tuple[str, ...],
        quality: str,
        settings: Settings | None = None,
        go_on: bool = False,
    ) -> None:
        """Put a training in the line, or continue the last one where it is the same and did not come to its end.

        With `go_on`, methods that learned from other photos start from what they know.

        Raises UserError for settings that make no sense, and when the line or the disk is full.
        """
        settings = {m: dict(each) for m, each in (settings or {}).items() if each and m in methods}
        base = session.choices.base or self.default_base
        row = self.bases[base]
        photos = photobox.load(session.run)
        digest = photos.photo_set.digest if photos.photo_set else ""
        known = trained(session.run)
        fits = {m: card for m, card in known.items() if (card.photo_digest, card.base) == (digest, base)}
        older = self._older(session.run, photos, base, known, fits)
        going_on = [m for m in _going_on(older, known, session) if go_on and m in methods]
        asked = {
            "quality": quality, "methods": list(methods), "settings": settings, "photos": digest,
            "go_on": bool(going_on),
        }  # fmt: skip
        if self._continues(session, asked, base, choice=bool(older)):
            last = jobs.load_spec(session.run)
            whole = self.estimated_s(row, self.recipes(row, last.quality, last.methods, last.settings))
            done_s = jobs.status(session.run).wall_s
            self._enqueue(session, session.run, estimate_s=None if whole is None else max(0.0, whole - done_s))
            return
        changes = {m: dict(settings.get(m, {})) for m in methods}
        for method, recipe in self.recipes(row, quality, methods, settings).items():
            if recipe.steps > MAX_STEPS or recipe.batch > MAX_BATCH:
                raise UserError(
                    f"At most {MAX_STEPS} steps of at most {MAX_BATCH} photos are taught here, so that others get "
                    "their turn. The command line takes more."
                )
            if not recipe.watch_every:
                # a look at validation pictures now and then: a person sees the likeness grow, the best is kept
                changes[method]["watch_every"] = max(10, recipe.steps // LOOKS)
        for method in going_on:
            steps = self.recipes(row, quality, (method,), changes)[method].steps
            changes[method] |= {"start_from": known[method].sha256, "steps": _fewer(steps)}
        spec = JobSpec(
            kind="train", base=base, class_word=session.choices.class_word, methods=methods, quality=quality,
            settings=changes,
        )  # fmt: skip
        estimate = self.estimated_s(row, self.recipes(row, quality, methods, changes))
        with photobox.taking(session.run):  # photos that are still coming in are not part of it
            photobox.note_learned(session.run, methods)
            self._enqueue(session, session.run, spec, estimate_s=estimate)
        self.sessions.choose(session, quality=quality, asked=asked)

    def _continues(self, session: Session, asked: dict[str, Any], base: str, *, choice: bool) -> bool:
        """Whether this is what the last training was asked for, and that one did not come to its end. Without a
        `choice`, whether to go on from something older is not asked: a training that did is continued.
        """
        now, last = jobs.status(session.run), session.choices.asked
        if not choice:
            asked = asked | {"go_on": last.get("go_on", False)}
        if now.state not in ("cancelled", "interrupted", "failed") or last != asked:
            return False
        before = jobs.load_spec(session.run)
        return (before.kind, before.base, before.class_word) == ("train", base, session.choices.class_word)

    def start_generation(self, session: Session, *, columns: tuple[str, ...], samplings: tuple[Sampling, ...]) -> None:
        choices = session.choices
        spec = JobSpec(
            kind="generate", base=choices.base or self.default_base, class_word=choices.class_word, methods=columns,
            samplings=samplings,
        )  # fmt: skip
        pace = estimates.pace_of(self._known_paces().get(estimates.key(self.bases[spec.base], DRAWING)))
        estimate = None if pace is None else pace.step_s * spec.denoiser_steps
        self._enqueue(session, session.run.drawing, spec, estimate_s=estimate)

    def start_finishing(self, session: Session, order: Finish) -> None:
        """Put pictures of the run in the line to be finished; they need no base model. Raises UserError."""
        choices = session.choices
        spec = JobSpec(
            kind="finish", base=choices.base or self.default_base, class_word=choices.class_word, methods=("none",),
            finish=order,
        )  # fmt: skip
        self._enqueue(session, session.run.drawing, spec, estimate_s=FINISH_S * len(order.pictures))

    def _enqueue(
        self, session: Session, run: workspace.Run, spec: JobSpec | None = None, *, estimate_s: float | None = None
    ) -> None:
        require_room(run.folder)
        jobs.enqueue(run, spec, owner=session.key, estimate_s=estimate_s, serve=self.slice is None)

    def like(self, run: workspace.Run, shot: Shot, wanted: bool) -> None:
        """Remember, or forget, that a picture is liked; two clicks at once don't lose one another."""
        with self._guard:
            pictures.like(run, shot, wanted)

    def sweep(self, *, older_than_s: float) -> int:
        """Delete runs that nobody has touched for so long and that are not being worked on; returns how many went."""
        gone = workspace.sweep(self.sessions.root, older_than_s=60.0)
        for key, run in self.sessions.runs():
            try:
                touched = max(file.stat().st_mtime for file in (run.folder, *run.folder.iterdir()))
                if time.time() - touched > older_than_s and not self.busy(run):
                    self.sessions.drop(key, run)
                    gone += 1
            except (OSError, UserError) as error:
                log.warning("a run could not be swept: %s", type(error).__name__)
        return gone

    def stop(self, run: workspace.Run) -> None:
        jobs.stop(run)

    def leave(self, run: workspace.Run, method: str) -> None:
        """Stop one method of a training; the others go on."""
        jobs.leave(run, method)

    def stop_and_wait(self, run: workspace.Run, *, timeout_s: float = 60.0) -> None:
        """Stop the run's jobs and wait until they have ended. Raises UserError when they do not."""
        for slot in (run, run.drawing):
            jobs.stop(slot, patience_s=3.0)
        for slot in (run, run.drawing):
            if jobs.hold(slot, partial(_over, slot), timeout_s=timeout_s).busy:
                raise UserError("The work on this run has not ended yet. Wait a minute, then delete again.")

    def package(self, run: workspace.Run) -> list[tuple[str, str]]:
        """A zip of what was learned, the pictures and the report. Returns (text, link) pairs."""
        from pipelines.reports import packing, report

        report.refresh_votes(run)
        target = run.folder / "likeness.zip"
        liked = pictures.favourite_files(run)
        size = sum(file.stat().st_size for file in (*_packed(run), *liked))
        workspace.require_space(run.folder, 2 * size, purpose="The download")

        def fill(partial: Path) -> None:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                for file in _packed(run):
                    archive.write(file, file.relative_to(run.folder).as_posix())
                for place, file in enumerate(liked, start=1):
                    column = file.relative_to(run.folder).parts[1]
                    archive.write(file, f"favourites/{place:02d}-{column}-{file.name}")
                archive.writestr("settings.json", json.dumps(workspace.plain(packing.settings(run)), indent=1))
                archive.writestr("README.txt", packing.readme(run, _packed(run)))

        with workspace.told_when_full():
            workspace.write_file(target, fill)
        links = [(tell("Everything as one zip"), self.media.link(target, name="likeness.zip"))]
        extra = (
            (tell("Report (HTML)"), run.page),
            (tell("Report (JSON)"), run.report),
            (tell("Table (CSV)"), run.cells),
            (tell("Grid (PNG)"), run.grid),
        )
        links += [(text, self.media.link(file, name=file.name)) for text, file in extra if file.is_file()]
        return links

    def _with_pictures(self, view: View) -> View:
        assert view.session is not None
        run = view.session.run
        if view.trained:
            self._remember_pace(view.row, view.trained)
        self._remember_drawing(view.row, run.drawing)
        scores: dict[str, dict[str, list[float | None]]] = {}
        by_render: dict[str, dict[str, dict[str, Any]]] = {}
        for line in workspace.read_lines(run.scores):
            path = _inside(run, str(line.get("render")))
            by_render.setdefault(path, {})[str(line.get("judge"))] = line
        known = {"none": None} | {method: card.id for method, card in view.trained.items()} | view.imported
        files = []
        for column, subject in known.items():
            for file in run.pictures(column):
                about = inscription.read_again(file)
                if about is not None and (about.base, about.subject) == (view.row.name, subject):
                    with contextlib.suppress(FileNotFoundError):  # set aside this very moment
                        files.append((column, file, about, file.stat().st_mtime))
        stylised = set(presets.stylised())
        for column, file, about, _ in files:
            for name in by_render.get(_inside(run, str(file)), {}):  # a judge that has seen drawings only is one too
                scores.setdefault(name, {})
            if about.sampling.prompt in stylised or "{subject}" not in about.sampling.prompt or about.sampling.source:
                continue
            for name, line in by_render.get(_inside(run, str(file)), {}).items():
                scores.setdefault(name, {}).setdefault(column, []).append(line.get("similarity"))
        view = replace(view, scores=scores)
        judge = view.judge()
        liked = set(pictures.favourites(run))
        shots = []
        for column, file, about, when_s in files:
            path = _inside(run, str(file))
            found = by_render.get(path, {})
            said = found.get(judge or "", {})
            told = {key: said.get(key) for key in ("similarity", "reason", "verdict", "note", "words")}
            drawn, prompt = about.sampling, about.sampling.prompt
            shots.append(
                Shot(
                    column, drawn.seed, self.media.link(file), prompt, **told, scored=judge in found,
                    drawing=prompt in stylised, id=pictures.picture_id(path, about.base, about.subject), path=path,
                    base=about.base, subject=about.subject, sampling=drawn, when_s=when_s,
                    favourite=(path, about.base, about.subject) in liked,
                )
            )  # fmt: skip
        drawings = workspace.read_json(run.figures) if scores and not view.drawing.busy else None
        drawings = drawings if isinstance(drawings, dict) else {}
        worst = [seen for path in drawings.get("worst", ()) if (seen := self.link(run, str(path)))]
        history = pictures.drawings(self.events(run.drawing), shots, lambda path: _inside(run, path))
        return replace(view, pictures=tuple(shots), history=history, drawings=drawings, worst=tuple(worst))


def _going_on(older: Sequence[str], known: Mapping[str, Trained], session: Session) -> tuple[str, ...]:
    """Those of the `older` methods that were told the same class word, so that they can start from what they know."""
    return tuple(m for m in older if known[m].class_word in ("", session.choices.class_word))


def _fewer(steps: int) -> int:
    """The steps of a training that goes on."""
    return max(10, round(steps * GO_ON_SHARE))


def offered_bases() -> tuple[dict[str, BaseRow], str]:
    """The registry's bases, plus the one the operator names in $LIKENESS_BASE, and which is chosen at first."""
    extra = os.environ.get(BASE_ENV)
    if not extra:
        return dict(registry.BASES), registry.default_base()
    row = registry.find_base(extra)
    return {row.name: row} | dict(registry.BASES), row.name


def trained(run: workspace.Run) -> dict[str, Trained]:
    """Methods whose artefact is there. The learned files themselves are checked when they are used."""
    found = {}
    for method in ALL_METHODS:
        if (saved := _card(run, method)) is not None:
            found[method] = Trained(
                method, str(saved["id"]), str(saved["base"]), bool(saved.get("complete")),
                int(saved["steps"]), float(saved["train_s"]),
                int(saved["artifact_bytes"]), int(saved["trainable_params"]), str(saved["photo_digest"]),
                str(saved.get("sha256", "")), saved.get("peak_mem_mb"), int(saved.get("recipe", {}).get("batch", 1)),
                str(saved.get("class_word", "")),
            )  # fmt: skip
    return found


def imported(run: workspace.Run, base: str) -> dict[str, str]:
    """Columns of this base that were not trained here -> their card's id."""
    cards = {column: _card(run, column) for column in workspace.imported(run)}
    return {c: str(card["id"]) for c, card in cards.items() if card is not None and card.get("base") == base}


def _card(run: workspace.Run, column: str) -> dict[str, Any] | None:
    """A column's card; None where there is none, or a damaged one: then it has to be learned again, as if there were
    none.
    """
    with contextlib.suppress(UserError):
        saved = workspace.read_json(run.method(column) / "subject.json")
        return saved if isinstance(saved, dict) else None
    return None


def marks(run: workspace.Run) -> dict[str, dict[str, Any]]:
    """Judge -> the figures of its strip."""
    saved = workspace.read_json(run.marks)
    return {str(judge): dict(figures) for judge, figures in saved.items()} if isinstance(saved, dict) else {}


def _over(slot: workspace.Run, now: jobs.JobStatus) -> bool:
    return not now.busy and jobs.released(slot)


def _inside(run: workspace.Run, path: str) -> str:
    """A path as the run's files name it, whether it came absolute or relative."""
    folder = str(run.folder)
    return path[len(folder) :].lstrip("/\\") if path.startswith(folder) else path


def _packed(run: workspace.Run) -> list[Path]:
    """What goes into the download: no photo as it came, no checkpoints, no logs. The report and the grid show the
    person beside the pictures, as the base sees them.
    """
    parts = ("methods", "renders", "finished")
    files = [f for part in parts for f in sorted((run.folder / part).rglob("*")) if f.is_file()]
    apart = re.compile(r"checkpoint|class_images|preview_|finished\.zip|\.")
    files = [f for f in files if not apart.match(f.name)]
    files += [
        f
        for f in (
            run.report,
            run.page,
            run.cells,
            run.figures,
            run.grid,
            run.scores,
            run.marks,
            run.votes,
            run.manifest,
        )
        if f.is_file()
    ]
    return files
