"""Training: one loop that teaches a base a face, by any method, and continues an interrupted training.

In: recipes and a person's photos. Out: per method a folder with the artefact, its card and previews. `teach` trains
all methods of a run, `loop` one; `batches` makes a step's batch and its loss (the formula: `bases/objective.py`),
`watch` chooses the checkpoint that is kept.
Try it: `for event in train(recipe, data, Path("out")): print(event)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.training.loop import train

_FROM = {"train": "loop"}
__all__ = ["train"]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
