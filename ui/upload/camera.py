"""The camera's field. Gradio's own opens what a visitor sent, in any format Pillow has and without our limits; this one
hands over the path, so that `decode` is the only thing that ever opens a visitor's picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.page.startup import skip_stub_files

skip_stub_files()  # Gradio would write one for this class, beside this file


class Camera(gr.Image):
    is_template = True  # in the browser it is a gr.Image

    def preprocess(self, payload: Any) -> str | None:
        """The path of the upload, untouched; None where there is none."""
        return payload.path if payload is not None else None
