"""Sentences as data: an English text, by which a translation is found, and the values that fill its {names}.

In: a sentence of any package. Out: a `Said`; `str` makes the English text, `ui.words` another language's.
Try it: `str(Said("{count} voters", count=3))`.
"""

from __future__ import annotations


class Said:
    """One sentence. A value may be a `Said` itself."""

    def __init__(self, text: str, **values: object) -> None:
        self.text, self.values = text, values

    def __str__(self) -> str:
        return tell(self.text, **self.values)

    def __repr__(self) -> str:
        return f"Said({str(self)!r})"


def tell(text: str, **values: object) -> str:
    """The English text: `text` with its {names} filled in."""
    return text.format(**values) if values else text
