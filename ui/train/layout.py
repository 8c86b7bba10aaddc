"""The Train tab: one quality, one button, a lane per method, and Stop.

In: a view of the run. Out: the tab's components and what they show. What its buttons do stands in `events`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from pipelines.core.records import METHODS, OPTIMIZERS, QUALITIES, TRAINABLE
from ui.page import html as page_html
from ui.page.html import script
from ui.page.refresh import Updates
from ui.page.theme import METHOD_NAMES
from ui.page.views import RESEARCH
from ui.run.services import Services
from ui.run.start import Settings
from ui.run.view import View
from ui.train import html as train_html
from ui.train.dials import COMMON, DIALS, OPTIMIZER_NAMES, PIVOTAL, Asked, Dial, common_value, dial_name, usual
from ui.train.plots import loss_frame, loss_in_words, named_lines, steady
from ui.words import phrases
from ui.words.words import say, tell

QUALITY_MEANS = {"draft": "Quick", "good": "Good", "best": "Best (slowest)"}
REMEMBERED = 1000  # sessions whose estimate is kept up to date as they last asked for it


MORE = "New words for the person and a LoRA that learn together. Takes about as long as LoRA."
DORA = "Learns size and direction apart. Slower; sometimes closer to the person."
# A plot describes itself to screen readers in English and without its values: the sentence in the lane stands for it.
# The plot is there a moment after the lane.
ON_LANE = script("train/lane.js")


@dataclass
class TrainTab:
    quality: gr.Radio
    methods: gr.CheckboxGroup
    estimate: gr.HTML
    go_on: gr.Checkbox
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    more: gr.CheckboxGroup  # methods made of others
    dials: dict[str, Any]  # "lora_steps", ..., "batch", "optimizer"
    columns: dict[str, gr.Column]
    lanes: dict[str, gr.HTML]
    plots: dict[str, gr.LinePlot]
    leave: dict[str, gr.Button]
    advanced: dict[str, gr.Column]  # each method's dials
    asked: dict[str, Asked] = field(default_factory=dict)  # by session, the last ones; lost with the process

    def show(self, view: View) -> Updates:
        progress = view.progress
        updates: Updates = {
            self.start: gr.update(
                interactive=view.train_blocked is None and not progress.busy, value=_start_text(view)
            ),
            self.stop: gr.update(visible=progress.busy),
            self.status: gr.update(value=_status(view)),
            self.go_on: gr.update(visible=bool(view.older) and not progress.busy),
        }
        going = [m for m in progress.methods if progress.busy and m not in progress.ended]
        for method in TRAINABLE:
            lane = view.lane(method)
            updates[self.columns[method]] = gr.update(visible=lane is not None)
            asked = method in progress.left
            updates[self.leave[method]] = gr.update(
                visible=method in going and (len(going) > 1 or asked),
                interactive=not asked,
                value=tell("Stopping ...") if asked else tell("Stop only {method}", method=METHOD_NAMES[method]),
            )
            curve = steady(progress.losses.get(method, ()), lane.steps if lane else 0)
            frame = loss_frame(curve)
            drawn = len(curve) > 1
            said = loss_in_words(method, frame) if drawn else ""
            updates[self.lanes[method]] = gr.update(value=train_html.lane(lane) + said if lane else "")
            updates[self.plots[method]] = gr.update(
                value=frame, visible=drawn, **(named_lines(method) if drawn else {})
            )
        return updates

    def restore(self, view: View) -> Updates:
        asked = usual(view)
        methods, more = ([m for m in asked.methods if (m in METHODS) == plain] for plain in (True, False))
        composed = [m for m in view.row.trainable if m not in METHODS]
        return {
            self.methods: gr.update(choices=[(METHOD_NAMES[m], m) for m in view.row.methods], value=methods),
            self.quality: gr.update(choices=[(tell(QUALITY_MEANS[q]), q) for q in QUALITIES], value=asked.quality),
            self.estimate: gr.update(value=self.estimated(view, asked)),
            self.more: gr.update(choices=[(METHOD_NAMES[m], m) for m in composed], value=more, visible=bool(composed)),
            self.go_on: gr.update(value=asked.go_on),
            **{column: gr.update(visible=method in view.row.trainable) for method, column in self.advanced.items()},
            **self.fill(view, asked.quality, asked.settings),
        }

    def news(self, view: View) -> Updates:
        """A training that ended has shown how long it takes, and photos that changed may shorten the next one."""
        if view.session is None or view.progress.busy:
            return {self.estimate: gr.skip()}
        asked = self.asked.get(view.session.key) or usual(view)
        return {self.estimate: gr.update(value=self.estimated(view, asked))}

    def estimated(self, view: View, asked: Asked) -> str:
        """The estimate of what the page asks for; it is remembered for `news`."""
        if view.session is not None:
            self.asked.pop(view.session.key, None)
            self.asked[view.session.key] = asked
            while len(self.asked) > REMEMBERED:
                self.asked.pop(next(iter(self.asked)), None)
        # the box to go on is shown only where something can
        return page_html.note(view.estimate(asked.quality, asked.methods, asked.settings, go_on=asked.go_on))

    def fill(self, view: View, quality: str, settings: Settings) -> Updates:
        """The dials as the recipes have them, with what the person changed."""
        recipes = view.services.recipes(view.row, quality, view.row.trainable, settings)
        updates: Updates = {}
        for dial in DIALS:
            recipe = recipes.get(dial.method)
            value = getattr(recipe, dial.setting) if recipe else None
            updates[self.dials[dial_name(dial)]] = gr.update(value=value, visible=recipe is not None)
        for dial in COMMON:
            updates[self.dials[dial.setting]] = gr.update(value=common_value(recipes, dial.setting))
        first = next(iter(recipes.values()), None)
        updates[self.dials["optimizer"]] = gr.update(value=first.optimizer if first else OPTIMIZERS[0])
        lora = recipes.get("lora")
        updates[self.dials["lora_dora"]] = gr.update(value=lora is not None and lora.dora, visible=lora is not None)
        return updates


def build(services: Services) -> TrainTab:
    row = services.bases[services.default_base]
    dials: dict[str, Any] = {}
    advanced: dict[str, gr.Column] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            quality = gr.Radio(
                [(QUALITY_MEANS[q], q) for q in QUALITIES], value="draft", label=say("Quality"), elem_id="lk-quality"
            )
            methods = gr.CheckboxGroup(
                [(METHOD_NAMES[m], m) for m in row.methods],
                value=list(row.usual),
                label=say("Methods"),
                elem_id="lk-methods",
            )
            with gr.Accordion(say("Advanced"), open=False, elem_id="lk-train-advanced"):
                with gr.Row(equal_height=False):
                    for method in TRAINABLE:
                        with gr.Column(min_width=200) as advanced[method]:
                            gr.HTML(f'<h3 class="lk-lane-name">{METHOD_NAMES[method]}</h3>')
                            if method == PIVOTAL:
                                more = gr.CheckboxGroup(
                                    [(METHOD_NAMES[method], method)],
                                    value=[],
                                    label=say("One more lane"),
                                    info=say(MORE),
                                    visible=method in row.trainable,
                                    elem_id="lk-more-methods",
                                )
                            for dial in DIALS:
                                if dial.method == method:
                                    dials[dial_name(dial)] = _dial(dial)
                            if method == "lora":
                                dials["lora_dora"] = gr.Checkbox(
                                    value=False,
                                    label=say("DoRA"),
                                    info=say(DORA),
                                    elem_id="lk-lora-dora",
                                )
                with gr.Row(equal_height=False):
                    for dial in COMMON:
                        dials[dial.setting] = _dial(dial)
                    dials["optimizer"] = gr.Dropdown(
                        [(name, value) for value, name in OPTIMIZER_NAMES.items()],
                        value=OPTIMIZERS[0],
                        label=say("Optimizer, all methods"),
                        info=say("Prodigy finds its learning rates itself. 8 bit saves memory on an NVIDIA GPU."),
                        elem_id="lk-optimizer",
                    )
        with gr.Column(scale=2, min_width=260):
            estimate = gr.HTML(elem_id="lk-estimate")
            go_on = gr.Checkbox(
                value=True,
                visible=False,
                label=say("Go on from what was learned before"),
                info=say("The photos have changed since. Half of the steps are enough; switch it off to begin afresh."),
                elem_id="lk-go-on",
            )
            start = gr.Button(say("Train"), variant="primary", size="lg", elem_id="lk-train")
            stop = gr.Button(say("Stop"), variant="stop", visible=False, elem_id="lk-stop")
    status = gr.HTML(elem_id="lk-train-status")
    columns, lanes, plots, leave = {}, {}, {}, {}
    with gr.Row(equal_height=False):
        for method in TRAINABLE:
            with gr.Column(min_width=260, visible=False) as column:
                lanes[method] = gr.HTML(elem_id=f"lk-lane-{method}", js_on_load=ON_LANE)
                plots[method] = gr.LinePlot(
                    x="step", y="loss", color="line", height=270, show_label=False, visible=False, buttons=[],
                    elem_id=f"lk-loss-{method}", elem_classes=RESEARCH, **named_lines(method),
                )  # fmt: skip
                leave[method] = gr.Button("", size="sm", visible=False, elem_id=f"lk-leave-{method}")
            columns[method] = column
    return TrainTab(
        quality, methods, estimate, go_on, start, stop, status, more, dials, columns, lanes, plots, leave, advanced
    )


def _dial(dial: Dial) -> gr.Slider | gr.Number:
    common: dict[str, Any] = {
        "minimum": dial.low, "maximum": dial.high, "label": say(dial.label),
        "info": say(dial.info) if dial.info else None, "elem_id": f"lk-{dial_name(dial).replace('_', '-')}",
    }  # fmt: skip
    if dial.setting == "learning_rate":  # spans decades: a slider can't be aimed
        return gr.Number(**common)
    return gr.Slider(value=dial.low, step=dial.step, **common)


def _start_text(view: View) -> str:
    progress = view.progress
    if progress.busy:
        return say("Working ...")
    if progress.state in ("cancelled", "interrupted", "failed"):
        return say("Continue training")
    return say("Train again") if view.trained else say("Train")


def _overall(view: View) -> str:
    """One bar for all methods, with the time until the last is done."""
    if view.share is None:
        return ""
    left = view.progress.seconds_left
    text = tell("{time} left", time=phrases.duration(phrases.rounded(left))) if left else ""
    return page_html.bar(tell("All methods"), view.share, text)


def _status(view: View) -> str:
    progress = view.progress
    if progress.busy:
        now = phrases.waiting(progress.ahead, progress.starts_in_s) or progress.text or tell("Starting ...")
        return page_html.note(f"{now} {view.safe_to_leave}") + _overall(view)
    if view.train_blocked:
        return page_html.note(view.train_blocked, "warn")
    if progress.problem:
        return page_html.note(progress.problem, "bad")
    if progress.state == "cancelled":
        return page_html.note(tell("Stopped. What was learned so far is kept; training continues from there."))
    if view.stale and view.older:
        return page_html.note(
            tell(
                "The photos or the base have changed since training. Please go on learning from where it was, so that "
                "the pictures fit."
            ),
            "warn",
        )
    if view.stale:
        return page_html.note(
            tell("The photos or the base have changed since training. Please train again, so that the pictures fit."),
            "warn",
        )
    if view.trained:
        return page_html.note(
            tell("Trained. Draw pictures in the Generate tab; the Score tab shows which are most alike."), "ok"
        )
    return ""
