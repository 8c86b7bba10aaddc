"""Start the worker of a job and show its progress until it ends.

In: a run and a `JobSpec`. Out: a progress bar on stderr, and the number of the job's first event.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pipelines.cli.output import say
from pipelines.core.records import Counted, Event, UserError

if TYPE_CHECKING:
    from pipelines.core.run import Run
    from pipelines.runs.jobspec import JobSpec


def work(run: Run, spec: JobSpec) -> int:
    """Start the worker and show its progress until it ends; returns the number of its first event. Ctrl-C stops it."""
    from pipelines.runs import jobs

    jobs.start(run, spec)
    first = jobs.status(run).first_event
    bar = Bar()
    events = jobs.follow(run)
    stopping = False
    while True:
        try:
            event = next(events, None)
            if event is None:
                break
            bar.event(event)
        except KeyboardInterrupt:
            if stopping:
                raise
            stopping = True
            bar.close()
            say("Stopping: what was learned is kept. Press Ctrl-C again to leave at once.")
            jobs.stop(run)
            events = jobs.follow(run)
    bar.close()
    status = jobs.status(run)
    if status.state == "done":
        return first
    again = f" The run is in {run.folder}; the same command continues it." if status.state != "failed" else ""
    raise UserError(f"{status.reason or 'The work did not finish.'}{again}")


class Bar:
    """Progress on stderr: on a terminal one line that changes, else a new line from time to time."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = ""
        self._said_at = 0.0
        self._steps: dict[str, tuple[int, int]] = {}
        self._left: dict[str, float] = {}

    def event(self, event: Event) -> None:
        if event.kind == "step" and event.method:
            self._steps[event.method] = (event.step, event.steps)
            self._left[event.method] = event.seconds_left or 0.0
            done = sum(step for step, _ in self._steps.values())
            total = sum(steps for _, steps in self._steps.values())
            parts = ", ".join(f"{name} {step}/{steps}" for name, (step, steps) in self._steps.items())
            self.show(f"learning: {parts}, {sum(self._left.values()):.0f} s left", done, total)
        elif event.kind == "render":
            self.show("drawing", event.step, event.steps)
        elif event.kind == "score":
            self.show("scoring", event.step, event.steps)
        elif event.kind == "unread":
            self.line(f"The prompt is longer than this base reads. Not read: {event.text}")
        elif event.text and self._is_news(event):
            self.line(event.text)

    @staticmethod
    def _is_news(event: Event) -> bool:
        if event.kind == "failed":
            return event.method is not None  # a failure of the whole job is printed at the end
        return event.kind in ("phase", "note", "refused") and event.data != Counted("photos")

    def show(self, text: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        line = f"[{'#' * round(24 * share):<24}] {share:4.0%} {text}"
        if self._live:
            print(f"\r\x1b[2K{line[:150]}", end="", file=sys.stderr, flush=True)
            self._shown = line
        elif time.monotonic() - self._said_at > 10:
            print(line, file=sys.stderr, flush=True)
            self._said_at = time.monotonic()

    def line(self, text: str) -> None:
        self.close()
        say(text)

    def close(self) -> None:
        if self._shown:
            print(file=sys.stderr, flush=True)
            self._shown = ""
