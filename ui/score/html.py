"""The Score tab's HTML: the strip of scores, the table of methods, any picture's faces, votes, marks.

In: small records and what the lower rooms found. Out: strings. Whatever a person typed is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ui.page.theme import METHOD_COLOURS
from ui.words.retold import retell
from ui.words.words import in_words, tell

if TYPE_CHECKING:
    from pipelines.evaluation.lookalike import Answer, Opinion
    from pipelines.evaluation.votes import Share
    from pipelines.finishing.mark import Mark as AiMark
    from pipelines.finishing.mark import Verification
from ui.page.html import heads, note
from ui.run.cards import MethodRow, StripData
from ui.words.phrases import named, number, pictures, span

MARK_LETTERS = "ABCD"
LETTER_GAP = 10.0  # percent of the axis: a letter is 19 px wide, the axis of a phone 200
OTHER_COLOUR = "#7c3aed"  # on the strip: what no method drew


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
        told = note(f"{title}: {_sentence(first)}", "ok" if first.verdict == "this person" else "")
        cards.append(f'{told}<ul class="lk-opinions">{lines}</ul>{_nearest(face.opinions)}')
    return f'<div class="lk-answer">{"".join(cards)}</div>'


def _sentence(one: Opinion) -> str:
    return in_words(one.said) if one.said is not None else retell(one.sentence)


def _opinion(one: Opinion, answer: Answer, best: Mapping[str, tuple[str, float] | None]) -> str:
    score = one.score
    if score.similarity is None:
        return f"<b>{escape(score.judge)}</b>: {escape(retell(score.reason or 'no face found'))}."
    marks, render = answer.marks[score.judge], best.get(score.judge)
    said = f"{retell(score.words or number(score.similarity))}. {_sentence(one)}"
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
        title = tell(name)
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
