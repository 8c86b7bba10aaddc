"""The Train tab: one dial, one button, three lanes that learn side by side, and Stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from pipelines.core.schema import ALL_METHODS, COMPOSED, OPTIMIZERS, QUALITIES, Recipe, UserError
from ui import views
from ui.page.errors import told
from ui.page.theme import METHOD_COLOURS, METHOD_NAMES
from ui.page.wiring import Show, Updates
from ui.run.state import Services, Settings, View
from ui.words.words import say, tell

PIVOTAL = "pivotal"
QUALITY_MEANS = {"draft": "draft - a first look", "good": "good - worth judging", "best": "best - patience"}
SMOOTHING = 0.9
PLOT_POINTS = 160
PLOT_UPDATES = 30
REMEMBERED = 1000  # sessions whose estimate is kept up to date as they last asked for it


@dataclass(frozen=True)
class Dial:
    """One setting of one method's recipe that people may change; `high` is the app's own limit."""

    method: str
    setting: str
    label: str
    low: float
    high: float
    step: float
    info: str = ""


RATE = "How far each step goes. Too high spoils the face, too low learns little."
DIALS = (
    Dial("textual_inversion", "steps", "Steps", 10, 3000, 10),
    Dial("textual_inversion", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("textual_inversion", "vectors", "Word vectors", 1, 8, 1, "How many invented words describe the face."),
    Dial("dreambooth", "steps", "Steps", 10, 3000, 10),
    Dial("dreambooth", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("dreambooth", "prior_weight", "Prior preservation", 0.0, 2.0, 0.05, "Keeps other faces from becoming yours."),
    Dial("lora", "steps", "Steps", 10, 3000, 10),
    Dial("lora", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("lora", "rank", "Rank", 1, 128, 1, "How much it can change: higher learns more, and copies more."),
    Dial("pivotal", "steps", "Steps", 10, 3000, 10),
    Dial("pivotal", "learning_rate", "Learning rate", 0.0, 0.1, 0.0, RATE),
    Dial("pivotal", "rank", "Rank", 1, 128, 1, "How much it can change: higher learns more, and copies more."),
)
LEAVE = {
    "textual_inversion": "Stop Textual inversion alone",
    "dreambooth": "Stop DreamBooth alone",
    "lora": "Stop LoRA alone",
    "pivotal": "Stop Pivotal tuning alone",
}
BATCH = Dial("", "batch", "Photos per step, all methods", 1, 32, 1, "More is steadier, and takes longer.")
FACE = Dial(
    "", "face_weight", "Weight of the face, all methods", 1, 10, 0.5,
    "How much more the head counts than what is around it. 1 is off. More learns less of the backgrounds.",
)  # fmt: skip
COMMON = (BATCH, FACE)
MORE = "New words for the person and a LoRA that learn together. Takes about as long as LoRA."
DORA = "Learns size and direction apart. Slower; sometimes closer to the person."
# A plot describes itself to screen readers in English and without its values: the sentence in the lane stands for it.
# The plot is there a moment after the lane.
ON_LANE = """
const hush = (left) => {
  const said = element.querySelector('[data-plot]');
  const plot = said && document.getElementById(said.dataset.plot);
  if (plot) plot.setAttribute('aria-hidden', 'true');
  else if (said && left) setTimeout(() => hush(left - 1), 300);
};
watch('value', () => hush(20));
hush(20);
"""
OPTIMIZER_NAMES = {"adamw": "AdamW", "adamw8bit": "AdamW, 8 bit", "prodigy": "Prodigy"}


@dataclass(frozen=True)
class Asked:
    """What an estimate is about: the controls as the page has them."""

    quality: str
    methods: list[str]
    settings: Settings
    go_on: bool


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
        for method in ALL_METHODS:
            lane = view.lane(method)
            updates[self.columns[method]] = gr.update(visible=lane is not None)
            asked = method in progress.left
            updates[self.leave[method]] = gr.update(
                visible=method in going and (len(going) > 1 or asked),
                interactive=not asked,
                value=say("Stopping ...") if asked else say(LEAVE[method]),
            )
            curve = steady(progress.losses.get(method, ()), lane.steps if lane else 0)
            frame = loss_frame(curve)
            drawn = len(curve) > 1
            said = loss_in_words(method, frame) if drawn else ""
            updates[self.lanes[method]] = gr.update(value=views.lane(lane) + said if lane else "")
            updates[self.plots[method]] = gr.update(
                value=frame, visible=drawn, **(_named_lines(method) if drawn else {})
            )
        return updates

    def restore(self, view: View) -> Updates:
        usual = _usual(view)
        methods, more = ([m for m in usual.methods if (m in COMPOSED) == made] for made in (False, True))
        composed = [m for m in view.row.offered if m in COMPOSED]
        return {
            self.methods: gr.update(choices=[(METHOD_NAMES[m], m) for m in view.row.methods], value=methods),
            self.quality: gr.update(choices=[(tell(QUALITY_MEANS[q]), q) for q in QUALITIES], value=usual.quality),
            self.estimate: gr.update(value=self.estimated(view, usual)),
            self.more: gr.update(choices=[(METHOD_NAMES[m], m) for m in composed], value=more, visible=bool(composed)),
            self.go_on: gr.update(value=usual.go_on),
            **{column: gr.update(visible=method in view.row.offered) for method, column in self.advanced.items()},
            **self.fill(view, usual.quality, usual.settings),
        }

    def news(self, view: View) -> Updates:
        """A training that ended has shown how long it takes, and photos that changed may shorten the next one."""
        if view.session is None or view.progress.busy:
            return {}
        asked = self.asked.get(view.session.key) or _usual(view)
        return {self.estimate: gr.update(value=self.estimated(view, asked))}

    def estimated(self, view: View, asked: Asked) -> str:
        """The estimate of what the page asks for; it is remembered for `news`."""
        if view.session is not None:
            self.asked.pop(view.session.key, None)
            self.asked[view.session.key] = asked
            while len(self.asked) > REMEMBERED:
                self.asked.pop(next(iter(self.asked)), None)
        # the box to go on is shown only where something can
        return view.estimate(asked.quality, asked.methods, asked.settings, go_on=asked.go_on)

    def fill(self, view: View, quality: str, settings: Settings) -> Updates:
        """The dials as the recipes have them, with what the person changed."""
        recipes = view.services.recipes(view.row, quality, view.row.offered, settings)
        updates: Updates = {}
        for dial in DIALS:
            recipe = recipes.get(dial.method)
            value = getattr(recipe, dial.setting) if recipe else None
            updates[self.dials[_name(dial)]] = gr.update(value=value, visible=recipe is not None)
        for dial in COMMON:
            updates[self.dials[dial.setting]] = gr.update(value=_common(recipes, dial.setting))
        first = next(iter(recipes.values()), None)
        updates[self.dials["optimizer"]] = gr.update(value=first.optimizer if first else OPTIMIZERS[0])
        lora = recipes.get("lora")
        updates[self.dials["lora_dora"]] = gr.update(value=lora is not None and lora.dora, visible=lora is not None)
        return updates


def _usual(view: View) -> Asked:
    """The controls as a page that is opened shows them: as the last training was asked for."""
    asked = view.choices.asked
    same = asked.get("quality") == view.choices.quality
    methods = [m for m in view.row.offered if m in (view.progress.methods or view.row.usual)]
    return Asked(view.choices.quality, methods, asked.get("settings", {}) if same else {}, True)


def _common(recipes: Mapping[str, Recipe], setting: str) -> int | float:
    """What a setting of all methods is shown as: the largest."""
    return max((getattr(recipe, setting) for recipe in recipes.values()), default=1)


def _name(dial: Dial) -> str:
    return f"{dial.method}_{dial.setting}" if dial.method else dial.setting


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
                    for method in ALL_METHODS:
                        with gr.Column(min_width=200) as advanced[method]:
                            gr.HTML(f'<h3 class="lk-lane-name">{METHOD_NAMES[method]}</h3>')
                            if method == PIVOTAL:
                                more = gr.CheckboxGroup(
                                    [(METHOD_NAMES[method], method)],
                                    value=[],
                                    label=say("One more lane"),
                                    info=say(MORE),
                                    visible=method in row.offered,
                                    elem_id="lk-more-methods",
                                )
                            for dial in DIALS:
                                if dial.method == method:
                                    dials[_name(dial)] = _dial(dial)
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
        for method in ALL_METHODS:
            with gr.Column(min_width=260, visible=False) as column:
                lanes[method] = gr.HTML(elem_id=f"lk-lane-{method}", js_on_load=ON_LANE)
                plots[method] = gr.LinePlot(
                    x="step", y="loss", color="line", height=270, show_label=False, visible=False, buttons=[],
                    elem_id=f"lk-loss-{method}", **_named_lines(method),
                )  # fmt: skip
                leave[method] = gr.Button(say(LEAVE[method]), size="sm", visible=False, elem_id=f"lk-leave-{method}")
            columns[method] = column
    return TrainTab(
        quality, methods, estimate, go_on, start, stop, status, more, dials, columns, lanes, plots, leave, advanced
    )


def _dial(dial: Dial) -> gr.Slider | gr.Number:
    common: dict[str, Any] = {
        "minimum": dial.low, "maximum": dial.high, "label": say(dial.label),
        "info": say(dial.info) if dial.info else None, "elem_id": f"lk-{_name(dial).replace('_', '-')}",
    }  # fmt: skip
    if dial.setting == "learning_rate":  # spans decades: a slider can't be aimed
        return gr.Number(**common)
    return gr.Slider(value=dial.low, step=dial.step, **common)


def wire(tab: TrainTab, services: Services, capability: gr.BrowserState, show: Show) -> list[Any]:
    """Connects the tab's handlers; returns the events that put a job in the line."""

    @told
    def start(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool, **dials: Any) -> Updates:
        session = services.sessions.need(kept)
        view = services.view(kept)
        if view.progress.busy:
            raise UserError("This run is still working. Wait until it is done, or press Stop first.")
        if view.train_blocked:
            raise UserError(view.train_blocked)
        chosen = _chosen(view, quality, methods, more)
        if not chosen:
            raise UserError("Choose at least one method to train.")
        settings = requested(view, quality, chosen, dials)
        tab.estimated(view, Asked(quality, chosen, settings, go_on is True))
        services.start_training(
            session,
            methods=tuple(chosen),
            quality=quality,
            settings=settings,
            go_on=go_on is True and bool(view.older),
        )
        return show(kept)

    @told
    def stop(kept: object) -> Updates:
        services.stop(services.sessions.need(kept).run)
        return show(kept)

    @told
    def estimate(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool, **dials: Any) -> str:
        view = services.view(kept)
        chosen = _chosen(view, quality, methods, more)
        asked = Asked(quality, chosen, requested(view, quality, chosen, dials), go_on is True)
        return tab.estimated(view, asked)

    @told
    def change_quality(kept: object, quality: str, methods: list[str], more: list[str], go_on: bool) -> Updates:
        view = services.view(kept)
        asked = Asked(quality, _chosen(view, quality, methods, more), {}, go_on is True)
        return {tab.estimate: tab.estimated(view, asked), **tab.fill(view, quality, {})}

    def leaving(method: str) -> Any:
        @told
        def leave(kept: object) -> Updates:
            services.leave(services.sessions.need(kept).run, method)
            return show(kept)

        return leave

    outputs: dict[str, Any] = {"outputs": show.outputs, "api_visibility": "private", "show_progress": "hidden"}
    started = tab.start.click(
        start, [capability, tab.quality, tab.methods, tab.more, tab.go_on], inputs_kwargs=tab.dials, **outputs,
        trigger_mode="once",
    )  # fmt: skip
    tab.stop.click(stop, [capability], **outputs, queue=False)
    for method, button in tab.leave.items():
        button.click(leaving(method), [capability], **outputs, queue=False)
    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    known = [capability, tab.quality, tab.methods, tab.more, tab.go_on]
    tab.quality.input(change_quality, known, [tab.estimate, *tab.dials.values()], **quiet)
    for control in (tab.methods, tab.more, tab.go_on, *tab.dials.values()):
        control.input(
            estimate, known, tab.estimate, inputs_kwargs=tab.dials, trigger_mode="always_last", **quiet
        )  # fmt: skip
    return [started]


def _chosen(view: View, quality: str, methods: object, more: object = ()) -> list[str]:
    """The methods this base has among those named, `more` being those made of others.

    Raises UserError for a quality that does not exist.
    """
    if quality not in QUALITIES:
        raise UserError(f"There is no quality {quality}. Choose one of: {', '.join(QUALITIES)}.")
    named = [*(methods if isinstance(methods, list) else []), *(more if isinstance(more, list) else [])]
    return [method for method in view.row.offered if method in named]


def requested(view: View, quality: str, methods: list[str], dials: dict[str, Any]) -> Settings:
    """What differs from the recipes. Every value comes from a browser; raises UserError naming a wrong one."""
    plain = view.services.recipes(view.row, quality, view.row.offered, {})
    usual = {dial.setting: _common(plain, dial.setting) for dial in COMMON}
    found: Settings = {}
    for method, recipe in ((m, plain[m]) for m in methods):
        for dial in (*(each for each in DIALS if each.method == method), *COMMON):
            value = dials.get(_name(dial))
            own = getattr(recipe, dial.setting)
            if value is None or value == usual.get(dial.setting, own):
                continue
            name = f"{METHOD_NAMES[method]}: {dial.label}"
            number = checked(name, value, dial, whole=isinstance(own, int))
            found.setdefault(method, {})[dial.setting] = number
        optimizer, dora = dials.get("optimizer"), dials.get("lora_dora")
        if optimizer is not None and optimizer != recipe.optimizer:
            found.setdefault(method, {})["optimizer"] = chosen_optimizer(optimizer)
        if method == "lora" and dora is not None and dora != recipe.dora:
            if not isinstance(dora, bool):
                raise UserError("LoRA: DoRA is on or off. Correct it and try again.")
            found.setdefault(method, {})["dora"] = dora
    return found


def chosen_optimizer(value: object) -> str:
    if not isinstance(value, str) or value not in OPTIMIZERS:
        raise UserError(f"There is no such optimizer. Choose one of: {', '.join(OPTIMIZERS)}.")
    return value


def checked(name: str, value: object, dial: Dial, *, whole: bool) -> int | float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not dial.low <= value <= dial.high or (whole and int(value) != value):  # type: ignore[operator, call-overload]
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} must be {kind} from {dial.low:g} to {dial.high:g}. Correct it and try again.")
    return int(value) if whole else float(value)  # type: ignore[call-overload, arg-type]


def steady(curve: Sequence[Any], steps: int) -> Sequence[Any]:
    """The curve as it stood at the last of `PLOT_UPDATES` moments: a plot that is drawn anew every second takes the
    processor that the training needs, where the browser runs on the same machine. The whole curve at the end.
    """
    every = max(1, steps // PLOT_UPDATES)
    return curve if len(curve) >= steps else curve[: max(2, len(curve) - len(curve) % every)]


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
            "line": [tell("each step")] * len(kept) + [tell("smoothed")] * len(kept),
        }
    )


def loss_in_words(method: str, frame: Any) -> str:
    """HTML for who can't see the plot of this `loss_frame`."""
    raw, smooth = frame[: len(frame) // 2].loss, frame[len(frame) // 2 :].loss
    said = tell(
        "Loss: {first} at first, {last} at step {step}, smoothed {smoothed}.", first=f"{raw.iloc[0]:.4f}",
        last=f"{raw.iloc[-1]:.4f}", step=frame.step.iloc[-1], smoothed=f"{smooth.iloc[-1]:.4f}",
    )  # fmt: skip
    return f'<p class="lk-unseen" data-plot="lk-loss-{method}">{escape(said)}</p>'


def _named_lines(method: str) -> dict[str, Any]:
    """What the plot of the loss calls its axes and lines."""
    return {
        "x_title": tell("step"), "y_title": tell("loss"), "color_title": tell("line"),
        "color_map": {tell("smoothed"): METHOD_COLOURS[method], tell("each step"): "rgba(148,163,184,0.5)"},
    }  # fmt: skip


def _start_text(view: View) -> str:
    progress = view.progress
    if progress.busy:
        return say("Working ...")
    if progress.state in ("cancelled", "interrupted", "failed"):
        return say("Continue training")
    return say("Train again") if view.trained else say("Train")


def _status(view: View) -> str:
    progress = view.progress
    if progress.busy:
        now = views.waiting(progress.ahead, progress.starts_in_s) or progress.text or tell("Starting ...")
        return views.note(f"{now} {view.safe_to_leave}")
    if view.train_blocked:
        return views.note(view.train_blocked, "warn")
    if progress.problem:
        return views.note(progress.problem, "bad")
    if progress.state == "cancelled":
        return views.note(tell("Stopped. What was learned so far is kept; training continues from there."))
    if view.stale and view.older:
        return views.note(
            tell(
                "The photos or the base have changed since training. Please go on learning from where it was, so that "
                "the pictures fit."
            ),
            "warn",
        )
    if view.stale:
        return views.note(
            tell("The photos or the base have changed since training. Please train again, so that the pictures fit."),
            "warn",
        )
    if view.trained:
        return views.note(
            tell("Trained. Draw pictures in the Generate tab; the Score tab shows which are most alike."), "ok"
        )
    return ""
