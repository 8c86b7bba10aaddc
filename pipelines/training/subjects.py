"""A trained method's card, `subject.json`: what was learned, from what, and where it lies.

In: the folder of a method. Out: a `Subject`, or a sentence about why there is none. Light: no torch.
Try it: `load_subject(Path("run/methods/lora"))`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.files import write_file
from pipelines.core.records import Event, Recipe, Subject, UserError

if TYPE_CHECKING:
    from pipelines.bases.registry import BaseRow

SUBJECT = "subject.json"


def load_subject(folder: Path) -> Subject:
    """The card of a trained method. Raises UserError when there is none or it can't be read."""
    file = Path(folder) / SUBJECT
    try:
        saved = json.loads(file.read_text())
        known = [field.name for field in fields(Recipe)]  # a setting missing in an older card gets its default
        recipe = Recipe(**{key: saved["recipe"][key] for key in known if key in saved["recipe"]})
        names = [field.name for field in fields(Subject) if field.name != "recipe"]
        return Subject(recipe=recipe, **{name: saved[name] for name in names})
    except FileNotFoundError as error:
        raise UserError(f"Nothing is trained in {file.parent.name} yet. Train first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.parent.name}/{SUBJECT} can't be read ({error}). Train again.") from error


def save_subject(folder: Path, subject: Subject, learned: tuple[str, ...]) -> None:
    """Write the card. `learned`: every file of `folder` that holds something learned."""
    text = json.dumps(asdict(subject) | {"schema": 1, "learned": learned}, indent=2) + "\n"
    write_file(folder / SUBJECT, lambda path: path.write_text(text, encoding="utf-8"))


def find_subject(folder: Path) -> Subject | None:
    """The card where training was complete and its artefact is still there, else None."""
    try:
        subject = load_subject(folder)
    except UserError:
        return None
    return subject if subject.complete and (folder / subject.artifact).is_file() else None


def finished(folder: Path, recipe: Recipe, photo_digest: str) -> Subject | None:
    """The complete subject in `folder` when it was learned by this recipe from these photos."""
    subject = find_subject(folder)
    same = subject is not None and subject.recipe == recipe and subject.photo_digest == photo_digest
    return subject if same else None


def trained_before(folder: Path, row: BaseRow, photo_digest: str) -> Subject | None:
    """The complete subject in `folder` when it was learned from these photos on this base, by whatever recipe."""
    subject = find_subject(folder)
    if subject is None:
        return None
    same = (subject.base, subject.base_revision, subject.photo_digest) == (row.name, row.revision, photo_digest)
    return subject if same else None


def ended(kind: str, subject: Subject, folder: Path) -> Event:
    """The last event of a training: `kind` is "done" or "stopped"."""
    return Event(
        kind,
        subject.method,
        subject.steps,
        subject.recipe.steps,
        seconds=subject.train_s,
        seconds_left=0.0,
        path=str(folder / SUBJECT),
        text=None if subject.complete else f"Stopped after {subject.steps} of {subject.recipe.steps} steps; kept",
    )
