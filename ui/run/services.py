"""What the pages' handlers may do. Everything is read from the run's folder, so a reload, a second tab and a restart
see the same.

In: a browser's capability. Out: a `View`.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.bases import registry
from pipelines.bases.registry import BaseRow
from pipelines.core import inscription, presets
from pipelines.core.device import free_memory_gb, gpu_dtype
from pipelines.core.files import read_json, read_lines, timestamp
from pipelines.core.records import TRAINABLE, Event, Recipe, Sampling, UserError
from pipelines.core.run import Run, sweep_forgotten
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec
from pipelines.training import estimates
from ui.page import gpu
from ui.page.theme import METHOD_NAMES
from ui.run import photobox, pictures
from ui.run.cards import CropCard, PhotoCard, Shot
from ui.run.paces import DRAWING, Paces
from ui.run.photobox import Box
from ui.run.progress import Progress, Trained, going_on_from, imported, marks, progress_of, trained
from ui.run.sessions import Session, Sessions
from ui.run.start import Settings, fewer_steps
from ui.run.view import View
from ui.web.limits import Limits
from ui.web.media import Media
from ui.web.uploads import Uploads
from ui.web.visitors import visitor_of
from ui.words import phrases
from ui.words.retold import retell
from ui.words.words import tell

log = logging.getLogger("likeness.ui")


BASE_ENV = "LIKENESS_BASE"  # a folder or checkpoint the operator adds to the list and makes the default


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
        self.paces = Paces(self.sessions.folder)
        self.media = Media(self.sessions.root)
        self.uploads = Uploads()
        self.limits = Limits()
        self.bases, self.default_base = offered_bases()
        self.slice = gpu.slicer()  # None: a worker process does the jobs
        self._events: dict[tuple[str, str], tuple[int, list[Event]]] = {}
        self._guard = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._came_from: dict[str, str] = {}  # a run's id -> the address, hashed, that it was last asked for from

    def admit(self, session: Session, request: Any) -> None:
        """Whoever asked has shown the run's capability: they may follow its links from now on."""
        visitor = visitor_of(request)
        self.media.admit(session.run.folder.name, visitor.browser)
        address = hmac.new(self._secret, visitor.address.encode(), "sha256").hexdigest()[:16]
        self._came_from[session.run.id] = address

    def party(self, run: Run) -> str:
        """The address, hashed, that the run was last asked for from; it says nothing after a restart."""
        return self._came_from.get(run.id, "unknown")

    def prune(self) -> None:
        """Forget who asked for the runs that are gone."""
        self.media.prune()
        for run in [run for run in list(self._came_from) if not (self.sessions.root / run).exists()]:
            self._came_from.pop(run, None)

    def forget(self, session: Session | None, browser: str) -> dict[str, object]:
        """Delete a run, and what this browser has uploaded and is not taken in yet. Returns the receipt of both."""
        files, size = self.uploads.forget(browser)  # first, so that photos that are still coming in end soon
        if session is not None:
            self.stop_and_wait(session.run)
        receipt = (
            self.sessions.forget(session) if session is not None else {"files": 0, "bytes": 0, "forgotten": timestamp()}
        )
        return {**receipt, "files": int(str(receipt["files"])) + files, "bytes": int(str(receipt["bytes"])) + size}

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
        progress = progress_of(run, self.events(run))
        everything = trained(run)
        digest = box.photo_set.digest if box.photo_set else ""
        fits = {m: card for m, card in everything.items() if (card.photo_digest, card.base) == (digest, name)}
        older = self.older(run, box, name, everything, fits)
        return self._with_pictures(
            View(
                self, session, self.bases[name], self.problem(name), box, progress,
                progress_of(run.drawing, self.events(run.drawing)), fits,
                bool(everything) and not fits, (), marks(run), {},
                older=older, going_on=going_on_from(older, everything, session), imported=imported(run, name),
            )
        )  # fmt: skip

    def older(
        self, run: Run, box: Box, base: str, everything: dict[str, Trained], fits: dict[str, Trained]
    ) -> tuple[str, ...]:
        """Methods that learned this base from other photos and may go on with these."""
        known = {m: card for m, card in everything.items() if m in TRAINABLE and m not in fits}
        older = [m for m, card in known.items() if card.base == base and card.complete]
        return tuple(m for m in older if photobox.can_go_on(run, box, m))

    def link(self, run: Run, path: str) -> str | None:
        """A signed link for a file of the run, named relative to it."""
        file = run.folder / path
        return self.media.link(file) if file.is_file() else None

    def photo_cards(self, run: Run, box: Box) -> list[PhotoCard]:
        cards = []
        for one in box.staged:
            link = self.link(run, f"{photobox.STAGED}/{one.file}") if one.file else None
            part = photobox.part_of(box, one.name)
            verdict = "overruled" if one.kept else one.verdict
            text = photobox.told(one)
            card = PhotoCard(one.name, link, verdict, text, part, one.key, one.can_be_kept, one.pin)
            cards.append(card)
        return cards

    def crop_cards(self, run: Run, box: Box) -> list[CropCard]:
        return [
            CropCard(one.name, self.media.link(path), text, one.key, learned, one.zoom, one.caption is not None)
            for one, path, text, learned in photobox.crops(run, box)
            if path.is_file()
        ]

    def busy(self, run: Run) -> bool:
        """Whether anything is being done in the run: a training, or drawing."""
        return jobs.status(run).busy or jobs.status(run.drawing).busy

    def require_idle(self, run: Run) -> None:
        """Raise UserError when anything is being done in this run."""
        if self.busy(run):
            raise UserError("This run is still working. Wait until it is done, or press Stop first.")

    def events(self, run: Run) -> list[Event]:
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

    def recipes(self, row: BaseRow, quality: str, methods: Sequence[str], settings: Settings) -> dict[str, Recipe]:
        """What would be taught. Raises UserError for a setting that makes no sense."""
        spec = JobSpec(kind="train", base=row.name, methods=tuple(methods), quality=quality, settings=settings)
        spec.check()
        return {
            m: presets.recipe(row, m, quality, class_word="person").replaced(**settings.get(m, {})) for m in methods
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
            return tell("Choose at least one method.")
        recipes = {
            m: recipe.replaced(steps=fewer_steps(recipe.steps)) if m in going_on else recipe
            for m, recipe in self.recipes(row, quality, methods, settings).items()
        }
        free_gb = free_memory_gb() if row.footprint else None
        dtype = gpu_dtype() if free_gb is not None else "bfloat16"
        found = estimates.estimate(row, recipes, self.paces.known(), free_gb=free_gb, dtype=dtype)
        listed = ", ".join(f"{METHOD_NAMES[m]} {recipe.steps}" for m, recipe in recipes.items())
        parts = []
        if found.seconds is not None:
            parts.append(tell("about {time}", time=phrases.duration(phrases.rounded(found.seconds))))
        if found.memory_mb is not None:
            parts.append(tell("{size} GB of memory", size=f"{found.memory_mb / 1e3:.1f}"))
        what = tell("{first} and {second}", first=parts[0], second=parts[1]) if len(parts) == 2 else "".join(parts)
        takes = tell("Takes {what} ({why}).", what=what, why=_basis(found.basis))
        return f"{takes} {tell('Steps:')} {listed}. {retell(found.memory)}".strip()

    def estimated_s(self, row: BaseRow, recipes: dict[str, Recipe]) -> float | None:
        return estimates.estimate(row, recipes, self.paces.known()).seconds

    def picture_s(self, row: BaseRow) -> float | None:
        """Seconds for one picture, as the last ones took on this machine."""
        pace = estimates.pace_of(self.paces.known().get(estimates.key(row, DRAWING)))
        return None if pace is None else pace.step_s * Sampling(prompt="{subject}").steps

    # ------------------------------------------------------------------ doing

    def like(self, run: Run, shot: Shot, wanted: bool) -> None:
        """Remember, or forget, that a picture is liked; two clicks at once don't lose one another."""
        with self._guard:
            pictures.like(run, shot, wanted)

    def sweep(self, *, older_than_s: float) -> int:
        """Delete runs that nobody has touched for so long and that are not being worked on; returns how many went."""
        gone = sweep_forgotten(self.sessions.root, older_than_s=60.0)
        for key, run in self.sessions.runs():
            try:
                touched = max(file.stat().st_mtime for file in (run.folder, *run.folder.iterdir()))
                if time.time() - touched > older_than_s and not self.busy(run):
                    self.sessions.drop(key, run)
                    gone += 1
            except (OSError, UserError) as error:
                log.warning("a run could not be swept: %s", type(error).__name__)
        return gone

    def stop(self, run: Run) -> None:
        jobs.stop(run)

    def leave(self, run: Run, method: str) -> None:
        """Stop one method of a training; the others go on."""
        jobs.leave(run, method)

    def stop_and_wait(self, run: Run, *, timeout_s: float = 60.0) -> None:
        """Stop the run's jobs, and wait until they and photos that are coming in have ended. Raises UserError when they
        have not.
        """
        for slot in (run, run.drawing):
            jobs.stop(slot, patience_s=3.0)
        for slot in (run, run.drawing):
            if jobs.hold(slot, partial(_over, slot), timeout_s=timeout_s).busy:
                raise UserError("The work on this run has not ended yet. Wait a minute, then delete again.")
        deadline = time.monotonic() + timeout_s
        while not photobox.is_free(run):
            if time.monotonic() > deadline:
                raise UserError("Photos are still being taken in. Wait a minute, then delete again.")
            time.sleep(0.05)

    def _with_pictures(self, view: View) -> View:
        assert view.session is not None
        run = view.session.run
        if not view.choices.example:  # another machine's times
            self.paces.remember(view.row, view.trained)
            self.paces.remember_drawing(view.row, run.drawing)
        scores: dict[str, dict[str, list[float | None]]] = {}
        by_render: dict[str, dict[str, dict[str, Any]]] = {}
        for line in read_lines(run.scores):
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
        drawings = read_json(run.figures) if scores and not view.drawing.busy else None
        drawings = drawings if isinstance(drawings, dict) else {}
        worst = [seen for path in drawings.get("worst", ()) if (seen := self.link(run, str(path)))]
        history = pictures.drawings(self.events(run.drawing), shots, lambda path: _inside(run, path))
        return replace(view, pictures=tuple(shots), history=history, drawings=drawings, worst=tuple(worst))


def offered_bases() -> tuple[dict[str, BaseRow], str]:
    """The registry's bases, plus the one the operator names in $LIKENESS_BASE, and which is chosen at first."""
    extra = os.environ.get(BASE_ENV)
    if not extra:
        return dict(registry.BASES), registry.default_base()
    row = registry.find_base(extra)
    return {row.name: row} | dict(registry.BASES), row.name


def _over(slot: Run, now: jobs.JobStatus) -> bool:
    return not now.busy and jobs.released(slot)


def _inside(run: Run, path: str) -> str:
    """A path as the run's files name it, whether it came absolute or relative."""
    folder = str(run.folder)
    return path[len(folder) :].lstrip("/\\") if path.startswith(folder) else path
