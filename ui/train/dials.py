"""The settings that people may change, and what a browser sent for them, checked.

In: values of sliders and lists. Out: changes to recipes; `UserError` names a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.core.records import OPTIMIZERS, QUALITIES, Recipe, UserError
from ui.page.theme import METHOD_NAMES
from ui.run.start import Settings
from ui.run.view import View

PIVOTAL = "pivotal"


@dataclass(frozen=True)
class Dial:
    """One setting of one method's recipe that people may change; `high` is the app's own limit."""

    method: str
    setting: str
    label: str
    low: float
    high: float
    step: float
    info: str = ""


RATE = "How far each step goes. Too high spoils the face, too low learns little."
DIALS = (
    Dial("textual_inversion", "steps", "Steps", 10, 3000, 10),
    Dial("textual_inversion", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("textual_inversion", "vectors", "Word vectors", 1, 8, 1, "How many invented words describe the face."),
    Dial("dreambooth", "steps", "Steps", 10, 3000, 10),
    Dial("dreambooth", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("dreambooth", "prior_weight", "Prior preservation", 0.0, 2.0, 0.05, "Keeps other faces from becoming yours."),
    Dial("lora", "steps", "Steps", 10, 3000, 10),
    Dial("lora", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("lora", "rank", "Rank", 1, 128, 1, "How much it can change: higher learns more, and copies more."),
    Dial("pivotal", "steps", "Steps", 10, 3000, 10),
    Dial("pivotal", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("pivotal", "rank", "Rank", 1, 128, 1, "How much it can change: higher learns more, and copies more."),
)


BATCH = Dial("", "batch", "Photos per step, all methods", 1, 32, 1, "More is steadier, and takes longer.")
FACE = Dial(
    "", "face_weight", "Weight of the face, all methods", 1, 10, 0.5,
    "How much more the head counts than what is around it. 1 is off. More learns less of the backgrounds.",
)  # fmt: skip


COMMON = (BATCH, FACE)
OPTIMIZER_NAMES = {"adamw": "AdamW", "adamw8bit": "AdamW, 8 bit", "prodigy": "Prodigy"}


@dataclass(frozen=True)
class Asked:
    """What an estimate is about: the controls as the page has them."""

    quality: str
    methods: list[str]
    settings: Settings
    go_on: bool


def usual(view: View) -> Asked:
    """The controls as a page that is opened shows them: as the last training was asked for."""
    asked = view.choices.asked
    same = asked.get("quality") == view.choices.quality
    methods = [m for m in view.row.trainable if m in view.progress.methods] or list(view.row.usual)
    return Asked(view.choices.quality, methods, asked.get("settings", {}) if same else {}, True)


def common_value(recipes: Mapping[str, Recipe], setting: str) -> int | float:
    """What a setting of all methods is shown as: the largest."""
    return max((getattr(recipe, setting) for recipe in recipes.values()), default=1)


def dial_name(dial: Dial) -> str:
    return f"{dial.method}_{dial.setting}" if dial.method else dial.setting


def chosen_methods(view: View, quality: str, methods: object, more: object = ()) -> list[str]:
    """The methods this base has among those named, `more` being those made of others.

    Raises UserError for a quality that does not exist.
    """
    if quality not in QUALITIES:
        raise UserError(f"There is no quality {quality}. Choose one of: {', '.join(QUALITIES)}.")
    named = [*(methods if isinstance(methods, list) else []), *(more if isinstance(more, list) else [])]
    return [method for method in view.row.trainable if method in named]


def requested(view: View, quality: str, methods: list[str], dials: dict[str, Any]) -> Settings:
    """What differs from the recipes. Every value comes from a browser; raises UserError naming a wrong one."""
    plain = view.services.recipes(view.row, quality, view.row.trainable, {})
    usual = {dial.setting: common_value(plain, dial.setting) for dial in COMMON}
    found: Settings = {}
    for method, recipe in ((m, plain[m]) for m in methods):
        for dial in (*(each for each in DIALS if each.method == method), *COMMON):
            value = dials.get(dial_name(dial))
            own = getattr(recipe, dial.setting)
            if value is None or value == usual.get(dial.setting, own):
                continue
            name = f"{METHOD_NAMES[method]}: {dial.label}"
            number = checked(name, value, dial, whole=isinstance(own, int))
            found.setdefault(method, {})[dial.setting] = number
        optimizer, dora = dials.get("optimizer"), dials.get("lora_dora")
        if optimizer is not None and optimizer != recipe.optimizer:
            found.setdefault(method, {})["optimizer"] = chosen_optimizer(optimizer)
        if method == "lora" and dora is not None and dora != recipe.dora:
            if not isinstance(dora, bool):
                raise UserError("LoRA: DoRA is on or off. Correct it and try again.")
            found.setdefault(method, {})["dora"] = dora
    return found


def chosen_optimizer(value: object) -> str:
    if not isinstance(value, str) or value not in OPTIMIZERS:
        raise UserError(f"There is no such optimizer. Choose one of: {', '.join(OPTIMIZERS)}.")
    return value


def checked(name: str, value: object, dial: Dial, *, whole: bool) -> int | float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not dial.low <= value <= dial.high or (whole and int(value) != value):  # type: ignore[operator, call-overload]
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} must be {kind} from {dial.low:g} to {dial.high:g}. Correct it and try again.")
    return int(value) if whole else float(value)  # type: ignore[call-overload, arg-type]
