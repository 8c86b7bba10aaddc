"""Convert arguments: numbers, lists of names, settings, run folders.

In: one argument's text. Out: its value, or an error that argparse or `main` prints.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.output import WrongUse, say
from pipelines.core.decode import with_subject
from pipelines.core.records import UserError, is_imported

if TYPE_CHECKING:
    from pipelines.core.run import Run
    from pipelines.runs.jobspec import JobSpec


DREAMBOOTH_LORA = "likeness_dreambooth_lora.safetensors"


def names(known: Sequence[str], *, imported: bool = False) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        for name in names:
            if name not in known and not (imported and is_imported(name)):
                raise argparse.ArgumentTypeError(f"there is no method {name}; choose of {', '.join(known)}")
        if not names:
            raise argparse.ArgumentTypeError(f"no method was named; choose of {', '.join(known)}")
        return names

    return parse


def whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
    if not 0 <= value <= 2**53:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^53")
    return value


def count(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None
    if not 0 <= value <= 1000:  # also refuses NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1000")
    return value


def setting(text: str) -> tuple[str, str, Any]:
    where, equals, value = text.partition("=")
    method, dot, name = where.partition(".")
    if not equals or not dot:
        raise argparse.ArgumentTypeError(f"{text} does not read METHOD.NAME=VALUE")
    try:
        return method, name, json.loads(value)
    except ValueError:
        return method, name, value


def check_out(path: Path, *, source: Path | None = None, overwrite: bool = False) -> None:
    """Raise an error before the work if `path` can't be written, or, without `overwrite`, if it is the `source`."""
    from pipelines.core.files import check_target

    try:
        check_target(path)
        if not overwrite and source is not None and path.exists() and path.samefile(source):
            raise UserError(f"{path.name} is the picture itself. Give another name, or --overwrite.")
    except UserError as problem:
        raise WrongUse(str(problem)) from problem


def check_run(folder: Path) -> None:
    """Refuse a folder in which no run can be made or changed, before the work."""
    from pipelines.core.run import MARKER

    try:
        check_out(folder.expanduser() / MARKER)
    except WrongUse as problem:
        raise WrongUse(str(problem).replace(MARKER, folder.name[:80], 1)) from problem


def run_of(folder: Path) -> Run:
    from pipelines.core.run import open_run

    try:
        if folder.is_symlink():
            raise UserError(f"{folder.name} is a link. Give the run's own folder.")
        return open_run(folder)
    except UserError as problem:
        raise WrongUse(str(problem)) from problem


def use_face_models(asked: argparse.Namespace) -> None:
    """Set the folder of ArcFace packs for this process and its worker."""
    folder = getattr(asked, "face_models", None)
    if folder is not None:
        if not folder.is_dir():
            raise WrongUse(f"{folder} is not a folder. Name the folder that holds models/<pack>/*.onnx.")
        os.environ["LIKENESS_FACE_MODELS"] = str(folder.resolve())


def subject_prompts(prompts: Sequence[str]) -> list[str]:
    """Prompts with `{subject}`; it is added in front if missing, with a message. Raises WrongUse if it is misspelt."""
    made = []
    for prompt in prompts:
        try:
            placed, said = with_subject(prompt)
        except UserError as problem:
            raise WrongUse(str(problem)) from problem
        if said:
            say(said)
        made.append(placed)
    return made


def checked(spec: JobSpec) -> JobSpec:
    """The job; raises WrongUse if it can't be done, before anything is loaded or written."""
    try:
        spec.check()
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    return spec
