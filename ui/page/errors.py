"""Errors, in one place: what a handler raises goes in, one sentence on the page comes out.

`UserError` is shown as it is. Everything else is written to the log and the person reads that it was our fault -
never a traceback, never an empty "Error" badge. Try it: decorate a handler with `@told`.
"""

from __future__ import annotations

import errno
import functools
import html
import inspect
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import gradio as gr

from pipelines.core.files import refusal
from pipelines.core.records import UserError
from ui.words.words import tell

log = logging.getLogger("likeness.ui")
CHECK = "Please check"  # the title of what a person can put right
NOT_DONE = "Not done"  # ... and of what is our fault or the machine's
P = ParamSpec("P")
R = TypeVar("R")

OURS = (
    "Something went wrong on our side and was written to the log. Your photos and results are kept; please try again."
)
DISK_FULL = "The disk is full, so nothing more could be saved. Free some space or delete a run, then try again."
CONFUSED = "The page sent something that this app can't read. Reload the page and try again."
MEMORY = "This machine ran out of memory. Choose fewer pictures or a smaller base, then try again."


def sentence(error: BaseException) -> str:
    """What a person should read about `error`. Unexpected ones are logged here, with their traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        log.error("disk full: %s", type(error).__name__)
        return DISK_FULL
    if refused := refusal(error):
        log.error("the machine refused: %s", type(error).__name__)
        return refused
    if isinstance(error, MemoryError):
        log.error("out of memory")
        return MEMORY
    log.error("unexpected error in a handler", exc_info=error)
    return OURS


def told(handler: Callable[P, R]) -> Callable[P, R]:
    """Turn whatever `handler` (a function or a generator) raises into a Gradio toast. File names in it are escaped."""
    if inspect.isgeneratorfunction(handler):  # Gradio has to see a generator function too

        @functools.wraps(handler)
        def guarded_steps(*args: P.args, **kwargs: P.kwargs):
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise _toast(error) from None

        return cast(Callable[P, R], guarded_steps)

    @functools.wraps(handler)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _toast(error) from None

    return guarded


def _toast(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    title = CHECK if isinstance(error, UserError) else NOT_DONE
    return gr.Error(html.escape(sentence(error)), title=tell(title), duration=15, print_exception=False)
