"""One look at a run, as the pages need it: why a tab is closed, what it shows, what the score means.

In: a snapshot that `Services.view` built. Out: answers to the tabs' questions, in the reader's language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.bases.registry import BaseRow
from pipelines.core.records import ALL_METHODS, COLUMNS, UserError, place_of
from ui.page.theme import METHOD_NAMES
from ui.run.cards import CropCard, Lane, Mark, MethodRow, PhotoCard, Shot, StripData
from ui.run.photobox import Box
from ui.run.pictures import Drawing
from ui.run.progress import Progress, Trained
from ui.run.sessions import Choices, Session
from ui.run.start import Settings
from ui.words import phrases
from ui.words.words import tell

if TYPE_CHECKING:
    from ui.run.services import Services

STRIP = 6  # earlier previews in a lane
TICK = "Tick the consent box in the Upload tab."
WATCHED_FROM = 8  # photos; see pipelines.photos.split.split_sizes


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
        here = {method for method, card in self.trained.items() if card.here}
        return (*(c for c in COLUMNS if c == "none" or c in here), *self.imported)

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
    def share(self) -> float | None:
        """How much of the work under way is done, 0 to 1; None where nothing is, or nothing is known yet."""
        if self.drawing.busy and self.drawing.to_draw:
            return self.drawing.drawn / self.drawing.to_draw
        progress = self.progress
        if not progress.busy or not progress.latest:
            return None
        done = [
            1.0 if method in progress.ended else (step.step / step.steps if step and step.steps else 0.0)
            for method in progress.methods
            for step in (progress.latest.get(method),)
        ]
        return sum(done) / len(done)

    @property
    def picture_s(self) -> float | None:
        """Seconds that a picture takes here at this base's usual steps; None where none was timed."""
        return self.services.picture_s(self.row)

    @property
    def judges(self) -> tuple[str, ...]:
        """Judges that have scored something; ArcFace packs before dlib."""
        return tuple(sorted(self.scores, key=lambda name: (name == "dlib", name)))

    def judge(self) -> str | None:
        return self.choices.judge if self.choices.judge in self.judges else next(iter(self.judges), None)

    def crop_cards(self) -> list[CropCard]:
        return self.services.crop_cards(self.session.run, self.box) if self.session else []

    def photo_cards(self) -> list[PhotoCard]:
        return self.services.photo_cards(self.session.run, self.box) if self.session else []

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
                size=phrases.amount(card.artifact_bytes),
                count=f"{card.trainable_params:,}",
            )
            if not card.here:
                note += " " + tell("The example comes without its weights, so it draws nothing new here.")
        if step is None:
            steps, seconds = (card.steps, card.train_s) if card else (0, 0.0)
            return Lane(
                method, state, steps, steps, seconds, None, None, link, note, likeness, self._unwatched, strip
            )  # fmt: skip
        left = step.seconds_left if state == "training" else None
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
        wanted = [m for m in self.row.trainable if m in methods]
        return self.services.estimate(self.row, quality, wanted, settings or {}, self.going_on if go_on else ())

    def judge_facts(self, judge: str) -> str:
        from pipelines.faces.judges import judge_named

        try:
            licence = tell("Licence of its weights: {licence}.", licence=judge_named(judge).licence)
        except (UserError, OSError):
            licence = tell("Its weights are not on this machine any more.")
        threshold = self.marks.get(judge, {}).get("threshold")
        same = tell("It is uncalibrated: its numbers have no scale here.")
        if isinstance(threshold, float):
            same = tell(
                "{value} or more means 'looks like you'. Only 1 in 1,000 strangers scores that high.",
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
        from pipelines.evaluation.scale import normalised

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

    def steps(self) -> list[tuple[str, str, bool]]:
        """(name, text, open) of the four steps: where the person stands, and what opens the next one."""
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
        return steps
