"""How a prompt can go on: words and phrases that the base knows, are not said yet and contradict nothing.

In: a base and a prompt as far as it was typed. Out: completions, and the prompt with one of them in it. No torch.
Try it: `completions(find_base("portrait-128"), "portrait of {subject}, nav")`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipelines.bases.registry import BaseRow, vocabulary
from pipelines.core import presets
from pipelines.core.files import REPOSITORY


@dataclass(frozen=True)
class Phrases:
    """The phrases of a base. A prompt says at most one phrase of each group."""

    opening: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    apart: dict[str, tuple[str, ...]]  # a phrase -> phrases and groups that it rules out, and the other way round

    def apart_from(self, one: str, other: str) -> bool:
        names = {name for name, phrases in self.groups.items() if other in phrases} | {other}
        return not names.isdisjoint(self.apart.get(one, ()))


def completions(row: BaseRow, text: str, limit: int = 8) -> tuple[str, ...]:
    """What can be said next in a prompt that was typed as far as `text`; `completed` puts one of them in.

    Ends of a phrase or a word that is half typed, else phrases this base knows that are not said yet and contradict
    nothing that is. At most `limit`, the plainest first. Light: no torch.
    """
    phrases, typed = phrases_of(row), text.lower()
    every = [*phrases.opening, *(phrase for group in phrases.groups.values() for phrase in group)]
    said = [phrase for phrase in every if _says(typed, phrase)]
    left = [[p for p in group if not _ruled_out(p, name, said, phrases)] for name, group in phrases.groups.items()]
    openings = [] if "{subject}" in typed else list(phrases.opening)
    offered = _in_turn(left) if typed.strip() else openings
    if half := [phrase for phrase in (*openings, *offered) if _begun(text, phrase)]:
        return tuple(half[:limit])
    word, known = _last_word(typed), vocabulary(row) or frozenset()
    if word and word not in known and (ends := sorted(each for each in known if each.startswith(word))):
        return tuple(ends[:limit])
    return tuple(offered[:limit])


def completed(text: str, completion: str) -> str:
    """`text` with one of its `completions` said: what was half typed is finished, anything else follows a comma."""
    begun = _begun(text, completion)
    if not begun and " " not in completion:  # the end of a word
        begun = _begun(_last_word(text), completion)
    if begun:
        return text[: len(text) - len(begun)] + completion
    kept = text.rstrip().rstrip(",").rstrip()
    return f"{kept}, {completion}" if kept else completion


def phrases_of(row: BaseRow) -> Phrases:
    """The phrases of a base: its family's file in presets/words, else what the photographic styles for it say."""
    file = REPOSITORY / "presets" / "words" / f"{row.family}.json"
    found = _read_phrases(str(file), file.stat().st_mtime_ns) if file.is_file() else _phrases_of_styles(row)
    if vocabulary(row) is None:
        return found
    knows = {name: tuple(p for p in group if not row.unknown_words(p)) for name, group in found.groups.items()}
    return Phrases(tuple(p for p in found.opening if not row.unknown_words(p)), knows, found.apart)


@lru_cache(maxsize=4)
def _read_phrases(file: str, _stamp: int) -> Phrases:
    saved: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    groups, apart = ({name: tuple(each) for name, each in saved[part].items()} for part in ("groups", "apart"))
    return Phrases(tuple(saved["opening"]), groups, apart)


def _phrases_of_styles(row: BaseRow) -> Phrases:
    """What stands between the commas of the styles. Phrases about one thing end in one word: "soft light"."""
    openings: dict[str, None] = {}
    groups: dict[str, list[str]] = {}
    for style in presets.styles().values():
        opening, *rest = style.prompt.split(", ")
        # what is said of an astronaut fits nobody else
        if style.photoreal and opening.endswith("{subject}") and presets.style_problem(style, row) is None:
            openings[opening] = None
            for phrase in rest:
                about = groups.setdefault(phrase.split()[-1], [])
                about += [] if phrase in about else [phrase]
    return Phrases(tuple(sorted(openings, key=len)), {name: tuple(each) for name, each in groups.items()}, {})


def _says(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand side by side in a lower-case text."""
    return re.search(rf"(?<![\w{{]){re.escape(phrase.lower())}(?![\w}}])", text) is not None


def _ruled_out(phrase: str, group: str, said: Sequence[str], phrases: Phrases) -> bool:
    together = phrases.groups[group]
    return any(one in together or phrases.apart_from(one, phrase) or phrases.apart_from(phrase, one) for one in said)


def _begun(text: str, phrase: str) -> str:
    """The last part of `text`, from a comma or the person on, where `phrase` begins like it; else ""."""
    part = re.split(r",|\{subject\}", text)[-1].lstrip()
    return part if len(part) < len(phrase) and phrase.lower().startswith(part.lower()) else ""


def _last_word(text: str) -> str:
    """What stands after the last space or comma."""
    return re.split(r"[\s,]", text)[-1]


def _in_turn(groups: Sequence[Sequence[str]]) -> list[str]:
    """The first of every group, then the second of every group ..."""
    return [phrase for turn in zip_longest(*groups) for phrase in turn if phrase is not None]
