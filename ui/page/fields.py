"""Fields that take a file and hand over its path, so that `decode` is the only thing that ever opens it.

Gradio's own camera opens what a visitor sent, in any format Pillow has and without our limits; its other fields leave
an empty file behind for each one they take.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio_client.utils import is_valid_file

from ui.page.startup import skip_stub_files

skip_stub_files()  # Gradio would write one for each class, beside this file


class Camera(gr.Image):
    is_template = True  # in the browser it is a gr.Image

    def preprocess(self, payload: Any) -> str | None:
        """The path of the upload, untouched; None where there is none."""
        return payload.path if payload is not None else None


def _path(field: gr.File | gr.UploadButton, file: FileData) -> str:
    """Raises gr.Error for a file whose name ends in none of the field's types."""
    if field.file_types and not is_valid_file(file.path, field.file_types):
        raise gr.Error(f"Invalid file type. Please upload a file that is one of these formats: {field.file_types}")
    return file.path


class File(gr.File):
    is_template = True
    _process_single_file = _path  # type: ignore[assignment]


class UploadButton(gr.UploadButton):
    is_template = True
    _process_single_file = _path  # type: ignore[assignment]
