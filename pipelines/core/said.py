"""Sentences as data: an English text, by which a translation is found, and the values that fill its {names}.

In: what a lower room has to say. Out: `Said`; whoever shows it makes the words, in English by `str`, in another
language as `ui.words` does. Try it: `str(Said("{count} voters", count=3))`.
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
    """The words in English: `text` with its {names} filled in."""
    return text.format(**values) if values else text
