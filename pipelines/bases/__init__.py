"""Base models: their data, how they are loaded, and how they encode text and pictures, are trained and draw.

In: a registered name or the path of a model. Out: a `BaseRow` (data) and a `Family` (loaded). `registry` has the rows,
`architectures` the data of families, `family` their code, `z_image` one of its own, `text` the text encoders,
`objective` the training loss, `sampling` the sampler, `memory` the plan for a GPU, `checker` the image filter.
Try it: `load_family(find_base("portrait-128"))`. How to add one: docs/extend.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.bases.loading import load_family
    from pipelines.bases.registry import find_base

_FROM = {"find_base": "registry", "load_family": "loading"}
__all__ = ["find_base", "load_family"]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
