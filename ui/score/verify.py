"""The verify box below the tabs: any picture, and whether its three marks say that an AI drew it. It needs no run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from pipelines.core.records import UserError
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.fields import File
from ui.page.refresh import Updates
from ui.score import html as score_html
from ui.words.words import say, tell

ABOUT = say(
    '<p class="lk-note">Every finished picture of this app carries three marks: content credentials (C2PA), the IPTC '
    "field for where a picture comes from, and an invisible watermark. Drop any picture to read them back, wherever it "
    "was made. The picture is looked at and dropped: it is not kept, not learned from, not written to a log.</p>"
)


@dataclass
class VerifyBox:
    drop: gr.File
    answer: gr.HTML


def build() -> VerifyBox:
    with gr.Accordion(say("Was this picture drawn by an AI? Read its marks"), open=False, elem_id="lk-verify"):
        gr.HTML(ABOUT)
        drop = File(
            label=say("Any picture to read the marks of"), file_count="single",
            file_types=["image", ".heic", ".heif", ".avif"], height=130, elem_id="lk-verify-file",
        )  # fmt: skip
        return VerifyBox(drop, gr.HTML(elem_id="lk-marks"))


def wire(box: VerifyBox) -> None:
    @told
    def verify(file: str | None) -> Iterator[Updates]:
        from pipelines.finishing import mark

        try:
            yield {box.drop: None, box.answer: page_html.note(tell("Reading the marks ..."))}
            if not file:
                raise UserError("No picture arrived. Drop one picture.")
            yield {box.answer: score_html.marks(mark.verify(Path(file)))}
        except UserError as problem:  # it stays beside the drop zone: a toast is gone when the person looks up
            yield {box.answer: page_html.note(str(problem), "bad")}

    # The slots of the other box for any picture: reading takes a second of one core as well.
    box.drop.upload(
        verify, [box.drop], [box.drop, box.answer], concurrency_limit=2, concurrency_id="look", trigger_mode="once",
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
