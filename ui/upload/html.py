"""The Upload tab's HTML: photo cards, crops with their captions, and what the photos are as a set.

In: small records and finished links. Out: strings. Whatever a person typed is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from pipelines.core.records import LOW_CEILING, SetReport
from ui.words.words import tell

if TYPE_CHECKING:
    pass
from ui.page.html import note
from ui.run.cards import CropCard, PhotoCard

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
    buttons = "".join(
        f'<button type="button" class="lk-link" data-photo="{escape(card.key)}" data-action="{action}" '
        f'aria-label="{escape(f"{tell(word)}: {card.name}")}">{escape(tell(word))}</button>'
        for action, word in acts
        if card.key
    )
    if len(acts) < 2 or not card.key:
        return buttons
    title = escape(f"{tell('Change')}: {card.name}")
    return (
        f'<details class="lk-menu"><summary aria-label="{title}">{escape(tell("Change"))}</summary>{buttons}</details>'
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
            "Your photos match each other at {value}, so no portrait can be expected to score higher.",
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
