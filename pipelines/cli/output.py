"""What the commands print: results on stdout, progress and problems on stderr; exit codes.

In: values. Out: lines, or one JSON document.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.core.files import printable
from pipelines.core.records import UserError

DONE, FAILED, WRONG_USE = 0, 1, 2


class WrongUse(UserError):
    """Wrong arguments: exit code 2."""


def any_encoding() -> None:
    """Let stdout and stderr accept every character: those that their encoding does not have are printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(text: object) -> None:
    """Print lines on stdout. Control characters, which file names may contain, are printed escaped."""
    print("\n".join(map(printable, str(text).split("\n"))), flush=True)


def say(text: str) -> None:
    """The same on stderr."""
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_json(value: Any) -> None:
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=1, ensure_ascii=not unicode), flush=True)


def print_table(report: dict[str, Any]) -> None:
    judges = list(report["judges"])
    show(f"{'method':<18} {'seconds':>8} {'MB':>8} {'faces':>8}  " + "  ".join(f"{name:>22}" for name in judges))
    for name, row in report["methods"].items():
        faces = "–" if row["renders"] is None else f"{row['faces_found'] or 0} of {row['renders']}"
        size = None if row["artifact_bytes"] is None else row["artifact_bytes"] / 1e6
        said = []
        for judge in judges:
            one = row["identity"][judge]
            said.append(f"{figure(one['mean'])} (normalised {figure(one['normalised'])})")
        show(
            f"{name:<18} {figure(row['train_s']):>8} {figure(size):>8} {faces:>8}  "
            + "  ".join(f"{s:>22}" for s in said)
        )
    for judge, mark in report["judges"].items():
        show(
            f"{judge}: real photos of this person reach {figure(mark['ceiling'])}, different people stay below "
            f"{figure(mark['impostor'])}"
        )


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names; if two are the same, the paths as they were given."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
