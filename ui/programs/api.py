"""The same work for programs: named endpoints for `gradio_client`. docs/api.md shows each with a runnable example.

In: JSON arguments, every one checked here, and photos that came through Gradio's own upload. Out: typed JSON.
What a page keeps in its browser's storage, a program gets as `key` from `add_photos` and sends with every other call:
it is the run's capability. The handlers call what the buttons call. Errors are sentences (`gradio_client.exceptions.
AppError`).
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar, cast

import gradio as gr

from pipelines.bases.registry import BaseRow
from pipelines.core import presets, workspace
from pipelines.core.schema import ALL_METHODS, CLASS_WORDS, QUALITIES, Sampling, Style, UserError, check_variation
from pipelines.finishing import refine, stage
from ui.generate.finish import order_of
from ui.generate.generate import MAX_NUMBER, MAX_SEED, samplings, whole
from ui.page import errors
from ui.page.wiring import refused_while_busy
from ui.run import photobox
from ui.run.sessions import Session
from ui.run.state import Services, View
from ui.train.train import COMMON, DIALS, checked, chosen_optimizer
from ui.upload.upload import CONSENT
from ui.web.guard import cookie
from ui.words import words

P = ParamSpec("P")
R = TypeVar("R")


class Verdict(TypedDict):
    """About one photo."""

    name: str  # the file's own name
    verdict: str  # "good", "usable" or "leave_out"
    text: str  # why, and what to do
    part: str  # "training", "validation", "held out"; "" while it is not used


class Photos(TypedDict):
    """What has become of the photos."""

    key: str  # names your run in every other call; whoever has it can see and delete everything in it
    verdicts: list[Verdict]
    missing: int  # how many more photos are needed
    ready: bool  # training can start
    problem: str  # why not, as a sentence; "" when it can


class Method(TypedDict):
    """Where one method stands."""

    method: str
    state: str  # "waiting", "training", "done", "stopped" or "failed"
    step: int
    steps: int
    seconds: float


class Status(TypedDict):
    """Where a run stands."""

    state: str  # "none", "queued", "running", "done", "cancelled", "failed" or "interrupted"
    busy: bool  # something is under way: ask again in a few seconds
    kind: str  # "train", "generate" or "finish": what is, or was last, under way
    text: str  # what is being done just now
    problem: str  # why it failed, as a sentence
    ahead: int  # jobs of others before this one, while it is queued
    starts_in_s: float | None  # until its turn, where it is known
    seconds_left: float | None  # until training is done, where it is known
    methods: list[Method]
    trained: list[str]  # methods that fit the photos and can draw
    pictures: int  # how many are there
    drawn: int  # of the pictures of this job
    to_draw: int


class Picture(TypedDict):
    """One picture with its score by the chosen judge."""

    file: str  # its name within the run; `source` of a variation
    link: str  # relative address of the PNG
    method: str  # "none" is the untrained base
    seed: int
    prompt: str
    scored: bool
    similarity: float | None  # with the photos that training never saw
    verdict: str  # "looks like you", "borderline", "someone else" ...; "" where there is none
    words: str  # the similarity as people read it, or why there is none


class Row(TypedDict):
    """One column of the comparison."""

    method: str
    mean: float | None  # a picture without a face counts as 0
    best: float | None
    normalised: float | None  # 0 at the untrained base, 1 at this person's own photos
    faces_found: int
    pictures: int
    seconds: float | None  # of training
    megabytes: float | None  # of what was learned


class Scores(TypedDict):
    """The comparison."""

    judge: str  # the face recogniser
    judges: list[str]  # all that have scored
    about: str  # its licence, and what its numbers mean
    table: list[Row]
    pictures: list[Picture]


class FinishedStep(TypedDict):
    """What became of one step."""

    step: str
    state: str  # "kept", "dropped" or "not needed"
    sentence: str  # why


class Likeness(TypedDict):
    """One face recogniser about one finished picture."""

    judge: str
    raw: float | None  # similarity of the picture as it was drawn
    delivered: float | None  # of the file
    may_lose: float | None  # a step that loses more was dropped


class FinishedPicture(TypedDict):
    """One finished picture."""

    file: str  # of the picture it was made from
    link: str  # relative address of the finished file
    format: str
    width_px: int
    height_px: int
    bytes: int
    compared_with: str  # what the similarities are with
    likeness: list[Likeness]
    steps: list[FinishedStep]
    notes: list[str]


class Link(TypedDict):
    """One file to fetch."""

    text: str
    link: str  # relative to the app's address; good for two to four hours


class Receipt(TypedDict):
    """What was deleted."""

    files: int
    bytes: int
    forgotten: str  # when
    verified: str  # what was checked afterwards
    note: str


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


def build(services: Services) -> None:
    """Register the endpoints with the Blocks around the call."""

    def admitted(key: object, request: gr.Request) -> Session:
        """The run of `key`; whoever asked may follow its links from now on."""
        session = services.sessions.need(key)
        services.media.admit(session.run.folder.name, cookie(dict(request.headers)))
        return session

    @spoken
    def add_photos(
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
        try:
            if consent is not True:
                raise UserError(f"Consent has to be stated: {CONSENT} Send consent=True when that is so.")
            if class_word not in CLASS_WORDS:
                raise UserError(f"The photos show a {', '.join(CLASS_WORDS)}: choose one of these.")
            if base and (not isinstance(base, str) or base not in services.bases):
                raise UserError(f"There is no base {base!r} here. Choose one of: {', '.join(services.bases)}.")
            if not paths:
                raise UserError("No photos arrived. Send 5 to 15 photos of one person.")
            fresh = not key
            capability, session = services.sessions.create() if fresh else (key, admitted(key, request))
            try:
                _take_in(services, session, paths, class_word=class_word, base=base)
            except Exception:
                if fresh:
                    services.sessions.forget(session)
                raise
            admitted(capability, request)
            return _photos(capability, services.view(capability))
        finally:
            for path in paths:
                photobox.drop_upload(path)

    @spoken
    def train(
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
        session = admitted(key, request)
        view = services.view(key)
        if view.progress.busy:
            raise UserError("This run is being trained already. Wait until it is done, or call stop first.")
        if view.train_blocked:
            raise UserError(view.train_blocked)
        if quality not in QUALITIES:
            raise UserError(f"There is no quality {quality!r}. Choose one of: {', '.join(QUALITIES)}.")
        chosen = _chosen(methods, view.row.offered, usual=view.row.usual)
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
        services.start_training(
            session, methods=chosen, quality=quality, settings=wanted, go_on=go_on is True and bool(view.older)
        )
        return _status(services.view(key))

    @spoken
    def status(key: str, request: gr.Request) -> Status:
        """Where the run stands."""
        admitted(key, request)
        return _status(services.view(key))

    @spoken
    def generate(
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

        prompt: holds {subject} where the person belongs; or style: the id of a style. methods: also "none", the
        untrained base; empty for it and all that are trained. number: pictures per method, 1 to 24; seed: of the first.
        source: the `file` of a picture to vary, of which the share `change` (0.05 to 1) is drawn anew.
        """
        session = admitted(key, request)
        view = services.view(key)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or call stop first.")
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        chosen = _chosen(methods, view.columns)
        plan = _plan(view.row, prompt, style, number, seed)
        if source:
            if not isinstance(source, str) or source not in {
                _file(services, session, shot.link) for shot in view.pictures
            }:
                raise UserError("There is no such picture in this run. `score` lists the files that can be varied.")
            plan = tuple(replace(each, source=source, change=change) for each in plan)
            for each in plan:
                check_variation(each)
        services.start_generation(session, columns=chosen, samplings=plan)
        return _status(services.view(key))

    @spoken
    def score(key: str, request: gr.Request) -> Scores:
        """How much every picture looks like the person, and a table of the methods."""
        session = admitted(key, request)
        view = services.view(key)
        judge = view.judge()
        if view.score_blocked or judge is None:
            raise UserError(view.score_blocked or "Generate pictures first: there is nothing to score yet.")
        return _scores(services, session, view, judge)

    @spoken
    def finish(
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
        session = admitted(key, request)
        view = services.view(key)
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
        services.start_finishing(session, order)
        return _status(services.view(key))

    @spoken
    def finished(key: str, request: gr.Request) -> list[FinishedPicture]:
        """The finished pictures, the newest first, and what became of every step."""
        session = admitted(key, request)
        return [_finished(services, session, record) for record in stage.records(session.run)]

    @spoken
    def download(key: str, request: gr.Request) -> list[Link]:
        """Links to everything learned and drawn, as one ZIP, and to the report."""
        session = admitted(key, request)
        refused_while_busy(services, session)
        return [Link(text=text, link=link) for text, link in services.package(session.run)]

    @spoken
    def stop(key: str, request: gr.Request) -> Status:
        """Ask what is under way to stop. What was learned so far is kept; `train` continues from there."""
        session = admitted(key, request)
        for slot in (session.run, session.run.drawing):
            services.stop(slot)
        return _status(services.view(key))

    @spoken
    def delete(key: str, request: gr.Request) -> Receipt:
        """Delete the photos, what was learned and every picture. Can't be undone; the key is worth nothing then."""
        session = admitted(key, request)
        services.stop_and_wait(session.run)
        receipt = services.sessions.forget(session)
        return Receipt(
            files=int(str(receipt["files"])),
            bytes=int(str(receipt["bytes"])),
            forgotten=str(receipt["forgotten"]),
            verified=str(receipt["verified"]),
            note=str(receipt["note"]),
        )

    # one person's photos are judged in order; several people's at the same time, as on the page
    gr.api(add_photos, api_name="add_photos", concurrency_limit=4, concurrency_id="photos")
    for handler in (train, status, generate, score, finish, finished, download, stop, delete):
        gr.api(handler, api_name=handler.__name__, concurrency_limit=4)


def uploaded(files: object) -> list[Path]:
    """The uploads that a call names. Raises UserError for anything that did not come through /upload.

    Whose they are the guard has checked: a path that this client did not upload never gets here.
    """
    root = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    paths = []
    for file in files if isinstance(files, list) else [files]:
        named = file.get("path") if isinstance(file, dict) else None
        path = Path(named) if isinstance(named, str) and named and "\0" not in named else None
        if path is None or not path.resolve().is_relative_to(root) or not path.is_file():
            raise UserError("A photo did not arrive. Send every file as gradio_client.handle_file(path).")
        paths.append(path)
    return paths


def _take_in(services: Services, session: Session, paths: list[Path], *, class_word: str, base: str) -> None:
    refused_while_busy(services, session)
    if session.choices.sample:  # own photos replace the sample person
        photobox.clear(session.run)
    consent_at = session.choices.consent_at or workspace.timestamp()
    changes = {"base": base} if base else {}
    session = services.sessions.choose(session, class_word=class_word, sample=False, consent_at=consent_at, **changes)
    workspace.record_consent(session.run, means="API", statement=CONSENT)
    row = services.bases[session.choices.base or services.default_base]
    for _ in photobox.add(session.run, paths, row):
        pass


def _chosen(methods: object, offered: tuple[str, ...], *, usual: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """`methods` in their usual order; where none is named the `usual` ones, else all that are offered."""
    if methods is None or methods == []:
        return offered if usual is None else usual
    if not isinstance(methods, list) or not all(isinstance(each, str) for each in methods):
        raise UserError(f"Name the methods as a list, of: {', '.join(offered)}.")
    if wrong := [each for each in methods if each not in offered]:
        known = [each for each in wrong if each in ALL_METHODS]
        why = "is not trained yet, or not offered by this base" if known else "is no method"
        raise UserError(f"{(known or wrong)[0]!r} {why}. Choose of: {', '.join(offered)}.")
    return tuple(each for each in offered if each in methods)


def _plan(row: BaseRow, prompt: object, style: object, number: object, seed: object) -> tuple[Sampling, ...]:
    """What to draw, at the style's settings, or at the family's for a prompt of one's own."""
    number, seed = whole("number", number, 1, MAX_NUMBER), whole("seed", seed, 0, MAX_SEED)
    if bool(prompt) == bool(style):
        raise UserError("Give either a prompt with {subject} in it, or the id of a style.")
    known = presets.styles()
    if style:
        if not isinstance(style, str) or style not in known:
            fitting = [name for name, each in known.items() if presets.style_problem(each, row) is None]
            raise UserError(f"There is no style {str(style)[:80]!r}. This base can draw: {', '.join(fitting)}.")
        look = known[style]
        if problem := presets.style_problem(look, row):
            raise UserError(f"{problem} Choose another style or base.")
    else:
        look = Style("", "", str(prompt), guidance=row.guidance)
    dials: dict[str, Any] = {
        "prompt": look.prompt, "negative_prompt": look.negative_prompt, "number": number, "seed": seed,
        "steps": look.steps, "guidance": look.guidance, "scheduler": "default", "width": 0, "height": 0,
        "strength": 1.0,
    }  # fmt: skip
    return samplings(row, **dials)


def _photos(key: str, view: View) -> Photos:
    box = view.box
    verdicts = [
        Verdict(
            name=one.name,
            verdict="usable" if one.kept else one.verdict,
            text=one.text,
            part=photobox.part_of(box, one.name),
        )
        for one in box.staged
    ]
    ready = view.train_blocked is None
    problem = "" if ready else box.problem or view.train_blocked or ""
    return Photos(key=key, verdicts=verdicts, missing=box.missing, ready=ready, problem=problem)


def _status(view: View) -> Status:
    training, drawing = view.progress, view.drawing
    first = drawing.busy or (not training.busy and drawing.asked_at > training.asked_at)
    progress = drawing if first else training
    lanes = [(method, lane) for method in ALL_METHODS if (lane := view.lane(method)) is not None]
    return Status(
        state=progress.state,
        busy=training.busy or drawing.busy,
        kind=progress.kind,
        text=progress.text,
        problem=progress.problem or "",
        ahead=progress.ahead,
        starts_in_s=progress.starts_in_s,
        seconds_left=training.seconds_left if training.busy else None,
        methods=[
            Method(method=method, state=lane.state, step=lane.step, steps=lane.steps, seconds=round(lane.seconds, 1))
            for method, lane in lanes
        ],
        trained=list(view.trained),
        pictures=len(view.pictures),
        drawn=drawing.drawn,
        to_draw=drawing.to_draw,
    )


def _scores(services: Services, session: Session, view: View, judge: str) -> Scores:
    return Scores(
        judge=judge,
        judges=list(view.judges),
        about=view.judge_facts(judge),
        table=[
            Row(
                method=row.method,
                mean=row.mean,
                best=row.best,
                normalised=row.normalised,
                faces_found=row.faces_found or 0,
                pictures=row.renders or 0,
                seconds=row.seconds,
                megabytes=row.megabytes,
            )
            for row in view.rows(judge)
        ],
        pictures=[
            Picture(
                file=_file(services, session, shot.link),
                link=shot.link,
                method=shot.method,
                seed=shot.seed,
                prompt=shot.prompt,
                scored=shot.scored,
                similarity=shot.similarity,
                verdict=shot.verdict or "",
                words=shot.words or shot.reason or "",
            )
            for shot in view.pictures
        ],
    )


def _finished(services: Services, session: Session, record: Mapping[str, Any]) -> FinishedPicture:
    file = session.run.finished(record["picture"]) / Path(record["file"]).name
    return FinishedPicture(
        file=record["picture"],
        link=services.media.link(file, name=f"portrait{file.suffix}"),
        format=record["format"],
        width_px=record["width_px"],
        height_px=record["height_px"],
        bytes=record["bytes"],
        compared_with=record["reference"],
        likeness=[
            Likeness(judge=judge, raw=found["raw"], delivered=found["delivered"], may_lose=found["may_lose"])
            for judge, found in record["similarity"].items()
        ],
        steps=[FinishedStep(step=one["step"], state=one["state"], sentence=one["sentence"]) for one in record["steps"]],
        notes=list(record["notes"]),
    )


def _file(services: Services, session: Session, link: str) -> str:
    """The name within the run of a picture that the pages link to."""
    path = services.media.path_of(link)
    return "" if path is None else session.run.relative(path)
