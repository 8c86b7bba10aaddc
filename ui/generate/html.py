"""The Generate tab's HTML: styles, words, pictures side by side, ranked, laid over each other, and the history.

In: small records and finished links. Out: strings. Whatever a person typed is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from ui.page.html import heads, note
from ui.page.theme import METHOD_COLOURS
from ui.page.views import RESEARCH
from ui.run.cards import JobCard, LookCard, Shot
from ui.words.phrases import called, look, named, number
from ui.words.retold import retell
from ui.words.words import tell


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
    classes = ["lk-shot", *([] if kept else ["lk-dropped"]), *([RESEARCH] if shot.method == "none" else [])]
    return (
        f'<div class="{" ".join(classes)}"><a href="{escape(shot.link)}" target="_blank" '
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
