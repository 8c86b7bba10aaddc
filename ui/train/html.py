"""The Train tab's HTML: one lane per method."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from ui.page.theme import METHOD_COLOURS
from ui.page.views import RESEARCH
from ui.words.words import tell

if TYPE_CHECKING:
    pass
from ui.run.cards import Lane
from ui.words.phrases import duration, named


def lane(data: Lane) -> str:
    colour = METHOD_COLOURS[data.method]
    share = min(1.0, data.step / data.steps) if data.steps else 0.0
    tag = {"done": "ok", "failed": "no"}.get(data.state, "")
    if data.seconds_left is not None:
        left = tell("{time} left", time=duration(data.seconds_left))
    else:
        left = tell("{time} spent", time=duration(data.seconds))
    loss = f"{tell('loss')} {data.loss:.4f}" if data.loss is not None and math.isfinite(data.loss) else ""
    preview = (
        f'<img class="lk-preview" src="{escape(data.preview)}" '
        f'alt="{escape(tell("Latest preview of {name}, always the same seed", name=named(data.method)))}">'
        if data.preview
        else f'<div class="lk-preview">{escape(tell("The first preview appears here."))}</div>'
    )
    text = f'<p class="lk-note">{escape(data.note)}</p>' if data.note else ""
    return (
        f'<section class="lk-lane"><h3><i style="background:{colour}"></i>{named(data.method)}'
        f'<span class="lk-tag {tag}">{escape(tell(data.state))}</span></h3>'
        f'<div class="lk-bar" role="progressbar" aria-valuemin="0" aria-valuemax="{data.steps}" '
        f'aria-valuenow="{data.step}" aria-label="{named(data.method)}">'
        f'<b style="width:{share:.1%};background:{colour}"></b></div>'
        f'<div class="lk-figures"><span>{escape(tell("step"))} {data.step} / {data.steps or "–"}</span>'
        f'<span>{escape(left)}</span><span class="{RESEARCH}">{escape(loss)}</span></div>'
        f"{preview}{_strip(data)}{_likeness(data, colour)}{text}</section>"
    )


def _strip(data: Lane) -> str:
    """How the same seed has looked so far."""
    if not data.strip:
        return ""
    earlier = tell("An earlier preview of {name}", name=named(data.method))
    pictures = "".join(f'<img src="{escape(link)}" alt="{escape(earlier)}">' for link in data.strip)
    return f'<div class="lk-frames">{pictures}</div>'


def _likeness(data: Lane, colour: str) -> str:
    """The likeness to the validation photos over the steps."""
    if not data.likeness:
        return f'<p class="lk-note">{escape(data.no_likeness)}</p>' if data.no_likeness else ""
    steps, values = zip(*data.likeness, strict=True)
    wide, high = 220, 54
    low, top = min(0.0, *values), max(0.1, *values)
    last = max(data.steps, steps[-1], 1)
    points = [(wide * step / last, high - (high - 8) * (value - low) / (top - low)) for step, value in data.likeness]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    below = tell(
        "likeness to photos it does not learn from: {last}, best {best}",
        last=f"{values[-1]:.2f}",
        best=f"{max(values):.2f}",
    )
    return (
        f'<figure class="lk-likeness"><svg viewBox="-4 0 {wide + 8} {high + 4}" role="img" aria-label="'
        f"{escape(tell('Likeness to the validation photos over the steps:'))} "
        f'{", ".join(f"{value:.2f}" for value in values)}"><polyline points="{line}" '
        f'fill="none" stroke="{colour}" stroke-width="2"/>{dots}</svg><figcaption>{escape(below)}</figcaption></figure>'
    )
