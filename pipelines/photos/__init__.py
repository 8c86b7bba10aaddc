"""Photos: decode and check the files of a person, split them into three parts, and cut out what training sees.

In: files of any kind. Out: a `PhotoSet` (`intake.intake`), pixels (`decode.decode`), crops (`framing`), captions.
Each file does one thing: `gather` finds photos, `decode` and `colour` read one, `checks` says what is wrong with it,
`split` divides the set (training, validation, held out), `intake` does all this, `album` keeps what was computed.
Try it: `from pipelines.photos import check; check([Path("a.jpg")])`, or `python -m pipelines check PHOTO_DIR`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.photos.album import Album
    from pipelines.photos.gather import photo_files
    from pipelines.photos.intake import check

_FROM = {"Album": "album", "check": "intake", "photo_files": "gather"}
__all__ = ["Album", "check", "photo_files"]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
