"""The blind vote in the Score tab: start one, hand its link to a friend, and read what friends said so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipelines.evaluation import votes
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.html import script
from ui.page.refresh import Refresh, Updates
from ui.run.services import Services
from ui.run.view import View
from ui.score import html as score_html
from ui.web import ballot
from ui.words import phrases
from ui.words.words import in_words, say, tell

ABOUT = say(
    '<h2>Ask a friend: a blind vote</h2><p class="lk-note">A recogniser is one opinion, people who know the face are '
    "another. A friend sees a held-out photo and one picture by each method, same prompt and seed, in random order and "
    "without names, and picks the one that looks most like the person. The vote opens on a page of its own that shows "
    "nothing else: hand over your phone, or send the link to somebody who can reach this page's address. Whoever has "
    "the link sees a held-out photo.</p>"
)
# Copies the whole address of a vote, which only the browser knows.
ON_COPY = script("score/copy.js")


@dataclass
class VoteSection:
    about: gr.HTML
    with_base: gr.Checkbox
    start: gr.Button
    row: gr.Row
    links: gr.HTML
    said: gr.HTML

    def show(self, view: View) -> Updates:
        run = view.session.run if view.session and view.trained and view.pictures and not view.busy else None
        now = votes.standing(run) if run else None
        two = bool(run and now and votes.pairs(run, now))
        any_two = two or bool(run and now and votes.pairs(run, now, with_base=True))
        visible = bool(view.pictures) and bool(view.trained)
        why = ""
        if visible and view.busy:
            why = page_html.note(tell("A vote can be started when the work on this run is done."))
        elif visible and not any_two:
            why = page_html.note(
                tell(
                    "A vote needs pictures by two methods, or by one and the untrained base, with the same prompts and "
                    "seeds."
                )
            )
        return {
            self.about: gr.update(value=ABOUT + why if visible else "", visible=visible),
            self.row: gr.update(visible=any_two),
            self.with_base: gr.update(interactive=two),
            self.links: gr.update(value=_links(view) if run else "", visible=visible),
            self.said: gr.update(value=_outcome(view) if run else "", visible=visible),
        }

    def restore(self, view: View) -> Updates:
        return {}

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services) -> VoteSection:
    about = gr.HTML(visible=False, elem_id="lk-vote")
    with gr.Row(visible=False) as row:
        with_base = gr.Checkbox(
            label=say("The untrained base takes part, as a check"), value=False, elem_id="lk-vote-base"
        )
        start = gr.Button(say("Start a vote"), elem_id="lk-vote-start", scale=0, min_width=200, size="md")
    links = gr.HTML(visible=False, elem_id="lk-vote-links", js_on_load=ON_COPY)
    said = gr.HTML(visible=False, elem_id="lk-votes")
    return VoteSection(about, with_base, start, row, links, said)


def wire(section: VoteSection, services: Services, page: Refresh) -> None:
    @told
    def start(kept: object, with_base: object) -> None:
        session = services.sessions.need(kept)
        now = votes.standing(session.run)
        alone = now is not None and not votes.pairs(session.run, now)  # one method: the base is the other
        votes.start(session.run, with_base=with_base is True or alone)

    started = section.start.click(
        start, [page.capability, section.with_base], api_visibility="private", show_progress="hidden",
        trigger_mode="once",
    )  # fmt: skip
    page.after(started, "score")


def friends(view: View) -> dict[str, str]:
    """What the method table says of the votes, per column; {} while nobody has voted."""
    found = votes.answers(view.session.run) if view.session and view.trained else []
    return {
        column: f"{share.share:.0%} ({phrases.span(share.low, share.high)})"
        for column, share in votes.tally(found).shares.items()
        if found and share.share is not None and share.low is not None and share.high is not None
    }


def _links(view: View) -> str:
    assert view.session is not None
    run = view.session.run
    return score_html.vote_links([(ballot.link(run, who), done, of) for who, done, of in votes.started(run)])


def _outcome(view: View) -> str:
    assert view.session is not None
    run, judge = view.session.run, view.judge()
    found = votes.answers(run)
    if not found:
        return ""
    counted, agreed = votes.tally(found), None
    if judge:
        means: dict[str, float | None] = {row.method: row.mean for row in view.rows(judge)}
        agreed = votes.agreement(found, judge, votes.similarities(run, judge), means)
    rows: list[tuple[str, Any]] = list(counted.shares.items())
    names = {column: phrases.named(column) for column in counted.shares}
    return score_html.vote_table(rows) + page_html.note(" ".join(map(in_words, votes.told(counted, agreed, names))))
