"""What a person asked to be drawn, checked: numbers, words and sizes become `Sampling` records.

In: whatever a browser sent. Out: records; `UserError` names the setting. Gradio's own bounds let NaN and
fractions through.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import replace

import gradio as gr

from pipelines.bases.registry import BASES, BaseRow, unknown_words
from pipelines.core import safety
from pipelines.core.decode import limits, with_subject
from pipelines.core.records import Sampling, UserError
from ui.page import html as page_html
from ui.run.view import View
from ui.words.words import tell

MAX_SEED = 2**31 - 1
NEW_SEEDS = 1_000_000  # new ones are drawn below this: short enough to read out and write down
MAX_NUMBER = 24
SWEPT = 4  # values of steps, and of guidance, in a sweep; the page says so
# The generator's own list; it is not imported because it brings torch with it. A test holds the two equal.
SCHEDULERS = ("default", "ddim", "dpm++", "unipc", "euler", "euler ancestral")
PROMPT_LIMIT = 500


def chosen_columns(view: View, columns: object) -> tuple[str, ...]:
    """Those of `columns` that can be drawn. Raises UserError when there is none."""
    wanted = columns if isinstance(columns, list) else []
    chosen = tuple(column for column in view.columns if column in wanted)
    if not chosen:
        raise UserError("Choose at least one column to draw: the untrained base or a trained method.")
    return chosen


def first_seed(keep: object, seed: object) -> object:
    """The seed as it stands when it is to be kept (unchecked: `samplings` does that), else a new one."""
    return seed if keep is True else secrets.randbelow(NEW_SEEDS)


def swept(one: Sampling, *, steps: object, guidance: object) -> tuple[Sampling, ...]:
    """`one` at every pair of the steps and guidances that a person wrote. Raises UserError naming what is wrong."""
    many_steps = [whole("Steps", value, *limits(Sampling, "steps")) for value in numbers("Steps", steps)]
    many_guidances = [
        decimal("Guidance", value, *limits(Sampling, "guidance")) for value in numbers("Guidance", guidance)
    ]
    if len(many_steps) * len(many_guidances) < 2:
        raise UserError("A sweep of one picture compares nothing. Write at least two values of steps or of guidance.")
    return tuple(replace(one, steps=each, guidance=how) for each in many_steps for how in many_guidances)


def numbers(label: str, text: object) -> list[float]:
    """ "10, 20; 40" -> [10, 20, 40]: 1 to SWEPT different ones, smallest first. Raises UserError."""
    parts = [part for part in re.split(r"[,;\s]+", str(text or "")[:200]) if part]
    try:
        found = sorted({float(part) for part in parts})
    except ValueError:
        raise UserError(f"{label} must be numbers with commas between them, such as 10, 20, 40.") from None
    if not 1 <= len(found) <= SWEPT:
        raise UserError(f"Write 1 to {SWEPT} different values of {label.lower()}, not {len(found)}.")
    return found


def samplings(
    row: BaseRow,
    *,
    prompt: object,
    negative_prompt: object,
    number: object,
    seed: object,
    steps: object,
    guidance: object,
    scheduler: object,
    width: object,
    height: object,
    strength: object,
) -> tuple[Sampling, ...]:
    """One Sampling per picture, with seeds that count up. Every value comes from a browser and is checked here.

    Raises UserError naming the setting: Gradio's own bounds let NaN and fractions through.
    """
    count = whole("Pictures per method", number, 1, MAX_NUMBER)
    first = whole("Seed", seed, 0, MAX_SEED)
    text = words("Prompt", prompt)
    if not text:
        raise UserError("The prompt is empty. Describe the picture, or pick a style.")
    text, said = with_subject(text)
    if said:
        gr.Info(said)
    negative = words("Negative prompt", negative_prompt)
    safety.check_prompt(text, negative)
    if missing := unknown_words(row, text):
        raise UserError(f"{called(row)} does not know: {', '.join(missing)}. Remove or replace these words.")
    if scheduler not in schedulers(row):
        raise UserError(f"There is no such scheduler. Choose one of: {', '.join(schedulers(row))}.")
    sizes = (0, *row.sizes_px)
    if width not in sizes or height not in sizes:
        raise UserError(f"{row.title} does not draw that size. Choose width and height from the lists.")
    common = Sampling(
        prompt=text,
        negative_prompt=negative,
        steps=whole("Steps", steps, *limits(Sampling, "steps")),
        guidance=decimal("Guidance", guidance, *limits(Sampling, "guidance")),
        width_px=int(str(width)) or None,
        height_px=int(str(height)) or None,
        scheduler=str(scheduler),
        strength=decimal("LoRA strength", strength, 0.0, 1.5),
    )
    return tuple(Sampling(**{**vars(common), "seed": (first + i) % (MAX_SEED + 1)}) for i in range(count))


def schedulers(row: BaseRow) -> tuple[str, ...]:
    """What it can draw with, its own first."""
    return SCHEDULERS[:1] if row.own_scheduler else SCHEDULERS


def named_schedulers(row: BaseRow) -> list[tuple[str, str]]:
    own, *others = schedulers(row)
    return [(tell("default"), own), *((name, name) for name in others)]


def decimal(label: str, value: object, low: float, high: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise UserError(f"{label} must be a number from {low:g} to {high:g}. Correct it and try again.")
    return float(value)


def whole(label: str, value: object, low: float, high: float) -> int:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or int(number) != number or not low <= number <= high:
        raise UserError(f"{label} must be a whole number from {int(low)} to {int(high)}. Correct it and try again.")
    return int(number)


def words(label: str, value: object) -> str:
    text = " ".join(str(value or "").split())
    if len(text) > PROMPT_LIMIT:
        raise UserError(f"{label} has {len(text)} characters; at most {PROMPT_LIMIT} are used. Shorten it.")
    return text


def unknown_note(row: BaseRow, prompt: str) -> str:
    """What is said about a prompt that can't be drawn: why, or which words this base never learned."""
    if refusal := safety.problem(prompt[:PROMPT_LIMIT]):
        return page_html.note(refusal, "bad")
    missing = unknown_words(row, prompt[:PROMPT_LIMIT])
    if not missing:
        return ""
    return page_html.note(tell("{base} does not know: {words}.", base=called(row), words=", ".join(missing)), "bad")


def called(row: BaseRow) -> str:
    """A base's short name; of a local one never its path."""
    return row.name if row.name in BASES else row.title
