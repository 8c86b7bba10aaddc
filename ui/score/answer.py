"""The answer to the question of this app: which method looks most like the person?

In: a view with scores. Out: `Answer` (the methods that may be the best, by their 95% intervals) and its card. A method
wins alone only where no other method's interval reaches into its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape

from ui.run.cards import Shot
from ui.run.view import View
from ui.words import phrases
from ui.words.words import tell

LEAST = 3  # pictures of a method before anything is said of it
SHOWN = 3  # pictures on the card


@dataclass(frozen=True)
class Answer:
    methods: tuple[str, ...]  # the best alone, or all that are too close to call, best first; () = too few pictures
    mean: float = 0.0  # of the best; a picture without a face counts 0
    alone: bool = False  # nothing else was drawn to compare with


def answer(view: View, judge: str) -> Answer | None:
    """None where no method has a score."""
    known = {
        method: tuple(value or 0.0 for value in values)
        for method, values in view.scores.get(judge, {}).items()
        if method != "none" and values
    }
    if not known:
        return None
    if min(map(len, known.values())) < LEAST:
        return Answer(())
    spans = {method: _span(values) for method, values in known.items()}
    best = max(spans, key=lambda method: spans[method][0])
    mean, low, _ = spans[best]
    near = sorted((m for m in spans if spans[m][2] >= low), key=lambda m: spans[m][0], reverse=True)
    return Answer(tuple(near), mean, len(spans) == 1)


@lru_cache(maxsize=256)  # asked for every second
def _span(values: tuple[float, ...]) -> tuple[float, float, float]:
    """(mean, low, high): the 95% interval of the mean over the pictures."""
    import numpy as np

    from pipelines.evaluation.statistics import cluster_bootstrap

    found = cluster_bootstrap(np.array(values)[None, None, :, None])
    return found.difference, found.low, found.high


def card(view: View, judge: str) -> str:
    """The sentence, and the best pictures beside a photo that training never saw."""
    found = answer(view, judge)
    if found is None:
        return ""
    shots = [shot for shot in view.shots if shot.similarity is not None and shot.method != "none" and not shot.drawing]
    if found.methods:
        shots = [shot for shot in shots if shot.method in found.methods]
    best = sorted(shots, key=lambda shot: shot.similarity or 0.0, reverse=True)[:SHOWN]
    figures = _held_out(view) + "".join(map(_figure, best))
    return f'<section class="lk-verdict"><h2>{escape(sentence(view, judge, found))}</h2><div>{figures}</div></section>'


def sentence(view: View, judge: str, found: Answer) -> str:
    if not found.methods:
        return tell("Too few pictures to tell: draw at least {count} by each method.", count=LEAST)
    names = [phrases.named(method) for method in found.methods]
    low, high = (view.marks.get(judge, {}).get(name) for name in ("ceiling_low", "ceiling_high"))
    own = ""
    if isinstance(low, float) and isinstance(high, float):
        span = f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"
        own = tell("your own photos reach {value}", value=span)
    figures = "; ".join(part for part in (f"{found.mean:.2f}", own) if part)
    if len(names) > 1:
        methods = tell("{first} and {second}", first=", ".join(names[:-1]), second=names[-1])
        return tell("Too close to call between {methods} ({figures}).", methods=methods, figures=figures)
    if found.alone:
        return tell("{method} was drawn alone ({figures}).", method=names[0], figures=figures)
    return tell("{method} looks most like you ({figures}).", method=names[0], figures=figures)


def _held_out(view: View) -> str:
    photos = view.box.photo_set
    if view.session is None or photos is None or not photos.held_out:
        return ""
    link = view.services.link(view.session.run, view.session.run.relative(photos.held_out[0].path))
    if link is None:
        return ""
    name = escape(tell("A photo that training never saw"))
    return f'<figure><img src="{escape(link)}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _figure(shot: Shot) -> str:
    verdict = tell(shot.verdict) if shot.verdict else ""
    said = f"{phrases.named(shot.method)} {phrases.number(shot.similarity)} {verdict}".rstrip()
    alt = escape(f"{phrases.called(shot)}: {shot.prompt}")
    return (
        f'<figure><img src="{escape(shot.link)}" alt="{alt}" loading="lazy"><figcaption>{escape(said)}</figcaption>'
        "</figure>"
    )
