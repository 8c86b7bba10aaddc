"""Blocks that leave alone what a handler did not mention, and say in words what they can't read.

In: what a browser sent, and a handler's dict of updates. Out: the same answer as Gradio's own, without its cost and
without its tracebacks. Gradio 6.31 rebuilds every output component that a dict leaves out, twice over, on the event
loop: 56 of them for every tick of an idle page's timer, which thirty open pages feel. And data that no page sends ends
there in a traceback with the data in it, and an error without a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import html
import os
from collections.abc import Container
from typing import Any

import gradio as gr
from gradio import route_utils
from gradio.blocks import BlockFunction, BlocksConfig
from gradio.route_utils import CustomCORSMiddleware, GradioMultiPartParser
from gradio.routes import App, ORJSONResponse
from gradio.state_holder import SessionState
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException

from pipelines.core.files import is_full
from ui.page.errors import CHECK, CONFUSED, DISK_FULL
from ui.web.turns import Turns
from ui.words.words import tell

AT_ONCE = 8  # components, before somebody else has their turn
DESCRIBES = (  # a component to programs; none of it is used by a browser
    "api_info", "api_info_as_input", "api_info_as_output", "example_inputs", "_api_info", "component_class_id", "key",
    "preserved_by_key", "name", "component_class_name",
)  # fmt: skip
STREAMS = ("max_batch_size", "stream_every")  # of events in batches or streams: there are none
# What a component or an event need not say when it is empty or False.
OFF = (
    "_retryable", "_undoable", "_selectable", "likeable", "streamable", "elem_classes", "batch", "cancels",
    "scroll_to_output", "trigger_only_on_success", "trigger_only_on_failure", "collects_event_data", "autoscroll",
)  # fmt: skip
UNUSED = "element.addEventListener('click', function() { trigger('click') });"  # Gradio's own, where nobody listens
SKIPPED = {"__type__": "update"}  # what gr.skip() is, and what the page is told about a component that stays as it was


class Visit(BlocksConfig):
    """A visitor's own list of components. It describes none of them: Gradio does, at every opening of a page, for
    links to a moment's state, which this app does not offer. That took the event loop 25 ms and kept 340 kB."""

    @staticmethod
    def config_for_block(_id: int, rendered_ids: list[int], block: Any, renderable: Any = None) -> dict[str, Any]:
        return {}


class Shared(BlocksConfig):
    """The app's own components, of which every visitor has a list."""

    def __copy__(self) -> Visit:
        copied = super().__copy__()
        visit = Visit(self.root_block)
        vars(visit).update(vars(copied))
        return visit


class Served(App):
    """Gradio's application without its middleware that lets the pages of other sites read and send."""

    def add_middleware(self, middleware_class: Any, *args: Any, **options: Any) -> None:
        if middleware_class is not CustomCORSMiddleware:
            super().add_middleware(middleware_class, *args, **options)


class WholeFiles(GradioMultiPartParser):
    """A form of an upload: whole files and nothing else. Gradio keeps a part that is no file in memory, whatever its
    size, and leaves the files of a form behind that it can't use."""

    _ended = False

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException(CONFUSED)

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
            if not self._ended:
                raise MultiPartException(CONFUSED)
        except BaseException:  # a full disk and the end of the server too: Gradio cleans up after broken forms only
            for file in self._files_to_close_on_error:
                with contextlib.suppress(OSError):  # it writes what it still holds
                    file.close()
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
            raise
        return form


route_utils.GradioMultiPartParser = WholeFiles  # type: ignore[misc]  # where the upload route looks for it


def _without(described: Any, names: Container[str]) -> Any:
    return {n: value for n, value in dict(described).items() if n not in names and (value or n not in OFF)}


class Page(gr.Blocks):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.default_config = Shared(self)

    def get_config_file(self) -> Any:
        """What a browser is sent: without what describes the components to programs, and what says nothing."""
        self._described = super().get_config_file()
        components = [_without(each, DESCRIBES) for each in self._described["components"]]
        for each in components:
            each["props"] = _without(each["props"], DESCRIBES)
            if each["props"].get("js_on_load") == UNUSED:
                each["props"]["js_on_load"] = ""
        events = [
            {
                name: value
                for name, value in dict(each).items()
                if value is not None or name in ("queue", "trigger_after")
            }
            for each in self._described["dependencies"]
        ]
        return {
            **self._described,
            "components": components,
            "dependencies": [_without(each, STREAMS) for each in events],
        }

    def get_api_info(self, *args: Any, **options: Any) -> Any:
        sent, self.config = self.config, self._described
        try:
            return super().get_api_info(*args, **options)
        finally:
            self.config = sent

    def launch(self, *args: Any, app_kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        served = Served(default_response_class=ORJSONResponse, **(app_kwargs or {}))
        return super().launch(*args, _app=served, **options)

    def queue(self, *args: Any, **options: Any) -> Page:
        made = super().queue(*args, **options)
        self._queue.__class__ = Turns  # a queue that has not started: what differs is methods
        return made

    async def call_function(self, block_fn: Any, *args: Any, **options: Any) -> Any:
        if not getattr(self.fns[block_fn] if isinstance(block_fn, int) else block_fn, "fn", None):
            said = "This event works in the browser alone. Reload the page."
            raise gr.Error(said, title=tell(CHECK), print_exception=False)
        return await super().call_function(block_fn, *args, **options)

    def working_on(self) -> set[str]:
        """The ids of the events that wait in the queue or are being worked on."""
        return self._queue.working_on() if isinstance(self._queue, Turns) else set()

    def forget_visits(self, idle_s: float) -> None:
        """Drop what Gradio keeps of pages that asked for nothing for so long; an open one asks every second."""
        holder = getattr(self, "state_holder", None)
        if holder is None:  # not served yet
            return
        before = datetime.datetime.now() - datetime.timedelta(seconds=idle_s)
        queue = self._queue
        busy = queue.pages() if isinstance(queue, Turns) else set()
        with holder.lock:
            for page in [page for page, used in holder.time_last_used.items() if used < before and page not in busy]:
                holder.session_data.pop(page, None)
                holder.time_last_used.pop(page, None)
                queue.pending_messages_per_session.pop(page, None)  # answers that nobody came for
                queue.pending_event_ids_session.pop(page, None)
        self.upload_file_set -= {file for file in list(self.upload_file_set) if not os.path.lexists(file)}

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: SessionState | None, explicit_call: bool = False
    ) -> list[Any]:
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:
            said = DISK_FULL if is_full(error.__cause__ or error) else CONFUSED
            if isinstance(error, gr.Error) and "file type" in str(error.message):
                said = html.escape(str(error.message)[:300])  # somebody chose a file of another kind
            raise gr.Error(said, title=tell(CHECK), duration=15, print_exception=False) from None

    async def postprocess_data(
        self, block_fn: BlockFunction, predictions: list | dict, state: SessionState | None
    ) -> list[Any]:
        if not isinstance(predictions, dict) or block_fn.batch or len(block_fn.outputs) < 2:
            return await super().postprocess_data(block_fn, predictions, state)
        if predictions != SKIPPED and not all(key in block_fn.outputs for key in predictions):
            return await super().postprocess_data(block_fn, predictions, state)  # it says what is wrong
        said = [block for block in block_fn.outputs if predictions.get(block, SKIPPED) != SKIPPED]
        done: list[Any] = []
        for start in range(0, len(said), AT_ONCE):
            part = copy.copy(block_fn)
            part.outputs = said[start : start + AT_ONCE]
            values = [predictions[block] for block in part.outputs]
            done += await super().postprocess_data(part, values if len(values) > 1 else values[0], state)
            await asyncio.sleep(0)  # a whole page takes 50 ms; with thirty opening at once others waited for seconds
        told = dict(zip((block._id for block in said), done))
        return [
            told[block._id] if block._id in told else None if block.stateful else dict(SKIPPED)
            for block in block_fn.outputs
        ]
