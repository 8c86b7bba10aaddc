"""How the tabs follow the run: one snapshot of it goes in, updates for the open tab come out.

A handler acts and returns what it changed on its own tab; `Refresh.after` then shows the tab as the run's folder says.
Once a second the open tab is told what has changed since. A tab that comes to the front is brought up to date; at its
first opening the person's choices come back too. No event has the components of two tabs as outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

import gradio as gr
from gradio.components import Component

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
Seen = dict[str, dict[int, str]]  # tab -> what its page knows: component id -> digest
FRAME = "frame"  # the key in `Seen` of what stands around the tabs
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Section(Protocol):
    """A tab or a part of one. `show` follows from the run; `restore` brings the person's choices back at the first
    opening; `news` is sent by the timer alone, once for every change: it may touch what a person can edit."""

    def show(self, view: View) -> Updates: ...

    def restore(self, view: View) -> Updates: ...

    def news(self, view: View) -> Updates: ...


class Refresh:
    """Shows the run on the tabs. Build it inside the Blocks, before any handler is wired."""

    def __init__(
        self, services: Services, around: Sequence[Section], tabs: Mapping[str, tuple[gr.Tab, Sequence[Section]]]
    ):
        self.services = services
        self.around = tuple(around)
        self.tabs = {name: tuple(sections) for name, (_, sections) in tabs.items()}
        self.items = {name: item for name, (item, _) in tabs.items()}
        # The secret only keeps the value readable after a restart; what protects a run is the capability itself.
        self.capability = gr.BrowserState(None, storage_key="likeness-run", secret="likeness")
        self.seen = gr.State({})  # a page that slept so long that it was forgotten is told everything anew
        self.timers = {name: gr.Timer(1, active=False) for name in tabs}
        nothing = services.view(None)
        self.shown: dict[str, list[Component]] = {
            name: list(self._show(name, nothing) | self._news(name, nothing)) for name in tabs
        }
        self.framed: list[Component] = list(self.frame(nothing))
        self.restored = {name: list(self._restore(name, nothing)) for name in tabs}
        # (language, tab) -> what a new visitor's page is told beyond what it was built with, and what it knows then
        self.opening: dict[tuple[str, str], tuple[Updates, dict[int, str]]] = {}

    # ------------------------------------------------------------------ wiring

    def after(self, event: Any, tab: str = "") -> Any:
        """Shows the tab once `event` is done, whether it went well or not; without one what stands around them."""
        if not tab:
            return event.then(told(self.load), [self.capability], [*self.framed, self.capability], **QUIET)
        return event.then(self._refresh_of(tab), [self.capability, self.seen], self._outputs(tab), **QUIET)

    def wire(self, page: gr.Blocks, starts: Sequence[Any]) -> None:
        """What happens when the page opens, when a tab comes to the front, and once a second while it is there.

        `starts` are the events that put a job in the line: where no worker does the jobs, the page that asked for one
        drives it.
        """
        self._settle()
        loaded = page.load(told(self.load), [self.capability], [*self.framed, self.capability], **QUIET)
        for tab, item in self.items.items():
            outputs = [*dict.fromkeys((*self.restored[tab], *self.timers.values(), self.seen))]
            opened = item.select(self._opened_of(tab), [self.capability, self.seen], outputs, **QUIET)
            polled: tuple[Any, ...] = (self._poll_of(tab), [self.capability, self.seen], self._outputs(tab))
            opened.then(*polled, **QUIET)
            self.timers[tab].tick(*polled, **QUIET)
        if self.services.slice is not None:
            for event in (loaded, *starts):
                event.then(
                    told(self.drive), [self.capability], concurrency_id="gpu", concurrency_limit=1,
                    show_progress="hidden", api_visibility="private",
                )  # fmt: skip

    def _outputs(self, tab: str) -> list[Component]:
        return [*self.framed, *self.shown[tab], self.seen]

    # ------------------------------------------------------------------ handlers

    def admit(self, kept: object, request: gr.Request) -> Session | None:
        """The run of this capability; its pictures are then this browser's to see."""
        session = self.services.sessions.find(kept)
        if session is not None:
            self.services.admit(session, request)
        return session

    def load(self, kept: object, request: gr.Request) -> Updates:
        """What stands around the tabs. The one in front asks for itself."""
        session = self.admit(kept, request)
        return {self.capability: kept if session else None, **self.frame(self.services.view(kept))}

    def _opened_of(self, tab: str) -> Any:
        @told
        def opened(kept: object, before: Seen, request: gr.Request) -> Updates:
            updates: Updates = {timer: gr.update(active=name == tab) for name, timer in self.timers.items()}
            session = self.admit(kept, request)
            if tab in before:
                return updates
            if session is not None:
                return {**updates, self.seen: {**before, tab: {}}, **self._restore(tab, self.services.view(kept))}
            opening, known = self.opening[words.spoken(), tab]
            copied = {component: dict(update) for component, update in opening.items()}  # Gradio takes them apart
            return {**updates, self.seen: {**before, tab: known}, **copied}

        return opened

    def _poll_of(self, tab: str) -> Any:
        def poll(kept: object, before: Seen, request: gr.Request) -> Updates:
            try:
                self.admit(kept, request)
                fresh, now = self.changed(tab, kept, before)
            except Exception as error:  # a toast every second would help nobody: say it once, in the line of steps
                note = {self.framed[0]: gr.update(value=page_html.note(sentence(error), "bad"))}
                return {**note, self.seen: {**before, FRAME: {}}}
            return {**fresh, self.seen: now} if fresh else {self.seen: gr.skip()}

        return poll

    def _refresh_of(self, tab: str) -> Any:
        @told
        def refresh(kept: object, before: Seen, request: gr.Request) -> Updates:
            if self.admit(kept, request) is None and before.get(tab):
                return {self.seen: gr.skip()}  # there is no run yet: the page keeps what was chosen
            shown = {component._id for component in self._show(tab, self.services.view(None))}
            news = {name: digest for name, digest in before.get(tab, {}).items() if name not in shown}
            fresh, now = self.changed(tab, kept, {**before, tab: news, FRAME: {}})
            return {**fresh, self.seen: now}

        return refresh

    def drive(self, kept: object) -> Iterator[None]:
        """Slice after slice of the GPU, until this run's jobs are done."""
        yield from sliced(self.services, self.services.sessions.find(kept))

    # ------------------------------------------------------------------ updates

    def changed(self, tab: str, capability: object, before: Seen) -> tuple[Updates, Seen]:
        """The updates of the frame and a tab whose content differs from `before`, and what the page knows then."""
        view = self.services.view(capability)
        frame, updates = self.frame(view), self._show(tab, view) | self._news(tab, view)
        now = {**before, FRAME: _digests(frame), tab: before.get(tab, {}) | _digests(updates)}
        known = before.get(FRAME, {}) | before.get(tab, {})
        fresh = {c: update for c, update in (frame | updates).items() if known.get(c._id) != _digest(update)}
        return fresh, now

    def built(self, tab: str, view: View) -> Updates:
        """What a tab shows at its first opening."""
        return self._show(tab, view) | self._restore(tab, view)

    def _settle(self) -> None:
        """Build what a new visitor sees into the page itself: opening it then costs the server next to nothing.

        Called once, while the page is built, in English. What a component can't hold, and what is said otherwise in
        another language, is kept for `opening`.
        """
        nothing = self.services.view(None)
        for component, update in self.frame(nothing).items():
            _put(component, update)
        for tab in self.tabs:
            built, known = self.built(tab, nothing), self.changed(tab, None, {})[1][tab]
            rest = {c: gr.update(**left) for c, update in built.items() if (left := _put(c, update))}
            restored = set(self.restored[tab])
            known = {name: digest for name, digest in known.items() if name not in {c._id for c in rest}}
            self.opening[words.ENGLISH, tab] = {c: u for c, u in rest.items() if c in restored}, known
            for language in words.available():
                with words.speaking(language):
                    said = self._restore(tab, self.services.view(None))
                other = {c: update for c, update in said.items() if _digest(update) != _digest(built[c])}
                # the rest is told by the first poll, which finds that it differs
                self.opening[language, tab] = {**self.opening[words.ENGLISH, tab][0], **other}, known

    def frame(self, view: View) -> Updates:
        """What stands around the tabs."""
        return {c: update for section in self.around for c, update in section.show(view).items()}

    def _show(self, tab: str, view: View) -> Updates:
        return {c: update for section in self.tabs[tab] for c, update in section.show(view).items()}

    def _restore(self, tab: str, view: View) -> Updates:
        return {c: update for section in self.tabs[tab] for c, update in section.restore(view).items()}

    def _news(self, tab: str, view: View) -> Updates:
        return {c: update for section in self.tabs[tab] for c, update in section.news(view).items()}


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


def _put(component: Component, update: Any) -> Updates:
    """Give a component what an update would tell it; returns what it can't hold."""
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
    return left


def _digests(updates: Updates) -> dict[int, str]:
    return {component._id: _digest(update) for component, update in updates.items()}


def _digest(update: Any) -> str:
    if isinstance(update, dict):
        parts = [(key, value.to_csv() if hasattr(value, "to_csv") else repr(value)) for key, value in update.items()]
        return sha256(repr(sorted(parts)).encode()).hexdigest()
    return sha256(repr(update).encode()).hexdigest()
