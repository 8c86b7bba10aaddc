"""What stands around the tabs: the four steps, where the person is, and the buttons that open a tab."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ui.page import html as page_html
from ui.page.refresh import Updates
from ui.run.view import View

TABS = ("upload", "train", "generate", "score")


@dataclass
class Frame:
    steps: gr.HTML

    @classmethod
    def build(cls) -> Frame:
        # it opens tabs for every button with a `data-tab`, wherever that stands
        return cls(gr.HTML(elem_id="lk-steps", js_on_load=page_html.script("front/open.js")))

    def show(self, view: View) -> Updates:
        return {self.steps: gr.update(value=page_html.stepper(view.steps(), TABS, view.share))}

    def restore(self, view: View) -> Updates:
        return {}

    def news(self, view: View) -> Updates:
        return {}


def following(tab: str, text: str) -> None:
    """At the end of a tab: the button that opens another one. `text` is a marker that `say` made."""
    gr.HTML(f'<button type="button" class="lk-next" data-tab="{tab}">{text}</button>')
