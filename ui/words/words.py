"""The pages' texts in the reader's language: English here in the code, others in `words/<language>.json`.

In: an English text. Out: `say` gives what Gradio's page replaces by the browser's language, whole texts by their key;
`tell` the words themselves with their figures, in the language of the browser that is being answered; `translate` the
words in a language that is named. A language without a file, and a text without a translation, is English. So are
errors, reports, what the worker says of its work, and everything in an answer to a program.
Try it: `translate("Train", "de")`. Another file named as Gradio names the language adds it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import gradio as gr
from gradio.context import LocalContext
from gradio.i18n import I18nData

from pipelines.core.said import Said

FOLDER = Path(__file__).parent
ENGLISH = "en"
_said: set[str] = set()  # texts that the page itself replaces
_spoken: ContextVar[str | None] = ContextVar("language", default=None)


def say(text: str) -> str:
    """`text` as a marker that the page translates, alone or inside HTML; of several in one string only the first is
    replaced. It must not be escaped.
    """
    _said.add(text)
    return str(I18nData(_key(text)))


def tell(text: str, **parts: object) -> str:
    """`text` in the language of the browser that is being answered, its {parts} filled in."""
    found = translate(text, spoken())
    return found.format(**parts) if parts else found


def in_words(said: Said | str) -> str:
    """What a lower room has to say, in the language of the browser that is being answered; a `str` stays as it is."""
    if isinstance(said, str):
        return said
    return tell(said.text, **{name: in_words(v) if isinstance(v, Said) else v for name, v in said.values.items()})


def spoken() -> str:
    """The language of the browser that is being answered; English where none is. Of what a browser likes only the first
    counts, as for the texts that the page itself replaces.
    """
    if (named := _spoken.get()) is not None:
        return named
    request = LocalContext.request.get(None)
    return preferred((request.headers.get("accept-language") or "").split(",")[0]) if request is not None else ENGLISH


@contextlib.contextmanager
def speaking(language: str) -> Iterator[None]:
    """Whatever is told inside is told in this language."""
    before = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(before)


def languages() -> gr.I18n:
    """What `launch(i18n=...)` wants: what `say` was asked for, in every language. Call it when the page is built.

    A text that a language lacks is looked for in English and then shown as its key, which is the English text itself.
    """
    english = {_key(text): text for text in sorted(_said) if _key(text) != text}
    others = {
        language: {_key(text): words(language)[text] for text in sorted(_said) if text in words(language)}
        for language in available()
    }
    return gr.I18n(**{ENGLISH: english, **others})


def translate(text: str, language: str) -> str:
    """`text` in this language; itself where there is no translation."""
    return words(language).get(text, text) if language in available() else text


def preferred(accept_language: str) -> str:
    """The language of ours that a browser's Accept-Language header likes best; English when it names none of them."""
    return _preferred(accept_language[:500])


@lru_cache(maxsize=256)  # asked for with every sentence
def _preferred(accept_language: str) -> str:
    liked: list[tuple[float, str]] = []
    for part in accept_language.split(","):
        found = re.fullmatch(r"([A-Za-z]{2,3})(?:-[A-Za-z0-9-]+)?(?:;q=([01](?:\.\d{1,3})?))?", part.replace(" ", ""))
        if found:
            liked.append((float(found[2] or 1), found[1].lower()))
    ours = {ENGLISH, *available()}
    return max(((q, name) for q, name in liked if q and name in ours), key=lambda each: each[0], default=(1, ENGLISH))[
        1
    ]


@lru_cache(maxsize=1)
def available() -> tuple[str, ...]:
    """The languages beside English."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


@lru_cache(maxsize=16)
def words(language: str) -> dict[str, str]:
    """{English text: translation} of one of the `available` languages."""
    return dict(json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))


def _key(text: str) -> str:
    """The text itself, but for its braces: the page reads a marker up to the first one."""
    return text.replace("{", "(").replace("}", ")")
