"""What the Train tab's buttons do. Every argument comes from a browser."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipelines.core.records import UserError
from ui.page.errors import told
from ui.page.refresh import Refresh, Updates
from ui.run.services import Services
from ui.run.start import start_training
from ui.train.dials import Asked, chosen_methods, requested
from ui.train.layout import TrainTab


def wire(tab: TrainTab, services: Services, page: Refresh) -> list[Any]:
    """Connects the tab's handlers; returns the events that put a job in the line."""

    @told
    def start(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool, **dials: Any) -> None:
        session = services.sessions.need(kept)
        view = services.view(kept)
        if view.progress.busy:
            raise UserError("This run is still working. Wait until it is done, or press Stop first.")
        if view.train_blocked:
            raise UserError(view.train_blocked)
        chosen = chosen_methods(view, quality, methods, more)
        if not chosen:
            raise UserError("Choose at least one method to train.")
        settings = requested(view, quality, chosen, dials)
        tab.estimated(view, Asked(quality, chosen, settings, go_on is True))
        start_training(
            services,
            session,
            methods=tuple(chosen),
            quality=quality,
            settings=settings,
            go_on=go_on is True and bool(view.older),
        )

    @told
    def stop(kept: object) -> None:
        services.stop(services.sessions.need(kept).run)

    @told
    def estimate(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool, **dials: Any) -> str:
        view = services.view(kept)
        chosen = chosen_methods(view, quality, methods, more)
        asked = Asked(quality, chosen, requested(view, quality, chosen, dials), go_on is True)
        return tab.estimated(view, asked)

    @told
    def change_quality(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool) -> Updates:
        view = services.view(kept)
        asked = Asked(quality, chosen_methods(view, quality, methods, more), {}, go_on is True)
        return {tab.estimate: tab.estimated(view, asked), **tab.fill(view, quality, {})}

    def leaving(method: str) -> Any:
        @told
        def leave(kept: object) -> None:
            services.leave(services.sessions.need(kept).run, method)

        return leave

    capability = page.capability
    common: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    started = tab.start.click(
        start, [capability, tab.quality, tab.methods, tab.more, tab.go_on], inputs_kwargs=tab.dials, **common,
        trigger_mode="once",
    )  # fmt: skip
    quiet: dict[str, Any] = {**common, "queue": False}
    stopped = [tab.stop.click(stop, [capability], **quiet)]
    stopped += [button.click(leaving(method), [capability], **quiet) for method, button in tab.leave.items()]
    for event in (started, *stopped):
        page.after(event, "train")
    known = [capability, tab.quality, tab.methods, tab.more, tab.go_on]
    tab.quality.input(change_quality, known, [tab.estimate, *tab.dials.values()], **quiet)
    changes = [control.input for control in (tab.methods, tab.more, tab.go_on, *tab.dials.values())]
    gr.on(changes, estimate, known, tab.estimate, inputs_kwargs=tab.dials, trigger_mode="always_last", **quiet)
    return [started]
