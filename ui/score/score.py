"""The Score tab: one axis with four marks, a dot for every picture, a table, and everything to take home."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from pipelines.core.records import UserError
from pipelines.reports import figures as drawings
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.refresh import Refresh, Updates
from ui.page.views import RESEARCH
from ui.run.package import pack
from ui.run.services import Services
from ui.run.view import View
from ui.score import answer, look, vote
from ui.score import html as score_html
from ui.words.retold import retell
from ui.words.words import say, tell

HOW_TO_READ = say(
    "Dots are pictures, a diamond is their mean. A score is how alike a face recogniser finds a picture and the photos "
    "that training never saw (1 is the same picture; strangers lie left of A). It judges the face only - not beauty, "
    "not the background. <b>Normalised</b> puts 0 at the untrained base and 1 at this person's own photos. A picture "
    "without a face counts as 0. Well above 1 usually means the model copied a photo."
)


@dataclass
class ScoreTab:
    blocked: gr.HTML
    judge: gr.Radio
    answer: gr.HTML
    spoke: gr.HTML
    strip: gr.HTML
    table: gr.HTML
    figures: gr.HTML
    warnings: gr.HTML
    package: gr.Button
    downloads: gr.HTML
    looking: look.LookSection
    voting: vote.VoteSection

    def show(self, view: View) -> Updates:
        judge = view.judge()
        closed = view.score_blocked
        ready = closed is None and judge is not None
        return {
            self.blocked: gr.update(
                value=page_html.note(f"{tell('No method has a score yet.')} {closed or ''}", "warn"),
                visible=closed is not None,
            ),
            self.judge: gr.update(choices=list(view.judges), value=judge, visible=len(view.judges) > 1),
            **{
                part: gr.update(value=html, visible=bool(html))
                for part, html in (
                    (self.answer, answer.card(view, judge) if ready and judge else ""),
                    (self.spoke, _spoke(view, judge) if ready and judge else ""),
                    (self.strip, score_html.strip(view.axis(judge)) if ready and judge else ""),
                    (self.table, _table(view, judge) if ready and judge else ""),
                    (self.figures, _figures(view) if ready else ""),
                    (self.warnings, _warnings(view) if ready else ""),
                )
            },
            self.package: gr.update(visible=bool(view.trained), interactive=not view.busy),
            **self.looking.show(view),
            **self.voting.show(view),
        }

    def restore(self, view: View) -> Updates:
        return {
            self.judge: gr.update(value=view.judge()),
            self.downloads: gr.update(value=""),
            **self.looking.restore(view),
        }

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services) -> ScoreTab:
    blocked = gr.HTML(visible=False)
    judge = gr.Radio([], label=say("Judge"), visible=False, elem_id="lk-judge")
    answered = gr.HTML(visible=False, elem_id="lk-verdict")
    strip = gr.HTML(visible=False, elem_id="lk-strip", elem_classes=RESEARCH)
    table = gr.HTML(visible=False, elem_id="lk-table", elem_classes=RESEARCH)
    voting = vote.build(services)
    looking = look.build(services)
    figures = gr.HTML(visible=False, elem_id="lk-figures", elem_classes=RESEARCH)
    warnings = gr.HTML(visible=False)
    package = gr.Button(
        say("Prepare the download"), visible=False, elem_id="lk-package", scale=0, min_width=240, size="md"
    )
    downloads = gr.HTML(elem_id="lk-downloads")
    spoke = gr.HTML(visible=False, elem_id="lk-spoke")
    return ScoreTab(
        blocked, judge, answered, spoke, strip, table, figures, warnings, package, downloads, looking, voting
    )


def wire(tab: ScoreTab, services: Services, page: Refresh) -> None:
    look.wire(tab.looking, services, page)
    vote.wire(tab.voting, services, page)

    @told
    def listen(kept: object, judge: str | None) -> None:
        session = services.sessions.need(kept)
        services.sessions.choose(session, judge=judge if judge in services.view(kept).judges else None)

    @told
    def package(kept: object) -> str:
        session = services.sessions.need(kept)
        if services.busy(session.run):
            raise UserError("This run is still working. Wait until it is done, then prepare the download.")
        return page_html.downloads(pack(session.run, services.media))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.after(tab.judge.input(listen, [page.capability, tab.judge], **quiet), "score")
    tab.package.click(package, [page.capability], tab.downloads, trigger_mode="once", concurrency_limit=2, **quiet)


def _spoke(view: View, judge: str) -> str:
    facts = view.judge_facts(judge)
    photos = len(view.box.photo_set.held_out) if view.box.photo_set else 0
    compared = weak = ""
    if photos:
        compared = tell("Compared with {count} held-out photos.", count=photos)
    if photos == 1:
        compared = tell("Compared with one held-out photo.")
    if view.box.photo_set and view.box.photo_set.weak:
        weak = tell("With so few, read the verdict with care.")
    spoken = tell("Judge: {name}.", name=judge)
    return page_html.note(f"{spoken} {facts} {compared} {weak}".rstrip()) + _best(view, judge)


def _table(view: View, judge: str) -> str:
    return score_html.table(view.rows(judge), vote.friends(view)) + f'<p class="lk-note">{HOW_TO_READ}</p>'


def _figures(view: View) -> str:
    """The report's drawings, and the pictures that look least like the person."""
    shown = drawings.sections(view.drawings, tell) if view.drawings.get("methods") else ""
    if view.worst:
        alts = [
            tell("The least alike pictures: {number} of {all}", number=number, all=len(view.worst))
            for number in range(1, len(view.worst) + 1)
        ]
        pictures = "".join(
            f'<img src="{escape(link)}" alt="{escape(alt)}" loading="lazy">' for link, alt in zip(view.worst, alts)
        )
        title = tell("The worst {count}", count=len(view.worst))
        shown += f'<h2>{escape(title)}</h2><div class="lk-worst">{pictures}</div>'
    return shown


def _best(view: View, judge: str) -> str:
    """The best picture's score as a sentence: never a probability, always beside what real photos reach.

    The untrained base's pictures show nobody, however alike one of them happens to be.
    """
    scored = [shot for shot in view.shots if shot.similarity is not None and shot.words and shot.method != "none"]
    if not scored:
        return ""
    best = max(scored, key=lambda shot: shot.similarity or 0.0)
    low, high = (view.marks.get(judge, {}).get(name) for name in ("ceiling_low", "ceiling_high"))
    own = ""
    if isinstance(low, float) and isinstance(high, float):
        span = f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"
        own = tell("Your own photos agree with each other at {value}.", value=span)
    found = tell("Best picture: {words}.", words=retell(best.words or ""))
    verdict = tell("Verdict: {verdict}.", verdict=tell(best.verdict or ""))
    return page_html.note(f"{found} {own} {verdict}".replace("  ", " "), "ok")


def _warnings(view: View) -> str:
    missing = [shot for shot in view.shots if shot.scored and shot.similarity is None]
    if not missing:
        return ""
    return page_html.note(
        tell(
            "Pictures that show no face to this judge: {count} of {all}. They are counted, not dropped.",
            count=len(missing),
            all=len(view.shots),
        )
    )
