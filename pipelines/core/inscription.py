"""What a picture of ours says about itself: every PNG carries its settings as JSON in a text chunk.

In: a PNG. Out: an `Inscription`, or None for what is none of ours. Light: no torch, so that the page's process can read
them. `generation.save_render` writes them. Files come from strangers as well: nothing in one is believed but its form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.core.decode import decode
from pipelines.core.records import Sampling, UserError

TEXT_CHUNK = "likeness"
MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Inscription:
    """What determined a picture."""

    sampling: Sampling
    base: str
    subject: str | None  # id of what was learned; None for the untrained base
    source_sha256: str | None = None  # of the picture that was varied


def fields_in(path: Path, *, whole: bool = False) -> dict[str, Any] | None:
    """The JSON as it stands there; None where there is none. `whole` reads the pixels too, and finds a torn file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(TEXT_CHUNK)
            if whole:
                image.load()
        if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
            return None
        saved = json.loads(text)
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return None
    return saved if isinstance(saved, dict) else None


def read(path: Path, *, whole: bool = False) -> Inscription | None:
    """None for a picture that is none of ours. Settings of a later version that this one lacks are left out."""
    saved = {"subject": None, "source_sha256": None} | (fields_in(path, whole=whole) or {})
    try:
        subject, source = (None if saved[name] is None else str(saved[name]) for name in ("subject", "source_sha256"))
        return Inscription(decode(Sampling, saved["sampling"]), str(saved["base"]), subject, source)
    except (KeyError, UserError):
        return None


def read_again(path: Path) -> Inscription | None:
    """`read`, remembered until the file changes: a page asks for the same pictures every second."""
    try:
        return _remembered(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _remembered(file: str, _stamp: int) -> Inscription | None:
    return read(Path(file))
