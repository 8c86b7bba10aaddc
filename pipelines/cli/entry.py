"""Run one command of the command line.

In: arguments. Out: an exit code; every error is one sentence on stderr.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipelines.cli.output import FAILED, WRONG_USE, WrongUse, any_encoding, print_json, say
from pipelines.cli.parser import parser
from pipelines.core.records import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every error is one sentence on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    any_encoding()
    asked = parser().parse_args(arguments)
    try:
        from pipelines.photos.decode import restrict_pillow  # after the parser: --help needs no numpy

        restrict_pillow()
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
        from pipelines.runs.supervisor import OURS
        from pipelines.runs.worker import explain

        sentence = explain(error)
        if sentence == OURS:
            sentence = f"This is our fault, not yours: {type(error).__name__}: {error}. Please report it."
        say(sentence)
        if getattr(asked, "json", False):
            print_json({"error": sentence})
        if os.environ.get("LIKENESS_DEBUG"):
            raise
        return FAILED
