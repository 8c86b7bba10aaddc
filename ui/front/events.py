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
from ui.page.wiring import Show, Updates, refused_while_busy
from ui.run import pictures
from ui.run.services import Services
from ui.run.start import start_finishing, start_portrait


def wire(front: Front, services: Services, capability: gr.BrowserState, show: Show, tabs: gr.Tabs) -> list[Any]:
    """Connects the buttons; returns the events that put a job in the line."""
    act = Actions(front, services, capability, show, tabs)
    common: dict[str, Any] = {"outputs": [*act.everything], "api_visibility": "private", "show_progress": "hidden"}
    once: dict[str, Any] = {**common, "trigger_mode": "once"}
    front.example.click(told(act.open_example), [capability], **once)
    front.own.click(told(act.use_own), [capability], **once)
    front.compare.click(told(act.compare), [capability], **once, queue=False)
    front.stop.click(told(act.stop), [capability], **common, queue=False)
    return [
        front.make.click(told(act.make), [capability], **once),
        front.results.click(told(act.finish), [capability], **once),
    ]


class Actions:
    """`UserError` is told to the person."""

    def __init__(
        self, front: Front, services: Services, capability: gr.BrowserState, show: Show, tabs: gr.Tabs
    ) -> None:
        self.front, self.services, self.capability, self.show, self.tabs = front, services, capability, show, tabs
        self.everything = show.outputs | {capability, tabs, front.switch, front.hint}

    def make(self, kept: object) -> Updates:
        view = self.services.view(kept)
        if view.choices.example:
            return self.use_own(kept)
        if view.train_blocked or view.session is None:
            hint = gr.update(value=note(missing(view.train_blocked or ""), "warn"), visible=True)
            return {self.front.hint: hint, self.tabs: gr.update(selected="upload")}
        refused_while_busy(self.services, view.session)
        start_portrait(self.services, view.session)
        return {self.front.hint: gr.update(value="", visible=False), **self.show(kept)}

    def stop(self, kept: object) -> Updates:
        self.services.stop(self.services.sessions.need(kept).run)
        return self.show(kept)

    def finish(self, kept: object, event: gr.EventData) -> Updates:
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
        return self.show(kept)

    def open_example(self, kept: object) -> Updates:
        kept, session = self.services.sessions.ensure(kept)
        example.open_in(self.services, session)
        opened = self.show(kept, restore=True)
        return {**opened, self.capability: kept, self.tabs: gr.update(selected="score")}

    def use_own(self, kept: object) -> Updates:
        """The example goes, and the page is a new visitor's."""
        kept = example.left(self.services, kept)
        return {
            **self.show(kept, restore=True), self.capability: kept, self.tabs: gr.update(selected="upload"),
        }  # fmt: skip

    def compare(self, kept: object) -> Updates:
        """To the tab where the methods are chosen, or to the photos it needs."""
        where = "upload" if self.services.view(kept).train_blocked else "train"
        return {self.front.switch: views.VIEWS[1], self.tabs: gr.update(selected=where)}
