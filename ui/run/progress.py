"""What a run's files say of its training and its pictures: what was learned, how far the job is.

In: a run. Out: `Trained`, `Progress` and the judges' marks. Damaged files count as missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.files import read_json
from pipelines.core.records import ALL_METHODS, Event, Look, UserError
from pipelines.core.run import Run, imported_columns
from pipelines.runs import jobs
from ui.run.sessions import Session

PICTURES = ("render", "finished")  # kinds of events that bring one


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
    here: bool = True  # False: its weights are not in this run (the example's), so it can't draw


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
    unread: tuple[str, ...] = ()  # ends of prompts that are longer than the base reads

    @property
    def busy(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def seconds_left(self) -> float | None:
        """Until the methods at work are done. They count their own seconds and take turns, so these add up."""
        left = [event.seconds_left for method, event in self.latest.items() if method not in self.ended]
        known = [each for each in left if each is not None]
        return sum(known) if known else None


def going_on_from(older: Sequence[str], known: Mapping[str, Trained], session: Session) -> tuple[str, ...]:
    """Those of the `older` methods that were told the same class word, so that they can start from what they know."""
    return tuple(m for m in older if known[m].class_word in ("", session.choices.class_word))


def trained(run: Run) -> dict[str, Trained]:
    """Methods whose artefact is there. The learned files themselves are checked when they are used."""
    found = {}
    for method in ALL_METHODS:
        if (saved := card_of(run, method)) is not None:
            found[method] = Trained(
                method, str(saved["id"]), str(saved["base"]), bool(saved.get("complete")),
                int(saved["steps"]), float(saved["train_s"]),
                int(saved["artifact_bytes"]), int(saved["trainable_params"]), str(saved["photo_digest"]),
                str(saved.get("sha256", "")), saved.get("peak_mem_mb"), int(saved.get("recipe", {}).get("batch", 1)),
                str(saved.get("class_word", "")), (run.method(method) / str(saved.get("artifact", ""))).exists(),
            )  # fmt: skip
    return found


def imported(run: Run, base: str) -> dict[str, str]:
    """Columns of this base that were not trained here -> their card's id."""
    cards = {column: card_of(run, column) for column in imported_columns(run)}
    return {c: str(card["id"]) for c, card in cards.items() if card is not None and card.get("base") == base}


def card_of(run: Run, column: str) -> dict[str, Any] | None:
    """A column's card; None where there is none, or a damaged one: then it has to be learned again, as if there were
    none.
    """
    with contextlib.suppress(UserError):
        saved = read_json(run.method(column) / "subject.json")
        return saved if isinstance(saved, dict) else None
    return None


def marks(run: Run) -> dict[str, dict[str, Any]]:
    """Judge -> the figures of its strip."""
    saved = read_json(run.marks)
    return {str(judge): dict(figures) for judge, figures in saved.items()} if isinstance(saved, dict) else {}


def progress_of(run: Run, events: list[Event]) -> Progress:
    """The run's job, read from its status and all its events."""
    status = jobs.status(run)
    spec = read_json(run.spec) or {}
    training = _last_training(events)
    latest: dict[str, Event] = {}
    preview: dict[str, str] = {}
    ended: dict[str, str] = {}
    losses: dict[str, list[tuple[int, float]]] = {}
    likeness: dict[str, list[tuple[int, float]]] = {}
    previews: dict[str, list[str]] = {}
    for event in training:
        method = event.method
        if method is None or method not in ALL_METHODS:
            continue
        if event.kind == "step":
            latest[method] = event
            if event.loss is not None:
                losses.setdefault(method, []).append((event.step, event.loss))
        elif event.kind == "preview" and event.path:
            preview[method] = event.path
            previews.setdefault(method, []).append(event.path)
        elif isinstance(event.data, Look):
            likeness.setdefault(method, []).append((event.step, event.data.identity))
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
        unread=tuple(dict.fromkeys(event.text or "" for event in this_job if event.kind == "unread")),
    )


def _last_training(events: list[Event]) -> list[Event]:
    """Per method, the events from its last "start" at step 0 on: a continued training keeps its curve."""
    begin: dict[str, int] = {}
    for index, event in enumerate(events):
        if event.kind == "start" and event.method and event.step == 0:
            begin[event.method] = index
    return [event for index, event in enumerate(events) if event.method and index >= begin.get(event.method, 0)]
