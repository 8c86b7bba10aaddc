"""Finishing: prepare a drawn picture for use, and mark it as drawn by an AI.

In: a picture and a `records.Finish` (steps, background, size, kB, format). Out: the bytes of a file with all
marks, and what every step changed (`finish`); or what the marks in any picture file say (`verify`). A step after which
the face is less similar to the person is dropped. Files: `stage` calls `refine` (the steps, with `matte` and
`enlarge`, whose networks are in `nets`) and `deliver` (size, format, marks: `mark`, `credentials`, `watermark`).
Try it: `python -m pipelines finish render.png --out portrait.jpg`, then `python -m pipelines verify portrait.jpg`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.finishing.mark import verify
    from pipelines.finishing.stage import finish, finish_pictures

__all__ = ["finish", "finish_pictures", "verify"]


def __getattr__(name: str) -> Any:
    if name in ("finish", "finish_pictures"):
        from pipelines.finishing import stage

        return getattr(stage, name)
    if name == "verify":
        from pipelines.finishing import mark

        return mark.verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
