"""Faces: find them, align them, and measure how similar two of them are.

In: RGB uint8 (H, W, 3) pictures. Out: `Face` records, aligned crops, and judges: recognisers that turn a face into a
unit vector and two vectors into a similarity. Vectors are biometric data and never leave memory.
Files: `face` has the interface, `dlib_faces`, `arcface` and `arcface_mini` the recognisers, `judges` chooses them;
`calibration` says what a similarity means, `mouth` whether a mouth is open.
Try it: `python -m pipelines score render.png --against photo1.jpg photo2.jpg --json`.
"""

from importlib import import_module
from typing import Any

_OFFERS = {
    "Face": "pipelines.faces.face",
    "judge_named": "pipelines.faces.judges",
    "available_judges": "pipelines.faces.judges",
}


def __getattr__(name: str) -> Any:
    if name in _OFFERS:
        return getattr(import_module(_OFFERS[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
