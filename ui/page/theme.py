"""The look: one Gradio theme; the styles of our own HTML lie beside it in style.css. Dark mode works.

Fonts are the system's: nothing is fetched from another host.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.core.records import COLUMNS, title_of
from pipelines.reports.figures import OTHER_COLOUR


class _Columns(dict[str, str]):
    """Of the columns known at start; imported ones follow from their name."""

    def __init__(self, known: dict[str, str], other: Callable[[str], str]) -> None:
        super().__init__(known)
        self._other = other

    def __missing__(self, column: str) -> str:
        return self._other(column)


# Okabe and Ito's palette: told apart with every kind of colour vision.
METHOD_COLOURS = _Columns(
    {
        "none": "#8a8f98",
        "zero_shot": "#d55e00",
        "textual_inversion": "#e69f00",
        "dreambooth": "#3d8fd1",
        "lora": "#12a37f",
        "pivotal": "#cc79a7",
    },
    lambda _column: OTHER_COLOUR,
)
METHOD_NAMES = _Columns({column: title_of(column) for column in COLUMNS}, title_of)


def theme() -> Any:
    """The Gradio theme object (built late: importing this module must not import Gradio)."""
    import gradio as gr

    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Base(
        primary_hue="teal", secondary_hue="slate", neutral_hue="slate", font=sans, font_mono=mono, radius_size="md"
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f1419",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171d24",
        block_border_color_dark="#2a323c",
        background_fill_secondary_dark="#1c232b",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#14877e",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        body_text_color_subdued="#526071",
        body_text_color_subdued_dark="#a9b4c2",
    )


HERE = Path(__file__).parent
STYLES = (HERE / "style.css", HERE.parent / "front" / "front.css")
