"""What the buttons above the tabs do. Every argument comes from a browser."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipelines.core.records import UserError
from pipelines.finishing import refine
from ui.front import example
from ui.front.layout import Front, missing
from ui.generate.finish import AS_IT_IS, KB, order_of
from ui.page import views
from ui.page.errors import told
from ui.page.html import note
from ui.page.refresh import Refresh, Updates
from ui.run import pictures
from ui.run.services import Services
from ui.run.start import start_finishing, start_portrait
from ui.web.limits import Refused
from ui.web.visitors import visitor_of


def wire(front: Front, services: Services, page: Refresh, tabs: gr.Tabs) -> list[Any]:
    """Connects the buttons; returns the events that put a job in the line."""
    act, kept = Actions(front, services, page, tabs), page.capability
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    once: dict[str, Any] = {"trigger_mode": "once", **quiet}
    whose = [kept, page.seen, tabs]
    anew = [
        *dict.fromkeys((*whose, *page.shown["upload"], *page.restored["upload"]))
    ]  # the Upload tab of a new visitor
    started = [
        front.make.click(told(act.make), [kept], [*anew, front.hint], **once),
        front.results.click(told(act.finish), [kept], **once),
    ]
    others = [
        front.example.click(told(act.open_example), [kept], whose, **once),
        front.own.click(told(act.use_own), [kept], anew, **once),
        front.stop.click(told(act.stop), [kept], queue=False, **quiet),
    ]
    front.compare.click(told(act.compare), [kept], [front.switch, tabs], queue=False, **once)
    for event in others:
        page.after(event)
    return [page.after(event) for event in started]


class Actions:
    """`UserError` is told to the person."""

    def __init__(self, front: Front, services: Services, page: Refresh, tabs: gr.Tabs) -> None:
        self.front, self.services, self.page, self.tabs = front, services, page, tabs

    def make(self, kept: object) -> Updates:
        view = self.services.view(kept)
        if view.choices.example:
            return self.use_own(kept)
        if view.train_blocked or view.session is None:
            hint = gr.update(value=note(missing(view.train_blocked or ""), "warn"), visible=True)
            return {self.front.hint: hint, self.tabs: gr.update(selected="upload")}
        self.services.require_idle(view.session.run)
        start_portrait(self.services, view.session)
        return {self.front.hint: gr.update(value="", visible=False)}

    def stop(self, kept: object) -> None:
        self.services.stop(self.services.sessions.need(kept).run)

    def finish(self, kept: object, event: gr.EventData) -> None:
        """The button below a portrait."""
        session = self.services.sessions.need(kept)
        view = self.services.view(kept)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn or finished already. Wait until they are there.")
        sent = getattr(event, "_data", None)
        shot = pictures.find(view.pictures, sent.get("picture") if isinstance(sent, dict) else None)
        order = order_of(
            (shot.path,), steps=list(refine.DEFAULT_STEPS), background=AS_IT_IS, size="linkedin", max_kb=KB,
            format_name="JPEG",
        )  # fmt: skip
        start_finishing(self.services, session, order)
        self.services.sessions.choose(session, finishing=shot.id)

    def open_example(self, kept: object, request: gr.Request) -> Updates:
        try:  # a click writes as much as an upload does
            self.services.limits.spend_upload(visitor_of(request), example.size_bytes())
        except Refused as problem:
            raise UserError(str(problem)) from None
        kept, session = self.services.sessions.ensure(kept)
        example.open_in(self.services, session)
        return {self.page.capability: kept, self.page.seen: {}, self.tabs: gr.update(selected="score")}

    def use_own(self, kept: object) -> Updates:
        """The example goes, and the page is a new visitor's."""
        kept = example.left(self.services, kept)
        page = self.page
        fresh = page.built("upload", self.services.view(kept)) if "upload" in page.tabs else {}  # no box stays ticked
        return {**fresh, page.capability: kept, page.seen: {}, self.tabs: gr.update(selected="upload")}

    def compare(self, kept: object) -> Updates:
        """To the tab where the methods are chosen, or to the photos it needs."""
        where = "upload" if self.services.view(kept).train_blocked else "train"
        return {self.front.switch: views.VIEWS[1], self.tabs: gr.update(selected=where)}
