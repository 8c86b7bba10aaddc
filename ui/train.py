"""The Train tab: one dial, one button, three lanes that learn side by side, and Stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipelines.schema import METHODS, QUALITIES, UserError
from ui import views
from ui.errors import told
from ui.state import Services, View
from ui.theme import METHOD_COLOURS, METHOD_NAMES
from ui.wiring import Show, Updates, refused_while_busy

QUALITY_MEANS = {"draft": "draft - a first look", "good": "good - worth judging", "best": "best - patience"}
SMOOTHING = 0.9
PLOT_POINTS = 160


@dataclass
class TrainTab:
    quality: gr.Radio
    methods: gr.CheckboxGroup
    estimate: gr.HTML
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    columns: dict[str, gr.Column]
    lanes: dict[str, gr.HTML]
    plots: dict[str, gr.LinePlot]

    def show(self, view: View) -> Updates:
        busy = view.progress.busy
        updates: Updates = {
            self.start: gr.update(interactive=view.train_blocked is None and not busy, value=_start_text(view)),
            self.stop: gr.update(visible=busy and view.progress.kind != "generate"),
            self.status: gr.update(value=_status(view)),
        }
        for method in METHODS:
            lane = view.lane(method)
            updates[self.columns[method]] = gr.update(visible=lane is not None)
            updates[self.lanes[method]] = gr.update(value=views.lane(lane) if lane else "")
            curve = view.progress.losses.get(method, ())
            updates[self.plots[method]] = gr.update(value=loss_frame(curve), visible=len(curve) > 1)
        return updates

    def restore(self, view: View) -> Updates:
        return {
            self.methods: gr.update(
                choices=[(METHOD_NAMES[m], m) for m in view.row.methods],
                value=list(view.progress.methods or view.row.methods),
            ),
            self.quality: gr.update(value=view.choices.quality),
            self.estimate: gr.update(value=view.estimate(view.choices.quality, view.row.methods)),
        }

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services) -> TrainTab:
    row = services.bases[services.default_base]
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            quality = gr.Radio(
                [(QUALITY_MEANS[q], q) for q in QUALITIES], value="draft", label="Quality", elem_id="lk-quality"
            )
            methods = gr.CheckboxGroup(
                [(METHOD_NAMES[m], m) for m in row.methods],
                value=list(row.methods),
                label="Methods",
                elem_id="lk-methods",
            )
        with gr.Column(scale=2, min_width=260):
            estimate = gr.HTML(elem_id="lk-estimate")
            start = gr.Button("Train", variant="primary", size="lg", elem_id="lk-train")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="lk-stop")
    status = gr.HTML(elem_id="lk-train-status")
    columns, lanes, plots = {}, {}, {}
    with gr.Row(equal_height=False):
        for method in METHODS:
            with gr.Column(min_width=260, visible=False) as column:
                lanes[method] = gr.HTML(elem_id=f"lk-lane-{method}")
                plots[method] = gr.LinePlot(
                    x="step", y="loss", color="line", height=270, show_label=False, visible=False,
                    color_map={"smoothed": METHOD_COLOURS[method], "each step": "rgba(148,163,184,0.5)"},
                    x_title="step", y_title="loss", buttons=[], elem_id=f"lk-loss-{method}",
                )  # fmt: skip
            columns[method] = column
    return TrainTab(quality, methods, estimate, start, stop, status, columns, lanes, plots)


def wire(tab: TrainTab, services: Services, capability: gr.BrowserState, show: Show) -> None:
    @told
    def start(kept: object, quality: str, methods: list[str]) -> Updates:
        session = services.sessions.need(kept)
        view = services.view(kept)
        refused_while_busy(services, session)
        if view.train_blocked:
            raise UserError(view.train_blocked)
        if quality not in QUALITIES:
            raise UserError(f"There is no quality {quality}. Choose one of: {', '.join(QUALITIES)}.")
        chosen = [method for method in view.row.methods if method in (methods or [])]
        if not chosen:
            raise UserError("Choose at least one method to train.")
        session = services.sessions.choose(session, quality=quality)
        services.start_training(session, methods=tuple(chosen), quality=quality)
        return show(kept)

    @told
    def stop(kept: object) -> Updates:
        services.stop(services.sessions.need(kept).run)
        return show(kept)

    @told
    def estimate(kept: object, quality: str, methods: list[str]) -> str:
        return services.view(kept).estimate(quality, methods or [])

    outputs: dict[str, Any] = {"outputs": show.outputs, "api_visibility": "private", "show_progress": "hidden"}
    tab.start.click(start, [capability, tab.quality, tab.methods], **outputs, trigger_mode="once")
    tab.stop.click(stop, [capability], **outputs, queue=False)
    for control in (tab.quality, tab.methods):
        control.input(
            estimate, [capability, tab.quality, tab.methods], tab.estimate, api_visibility="private", queue=False,
            show_progress="hidden",
        )  # fmt: skip


def loss_frame(curve: Any) -> Any:
    """A long table (step, loss, line) with the raw loss and its running mean, at most `PLOT_POINTS` points each.

    The mean is corrected for its start (Kingma and Ba 2014, section 3), so it does not begin at zero.
    """
    import pandas as pd

    steps, raw, smooth = [], [], []
    mean, weight = 0.0, 0.0
    for step, loss in curve:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
        steps.append(step)
        raw.append(loss)
        smooth.append(mean / weight)
    every = max(1, -(-len(steps) // PLOT_POINTS))
    kept = sorted({*range(0, len(steps), every), *([len(steps) - 1] if steps else [])})
    return pd.DataFrame(
        {
            "step": [steps[i] for i in kept] * 2,
            "loss": [raw[i] for i in kept] + [smooth[i] for i in kept],
            "line": ["each step"] * len(kept) + ["smoothed"] * len(kept),
        }
    )


def _start_text(view: View) -> str:
    progress = view.progress
    if progress.busy:
        return "Working ..."
    if progress.kind != "generate" and progress.state in ("stopped", "interrupted", "failed"):
        return "Continue training"
    return "Train again" if view.trained else "Train"


def _status(view: View) -> str:
    progress = view.progress
    if progress.busy:
        return views.note(
            f"{progress.text or 'Starting ...'} It is safe to close this tab: the work goes on, and this page shows it "
            "again when you come back."
        )
    if view.train_blocked:
        return views.note(view.train_blocked, "warn")
    if progress.kind != "generate" and progress.problem:
        return views.note(progress.problem, "bad")
    if progress.kind != "generate" and progress.state == "stopped":
        return views.note("Stopped. What was learned so far is kept; training continues from there.")
    if view.stale:
        return views.note(
            "The photos or the base have changed since training. Train again, so that the pictures fit.", "warn"
        )
    if view.trained:
        return views.note("Trained. Draw pictures in the Generate tab; the Score tab shows which are most alike.", "ok")
    return ""
