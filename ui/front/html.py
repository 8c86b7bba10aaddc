"""The HTML above the tabs: the first screen's picture, the bar of the portraits, and the best of them.

In: small records and finished links. Out: strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipelines.core.run import Run
from pipelines.faces.calibration import BORDERLINE, LOOKS_LIKE
from pipelines.finishing import stage
from ui.front.chain import Chain
from ui.front.example import Drawn
from ui.page import html as page_html
from ui.page.theme import METHOD_COLOURS
from ui.run import pictures
from ui.run.cards import Shot
from ui.run.view import View
from ui.words import phrases
from ui.words.words import tell

HERO_ADDRESS = "hero.webp"


def hero(shots: Sequence[Drawn]) -> str:
    """A photo, what each method made of it, and what a face recogniser says of that."""
    if not shots:
        return ""
    methods = ", ".join(phrases.named(shot.method) for shot in shots)
    alt = tell("A photo of the sample person, and the portraits that these methods drew: {methods}", methods=methods)
    photo = f"<li><b>{escape(tell('Photo in'))}</b><span>{escape(tell('one of ten'))}</span></li>"
    items = "".join(
        f'<li><b><i style="background:{METHOD_COLOURS[shot.method]}"></i>{escape(phrases.named(shot.method))}</b>'
        f"<span>{shot.score:.2f} {escape(tell(shot.verdict))}</span></li>"
        for shot in shots
    )
    about = tell(
        "She does not exist: photos and portraits were drawn by the small model that comes with this app (128 pixels). "
        "The number says how alike a face recogniser finds a portrait and photos that training never saw; 1 is the "
        "same picture."
    )
    return (
        f'<figure class="lk-hero"><img src="{HERO_ADDRESS}" width="932" height="224" alt="{escape(alt)}">'
        f"<ul>{photo}{items}</ul><figcaption>{escape(about)}</figcaption></figure>"
    )


def bar(view: View, chain: Chain | None) -> str:
    """One bar for the whole chain, with the minutes left; or how it ended."""
    progress = view.progress
    if chain is None:
        again = tell("What is there is kept. Press Make my portrait to go on where it was.")
        if progress.problem:
            return page_html.note(f"{progress.problem} {again}", "bad")
        return page_html.note(f"{tell('Stopped.')} {again}", "warn") if progress.state == "cancelled" else ""
    left = tell("{time} left", time=phrases.duration(phrases.rounded(chain.left_s))) if chain.left_s else ""
    now = phrases.waiting(progress.ahead, progress.starts_in_s) or progress.text or tell("Starting ...")
    drawn = tell("{count} of {all} portraits are drawn.", count=chain.drawn, all=chain.to_draw)
    percent, name = round(100 * (chain.share or 0.0)), escape(tell("Your portraits"))
    return (
        f'<div class="lk-chain"><div class="lk-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-label="{name}"><b style="width:{percent}%"></b></div>'
        f'<div class="lk-figures"><span>{escape(now)} {escape(drawn)}</span><span>{percent} %</span>'
        f'<span>{escape(left)}</span></div></div><p class="lk-note lk-small">{escape(view.safe_to_leave)}</p>'
    )


def results(view: View, shots: Sequence[Shot]) -> str:
    """The best portraits with their verdicts; each can be downloaded, and finished for LinkedIn."""
    if not shots or view.session is None:
        return ""
    title = tell("The best {count}, most alike first", count=len(shots))
    cards = "".join(_card(view, view.session.run, shot, place) for place, shot in enumerate(shots, start=1))
    return f'<h2 class="lk-best-title">{escape(title)}</h2><div class="lk-best">{cards}</div>'


def _card(view: View, run: Run, shot: Shot, place: int) -> str:
    busy = view.drawing.busy
    alt = tell("Portrait {number}: {look}", number=place, look=phrases.look(shot.prompt))
    verdict = tell(shot.verdict) if shot.verdict else tell("scoring …")
    kind = {LOOKS_LIKE: "ok", BORDERLINE: "so"}.get(shot.verdict or "", "")
    score = f' <span class="lk-research">{shot.similarity:.2f}</span>' if shot.similarity is not None else ""
    finished = finished_file(run, shot)
    acts = _link(view, run.folder / shot.path, f"portrait-{place}", tell("Download"))
    if finished is not None:
        acts += _link(view, finished, f"portrait-{place}-linkedin", tell("Download for LinkedIn"))
    elif shot.scored:
        mine = busy and view.choices.finishing == shot.id
        word = tell("Being finished ...") if mine else tell("Finish for LinkedIn")
        acts += (
            f'<button type="button" data-picture="{escape(shot.id)}"{" disabled" if busy else ""} '
            f'aria-label="{escape(f"{word}: {alt}")}">{escape(word)}</button>'
        )
    return (
        f'<figure><img src="{escape(shot.link)}" alt="{escape(alt)}" loading="lazy"><figcaption>'
        f'<span class="lk-tag {kind}">{escape(verdict)}</span>{score}<small>{escape(phrases.look(shot.prompt))}</small>'
        f'<span class="lk-acts">{acts}</span></figcaption></figure>'
    )


def _link(view: View, file: Path, name: str, text: str) -> str:
    """A link that saves `file` under this name."""
    address = view.services.media.link(file, name=f"{name}{file.suffix}")
    return f'<a href="{escape(address)}" download>{escape(text)}</a>'


def finished_file(run: Run, shot: Shot) -> Path | None:
    """What was made of this picture to be shown to others; None where nothing was."""
    record = stage.record_of(run, shot.path)
    if record is None or pictures.picture_id(shot.path, record["base"], record["subject"]) != shot.id:
        return None
    return Path(run.finished(shot.path) / record["file"])
