"""Pieces of HTML that every tab uses. Whatever a person typed is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ui.words.words import tell

if TYPE_CHECKING:
    pass


def script(name: str) -> str:
    """The JavaScript in `ui/<name>`, for `js_on_load` of a `gr.HTML`."""
    return (Path(__file__).resolve().parents[1] / name).read_text(encoding="utf-8")


def note(text: str, kind: str = "") -> str:
    """A framed sentence; `kind` is "", "ok", "warn" or "bad". `text` is plain text."""
    return f'<div class="lk-gate {"lk-" + kind if kind else ""}" role="status">{escape(text)}</div>' if text else ""


def downloads(links: Sequence[tuple[str, str]]) -> str:
    """`links` are (text, address)."""
    return (
        '<div class="lk-downloads">'
        + "".join(f'<a href="{escape(address)}" download>{escape(text)}</a>' for text, address in links)
        + "</div>"
        if links
        else ""
    )


def stepper(steps: Sequence[tuple[str, str, bool]], tabs: Sequence[str], share: float | None = None) -> str:
    """The four steps as buttons that open their tab; one that can't be done yet says why. Items: (name, text, open)."""
    items = "".join(
        f'<li class="{"open" if is_open else "closed"}"><button type="button" data-tab="{tab}"><b>{number}. '
        f"{escape(name)}</b><span>{escape(text)}</span></button></li>"
        for number, (tab, (name, text, is_open)) in enumerate(zip(tabs, steps), start=1)
    )
    done = "" if share is None else f' data-done="{share:.0%}"'  # the tab's title says it too
    return f'<ol class="lk-steps" aria-label="{escape(tell("Steps"))}"{done}>{items}</ol>'


def bar(name: str, share: float, text: str) -> str:
    """A bar of progress with a line below it."""
    return (
        f'<div class="lk-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-label="{escape(name)}" '
        f'aria-valuenow="{share * 100:.0f}"><b style="width:{share:.1%};background:#0f766e"></b></div>'
        f'<div class="lk-figures"><span>{share:.0%}</span><span>{escape(text)}</span></div>'
    )


def notes(texts: Sequence[str]) -> str:
    return "".join(note(text) for text in texts)


def heads(*names: str) -> str:
    """The heads of a table's columns."""
    return "".join(f'<th scope="col">{escape(head)}</th>' for head in names)
