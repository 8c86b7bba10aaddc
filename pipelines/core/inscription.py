"""The settings in a picture: every PNG that this project draws holds them as JSON in a text chunk.

In: a PNG. Out: an `Inscription`; None for a picture from elsewhere. `generation.save_render` writes them. A file may
also come from a stranger: types and limits are checked, but what it says may be false. Light: no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.core.decode import decode
from pipelines.core.records import Sampling, UserError

TEXT_CHUNK = "likeness"
MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Inscription:
    """The settings that determine a picture."""

    sampling: Sampling
    base: str
    subject: str | None = None  # id of what was learned; None for the untrained base
    source_sha256: str | None = None  # of the picture that was varied


def fields_in(path: Path, *, whole: bool = False) -> dict[str, object] | None:
    """The JSON, unchecked; None where there is none. `whole`: decode the pixels too, and None for a damaged file."""
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
    """The picture's inscription; None for a picture from elsewhere. Settings of a later version are ignored."""
    saved = {"subject": None, "source_sha256": None} | (fields_in(path, whole=whole) or {})
    try:
        subject, source = (None if saved[name] is None else str(saved[name]) for name in ("subject", "source_sha256"))
        return Inscription(decode(Sampling, saved["sampling"]), str(saved["base"]), subject, source)
    except (KeyError, UserError):
        return None


def read_again(path: Path) -> Inscription | None:
    """`read`, cached until the file changes: a page asks for the same pictures every second."""
    try:
        return _remembered(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _remembered(file: str, _stamp: int) -> Inscription | None:
    return read(Path(file))
