"""Presets: styles (`presets/styles`), recipes (`presets/recipes`) and prompt sets. Each JSON file there is one of them.

In: JSON files, checked strictly. Out: `Style` and `Recipe` records.
Try it:
`python -c "from pipelines.core.presets import styles; print(*styles())"`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines.core import safety
from pipelines.core.decode import decode
from pipelines.core.files import REPOSITORY
from pipelines.core.records import ALL_METHODS, CLASS_WORDS, QUALITIES, Recipe, Style, UserError

PRESETS = REPOSITORY / "presets"
CHOSEN = ("base", "method", "class_word", "seed")  # chosen by the person, not set in a recipe file

Record = TypeVar("Record")


class Base(Protocol):
    """The fields of a base that presets need. `pipelines.bases.registry.BaseRow` has them."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def offered(self) -> tuple[str, ...]: ...
    def unknown_words(self, text: str) -> list[str]: ...
    def why_not(self, method: str) -> str: ...


def styles(folder: Path = PRESETS / "styles") -> dict[str, Style]:
    """All styles by id, in order of their files' names. Raises UserError naming a file that is wrong."""
    found: dict[str, Style] = {}
    for file in sorted(folder.glob("*.json")):
        style = _record(Style, _read(file), file)
        if "{subject}" not in style.prompt:
            raise UserError(f"The style {file.name} has no {{subject}} in its prompt. Add it where the person belongs.")
        if problem := safety.problem(style.prompt, style.negative_prompt):
            raise UserError(f"The style {file.name} is not offered. {problem}")
        if style.id in found:
            raise UserError(f"Two style files have the id {style.id}. Rename one of them.")
        found[style.id] = style
    return found


def stylised() -> tuple[str, ...]:
    """The prompts of styles that are no photographs: recognisers can't judge their pictures."""
    return tuple(style.prompt for style in styles().values() if not style.photoreal)


def style_problem(style: Style, row: Base) -> str | None:
    """Why `row` can't draw this style, as one sentence, or None when it can."""
    if "any" not in style.bases and row.family not in style.bases:
        return f"{style.name} is not written for {row.title}."
    unknown = row.unknown_words(" ".join((style.prompt.replace("{subject}", " "), *style.words)))
    if unknown:
        return f"{row.title} does not know: {', '.join(unknown)}."
    return None


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set. `prompt` holds `{subject}`, or `{class}` for no particular person."""

    prompt: str
    kind: str
    photoreal: bool = True  # False: recognisers can't judge it, so it does not count in the identity mean


def prompts(name: str, folder: Path = PRESETS / "prompts") -> tuple[Prompt, ...]:
    """A prompt set of `presets/prompts`, or of a JSON file given by its path. Raises UserError for a wrong one."""
    file = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.json")))
        raise UserError(f"There is no prompt set {name}. Choose one of {known}, or give a JSON file.")
    entries = _read(file).get("prompts")
    if not isinstance(entries, list) or not entries:
        raise UserError(f'The prompt set {file.name} has no list "prompts". Add it.')
    found = tuple(_record(Prompt, entry, file) for entry in entries if isinstance(entry, dict))
    for each in found:
        if "{subject}" not in each.prompt and "{class}" not in each.prompt:
            raise UserError(f"The prompt set {file.name} has a prompt without {{subject}} or {{class}}: {each.prompt}")
        if problem := safety.problem(each.prompt):
            raise UserError(f"The prompt set {file.name} is not used. {problem}")
    return found


def recipe(row: Base, method: str, quality: str, *, class_word: str, seed: int = 0) -> Recipe:
    """The recipe file of the base's family and the method, at one quality.

    Raises UserError for an unknown method, quality or class word, and for a recipe file that is wrong.
    """
    for value, known, what in ((method, ALL_METHODS, "method"), (quality, QUALITIES, "quality")):
        if value not in known:
            raise UserError(f"There is no {what} {value}. Choose one of: {', '.join(known)}.")
    if class_word not in CLASS_WORDS:
        raise UserError(f"The class word is one of {', '.join(CLASS_WORDS)}, not {class_word}.")
    if method not in row.offered:
        raise UserError(row.why_not(method))
    file = PRESETS / "recipes" / f"{row.family}-{method}.json"
    saved = _read(file)
    settings = {**_part(saved, "recipe", file), **_part(saved, quality, file)}
    if wrong := sorted(set(settings) & set(CHOSEN)):
        raise UserError(f"The recipe {file.name} must not set {', '.join(wrong)}. Remove it from the file.")
    chosen = {"base": row.name, "method": method, "class_word": class_word, "seed": seed}
    return _record(Recipe, settings | chosen, file)


def load(kind: type[Record], file: Path) -> Record:
    """A record of this kind from a JSON file. Raises UserError that names the file and what is wrong with it."""
    return _record(kind, _read(file), file)


@dataclass(frozen=True)
class PortraitPlan:
    """How somebody's portraits are made with one click."""

    methods: tuple[str, ...]  # in this order: each learns, then draws
    quality: str
    styles: tuple[Style, ...]
    pictures: int  # of each method
    keep: int  # of all, the most alike


def portrait_plan(row: Base, file: Path = PRESETS / "portraits.json") -> PortraitPlan:
    """What `presets/portraits.json` says for the base's family, or for any, as far as the base offers it. Raises
    UserError when no method or no style is left, and for a file that is wrong.
    """
    saved = _read(file)
    families = _part(saved, "families", file)
    family = _part(families, row.family if row.family in families else "any", file)
    known = styles()
    fitting = [known[name] for name in saved.get("styles", ()) if style_problem(known[name], row) is None]
    methods = tuple(method for method in family.get("methods", ()) if method in row.offered)
    if not fitting or not methods:
        raise UserError(f"{row.title} can't make portraits with one click. Use the tabs below, or pick another base.")
    shown = tuple(fitting[: saved["styles_used"]])
    return PortraitPlan(methods, family["quality"], shown, saved["pictures"], saved["keep"])


def _read(file: Path) -> Mapping[str, Any]:
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The preset {file.name} is missing. Get the whole repository again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The preset {file.name} can't be read ({error}). Correct or remove it.") from error
    if not isinstance(saved, dict):
        raise UserError(f"The preset {file.name} must hold one JSON object. Correct or remove it.")
    return saved


def _part(saved: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    part = saved.get(name)
    if not isinstance(part, dict):
        raise UserError(f"The preset {file.name} has no part {name}. Add it.")
    return part


def _record(kind: type[Record], saved: Mapping[str, Any], file: Path) -> Record:
    """A record from JSON; unknown settings are errors here."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(saved) - set(known)):
        raise UserError(f"The preset {file.name} has unknown settings: {', '.join(unknown)}. Correct or remove them.")
    return decode(kind, saved, where=f"In the preset {file.name}, ", labels={name: name for name in known})
