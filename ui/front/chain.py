"""How far the portraits are, and which came out best. No Gradio, no HTML.

In: a view of the run. Out: a `Chain` while the job works, and the pictures that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.core.presets import portrait_plan
from pipelines.core.records import UserError
from pipelines.runs import jobs
from ui.run.cards import Shot
from ui.run.start import portrait_s
from ui.run.view import View

KIND = "portrait"  # of the job
LEFT_WITHOUT_PLAN = 4


@dataclass(frozen=True)
class Chain:
    """The job at this moment."""

    share: float | None  # of its time, 0 to 1; None where nothing was timed
    left_s: float | None
    drawn: int
    to_draw: int


def chain_of(view: View) -> Chain | None:
    """None where no portraits are being made."""
    if view.session is None or view.progress.kind != KIND or not view.progress.busy:
        return None
    run = view.session.run
    status, spec = jobs.status(run), jobs.load_spec(run)
    drawn = sum(event.kind == "render" for event in view.services.events(run)[status.first_event :])
    to_draw = len(spec.methods) * len(spec.samplings)
    learned = [method for method, card in view.trained.items() if card.complete]
    learning = [method for method in view.progress.latest if method not in view.progress.ended]
    left_s = portrait_s(view.services, view.row, spec, [*learned, *learning], drawn=drawn)
    if left_s is not None and learning:
        left_s += view.progress.seconds_left or 0.0
    share = None if left_s is None else status.wall_s / max(1.0, status.wall_s + left_s)
    return Chain(share, left_s, drawn, to_draw)


def best(view: View) -> list[Shot]:
    """The pictures most alike, best first: of the portraits, or of the example. The untrained base's show nobody."""
    if view.progress.kind != KIND and not view.choices.example:
        return []
    shots = [shot for shot in view.pictures if shot.method != "none" and not shot.drawing]
    shots.sort(key=lambda shot: (shot.similarity is not None, shot.similarity or 0.0), reverse=True)
    return shots[: keep(view)]


def keep(view: View) -> int:
    try:
        return portrait_plan(view.row).keep
    except UserError:
        return LEFT_WITHOUT_PLAN
