"""Which styles a base can draw, as cards with their small pictures."""

from __future__ import annotations

from functools import lru_cache
from html import escape

from pipelines.bases.registry import BaseRow
from pipelines.core import presets
from pipelines.runs.jobspec import COMPARED_STYLES
from ui.page import html as page_html
from ui.run.cards import LookCard
from ui.words.retold import retell
from ui.words.words import tell

OWN = "own"
THUMBNAILS = "thumbnails"  # folder of presets/, and the address


@lru_cache(maxsize=256)
def _thumbnail(name: str) -> str | None:
    """The relative address of a style's small picture, None where there is none."""
    folder = presets.PRESETS / THUMBNAILS
    file = (presets.PRESETS / name).resolve()
    return f"{THUMBNAILS}/{file.name}" if file.parent == folder.resolve() and file.is_file() else None


def look_cards(row: BaseRow) -> tuple[list[LookCard], str]:
    """(a card per style this base can draw, the last one for own words; HTML list of the others with their reasons)."""
    choices, marked = style_choices(row)
    known = presets.styles()
    cards = []
    for name, style_id in choices:
        style = known.get(style_id)
        picture = _thumbnail(style.thumbnail) if style and style.thumbnail else None
        cards.append(LookCard(style_id, name, picture, style.prompt if style else ""))
    return cards, marked


def style_of(row: BaseRow, prompt: str) -> str:
    """The style whose prompt this is, else "own"."""
    text = " ".join(prompt.split())
    for style in presets.styles().values():
        if style.prompt == text and presets.style_problem(style, row) is None:
            return style.id
    return OWN


def _rank(style_id: str) -> int:
    return COMPARED_STYLES.index(style_id) if style_id in COMPARED_STYLES else len(COMPARED_STYLES)


def style_choices(row: BaseRow) -> tuple[list[tuple[str, str]], str]:
    """(choices this base can draw, HTML list of the others with their reasons)."""
    can, cannot = [], []
    known = presets.styles()
    plain_first = sorted(known.values(), key=lambda style: (_rank(style.id), not style.photoreal))
    for style in plain_first:
        problem = presets.style_problem(style, row)
        if problem is None:
            can.append((style.name, style.id))
        else:
            cannot.append(f"<li><b>{escape(style.name)}</b> - {escape(retell(problem))}</li>")
    marked = (
        f'<ul class="lk-note lk-list">{"".join(cannot)}</ul>'
        if cannot
        else page_html.note(tell("This base can draw all of them."))
    )
    return [*can, (tell("Own words"), OWN)], marked
