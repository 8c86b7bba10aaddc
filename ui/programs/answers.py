"""A run as a program is told of it, and what a program sent, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.bases.registry import BaseRow
from pipelines.core import presets
from pipelines.core.files import timestamp
from pipelines.core.records import ALL_METHODS, Sampling, Style, UserError
from pipelines.core.run import record_consent
from ui.generate.values import MAX_NUMBER, MAX_SEED, samplings, whole
from ui.programs.types import (
    FinishedPicture,
    FinishedStep,
    Likeness,
    Method,
    Photos,
    Picture,
    Row,
    Scores,
    Status,
    Verdict,
)
from ui.run import photobox
from ui.run.services import Services
from ui.run.sessions import Session
from ui.run.view import View
from ui.upload.layout import CONSENT


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


def take_in(services: Services, session: Session, paths: list[Path], *, class_word: str, base: str) -> None:
    services.require_idle(session.run)
    if session.choices.sample:  # own photos replace the sample person
        photobox.clear(session.run)
    consent_at = session.choices.consent_at or timestamp()
    changes = {"base": base} if base else {}
    session = services.sessions.choose(session, class_word=class_word, sample=False, consent_at=consent_at, **changes)
    record_consent(session.run, means="API", statement=CONSENT)
    row = services.bases[session.choices.base or services.default_base]
    for _ in photobox.add(session.run, paths, row):
        pass


def chosen_methods(
    methods: object, offered: tuple[str, ...], *, usual: tuple[str, ...] | None = None
) -> tuple[str, ...]:
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


def plan_of(row: BaseRow, prompt: object, style: object, number: object, seed: object) -> tuple[Sampling, ...]:
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


def photos_of(key: str, view: View) -> Photos:
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


def status_of(view: View) -> Status:
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
        unread=list(drawing.unread),
    )


def scores_of(services: Services, session: Session, view: View, judge: str) -> Scores:
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
                file=file_of(services, session, shot.link),
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


def finished_of(services: Services, session: Session, record: Mapping[str, Any]) -> FinishedPicture:
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


def file_of(services: Services, session: Session, link: str) -> str:
    """The name within the run of a picture that the pages link to."""
    path = services.media.path_of(link)
    return "" if path is None else session.run.relative(path)
