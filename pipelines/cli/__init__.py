"""The command line: `python -m pipelines check|train|generate|finish|score|compare|import|extract|verify|forget`.

In: arguments. Out: files, a summary on stdout, progress and problems on stderr; exit code 0, 1 or 2.
`parser` defines commands and arguments; `train`, `generate` and `score` run the commands; `progress` and `output`
print. Try it: `python -m pipelines check PHOTO_DIR`, or from Python `main(["check", "PHOTO_DIR"])`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "main":
        from pipelines.cli.entry import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
