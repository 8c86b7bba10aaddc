"""The same work for programs: named endpoints for `gradio_client`. docs/api.md shows each with a runnable example."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

import gradio as gr

from pipelines.core.decode import check_variation
from pipelines.core.records import CLASS_WORDS, QUALITIES, UserError
from pipelines.finishing import refine, stage
from ui.generate.finish import order_of
from ui.page import errors
from ui.programs.answers import (
    chosen_methods,
    file_of,
    finished_of,
    photos_of,
    plan_of,
    scores_of,
    status_of,
    take_in,
    uploaded,
)
from ui.programs.types import FinishedPicture, Link, Photos, Receipt, Scores, Status
from ui.run.package import pack
from ui.run.services import Services
from ui.run.sessions import Session
from ui.run.start import start_finishing, start_generation, start_training
from ui.train.dials import COMMON, DIALS, checked, chosen_optimizer
from ui.upload.layout import CONSENT
from ui.web.visitors import browser_of
from ui.words import words

P = ParamSpec("P")
R = TypeVar("R")


def spoken(handler: Callable[P, R]) -> Callable[P, R]:
    """`errors.told` for programs: the sentence is English and not escaped. Annotations are resolved, since gr.api reads
    them.
    """

    @functools.wraps(handler)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with words.speaking(words.ENGLISH):
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                raise gr.Error(errors.sentence(error), print_exception=False) from None

    cast(Any, guarded).__signature__ = inspect.signature(handler, eval_str=True)
    return guarded


class Endpoints:
    """The named endpoints; each method is one."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def admitted(self, key: object, request: gr.Request) -> Session:
        """The run of `key`; whoever asked may follow its links from now on."""
        session = self.services.sessions.need(key)
        self.services.admit(session, request)
        return session

    @spoken
    def add_photos(
        self,
        files: list[dict],
        class_word: str,
        consent: bool,
        request: gr.Request,
        key: str = "",
        base: str = "",
    ) -> Photos:
        """Take in photos (or ZIPs of photos) of one person, 5 to 15 in all, and say of each whether it can be used.

        files: gradio_client.handle_file(path) each. class_word: person, man or woman. consent: True states that you are
        this person or have their permission, and that everybody in the photos is 18 or older; without it nothing is
        kept. key: of an earlier call, to add more; empty starts a new run. base: a base model's name; empty for this
        machine's default.
        """
        paths = uploaded(files)
        if consent is not True:
            raise UserError(f"Consent has to be stated: {CONSENT} Send consent=True when that is so.")
        if class_word not in CLASS_WORDS:
            raise UserError(f"The photos show a {', '.join(CLASS_WORDS)}: choose one of these.")
        if base and (not isinstance(base, str) or base not in self.services.bases):
            raise UserError(f"There is no base {base!r} here. Choose one of: {', '.join(self.services.bases)}.")
        if not paths:
            raise UserError("No photos arrived. Send 5 to 15 photos of one person.")
        fresh = not key
        capability, session = self.services.sessions.create() if fresh else (key, self.admitted(key, request))
        try:
            take_in(self.services, session, paths, class_word=class_word, base=base)
        except Exception:
            if fresh:
                self.services.sessions.forget(session)
            raise
        self.admitted(capability, request)
        return photos_of(capability, self.services.view(capability))

    @spoken
    def train(
        self,
        key: str,
        request: gr.Request,
        methods: list[str] | None = None,
        quality: str = "draft",
        settings: dict | None = None,
        go_on: bool = False,
    ) -> Status:
        """Start training; returns at once. Poll `status` until it is no longer busy.

        methods: of textual_inversion, dreambooth, lora, pivotal; empty for all the base offers but
        pivotal, and on SDXL but dreambooth.
        quality: draft, good or best.
        settings: changes to recipes, such as {"lora": {"rank": 8}}. go_on: after photos were added, start from what
        was learned before.
        """
        session = self.admitted(key, request)
        view = self.services.view(key)
        if view.progress.busy:
            raise UserError("This run is being trained already. Wait until it is done, or call stop first.")
        if view.train_blocked:
            raise UserError(view.train_blocked)
        if quality not in QUALITIES:
            raise UserError(f"There is no quality {quality!r}. Choose one of: {', '.join(QUALITIES)}.")
        chosen = chosen_methods(methods, view.row.trainable, usual=view.row.usual)
        wanted = settings or {}
        if not isinstance(wanted, dict) or not all(isinstance(each, dict) for each in wanted.values()):
            raise UserError('Settings are one object per method, such as {"lora": {"rank": 8}}.')
        if strange := sorted(set(map(str, wanted)) - set(chosen)):
            raise UserError(f"Settings name {', '.join(strange)}, which is not to be trained.")
        for method, changes in wanted.items():
            for name, value in changes.items():
                dial = next(
                    (each for each in (*DIALS, *COMMON) if each.setting == name and each.method in ("", method)), None
                )
                if name == "optimizer":
                    chosen_optimizer(value)
                    continue
                if (method, name) == ("lora", "dora") and isinstance(value, bool):
                    continue
                if dial is None:
                    raise UserError(f"{name} of {method} can't be set here.")
                checked(
                    f"{method} {name}", value, dial, whole=name not in ("learning_rate", "prior_weight", "face_weight")
                )
        start_training(
            self.services,
            session,
            methods=chosen,
            quality=quality,
            settings=wanted,
            go_on=go_on is True and bool(view.older),
        )
        return status_of(self.services.view(key))

    @spoken
    def status(self, key: str, request: gr.Request) -> Status:
        """Where the run stands."""
        self.admitted(key, request)
        return status_of(self.services.view(key))

    @spoken
    def generate(
        self,
        key: str,
        request: gr.Request,
        prompt: str = "",
        style: str = "",
        methods: list[str] | None = None,
        number: int = 4,
        seed: int = 0,
        source: str = "",
        change: float = 0.5,
    ) -> Status:
        """Start drawing, the same seeds for every method; returns at once. Poll `status`; `score` lists the pictures.

        prompt: holds {subject} where the person belongs, else {subject} is put in front; or style: the id of a style.
        methods: also "none", the untrained base; empty for it and all that are trained. number: pictures per method,
        1 to 24; seed: of the first.
        source: the `file` of a picture to vary, of which the share `change` (0.05 to 1) is drawn anew.
        """
        session = self.admitted(key, request)
        view = self.services.view(key)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or call stop first.")
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        chosen = chosen_methods(methods, view.columns)
        plan = plan_of(view.row, prompt, style, number, seed)
        if source:
            if not isinstance(source, str) or source not in {
                file_of(self.services, session, shot.link) for shot in view.pictures
            }:
                raise UserError("There is no such picture in this run. `score` lists the files that can be varied.")
            plan = tuple(replace(each, source=source, change=change) for each in plan)
            for each in plan:
                check_variation(each)
        start_generation(self.services, session, columns=chosen, samplings=plan)
        return status_of(self.services.view(key))

    @spoken
    def score(self, key: str, request: gr.Request) -> Scores:
        """How much every picture looks like the person, and a table of the methods."""
        session = self.admitted(key, request)
        view = self.services.view(key)
        judge = view.judge()
        if view.score_blocked or judge is None:
            raise UserError(view.score_blocked or "Generate pictures first: there is nothing to score yet.")
        return scores_of(self.services, session, view, judge)

    @spoken
    def finish(
        self,
        key: str,
        files: list[str],
        request: gr.Request,
        steps: list[str] | None = None,
        background: str = "",
        size: str = "linkedin",
        max_kb: int = 200,
        format: str = "JPEG",
    ) -> Status:
        """Start finishing pictures: refined, cut to a size, marked. Returns at once; poll `status`, then `finished`.

        files: of `score`'s pictures. steps: of exposure, denoise, enlarge, sharpen; None for the usual ones.
        background: blur, studio or a colour; empty leaves it. size: of presets/sizes, or its beginning.
        """
        session = self.admitted(key, request)
        view = self.services.view(key)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or call stop first.")
        known = {shot.path for shot in view.pictures}
        if not isinstance(files, list) or not files or not all(isinstance(f, str) and f in known for f in files):
            raise UserError("There is no such picture in this run. `score` lists the files that can be finished.")
        wanted = list(refine.DEFAULT_STEPS) if steps is None else steps
        order = order_of(
            tuple(dict.fromkeys(files)), steps=wanted, background=background, size=size, max_kb=max_kb,
            format_name=format,
        )  # fmt: skip
        start_finishing(self.services, session, order)
        return status_of(self.services.view(key))

    @spoken
    def finished(self, key: str, request: gr.Request) -> list[FinishedPicture]:
        """The finished pictures, the newest first, and what became of every step."""
        session = self.admitted(key, request)
        return [finished_of(self.services, session, record) for record in stage.records(session.run)]

    @spoken
    def download(self, key: str, request: gr.Request) -> list[Link]:
        """Links to everything learned and drawn, as one ZIP, and to the report."""
        session = self.admitted(key, request)
        self.services.require_idle(session.run)
        return [Link(text=text, link=link) for text, link in pack(session.run, self.services.media)]

    @spoken
    def stop(self, key: str, request: gr.Request) -> Status:
        """Ask what is under way to stop. What was learned so far is kept; `train` continues from there."""
        session = self.admitted(key, request)
        for slot in (session.run, session.run.drawing):
            self.services.stop(slot)
        return status_of(self.services.view(key))

    @spoken
    def delete(self, key: str, request: gr.Request) -> Receipt:
        """Delete the photos, what was learned and every picture. Can't be undone; the key is worth nothing then."""
        session = self.admitted(key, request)
        receipt = self.services.forget(session, browser_of(request))
        return Receipt(
            files=int(str(receipt["files"])),
            bytes=int(str(receipt["bytes"])),
            forgotten=str(receipt["forgotten"]),
            verified=str(receipt["verified"]),
            note=str(receipt["note"]),
        )


def build(services: Services) -> None:
    """Register the endpoints with the Blocks around the call."""
    api = Endpoints(services)
    # one person's photos are judged in order; several people's at the same time, as on the page
    gr.api(api.add_photos, api_name="add_photos", concurrency_limit=4, concurrency_id="photos")
    for handler in (
        api.train, api.status, api.generate, api.score, api.finish, api.finished, api.download, api.stop, api.delete
    ):  # fmt: skip
        gr.api(handler, api_name=handler.__name__, concurrency_limit=4)
