"""Generation: prompts and seeds -> pictures of one subject, or of the untrained base.

In: `Sampling`s and a subject's folder. Out: PNG pictures that hold their settings. The same seed gives the same noise
with every method. Files: `draw` draws all columns of a run, and calls `generator` for each of them.
Try it: `python -m pipelines generate RUN --prompt "portrait of {subject}"`.
"""

from importlib import import_module
from typing import Any

_OFFERS = {
    "Generator": "pipelines.generation.generator",
    "save_render": "pipelines.generation.generator",
}


def __getattr__(name: str) -> Any:
    if name in _OFFERS:
        return getattr(import_module(_OFFERS[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
