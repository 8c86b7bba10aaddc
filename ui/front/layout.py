"""What stands above the tabs: one sentence, what comes out, three buttons, and the portraits that one button makes.

In: a view of the run. Out: components and what they show. What the buttons do stands in `events`.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ui.front import chain, example
from ui.front import html as front_html
from ui.page import views
from ui.page.html import script
from ui.page.refresh import Updates
from ui.run.view import View
from ui.words.words import say, tell

MAKE = "Make my portrait"


@dataclass
class Front:
    switch: gr.Radio  # the view
    hero: gr.HTML
    make: gr.Button
    example: gr.Button
    compare: gr.Button
    banner: gr.Row
    own: gr.Button
    hint: gr.HTML  # what is missing, said after a press
    bar: gr.HTML
    stop: gr.Button
    results: gr.HTML

    def show(self, view: View) -> Updates:
        fresh, now = not view.box.staged, chain.chain_of(view)
        again = (view.progress.kind, view.progress.state) == (chain.KIND, "done")
        hero = front_html.hero(example.drawn()) if fresh else ""
        bar = front_html.bar(view, now) if view.progress.kind == chain.KIND else ""
        results = front_html.results(view, chain.best(view))
        return {
            self.make: gr.update(
                interactive=not view.progress.busy, value=say("Make more portraits") if again else say(MAKE)
            ),
            self.example: gr.update(visible=fresh and example.is_there()),
            self.compare: gr.update(visible=fresh),
            self.banner: gr.update(visible=view.choices.example),
            self.stop: gr.update(visible=now is not None),
            **{
                part: gr.update(value=html, visible=bool(html))
                for part, html in ((self.hero, hero), (self.bar, bar), (self.results, results))
            },
        }

    def restore(self, view: View) -> Updates:
        return {self.hint: gr.update(value="", visible=False)}

    def news(self, view: View) -> Updates:
        return {}


def build() -> Front:
    with gr.Row(elem_id="lk-top"):
        gr.HTML(
            '<div class="lk-head"><h1>Likeness</h1><p>'
            + say("Teach an AI your face three ways and see which portrait really looks like you.")
            + "</p></div>"
        )
        switch = views.build()
    hero = gr.HTML(elem_id="lk-hero")
    with gr.Row(elem_id="lk-ways"):
        make = gr.Button(say(MAKE), variant="primary", size="lg", elem_id="lk-make")
        show_example = gr.Button(say("Look at a finished example"), size="lg", elem_id="lk-example")
        compare = gr.Button(say("Compare the methods"), size="lg", elem_id="lk-compare-methods")
    with gr.Row(visible=False, elem_id="lk-banner") as banner:
        gr.HTML(
            '<div class="lk-gate" role="status">'
            + say("This is an example: a person who does not exist, made beforehand on another machine.")
            + "</div>"
        )
        own = gr.Button(say("Use your own photos"), size="sm", scale=0, min_width=200, elem_id="lk-own")
    hint = gr.HTML(visible=False, elem_id="lk-hint")
    bar = gr.HTML(visible=False, elem_id="lk-portrait-bar")
    stop = gr.Button(say("Stop"), variant="stop", size="sm", visible=False, elem_id="lk-portrait-stop")
    results = gr.HTML(visible=False, elem_id="lk-portraits", js_on_load=script("front/portraits.js"))
    return Front(switch, hero, make, show_example, compare, banner, own, hint, bar, stop, results)


def missing(why: str) -> str:
    """What to do before portraits can be made."""
    return f"{why} {tell('Then press Make my portrait again.')}"
