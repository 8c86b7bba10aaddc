"""The command line: `python -m pipelines check|train|generate|finish|score|compare|import|extract|verify|forget`.

In: arguments. Out: what was asked for in files, a summary (or with `--json` JSON and nothing else) on stdout, progress
and problems on stderr. Exit code 0 when the work was done, whatever the verdict; 2 for wrong use; 1 when it failed
(`verify` says itself what its codes mean).
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`.

Running a command counts as consent to learn the face in the photos, and is recorded in the run.
Light: everything heavy is imported where it is needed, so that `--help` answers at once.
"""

from __future__ import annotations

from pipelines.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
