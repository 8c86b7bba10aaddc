"""The command line: `python -m pipelines check|train|generate|finish|score|compare|import|extract|verify|forget`.

In: arguments. Out: what was asked for in files, a summary (or with `--json` JSON and nothing else) on stdout, progress
and problems on stderr. Exit code 0 when the work was done, whatever the verdict; 2 for wrong use; 1 when it failed
(`verify` says itself what its codes mean).
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`.

Running a command counts as consent to learn the face in the photos, and is recorded in the run.
Light: everything heavy is imported where it is needed, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipelines.cli.output import FAILED, WRONG_USE, WrongUse, print_json, say
from pipelines.cli.parser import parser
from pipelines.core.records import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every problem ends as one sentence on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    asked = parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except UserError as problem:
        say(str(problem))
        if getattr(asked, "json", False):
            print_json({"error": str(problem)})
        return WRONG_USE if isinstance(problem, WrongUse) else FAILED
    except KeyboardInterrupt:
        say("Left. The work so far is kept.")
        return FAILED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        from pipelines.runs.worker import OURS, explain

        sentence = explain(error)
        if sentence == OURS:
            sentence = f"This is our fault, not yours: {type(error).__name__}: {error}. Please report it."
        say(sentence)
        if getattr(asked, "json", False):
            print_json({"error": sentence})
        if os.environ.get("LIKENESS_DEBUG"):
            raise
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
