"""Two views of one page: Portrait for somebody who wants a picture, Research for somebody who compares methods.

In: `elem_classes=RESEARCH` of a component, or that class in our own HTML: only Research shows it (`PORTRAIT`: only
Portrait does). Out: the switch between them. The browser alone hides and shows, and remembers the view; the address
`?view=research` asks for one. A handler that has to know takes the switch as an input: "portrait" or "research".
"""

from __future__ import annotations

import gradio as gr

from ui.page.html import script
from ui.words.words import say

RESEARCH, PORTRAIT = "lk-research", "lk-portrait"
VIEWS = ("portrait", "research")


def build() -> gr.Radio:
    return gr.Radio(
        [(say("Portrait"), VIEWS[0]), (say("Research"), VIEWS[1])],
        value=VIEWS[0], label=say("View"), show_label=False, container=False, elem_id="lk-view", min_width=190, scale=0,
    )  # fmt: skip


def wire(demo: gr.Blocks, switch: gr.Radio) -> None:
    """The view as this browser remembers it, or as the address asks; both run in the browser alone."""
    demo.load(None, None, switch, js=script("page/view_load.js"))
    switch.change(None, switch, None, js=script("page/view_change.js"))
