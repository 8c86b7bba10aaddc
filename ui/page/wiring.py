"""How the tabs meet: one snapshot of a run goes in, updates for every component of every tab come out.

Handlers change something and then return `show(capability)`. The timer calls `Show.changed`, which leaves out what
is as it was, so that an idle page gets nothing and a running plot does not flicker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

import gradio as gr
from gradio.components import Component

from pipelines.core.records import UserError
from pipelines.runs import jobs
from ui.page import html as page_html
from ui.page.errors import sentence, told
from ui.run.services import Services
from ui.run.sessions import Session
from ui.run.view import View
from ui.words import words

NO_PROGRESS = (
    "A whole slice of the GPU brought this no further, so it was given up. What was done before is kept. Start again; "
    "should it be given up once more, choose smaller pictures or a smaller base."
)
Updates = dict[Any, Any]  # component -> gr.update(...) or a value, as Gradio's dict returns want it


class Tab(Protocol):
    """`show` follows from the run; `restore` brings the person's choices back after a reload; `news` is sent by the
    timer alone, once for every change: it may touch what a person can edit."""

    def show(self, view: View) -> Updates: ...

    def restore(self, view: View) -> Updates: ...

    def news(self, view: View) -> Updates: ...


class Show:
    """Calls every tab's `show` (and `restore`) on one snapshot."""

    def __init__(self, services: Services, tabs: Sequence[Tab], extra: Callable[[View], Updates]) -> None:
        self.services = services
        self.tabs = tuple(tabs)
        self.extra = extra
        # by language: what a new visitor's page is told beyond what it was built with, and what it knows then
        self.opening: dict[str, tuple[Updates, dict[int, str]]] = {}
        nothing = services.view(None)
        self.outputs: set[Component] = set(self._all(nothing, restore=True))

    def __call__(self, capability: object, *, restore: bool = False) -> Updates:
        return self._all(self.services.view(capability), restore=restore)

    def settle(self) -> None:
        """Build what a new visitor sees into the page itself: opening it then costs the server next to nothing.

        Called once, while the page is built, in English. What a component can't hold, and what is said otherwise in
        another language, is kept for `opening`.
        """
        built, known = self(None, restore=True), self.changed(None, {})[1]
        rest: Updates = {}
        for component, update in built.items():
            left, held = {}, component.get_config()
            for name, value in update.items():
                if name == "__type__":
                    continue
                if name not in held:
                    left[name] = value
                elif name == "value":
                    component.value = None if value is None else component.postprocess(value)
                else:
                    setattr(component, name, value)
            if left:
                rest[component] = gr.update(**left)
        self.opening[words.ENGLISH] = rest, known
        for language in words.available():
            with words.speaking(language):
                told, known = self(None, restore=True), self.changed(None, {})[1]
            other = {c: update for c, update in told.items() if _digest(update) != _digest(built[c])}
            self.opening[language] = {**rest, **other}, known

    def changed(self, capability: object, seen: dict[int, str]) -> tuple[Updates, dict[int, str]]:
        """The updates whose content differs from `seen`, and the new `seen` (component id -> digest)."""
        view = self.services.view(capability)
        updates = self._all(view, restore=False)
        for tab in self.tabs:
            updates |= tab.news(view)
        now = {component._id: _digest(update) for component, update in updates.items()}
        fresh = {c: update for c, update in updates.items() if seen.get(c._id) != now[c._id]}
        return fresh, now

    def _all(self, view: View, *, restore: bool) -> Updates:
        updates: Updates = dict(self.extra(view))
        for tab in self.tabs:
            updates |= tab.show(view)
            if restore:
                updates |= tab.restore(view)
        return updates


def wire_page(
    demo: gr.Blocks,
    services: Services,
    capability: gr.BrowserState,
    steps: gr.HTML,
    show: Show,
    *,
    starts: Sequence[Any] = (),
) -> None:
    """What happens when the page opens, and once a second while it is open. `starts` are the events that put a job in
    the line: where no worker does the jobs, the page that asked for one drives it.
    """
    seen = gr.State({})  # a page that slept so long that it was forgotten is told everything anew

    def admit(kept: object, request: gr.Request) -> bool:
        """Whether `kept` is a run's capability; the run's pictures are then this browser's to see."""
        session = services.sessions.find(kept)
        if session is not None:
            services.admit(session, request)
        return session is not None

    @told
    def load(kept: object, request: gr.Request) -> Updates:
        opening, known = show.opening[words.spoken()]
        opening = {component: dict(update) for component, update in opening.items()}  # Gradio takes them apart
        if not admit(kept, request):  # a new visitor: the page was built for them
            return {capability: None, seen: known, **opening}
        return {capability: kept, seen: known, **show(kept, restore=True)}

    def poll(kept: object, before: dict[int, str], request: gr.Request) -> Updates:
        try:
            admit(kept, request)
            fresh, now = show.changed(kept, before)
        except Exception as error:  # a toast every second would help nobody: say it once, in the line of steps
            return {steps: gr.update(value=page_html.note(sentence(error), "bad")), seen: {}}
        return {**fresh, seen: now} if fresh else {seen: gr.skip()}

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    loaded = demo.load(load, [capability], [*show.outputs, capability, seen], **quiet)
    if services.slice is not None:
        wire_slices([loaded, *starts], services, capability, show)
    gr.Timer(1).tick(poll, [capability, seen], [*show.outputs, seen], **quiet)


def wire_slices(events: Sequence[Any], services: Services, capability: gr.BrowserState, show: Show) -> None:
    """After each of these events: slice after slice of the GPU, until this run's jobs are done."""

    @told
    def drive(kept: object) -> Iterator[Updates]:
        for _ in sliced(services, services.sessions.find(kept)):
            yield show(kept)

    for event in events:
        event.then(
            drive, [capability], show.outputs, concurrency_id="gpu", concurrency_limit=1, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip


def sliced(services: Services, session: Session | None) -> Iterator[None]:
    """One slice after another of what waits in this run, pictures before training; yields after each. A job of which a
    slice did nothing is given up: more of them would use up the visitor's time on the GPU for nothing.
    """
    if session is None or services.slice is None:
        return
    slots = (session.run.drawing, session.run)
    while (slot := next((each for each in slots if jobs.status(each).waits), None)) is not None:
        before = jobs.status(slot)
        services.slice(str(slot.folder), slot.slot)
        after = jobs.status(slot)
        if after.waits and (after.job, after.kept) == (before.job, before.kept):
            jobs.give_up(slot, NO_PROGRESS)
        yield


def _digest(update: Any) -> str:
    if isinstance(update, dict):
        parts = [(key, value.to_csv() if hasattr(value, "to_csv") else repr(value)) for key, value in update.items()]
        return sha256(repr(sorted(parts)).encode()).hexdigest()
    return sha256(repr(update).encode()).hexdigest()


def refused_while_busy(services: Services, session: Session) -> None:
    """Raise UserError when anything is being done in this run."""
    if services.busy(session.run):
        raise UserError("This run is still working. Wait until it is done, or press Stop first.")
