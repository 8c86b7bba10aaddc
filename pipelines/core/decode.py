"""Decode records from JSON, and check their fields' types and limits. (Photos are decoded in `photos/decode.py`.)

In: what JSON says, or a record. Out: the record, or a UserError that names the field and what it can be.
Try it: `decode(Sampling, {"prompt": "portrait of {subject}", "steps": 500})`. pydantic is imported when it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_type_hints

from pipelines.core.records import MOST, OneOf, Sampling, UserError, Within

T = TypeVar("T")
SOURCE_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}/){0,4}[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\.png")


def decode(kind: type[T], saved: object, *, where: str = "", labels: Mapping[str, str] | None = None) -> T:
    """A record of this kind from its JSON. Fields of a later version, which `kind` does not have, are ignored.

    Raises UserError, a sentence that names the field, for a field that is missing, of another type or out of its
    limits. `where` begins the sentence; `labels`: field -> its name in the sentence (default: "Steps" for `steps`).
    """
    from pydantic import ValidationError

    of: Any = kind
    adapter = _adapter(of)
    try:
        try:
            return _validated(adapter, saved, whole=False)
        except ValidationError:  # a page sends 20.0 where a whole number is meant
            return _validated(adapter, saved, whole=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        sentence = _sentence(kind, wrong["loc"], wrong["type"], wrong["input"], labels or {})
    except (TypeError, ValueError, RecursionError):
        sentence = "This can't be read."
    raise UserError(where + sentence)


def _validated(adapter: Any, saved: object, *, whole: bool) -> Any:
    text = json.dumps(_plain(saved, whole=whole), ensure_ascii=False)
    if _NO_UTF8.search(text) is None:
        return adapter.validate_json(text)
    return _restored(adapter.validate_json(text.translate(_TO_PRIVATE)))


def check_record(record: object, *, where: str = "", labels: Mapping[str, str] | None = None) -> None:
    """Raises UserError like `decode` for a record whose fields are of another type or out of their limits."""
    decode(type(record), record, where=where, labels=labels)


def check_variation(sampling: Sampling) -> None:
    """Raises UserError for a `source` that is no plain path of a PNG inside the run, or a `change` without one.

    It does not check whether the picture exists; the code that reads it does.
    """
    source, change = sampling.source, sampling.change
    if source is not None and not (isinstance(source, str) and SOURCE_NAME.fullmatch(source)):
        raise UserError("The picture to vary must be a PNG of this run, such as renders/lora/seed3-0123456789.png.")
    if source is None and change != 1:
        raise UserError("There is no picture to change. Choose one of the run's pictures, or set change to 1.")


def with_subject(prompt: str) -> tuple[str, str | None]:
    """The prompt with `{subject}`, and a sentence when it was missing and was put in front (else None).

    Raises UserError for anything else in braces: a prompt with `{Subject}` or `{}` would draw another person.
    """
    for found in re.findall(r"\{[^{}]*\}", prompt):
        if found != "{subject}":
            raise UserError(f"The prompt says {found[:60]}. Write {{subject}} where the person belongs.")
    if "{subject}" in prompt or not prompt.strip():
        return prompt, None
    placed = f"{{subject}}, {prompt.strip()}"
    return placed, f"The prompt has no {{subject}}, so it was put in front: {placed}"


def limits(kind: type, name: str) -> tuple[float, float]:
    """The limits of a number field, for instance for a slider."""
    hint = get_type_hints(kind, include_extras=True)[name]
    return next((each.low, each.high) for each in _meta(hint) if isinstance(each, Within))


@lru_cache(maxsize=32)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    _configure(kind)
    return TypeAdapter(kind)


def _configure(kind: Any) -> None:
    """Set pydantic to convert nothing: neither a text nor true is taken as a number."""
    if is_dataclass(kind) and isinstance(kind, type):
        kind.__pydantic_config__ = {"strict": True, "allow_inf_nan": False, "extra": "ignore"}  # type: ignore[attr-defined]
        for hint in get_type_hints(kind).values():
            _configure(hint)
    for part in get_args(kind):
        _configure(part)


def _plain(value: Any, *, whole: bool) -> Any:
    """Records as dicts; with `whole`, floats such as 20.0 become whole numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        return {str(name): _plain(each, whole=whole) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each, whole=whole) for each in value]
    if whole and isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) <= MOST:
        return int(value)
    return value


def _figure(value: float) -> str:
    return f"{value:g}" if value < 1e6 else f"{value:,.0f}"


# Python's characters for bytes of file names that are no UTF-8. pydantic refuses them, so it gets private ones instead.
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_TO_PRIVATE = {0xDC80 + byte: 0x10FE80 + byte for byte in range(0x80)}
_FROM_PRIVATE = {private: lone for lone, private in _TO_PRIVATE.items()}


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_FROM_PRIVATE)
    if isinstance(value, tuple):
        return tuple(map(_restored, value))
    if isinstance(value, dict):
        return {_restored(name): _restored(each) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _restored(each) for name, each in vars(value).items()})
    return value


def _meta(hint: Any) -> tuple[Any, ...]:
    """The metadata in a field's `Annotated`, also inside `... | None`."""
    own = getattr(hint, "__metadata__", ())
    return own or tuple(each for part in get_args(hint) for each in getattr(part, "__metadata__", ()))


def _sentence(kind: Any, at: tuple[Any, ...], error: str, value: object, labels: Mapping[str, str]) -> str:
    """A sentence about what is wrong with the field at the path `at` of a record."""
    hint = kind
    name = next((str(each) for each in reversed(at) if isinstance(each, str)), "")
    for each in at:
        if is_dataclass(hint) and isinstance(each, str):
            hint = get_type_hints(hint, include_extras=True).get(each, hint)
        else:
            hint = next((part for part in reversed(get_args(hint)) if part not in (type(None), Ellipsis)), hint)
        hint = (
            next((part for part in get_args(hint) if is_dataclass(part)), hint)
            if type(None) in get_args(hint)
            else hint
        )
    label = labels.get(name) or name.removesuffix("_px").replace("_", " ").capitalize() or "This"
    if error == "missing":
        return f"{label} is not said. Add it."
    for each in _meta(hint):
        if isinstance(each, OneOf):
            return f"{label} is one of {', '.join(each.values)}, not {value}."
        if isinstance(each, Within):
            number = "a whole number" if int in (*get_args(hint), *(get_args(get_args(hint)[0]))) else "a number"
            return f"{label} must be {number} from {_figure(each.low)} to {_figure(each.high)}, not {value}."
    if not at:
        return "This can't be read."
    plain = next((part for part in (hint, *get_args(hint)) if part in _TYPES), None)
    return f"{label} must be {_TYPES.get(plain, 'of another kind')}, not {str(value)[:80]}."


_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
