"""Pieces of HTML: photo cards, training lanes, the side-by-side grid, the score strip, the method table.

In: small records and finished links. Out: strings. No disk; whatever a person typed is escaped here, and what is
said is said in the language of who asks. Try it: `print(strip(StripData(...)))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from pipelines.core.schema import LOW_CEILING, Sampling, SetReport
from ui.page.theme import METHOD_COLOURS, METHOD_NAMES
from ui.words.retold import retell
from ui.words.words import tell

if TYPE_CHECKING:
    from pipelines.evaluation.lookalike import Answer, Opinion
    from pipelines.evaluation.votes import Share
    from pipelines.finishing.mark import Mark as AiMark
    from pipelines.finishing.mark import Verification

MARK_LETTERS = "ABCD"
LETTER_GAP = 10.0  # percent of the axis: a letter is 19 px wide, the axis of a phone 200
OTHER_COLOUR = "#7c3aed"  # on the strip: what no method drew


@dataclass(frozen=True)
class PhotoCard:
    name: str  # the person's own file name
    link: str | None  # None: a file that can't be read is not kept
    verdict: str  # "good" | "usable" | "leave_out" | "overruled": left out by us, used all the same
    text: str = ""  # the reason, or what could be better
    part: str = ""  # "training" | "validation" | "held out"
    key: str = ""  # what its buttons send back
    can_be_kept: bool = False  # the person may overrule us
    pin: str = ""  # "trained" | "held_out": where the person put it


@dataclass(frozen=True)
class CropCard:
    """What the base will see of one photo, and be told about it."""

    name: str
    link: str
    caption: str
    key: str
    learned: bool  # False: kept apart, no caption is needed
    zoom: float = 1.0
    own_caption: bool = False


@dataclass(frozen=True)
class Lane:
    """What one method's column in the Train tab shows."""

    method: str
    state: str  # a word for the tag: "waiting", "training", ...
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    loss: float | None = None
    preview: str | None = None  # link
    note: str = ""
    likeness: tuple[tuple[int, float], ...] = ()  # (step, similarity to the validation photos)
    no_likeness: str = ""  # why there is no such curve, and how to get one
    strip: tuple[str, ...] = ()  # links of earlier previews, oldest first; always the same seed


@dataclass(frozen=True)
class Shot:
    """One render with its score."""

    method: str
    seed: int
    link: str
    prompt: str
    similarity: float | None = None
    reason: str | None = None  # why there is no similarity
    verdict: str | None = None  # "looks like you", "borderline", ...
    note: str | None = None  # what makes the number less than it seems
    words: str | None = None  # the similarity as people read it
    scored: bool = False  # False: not judged yet
    drawing: bool = False  # a painting or a cartoon: no recogniser can judge it
    id: str = ""  # what its buttons send back; "" = it has none
    path: str = ""  # inside the run; never on a page
    base: str = ""
    subject: str | None = None  # id of what was learned; None = the untrained base
    sampling: Sampling | None = None
    when_s: float = 0.0  # when it was drawn, in seconds since 1970
    favourite: bool = False


@dataclass(frozen=True)
class LookCard:
    """One look to pick."""

    id: str
    name: str
    thumbnail: str | None = None  # a data: address; None = words only
    prompt: str = ""


@dataclass(frozen=True)
class JobCard:
    """One generation job in the list of what was drawn."""

    number: int
    title: str
    detail: str  # methods, how many
    when_s: float
    link: str
    shown: bool = False


@dataclass(frozen=True)
class Mark:
    name: str
    value: float | None
    meaning: str
    low: float | None = None  # a mark may be a range
    high: float | None = None


@dataclass(frozen=True)
class StripData:
    judge: str
    marks: tuple[Mark, ...]
    dots: dict[str, tuple[float, ...]] = field(default_factory=dict)  # method -> similarities
    means: dict[str, float] = field(default_factory=dict)  # method -> mean, pictures without a face counting 0


@dataclass(frozen=True)
class MethodRow:
    method: str
    mean: float | None
    best: float | None
    normalised: float | None
    faces_found: int | None
    renders: int | None
    seconds: float | None
    megabytes: float | None
    parameters: int | None


def named(method: str) -> str:
    return tell("Untrained base") if method == "none" else retell(METHOD_NAMES[method])


def called(shot: Shot) -> str:
    """A picture's name: who drew it, and from which seed."""
    return tell("{method}, seed {seed}", method=named(shot.method), seed=shot.seed)


def pictures(count: int) -> str:
    return tell("1 picture") if count == 1 else tell("{count} pictures", count=count)


def note(text: str, kind: str = "") -> str:
    """A framed sentence; `kind` is "", "ok", "warn" or "bad". `text` is plain text."""
    return f'<div class="lk-gate {"lk-" + kind if kind else ""}" role="status">{escape(text)}</div>' if text else ""


def duration(seconds: float | None) -> str:
    """5 -> "5 s", 100 -> "1 min 40 s", 4000 -> "1 h 7 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def waiting(ahead: int, seconds: float | None) -> str:
    """Where a waiting job stands, in words; "" when none is before it."""
    if not ahead:
        return ""
    if ahead == 1:
        place = tell("Waiting: one job is before yours.")
    else:
        place = tell("Waiting: {count} jobs are before yours.", count=ahead)
    when = tell("Its turn comes in about {time}.", time=duration(seconds)) if seconds is not None else ""
    return f"{place} {when}".rstrip()


def rounded(seconds: float) -> float:
    """An estimate as exact as it deserves: to 10 seconds below 5 minutes, else to the minute."""
    grain = 10 if seconds < 300 else 60
    return max(grain, grain * round(seconds / grain))


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def amount(size_bytes: float | None) -> str:
    """2100 -> "2.1 kB", 430000 -> "0.43 MB"."""
    if size_bytes is None:
        return "–"
    return f"{size_bytes / 1e3:.3g} kB" if size_bytes < 1e5 else f"{size_bytes / 1e6:.3g} MB"


def look(prompt: str) -> str:
    """What a prompt says beyond whom it shows."""
    return prompt.rpartition("{subject}")[2].lstrip(" ,") or prompt.replace("{subject}", "...")


VERDICTS = {
    "good": ("ok", "good"),
    "usable": ("so", "usable"),
    "leave_out": ("no", "left out"),
    "overruled": ("so", "used, as you asked"),
}
PHOTO_ACTS = {
    "remove": "Remove",
    "dismiss": "Dismiss",
    "leave": "Leave it out",
    "keep": "Use it anyway",
    "trained": "Learn from it",
    "held_out": "Keep for judging",
    "unpin": "Let us choose",
}
PARTS = ("training", "validation", "held out")
PINNED = {"trained": "always learned from", "held_out": "always kept for judging"}


def photo_cards(cards: Sequence[PhotoCard]) -> str:
    """One card per photo, those left out first, each with its reason and its buttons."""
    if not cards:
        return ""
    parts = []
    for card in sorted(cards, key=lambda card: card.verdict != "leave_out"):
        picture = (
            f'<img src="{escape(card.link)}" alt="{escape(tell("Photo {name}", name=card.name))}" loading="lazy">'
            if card.link
            else '<div class="lk-empty" aria-hidden="true">✕</div>'
        )
        kind, word = VERDICTS[card.verdict]
        tag = f'<span class="lk-tag {kind}">{escape(tell(word))}</span>'
        part = PINNED.get(card.pin, card.part)
        part = f" <small>{escape(tell(part))}</small>" if part else ""
        text = f"<small>{escape(card.text)}</small>" if card.text else ""
        parts.append(
            f'<div class="lk-card">{picture}<div class="lk-body"><span class="lk-name" title="{escape(card.name)}">'
            f'{escape(card.name)}</span><span>{tag}{part}</span>{text}<span class="lk-acts">{_photo_buttons(card)}'
            "</span></div></div>"
        )
    return f'<div class="lk-photos">{"".join(parts)}</div>'


def _photo_buttons(card: PhotoCard) -> str:
    names = ["remove" if card.link else "dismiss"]
    if card.can_be_kept:
        names.insert(0, "leave" if card.verdict == "overruled" else "keep")
    if card.verdict != "leave_out" and card.link:
        names += ["unpin"] if card.pin else ["trained", "held_out"]
    acts = [("remove" if name == "dismiss" else name, PHOTO_ACTS[name]) for name in names]
    return "".join(
        f'<button type="button" class="lk-link" data-photo="{escape(card.key)}" data-action="{action}" '
        f'aria-label="{escape(f"{tell(word)}: {card.name}")}">{escape(tell(word))}</button>'
        for action, word in acts
        if card.key
    )


def crop_cards(cards: Sequence[CropCard]) -> str:
    if not cards:
        return f'<p class="lk-note">{escape(tell("The crops appear here when there are enough photos."))}</p>'
    parts = []
    for card in cards:
        key, name = escape(card.key), escape(card.name)
        words = f"<small>{escape(tell('Kept apart: training never sees it.'))}</small>"
        if card.learned:
            words = (
                f'<input data-photo="{key}" value="{escape(card.caption)}" '
                f'aria-label="{escape(tell("Caption of {name}", name=card.name))}" maxlength="300">'
                f"<small>{escape(tell('yours; empty it for ours') if card.own_caption else tell('measured'))}</small>"
            )
        zoom = f" <small>{card.zoom:.2f}×</small>" if card.zoom != 1 else ""
        crop = tell("Crop of {name}", name=card.name)
        buttons = "".join(
            f'<button type="button" class="lk-link" data-photo="{key}" data-action="{action}" '
            f'aria-label="{escape(word)}: {name}">{escape(word)}</button>'
            for action, word in (("closer", tell("Closer")), ("wider", tell("Wider")))
        )
        parts.append(
            f'<div class="lk-card"><img src="{escape(card.link)}" alt="{escape(crop)}" loading="lazy">'
            f'<div class="lk-body">{words}<span class="lk-acts">{buttons}{zoom}</span></div></div>'
        )
    note = (
        '<p class="lk-note">'
        + escape(
            tell(
                "Each photo as the base sees it, and the caption it is told; {subject} is the person. Mirrored copies "
                "are off: faces are not symmetrical."
            )
        )
        + "</p>"
    )
    return f'{note}<div class="lk-photos">{"".join(parts)}</div>'


def photo_report(report: SetReport | None) -> str:
    """The set as a whole: a map of the face angles, what it spans, how alike it is, and what to add."""
    if report is None or not report.angles:
        return ""
    width, height, reach = 150, 96, 0.4
    dots = "".join(
        f'<circle cx="{width / 2 + max(-reach, min(reach, yaw)) / reach * 66:.1f}" '
        f'cy="{height / 2 + max(-reach, min(reach, pitch)) / reach * 40:.1f}" r="4"/>'
        for yaw, pitch in report.angles
    )
    where = tell("Where the faces look: {count} dots, left to right and up to down", count=len(report.angles))
    picture = (
        f'<svg class="lk-angles" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(where)}"><rect x="1" y="1" width="{width - 2}" '
        f'height="{height - 2}" rx="8"/><line x1="{width / 2}" x2="{width / 2}" y1="6" y2="{height - 6}"/>'
        f'<line x1="6" x2="{width - 6}" y1="{height / 2}" y2="{height / 2}"/>{dots}</svg>'
    )
    lines = "".join(
        f'<li class="{"yes" if there else "no"}">{"✓" if there else "–"} {escape(tell(what))}</li>'
        for what, there in report.checklist.items()
    )
    counts = tell(
        "{good} good, {usable} usable, {left_out} left out.",
        good=report.good,
        usable=report.usable,
        left_out=report.left_out,
    )
    alike = add = ""
    if report.ceiling is not None:
        agree = tell(
            "They agree with each other at {value}: no picture can be expected to do better.",
            value=f"{report.ceiling:.2f}",
        )
        alike = f"<p>{escape(agree)}</p>"
    low = note(tell(LOW_CEILING), "warn") if report.ceiling_low else ""
    below = tell("where the faces look")
    if report.next_photo:
        add = f"<p>{escape(tell('The most useful photo to add:'))} <b>{escape(tell(report.next_photo))}</b>.</p>"
    return (
        f'<div class="lk-report"><figure>{picture}<figcaption>{escape(below)}</figcaption></figure>'
        f"<div><p>{escape(counts)}</p>{alike}{add}</div><ul>{lines}</ul></div>{low}"
    )


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
        f"<span>{escape(left)}</span><span>{escape(loss)}</span></div>"
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


def _score_line(shot: Shot, *, winner: bool) -> str:
    if shot.similarity is not None:
        told = f' title="{escape(retell(shot.words))}"' if shot.words else ""
        number = f'<b class="{"win" if winner else ""}"{told}>{shot.similarity:.2f}{" ★" if winner else ""}</b>'
        words = f" {escape(tell(shot.verdict))}" if shot.verdict else ""
        note = f'<br><small class="lk-note">{escape(retell(shot.note))}</small>' if shot.note else ""
        return f"<span>{number}{words}{note}</span>"
    reason = retell(shot.reason) if shot.reason else tell("not scored") if shot.scored else tell("scoring …")
    return f"<span>{escape(reason)}</span>"


def _cell(
    shot: Shot, *, winner: bool = False, kept: bool = True, why: str = "", tag: str | None = None, below: str = ""
) -> str:
    """One picture with its score and its buttons. `why` and `tag` are plain text, `below` is HTML."""
    alt = f"{called(shot)}: {shot.prompt}"
    reason = f'<div class="lk-why">{escape(why)}</div>' if why else ""
    tag = tell("seed {seed}", seed=shot.seed) if tag is None else tag
    return (
        f'<div class="lk-shot{"" if kept else " lk-dropped"}"><a href="{escape(shot.link)}" target="_blank" '
        f'rel="noopener"><img src="{escape(shot.link)}" alt="{escape(alt)}" title="{escape(shot.prompt)}" '
        f'loading="lazy"></a>{reason}<div class="lk-score">{_score_line(shot, winner=winner)}'
        f"<span>{escape(tag)}</span></div>{below}{_shot_buttons(shot)}</div>"
    )


SHOT_ACTS = (
    ("like", "Favourite"),
    ("use", "Use these settings"),
    ("vary", "Make variations of it"),
    ("compare", "Before and after"),
    ("finish", "Finish this picture"),
)


def _shot_buttons(shot: Shot) -> str:
    if not shot.id:
        return ""
    parts = []
    for kind, word in SHOT_ACTS:
        liked = kind == "like" and shot.favourite
        pressed = f' aria-pressed="{"true" if liked else "false"}"' if kind == "like" else ""
        parts.append(
            f'<button type="button" class="lk-act lk-{kind}" data-picture="{escape(shot.id)}" data-kind="{kind}" '
            f'data-action="{"unlike" if liked else kind}"{pressed} title="{escape(tell(word))}" '
            f'aria-label="{escape(f"{tell(word)}: {called(shot)}")}"></button>'
        )
    return f'<div class="lk-tools">{"".join(parts)}</div>'


def _best(shots: Sequence[Shot]) -> float | None:
    """The best similarity, where there is something to compare."""
    known = [shot.similarity for shot in shots if shot.similarity is not None]
    return max(known) if len(known) > 1 else None


def rows_of(shots: Sequence[Shot]) -> list[dict[str, Shot]]:
    """Pictures by method, one dict for all that share prompt, seed and every other setting: the same noise."""
    table: dict[object, dict[str, Shot]] = {}
    for shot in shots:
        table.setdefault(shot.sampling or (shot.prompt, shot.seed), {})[shot.method] = shot
    return list(table.values())


def _settings(shot: Shot) -> str:
    """What tells this picture from its neighbours."""
    words = [tell("seed {seed}", seed=shot.seed)]
    if shot.sampling and shot.sampling.source:
        words.append(tell("change {share}", share=f"{shot.sampling.change:g}"))
    return ", ".join(words)


def side_by_side(shots: Sequence[Shot], columns: Sequence[str]) -> str:
    """Rows are (prompt, seed), columns are methods; every column of a row started from the same noise."""
    if not shots:
        return ""
    if sweep := _sweep(shots):
        return sweep
    table = rows_of(shots)
    if len(columns) == 1 and len(table) > 1:  # one method: its pictures flow, instead of filling the page's width
        best = _best(shots)
        cells = [
            _cell(shot, winner=best is not None and shot.similarity == best, tag=_settings(shot)) for shot in shots
        ]
        head = f'<h3 class="lk-col" style="border-color:{METHOD_COLOURS[columns[0]]}">{named(columns[0])}</h3>'
        return f'{head}<div class="lk-gallery">{"".join(cells)}</div>'
    titles = "".join(f'<div class="lk-col" style="border-color:{METHOD_COLOURS[m]}">{named(m)}</div>' for m in columns)
    rows = []
    for row in table:
        cells = []
        best = _best(tuple(row.values()))
        for method in columns:
            found = row.get(method)
            if found is None:
                cells.append(_nothing())
                continue
            cells.append(_cell(found, winner=best is not None and found.similarity == best, tag=_settings(found)))
        rows.append("".join(cells))
    shape = f'style="grid-template-columns:repeat({len(columns)},minmax(0,260px))"'
    if len(columns) == 2:  # pairs flow beside each other, instead of leaving half the page empty
        pairs = "".join(f'<div class="lk-grid" {shape}>{titles}{row}</div>' for row in rows)
        return f'<div class="lk-pairs">{pairs}</div>'
    wide = " wide" if len(columns) > 2 else ""
    return f'<div class="lk-scroll"><div class="lk-grid{wide}" {shape}>{titles}{"".join(rows)}</div></div>'


def _nothing() -> str:
    """The place of a picture that was not drawn."""
    return f'<div class="lk-shot"><div class="lk-none">{escape(tell("not drawn"))}</div></div>'


def _sweep(shots: Sequence[Shot]) -> str:
    """A table steps x guidance where one method drew one prompt and seed at several of them; else ""."""
    settings = [shot.sampling for shot in shots if shot.sampling is not None]
    cells = {(s.sampling.steps, s.sampling.guidance): s for s in shots if s.sampling is not None}
    same = {(s.prompt, s.negative_prompt, s.seed, s.scheduler, s.strength, s.source, s.change) for s in settings}
    if (
        len(settings) < len(shots)
        or len(cells) < max(2, len(shots))
        or len(same) != 1
        or len({s.method for s in shots}) != 1
    ):
        return ""
    all_steps, all_guidance = (sorted(set(values)) for values in zip(*cells))
    best = _best(shots)
    top = heads(*(tell("guidance {value}", value=f"{value:g}") for value in all_guidance))
    caption = tell("{picture}: steps × guidance", picture=called(shots[0]))
    rows = []
    for steps in all_steps:
        row = "".join(
            f"<td>{_cell(found, winner=best is not None and found.similarity == best, tag='')}</td>"
            if (found := cells.get((steps, guidance)))
            else f"<td>{_nothing()}</td>"
            for guidance in all_guidance
        )
        rows.append(f'<tr><th scope="row">{escape(tell("{count} steps", count=steps))}</th>{row}</tr>')
    return (
        f'<div class="lk-scroll"><table class="lk-sweep"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def look_cards(cards: Sequence[LookCard], chosen: str = "") -> str:
    """A radio group of looks; the chosen one has the keyboard's place."""
    parts = []
    for card in cards:
        alt = escape(tell("Example of {name}", name=card.name))
        picture = f'<img src="{escape(card.thumbnail)}" alt="{alt}">' if card.thumbnail else ""
        parts.append(
            f'<button type="button" role="radio" aria-checked="{"true" if card.id == chosen else "false"}" '
            f'tabindex="{0 if card.id == chosen else -1}" data-style="{escape(card.id)}" '
            f'class="lk-look{" lk-pictured" if picture else ""}" aria-label="{escape(card.name)}" '
            f'title="{escape(card.prompt or card.name)}">'
            f"{picture}<span>{escape(card.name)}</span></button>"
        )
    return f'<div class="lk-looks" role="radiogroup" aria-label="{escape(tell("Style"))}">{"".join(parts)}</div>'


def chips(phrases: Sequence[str]) -> str:
    """Suggestions to go on with, as buttons."""
    if not phrases:
        return ""
    buttons = "".join(
        f'<button type="button" class="lk-chip" data-phrase="{escape(phrase)}" '
        f'aria-label="{escape(tell("Add to the prompt: {words}", words=phrase))}">{escape(phrase)}</button>'
        for phrase in phrases
    )
    what = escape(tell("Words this base knows"))
    return f'<div class="lk-chips" role="group" aria-label="{what}">{buttons}</div>'


def history(jobs: Sequence[JobCard]) -> str:
    """What was drawn in this run, the last job first; a button shows its pictures again."""
    items = []
    for job in jobs:
        stamp = datetime.fromtimestamp(job.when_s, UTC)
        shown = ' aria-current="true"' if job.shown else ""
        alt = escape(tell("A picture of this job"))
        items.append(
            f'<li><button type="button" class="lk-job" data-job="{job.number}"{shown}><img src="{escape(job.link)}" '
            f'alt="{alt}" loading="lazy"><span><b>{escape(job.title)}</b><small>{escape(job.detail)}</small></span>'
            f'<time datetime="{stamp:%Y-%m-%dT%H:%M:%SZ}">{stamp:%H:%M} UTC</time></button></li>'
        )
    return f'<ol class="lk-jobs">{"".join(items)}</ol>' if items else ""


def picked(shot: Shot) -> str:
    """The picture that is to be varied."""
    alt = tell("Picked: {picture}", picture=called(shot))
    return (
        f'<figure class="lk-picked"><img src="{escape(shot.link)}" alt="{escape(alt)}"><figcaption>'
        f"<b>{escape(called(shot))}</b><span>{escape(look(shot.prompt))}</span></figcaption></figure>"
    )


def _side(shot: Shot, beside: Shot) -> str:
    """A picture's name beside another's."""
    if shot.method != beside.method:
        return named(shot.method)
    if shot.sampling and shot.sampling.source:
        return tell("{method} variation, seed {seed}", method=named(shot.method), seed=shot.seed)
    return called(shot)


def before_after(left: Shot, right: Shot) -> str:
    """Two pictures over each other; a slider (a real one: keys and screen readers work) moves the border."""
    one, other = _side(left, right), _side(right, left)
    scores = "".join(
        f"<span>{escape(name)}: {_score_line(shot, winner=False)}</span>"
        for name, shot in ((one, left), (other, right))
    )
    alts = tell("Left: {picture}", picture=called(left)), tell("Right: {picture}", picture=called(right))
    return laid_over(
        (left.link, one, alts[0]), (right.link, other, alts[1]), tell("Border between {one} and {other}", one=one,
        other=other), f"<figcaption>{scores}</figcaption>",
    )  # fmt: skip


def laid_over(left: tuple[str, str, str], right: tuple[str, str, str], border: str, below: str = "") -> str:
    """Two pictures over each other, each (link, name, alt), and a slider called `border` that moves between them; a
    real one, so keys and screen readers work. `below` is HTML.
    """
    (before, one, one_alt), (after, other, other_alt) = left, right
    return (
        f'<figure class="lk-ba"><div class="lk-ba-pair" style="--at:50%"><img src="{escape(before)}" '
        f'alt="{escape(one_alt)}"><img class="lk-ba-top" src="{escape(after)}" alt="{escape(other_alt)}">'
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(border)}"><i></i>'
        f'<span class="lk-ba-one">{escape(one)}</span><span class="lk-ba-two">{escape(other)}</span></div>{below}'
        "</figure>"
    )


def best_of(shots: Sequence[Shot], keep: int) -> list[tuple[Shot, bool, str]]:
    """The `keep` pictures most like the person, then the others; each with the reason why it was kept or dropped.

    The untrained base draws nobody in particular, a picture the judge calls somebody else's is never kept, and one
    without a face can't be judged.
    """
    ordered = sorted(shots, key=lambda s: (s.similarity is None, -(s.similarity or 0.0)))
    able = [
        s
        for s in ordered
        if s.method != "none" and s.similarity is not None and s.verdict != "someone else" and not s.drawing
    ]
    kept = able[:keep]
    last = kept[-1].similarity if kept else None
    told = [
        (shot, True, tell("kept: number {place} of {all}", place=place, all=len(shots)))
        for place, shot in enumerate(kept, start=1)
    ]
    for shot in ordered:
        if any(shot is each for each in kept):
            continue
        if shot.method == "none":
            why = tell("the untrained base draws nobody in particular")
        elif shot.drawing:
            why = tell("no recogniser can judge a drawing")
        elif shot.similarity is None:
            why = retell(shot.reason) if shot.reason else tell("not judged yet")
        elif shot.verdict == "someone else":
            why = tell("the judge sees somebody else")
        else:
            why = tell("less alike than the last one kept ({value})", value=number(last))
        told.append((shot, False, tell("dropped: {why}", why=why)))
    return told


def gallery(shots: Sequence[Shot], keep: int = 0, *, only_favourites: bool = False) -> str:
    """Every picture: favourites first, then by score; pictures without a face come last and say so. With `keep`, only
    so many stay bright, and each picture says why it was kept or dropped.
    """
    ordered = sorted(shots, key=lambda s: (s.similarity is None, -(s.similarity or 0.0)))
    chosen = best_of(shots, keep) if keep else [(shot, True, "") for shot in ordered]
    cells = []
    for shot, kept, why in sorted(chosen, key=lambda each: not each[0].favourite):
        if only_favourites and not shot.favourite:
            continue
        below = (
            f'<div><span style="color:{METHOD_COLOURS[shot.method]}">■</span> {named(shot.method)}</div>'
            f'<div class="lk-look-of" title="{escape(shot.prompt)}">{escape(look(shot.prompt))}</div>'
        )
        cells.append(_cell(shot, kept=kept or shot.favourite, why=why, below=below))
    if shots and not cells:
        return note(tell("No favourites yet. Press the heart below a picture."))
    return f'<div class="lk-gallery">{"".join(cells)}</div>' if cells else ""


def strip(data: StripData) -> str:
    """The identity axis: four marks, and every render of every method as a dot (its mean as a diamond)."""
    values = [v for m in data.marks for v in (m.value, m.low, m.high) if v is not None and math.isfinite(v)]
    values += [v for dots in data.dots.values() for v in dots]
    low = math.floor(min([0.0, *values]) * 5 - 1e-9) / 5 if values and min(values) < 0 else 0.0
    high = 1.0

    def at(value: float) -> str:
        return f"{max(0.0, min(1.0, (value - low) / (high - low))) * 100:.2f}%"

    lines, letters, legend = [], [], []
    for letter, mark in zip(MARK_LETTERS, data.marks, strict=False):
        shown = tell("not measured") if mark.value is None else number(mark.value)
        if mark.low is not None and mark.high is not None:
            shown = f"{number(mark.low)} – {number(mark.high)}"
            width = (mark.high - mark.low) / (high - low) * 100
            lines.append(f'<div class="lk-band" style="left:{at(mark.low)};width:{max(width, 0.6):.2f}%"></div>')
        legend.append(
            f'<li><span class="lk-key">{letter}</span><span><b>{escape(mark.name)}: {shown}</b><br>'
            f'<span class="lk-note">{escape(mark.meaning)}</span></span></li>'
        )
        if mark.value is not None:
            lines.append(f'<div class="lk-line" style="left:{at(mark.value)}"></div>')
            letters.append((float(at(mark.value)[:-1]), letter, mark))
    # A letter that would sit on its neighbour goes one line up, so that each stands above its own dashed line.
    placed: list[str] = []
    last = [-LETTER_GAP, -LETTER_GAP]
    for where, letter, mark in sorted(letters):
        free = [line for line in (0, 1) if where - last[line] >= LETTER_GAP]
        line = free[0] if free else last.index(min(last))
        last[line] = max(where, last[line] + LETTER_GAP)
        style = f"left:{last[line]:.2f}%;bottom:{4 + 21 * line}px"
        placed.append(f'<span class="lk-mark" style="{style}" title="{escape(mark.name)}">{letter}</span>')
    rows = []
    for method, dots in data.dots.items():
        colour = METHOD_COLOURS.get(method, OTHER_COLOUR)
        points = "".join(
            f'<span class="lk-dot" style="left:{at(v)};background:{colour}" title="{v:.2f}"></span>' for v in dots
        )
        mean = data.means.get(method)
        if mean is not None:
            points += (
                f'<span class="lk-mean" style="left:{at(mean)};background:{colour}" '
                f'title="{escape(tell("mean {value}", value=f"{mean:.2f}"))}"></span>'
            )
        rows.append(
            f'<div class="lk-row"><div class="lk-who">{escape(named(method))}</div>'
            f'<div class="lk-track">{"".join(lines)}{points}</div></div>'
        )
    ticks = "".join(
        f'<span style="left:{at(low + 0.2 * i)}">{low + 0.2 * i:.1f}</span>'
        for i in range(round((high - low) / 0.2) + 1)
    )
    said = [f"{mark.name} {number(mark.value)}" for mark in data.marks if mark.value is not None]
    for method, dots in data.dots.items():
        mean = data.means.get(method)
        values_of = tell("mean {value}", value=number(mean)) if mean is not None else ", ".join(map(number, dots))
        said.append(f"{named(method)}: {values_of or tell('not measured')}")
    label = f"{tell('Identity scores by {judge}.', judge=data.judge)} {'; '.join(said)}"
    return (
        f'<div class="lk-strip"><div role="img" aria-label="{escape(label)}">'
        f'<div class="lk-row"><div></div><div class="lk-track lk-marks">{"".join(placed)}</div></div>{"".join(rows)}'
        f'<div class="lk-row"><div></div><div class="lk-track lk-axis">{ticks}</div></div></div>'
        f'<ul class="lk-legend">{"".join(legend)}</ul></div>'
    )


TABLE_HEADS = ("Method", "Mean", "Best", "Normalised", "Faces found", "Seconds", "Megabytes", "Parameters")


def table(rows: Sequence[MethodRow], friends: Mapping[str, str] | None = None) -> str:
    """`friends` is what a blind vote said, per method; its column stands beside the judge's."""
    if not rows:
        return ""
    names = [*TABLE_HEADS]
    if friends:
        names.insert(4, "Friends' picks")
    body = []
    for row in rows:
        found = "–"
        if row.renders is not None:
            found = tell("{count} of {all}", count=row.faces_found or 0, all=row.renders)
        cells = [
            number(row.mean),
            number(row.best),
            number(row.normalised),
            *([escape(friends.get(row.method, "–"))] if friends else []),
            found,
            number(row.seconds, 0),
            "–" if row.megabytes is None else f"{row.megabytes:.3g}",
            "–" if row.parameters is None else f"{row.parameters:,}",
        ]
        body.append(
            f'<tr><td><i style="background:{METHOD_COLOURS[row.method]}"></i>{named(row.method)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return (
        f'<div class="lk-scroll"><table class="lk-table"><thead><tr>{heads(*(tell(head) for head in names))}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def downloads(links: Sequence[tuple[str, str]]) -> str:
    """`links` are (text, address)."""
    return (
        '<div class="lk-downloads">'
        + "".join(f'<a href="{escape(address)}" download>{escape(text)}</a>' for text, address in links)
        + "</div>"
        if links
        else ""
    )


def stepper(steps: Sequence[tuple[str, str, bool]]) -> str:
    """The four steps with what each says; a step that is still closed says why. Items: (name, text, open)."""
    items = "".join(
        f'<li class="{"open" if is_open else "closed"}"><b>{number}. {escape(name)}</b><span>{escape(text)}</span></li>'
        for number, (name, text, is_open) in enumerate(steps, start=1)
    )
    return f'<ol class="lk-steps" aria-label="{escape(tell("Steps"))}">{items}</ol>'


def notes(texts: Sequence[str]) -> str:
    return "".join(note(text) for text in texts)


MARKS = {"credentials": "Content credentials", "field": "IPTC field", "watermark": "Watermark"}


def marks(found: Verification) -> str:
    """What the three marks of a dropped picture say: a sentence, and a small table."""
    kind = "bad" if found.tampered else "ok" if found.found else ""
    rows = "".join(
        f'<tr><th scope="row">{escape(tell(MARKS[mark.name]))}</th><td>{escape(_presence(mark))}</td>'
        f"<td>{escape(retell(mark.sentence).split(': ', 1)[-1])}</td></tr>"
        for mark in found.marks
    )
    return (
        f'{note(retell(found.sentence), kind)}<table class="lk-table lk-verified"><thead><tr>'
        f"{heads(tell('Mark'), tell('Found'), tell('What it says'))}</tr></thead><tbody>{rows}</tbody></table>"
    )


def heads(*names: str) -> str:
    """The heads of a table's columns."""
    return "".join(f'<th scope="col">{escape(head)}</th>' for head in names)


def _presence(mark: AiMark) -> str:
    if mark.state == "tampered":
        return tell("changed")
    if mark.state == "unreadable":
        return tell("unreadable")
    return tell("yes") if mark.present else tell("no")


def judge_title(judge: str, *, first: bool) -> str:
    return escape(judge if first else tell("{judge}, the second opinion", judge=judge))


def looked(answer: Answer, best: Mapping[str, tuple[str, float] | None]) -> str:
    """What was found in a dropped picture, face by face. `best` is each judge's best render of the run: (method,
    similarity).
    """
    cards = []
    for count, face in enumerate(answer.faces, start=1):
        title = tell("The face in it")
        if len(answer.faces) > 1:
            title = tell("Face {number} of {all}, from the left", number=count, all=len(answer.faces))
        first = next((each for each in face.opinions if each.score.similarity is not None), face.opinions[0])
        lines = "".join(f"<li>{_opinion(each, answer, best)}</li>" for each in face.opinions)
        told = note(f"{title}: {retell(first.sentence)}", "ok" if first.verdict == "this person" else "")
        cards.append(f'{told}<ul class="lk-opinions">{lines}</ul>{_nearest(face.opinions)}')
    return f'<div class="lk-answer">{"".join(cards)}</div>'


def _opinion(one: Opinion, answer: Answer, best: Mapping[str, tuple[str, float] | None]) -> str:
    score = one.score
    if score.similarity is None:
        return f"<b>{escape(score.judge)}</b>: {escape(retell(score.reason or 'no face found'))}."
    marks, render = answer.marks[score.judge], best.get(score.judge)
    said = f"{retell(score.words or number(score.similarity))}. {retell(one.sentence)}"
    parts = [f"<b>{escape(score.judge)}</b>: {escape(said)}"]
    if marks.ceiling_low is not None and marks.ceiling_high is not None:
        span = number(marks.ceiling_low)
        span += f"-{number(marks.ceiling_high)}" if marks.ceiling_low != marks.ceiling_high else ""
        parts.append(escape(tell("This person's own photos agree with each other at {value}.", value=span)))
    if render is not None:
        reaches = tell(
            "The best render of this run reaches {value} ({method}).", value=number(render[1]), method=named(render[0])
        )
        parts.append(escape(reaches))
    if one.is_held_out:
        parts.append(escape(tell("It is one of the held-out photos itself, so it is alike by nature.")))
    if score.note:
        parts.append(escape(retell(score.note)))
    return " ".join(parts)


def _nearest(opinions: Sequence[Opinion]) -> str:
    """The most alike single picture of each of the three, by every judge."""
    known = [one for one in opinions if one.nearest]
    if not known or len(known[0].nearest) < 2:  # nobody else to compare with yet
        return ""
    who = [each.who for each in known[0].nearest]
    rows = []
    for name in who:
        cells = []
        for one in known:
            found = next((each for each in one.nearest if each.who == name), None)
            leads = found is not None and found is one.nearest[0]
            cells.append(f"<td>{'<b>' if leads else ''}{number(found.similarity if found else None)}"
                         f"{' ★</b>' if leads else ''}</td>")  # fmt: skip
        title = retell(name)
        rows.append(f'<tr><th scope="row">{escape(title[0].upper() + title[1:])}</th>{"".join(cells)}</tr>')
    caption = tell(
        "Nearest of {pictures} each; ★ is nearest. Nearest of the three need not be near.",
        pictures=pictures(known[0].nearest[0].pictures),
    )
    row = heads(tell("Compared with"), *(one.score.judge for one in known))
    return (
        f'<div class="lk-scroll"><table class="lk-table"><caption>{escape(caption)}</caption><thead><tr>{row}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def vote_links(started: Sequence[tuple[str, int, int]]) -> str:
    """Items: (address, rounds answered, rounds in all), newest first."""
    items = []
    for count, (address, done, of) in enumerate(started):
        state = tell("{count} of {all} answered", count=done, all=of)
        open_it = (
            f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(tell("Open the vote"))}</a> '
            f'<button type="button" class="lk-link" data-copy="{escape(tell("Copied"))}">'
            f"{escape(tell('Copy its link'))}</button>"
        )
        if done == of:
            open_it, state = escape(tell("A vote")), tell("of {all} rounds: finished", all=of)
        newest = f" ({tell('newest')})" if count == 0 and len(started) > 1 else ""
        items.append(f"<li>{open_it} <span>{escape(state + newest)}</span></li>")
    return f'<ul class="lk-votes">{"".join(items)}</ul>' if items else ""


def vote_table(rows: Sequence[tuple[str, Share]]) -> str:
    """How often each method was picked, with its interval on a bar from 0 to 100%."""
    body = []
    for method, one in rows:
        if one.share is None or one.low is None or one.high is None:
            continue
        colour = METHOD_COLOURS[method]
        left, wide = one.low * 100, (one.high - one.low) * 100
        chance = f'<i style="left:{(one.chance or 0) * 100:.1f}%"></i>'
        bar = (
            f'<span class="lk-span" aria-hidden="true">{chance}<b style="left:{left:.1f}%;width:{wide:.1f}%;'
            f'background:{colour}55"></b><u style="left:{one.share * 100:.1f}%;background:{colour}"></u></span>'
        )
        body.append(
            f'<tr><td><i style="background:{colour}"></i>{named(method)}</td>'
            f"<td>{escape(tell('{count} of {all}', count=one.wins, all=one.appearances))}</td><td>{one.share:.0%}</td>"
            f"<td>{escape(span(one.low, one.high))}</td><td>{bar}</td></tr>"
        )
    row = heads(tell("Method"), tell("Picked"), tell("Share"), tell("95% interval"), tell("0 to 100%"))
    caption = escape(tell("What friends picked; the dashed line is picking blindly."))
    return (
        f'<div class="lk-scroll"><table class="lk-table"><caption>{caption}</caption>'
        f"<thead><tr>{row}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def span(low: float, high: float) -> str:
    """An interval of shares."""
    return tell("{low} to {high}", low=f"{low:.0%}", high=f"{high:.0%}")
