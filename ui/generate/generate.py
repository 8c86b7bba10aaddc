"""The Generate tab: a look or one's own words, a few dials, and the same noise drawn by every method side by side.

Every picture carries buttons: like it, use its settings, vary it, compare it. A page names a picture by an id that the
server looks up among this run's own; a forged one gets a sentence.
"""

from __future__ import annotations

import base64
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.bases.registry import BASES, BaseRow, completed, completions, unknown_words
from pipelines.core import presets, safety
from pipelines.core.schema import Sampling, Style, UserError, place_of
from pipelines.runs.jobspec import COMPARED_STYLES
from ui import views
from ui.generate import imports
from ui.page.errors import told
from ui.page.wiring import Show, Updates
from ui.run import photobox, pictures
from ui.run.pictures import Drawing
from ui.run.state import Services, View
from ui.views import JobCard, LookCard, Shot
from ui.words.retold import retell
from ui.words.words import say, tell

OWN = "own"
MAX_SEED = 2**31 - 1
NEW_SEEDS = 1_000_000  # new ones are drawn below this: short enough to read out and write down
MAX_NUMBER = 24
MAX_KEPT = 24
MAX_VARIATIONS = 12
LEAST_CHANGE = 0.05
SWEPT = 4  # values of steps, and of guidance, in a sweep; the page says so
BEST_NUMBER, BEST_KEPT = 24, 6  # and these
SUGGESTIONS = 8
SIZES = {"portrait": (), "sd15": (512, 640, 768), "sdxl": (768, 896, 1024), "z_image": (768, 896, 1024)}
# The generator's own list; it is not imported because it brings torch with it. A test holds the two equal.
SCHEDULERS = ("default", "ddim", "dpm++", "unipc", "euler", "euler ancestral")
PROMPT_LIMIT = 500
THUMBNAIL_LIMIT = 40_000  # bytes; they travel inside the page

# A radio group: one card can be tabbed to, arrows move the choice, which is sent once the keys rest. The first choice
# stands in the HTML: a tab that was never opened knows no property yet.
ON_STYLE = """
const cards = () => [...element.querySelectorAll('[role=radio]')];
const mark = (id) => {
  const all = cards(), chosen = all.find((card) => card.dataset.style === id);
  all.forEach((card) => {
    card.setAttribute('aria-checked', card === chosen ? 'true' : 'false');
    card.tabIndex = card === (chosen || all[0]) ? 0 : -1;
  });
};
let waiting = null;
const choose = (card, wait) => {
  mark(card.dataset.style);
  card.focus();
  card.scrollIntoView({block: 'nearest', inline: 'nearest'});
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger('click', {style: card.dataset.style}), wait);
};
element.addEventListener('click', (event) => {
  const card = event.target.closest('[role=radio]');
  if (card) choose(card, 0);
});
element.addEventListener('keydown', (event) => {
  const all = cards(), at = all.indexOf(event.target.closest('[role=radio]'));
  const to = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1}[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  choose(all.at(to % all.length), 250);
});
watch('selected', () => mark(props.selected));
"""
ON_CHIP = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-phrase]');
  if (chip) trigger('click', {phrase: chip.dataset.phrase});
});
"""
# One press at a time: what is pressed while the last one is under way (the page then moves) is no second press. A
# picture that moves takes the keyboard's place with it.
ON_SHOT = """
let pressed = null, over = 0;
const again = () => pressed && [...element.querySelectorAll('button[data-picture]')].find(
  (button) => button.dataset.picture === pressed.picture && button.dataset.kind === pressed.kind);
const free = () => element.querySelectorAll('[aria-disabled]').forEach((one) => one.removeAttribute('aria-disabled'));
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-picture]');
  if (!button || Date.now() < over) return;
  over = Date.now() + 400;
  button.setAttribute('aria-disabled', 'true');
  pressed = {...button.dataset};
  trigger('click', {picture: pressed.picture, action: pressed.action});
  const target = {vary: '#lk-vary', compare: '#lk-compare', use: '#lk-prompt', finish: '#lk-finish'}[pressed.kind];
  setTimeout(() => {
    free();
    if (target) document.querySelector(target)?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
  }, 900);
});
watch('value', () => {
  free();
  const button = again(), now = document.activeElement;
  if (button && now !== button && (now === document.body || element.contains(now))) button.focus({preventScroll: true});
  pressed = null;
});
"""
ON_JOB = """
const localise = () => element.querySelectorAll('time').forEach((time) => {
  const when = new Date(time.dateTime), today = when.toDateString() === new Date().toDateString();
  time.textContent = today ? when.toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'})
    : when.toLocaleDateString([], {day: 'numeric', month: 'short'});
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-job]');
  if (button) trigger('click', {job: Number(button.dataset.job)});
});
watch('value', localise);
localise();
"""
ON_SLIDE = """
const move = (slider) => {
  const pair = slider.closest('.lk-ba-pair');
  pair.style.setProperty('--at', slider.value + '%');
};
element.addEventListener('input', (event) => { if (event.target.type === 'range') move(event.target); });
watch('value', () => element.querySelectorAll('input[type=range]').forEach((slider) => {
  slider.value = 50;
  move(slider);
}));
"""


@dataclass
class GenerateTab:
    blocked: gr.HTML
    style: gr.HTML
    undrawable: gr.HTML
    prompt: gr.Textbox
    chips: gr.HTML
    unknown: gr.HTML
    columns: gr.CheckboxGroup
    number: gr.Slider
    seed: gr.Number
    keep_seed: gr.Checkbox
    dice: gr.Button
    negative: gr.Textbox
    steps: gr.Slider
    guidance: gr.Slider
    scheduler: gr.Dropdown
    width: gr.Dropdown
    height: gr.Dropdown
    size_row: gr.Row
    strength: gr.Slider
    reuse: gr.UploadButton
    start: gr.Button
    stop: gr.Button
    best: gr.Button
    sweep_method: gr.Dropdown
    sweep_steps: gr.Textbox
    sweep_guidance: gr.Textbox
    sweep: gr.Button
    status: gr.HTML
    history_box: gr.Accordion
    history: gr.HTML
    vary_box: gr.Column
    vary_picture: gr.HTML
    vary_change: gr.Slider
    vary_number: gr.Slider
    vary_method: gr.Dropdown
    vary_prompt: gr.Checkbox
    vary: gr.Button
    vary_close: gr.Button
    grid: gr.HTML
    compare_box: gr.Accordion
    left: gr.Dropdown
    right: gr.Dropdown
    compared: gr.HTML
    keep: gr.Slider
    only: gr.Checkbox
    ranked: gr.HTML
    ranked_box: gr.Accordion
    imports: imports.ImportSection

    def show(self, view: View) -> Updates:
        busy, closed = view.drawing.busy, view.generate_blocked
        ready, picked = closed is None and not busy, view.picked
        methods = [(views.named(c), c) for c in view.columns]
        return {
            self.blocked: gr.update(value=views.note(closed or "", "warn"), visible=closed is not None),
            self.start: gr.update(interactive=ready),
            self.best: gr.update(interactive=ready),
            self.sweep: gr.update(interactive=ready),
            self.vary: gr.update(interactive=ready and picked is not None),
            self.stop: gr.update(visible=busy),
            self.status: gr.update(value=_status(view)),
            self.history_box: gr.update(visible=len(view.history) > 0),
            self.history: gr.update(value=views.history([_job_card(view, job) for job in reversed(view.history)])),
            self.vary_box: gr.update(visible=picked is not None),
            self.vary_picture: gr.update(value=views.picked(picked) if picked else ""),
            self.grid: gr.update(value=views.side_by_side(view.latest_shots, view.drawn_columns)),
            self.compare_box: gr.update(visible=bool(_pair(view))),
            self.ranked_box: gr.update(visible=bool(view.shots)),
            self.ranked: gr.update(value=_gallery(view)),
            self.columns: gr.update(choices=methods),
            self.sweep_method: gr.update(choices=methods),
            self.vary_method: gr.update(choices=methods),
            **self.imports.show(view),
        }

    def restore(self, view: View) -> Updates:
        """What depends on the base, and the columns that exist."""
        cards, marked = look_cards(view.row)
        sizes = [(tell("the base's own"), 0), *((f"{size} px", size) for size in SIZES.get(view.row.family, ()))]
        portrait = not SIZES.get(view.row.family)
        style = presets.styles().get(cards[0].id)
        return {
            self.style: gr.update(value=views.look_cards(cards, cards[0].id), selected=cards[0].id),
            self.undrawable: gr.update(value=marked),
            self.columns: gr.update(choices=[(views.named(c), c) for c in view.columns], value=list(view.columns)),
            self.size_row: gr.update(visible=not portrait),
            self.keep: gr.update(value=view.choices.keep),
            self.only: gr.update(value=view.choices.only_favourites),
            self.scheduler: gr.update(choices=_named_schedulers(view.row), value=SCHEDULERS[0]),
            self.width: gr.update(choices=sizes, value=0),
            self.height: gr.update(choices=sizes, value=0),
            **self._methods(view),
            **self.imports.restore(view),
            **self.compare(view, _pair(view)),
            **(self.fill(view.row, style) if style else self.helped(view.row, "")),
        }

    def news(self, view: View) -> Updates:
        """A newly trained method is ticked at once; the comparison goes on to what was drawn last."""
        return {
            self.columns: gr.update(choices=[(views.named(c), c) for c in view.columns], value=list(view.columns)),
            **self._methods(view),
            # not while pictures are being drawn and scored: whoever compares meanwhile keeps what they look at
            **({} if view.drawing.busy else self.compare(view, _pair(view))),
        }

    def _methods(self, view: View) -> Updates:
        choices = [(views.named(c), c) for c in view.columns]
        last = view.columns[-1]
        varied = view.picked.method if view.picked and view.picked.method in view.columns else last
        return {
            self.sweep_method: gr.update(choices=choices, value=last),
            self.vary_method: gr.update(choices=choices, value=varied),
        }

    def helped(self, row: BaseRow, prompt: str) -> Updates:
        """What is said about a prompt while it is written."""
        return {
            self.unknown: gr.update(value=unknown_note(row, prompt)),
            self.chips: gr.update(value=views.chips(completions(row, prompt[:PROMPT_LIMIT], SUGGESTIONS))),
        }

    def fill(self, row: BaseRow, style: Style) -> Updates:
        return {
            self.prompt: gr.update(value=style.prompt),
            self.negative: gr.update(value=style.negative_prompt),
            self.steps: gr.update(value=style.steps),
            self.guidance: gr.update(value=style.guidance),
            **self.helped(row, style.prompt),
        }

    def use(self, row: BaseRow, found: Sampling, *, number: int = 1) -> Updates:
        """The dials as a picture was made with. Its seed is kept, so that the next press draws it again."""
        sizes, offered = (0, *SIZES.get(row.family, ())), schedulers(row)
        width, height = found.width_px or 0, found.height_px or 0
        return {
            self.style: gr.update(selected=style_of(row, found.prompt)),
            self.prompt: gr.update(value=found.prompt),
            **self.helped(row, found.prompt),
            self.negative: gr.update(value=found.negative_prompt),
            self.steps: gr.update(value=found.steps),
            self.guidance: gr.update(value=found.guidance),
            self.seed: gr.update(value=found.seed),
            self.keep_seed: gr.update(value=True),
            self.scheduler: gr.update(value=found.scheduler if found.scheduler in offered else offered[0]),
            self.strength: gr.update(value=found.strength),
            self.width: gr.update(value=width if width in sizes else 0),
            self.height: gr.update(value=height if height in sizes else 0),
            self.number: gr.update(value=min(MAX_NUMBER, number)),
        }

    def compare(self, view: View, pair: tuple[Shot, Shot] | None) -> Updates:
        """Two pictures over each other, and what else could stand on either side."""
        if pair is None:
            nothing = gr.update(choices=[], value=None)
            return {self.left: nothing, self.right: nothing, self.compared: gr.update(value="")}
        choices = [(_called(shot, pair[1]), shot.id) for shot in _fellows(view, pair[1])]
        return {
            self.left: gr.update(choices=choices, value=pair[0].id),
            self.right: gr.update(choices=choices, value=pair[1].id),
            self.compared: gr.update(value=views.before_after(*pair)),
        }

    @property
    def used(self) -> set[Any]:
        """Everything `use` and `compare` touch."""
        return {
            self.style, self.prompt, self.unknown, self.chips, self.negative, self.steps, self.guidance, self.seed,
            self.keep_seed, self.scheduler, self.strength, self.width, self.height, self.number, self.left, self.right,
            self.compared,
        }  # fmt: skip


def build(services: Services) -> GenerateTab:
    blocked = gr.HTML(visible=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            style = gr.HTML(elem_id="lk-style", js_on_load=ON_STYLE, selected=OWN)
            with gr.Accordion(say("Styles this base can't draw, and why"), open=False):
                undrawable = gr.HTML()
            prompt = gr.Textbox(
                label=say("Prompt"),
                lines=2,
                elem_id="lk-prompt",
                info=say("{subject} becomes the person, for each method in its own way."),
            )
            chips = gr.HTML(elem_id="lk-chips", js_on_load=ON_CHIP)
            unknown = gr.HTML(elem_id="lk-unknown")
            with gr.Accordion(say("Sweep: steps × guidance"), open=False, elem_id="lk-sweep"):
                gr.HTML(
                    '<p class="lk-note lk-small">'
                    + say(
                        "One prompt, one seed: how many steps, and how closely to follow the prompt? Up to 4 values "
                        "each, with commas between them."
                    )
                    + "</p>"
                )
                sweep_method = gr.Dropdown([], label=say("Draw with"), elem_id="lk-sweep-method")
                with gr.Row():
                    sweep_steps = gr.Textbox("10, 20, 40", label=say("Steps"), elem_id="lk-sweep-steps", min_width=110)
                    sweep_guidance = gr.Textbox(
                        "1, 3, 5", label=say("Guidance"), elem_id="lk-sweep-guidance", min_width=110
                    )
                sweep = gr.Button(say("Draw the sweep"), size="sm", elem_id="lk-sweep-start")
        with gr.Column(scale=2, min_width=280):
            columns = gr.CheckboxGroup([], label=say("Draw with"), elem_id="lk-columns")
            number = gr.Slider(1, MAX_NUMBER, value=4, step=1, label=say("Pictures per method"), elem_id="lk-number")
            with gr.Row(elem_id="lk-seeds"):
                seed = gr.Number(
                    value=0,
                    precision=0,
                    minimum=0,
                    maximum=MAX_SEED,
                    label=say("Seed"),
                    elem_id="lk-seed",
                    min_width=110,
                )
                with gr.Column(min_width=140):
                    keep_seed = gr.Checkbox(
                        value=False, label=say("Keep this seed"), elem_id="lk-keep-seed", container=False,
                        info=say("Off: every Generate draws new ones."),
                    )  # fmt: skip
                    dice = gr.Button(say("New seed"), size="sm", min_width=100, elem_id="lk-dice")
            with gr.Accordion(say("Advanced"), open=False, elem_id="lk-advanced"):
                negative = gr.Textbox(label=say("Negative prompt"), lines=2)
                steps = gr.Slider(1, 60, value=20, step=1, label=say("Steps"))
                guidance = gr.Slider(
                    0.0, 15.0, value=3.0, step=0.1, label=say("Guidance"), info=say("How closely to follow the prompt.")
                )
                strength = gr.Slider(0.0, 1.5, value=1.0, step=0.05, label=say("LoRA strength"))
                scheduler = gr.Dropdown(list(SCHEDULERS), value="default", label=say("Scheduler"))
                with gr.Row(visible=False) as size_row:
                    width = gr.Dropdown([("the base's own", 0)], value=0, label=say("Width"), min_width=120)
                    height = gr.Dropdown([("the base's own", 0)], value=0, label=say("Height"), min_width=120)
                reuse = gr.UploadButton(say("Reuse the settings of a picture (PNG)"), file_types=[".png"], size="sm")
            imported = imports.build()
            start = gr.Button(say("Generate"), variant="primary", size="lg", elem_id="lk-generate")
            stop = gr.Button(say("Stop"), variant="stop", visible=False, elem_id="lk-generate-stop")
            best = gr.Button(say("Make 24 per method, keep the 6 most like me"), size="sm", elem_id="lk-best")
    status = gr.HTML(elem_id="lk-generate-status")
    with gr.Accordion(say("Drawn in this run"), open=False, visible=False, elem_id="lk-history-box") as history_box:
        history = gr.HTML(elem_id="lk-history", js_on_load=ON_JOB)
    with gr.Column(visible=False, elem_id="lk-vary") as vary_box, gr.Row(equal_height=False):
        with gr.Column(min_width=150, scale=1):
            vary_picture = gr.HTML(elem_id="lk-vary-picture")
        with gr.Column(min_width=260, scale=3):
            vary_change = gr.Slider(
                LEAST_CHANGE, 1.0, value=0.4, step=0.05, label=say("How much may change"), elem_id="lk-vary-change",
                info=say("Little: a touch of it. 1: a new picture."),
            )  # fmt: skip
            vary_number = gr.Slider(
                1, MAX_VARIATIONS, value=4, step=1, label=say("Variations"), elem_id="lk-vary-number"
            )
        with gr.Column(min_width=200, scale=2):
            vary_method = gr.Dropdown([], label=say("Draw with"), elem_id="lk-vary-method")
            vary_prompt = gr.Checkbox(
                value=False,
                label=say("With the prompt above"),
                info=say("Off: with the picture's own."),
                elem_id="lk-vary-prompt",
            )
            with gr.Row():
                vary = gr.Button(say("Draw variations"), variant="primary", size="sm", elem_id="lk-vary-start")
                vary_close = gr.Button(say("Close"), size="sm", elem_id="lk-vary-close", min_width=70)
    grid = gr.HTML(elem_id="lk-grid", js_on_load=ON_SHOT)
    with gr.Accordion(say("Before and after"), open=False, visible=False, elem_id="lk-compare") as compare_box:
        with gr.Row():
            left = gr.Dropdown([], label=say("Left"), elem_id="lk-left", min_width=140)
            right = gr.Dropdown([], label=say("Right"), elem_id="lk-right", min_width=140)
        compared = gr.HTML(elem_id="lk-compared", js_on_load=ON_SLIDE)
    with gr.Accordion(say("All pictures, best score first"), open=True, visible=False) as ranked_box:
        keep = gr.Slider(
            0, MAX_KEPT, value=0, step=1, label=say("Keep the best"), elem_id="lk-keep",
            info=say("Of all pictures so many stay, the most alike; each says why. 0 keeps them all."),
        )  # fmt: skip
        only = gr.Checkbox(value=False, label=say("Favourites only"), elem_id="lk-only", container=False)
        ranked = gr.HTML(elem_id="lk-ranked", js_on_load=ON_SHOT)
    return GenerateTab(
        blocked, style, undrawable, prompt, chips, unknown, columns, number, seed, keep_seed, dice, negative, steps,
        guidance, scheduler, width, height, size_row, strength, reuse, start, stop, best, sweep_method, sweep_steps,
        sweep_guidance, sweep, status, history_box, history, vary_box, vary_picture, vary_change, vary_number,
        vary_method, vary_prompt, vary, vary_close, grid, compare_box, left, right, compared, keep, only, ranked,
        ranked_box, imported,
    )  # fmt: skip


def wire(tab: GenerateTab, services: Services, capability: gr.BrowserState, show: Show) -> list[Any]:
    """Connects the tab's handlers, which check every value; returns the events that put a job in the line."""
    dials: dict[str, Any] = {
        "prompt": tab.prompt, "negative_prompt": tab.negative, "number": tab.number, "seed": tab.seed,
        "steps": tab.steps, "guidance": tab.guidance, "scheduler": tab.scheduler, "width": tab.width,
        "height": tab.height, "strength": tab.strength,
    }  # fmt: skip
    act = Actions(tab, services, show)

    wide: dict[str, Any] = {
        "outputs": show.outputs
        | tab.used
        | {
            tab.keep,
            tab.compare_box,
            tab.vary_method,
            tab.vary_change,
            tab.columns,
            tab.sweep_steps,
            tab.sweep_guidance,
        },
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    once: dict[str, Any] = {**wide, "trigger_mode": "once"}
    dialled: dict[str, Any] = {"inputs_kwargs": dials, **once}
    drawn_with = [capability, tab.columns, tab.keep_seed]
    swept_with = [capability, tab.sweep_method, tab.sweep_steps, tab.sweep_guidance, tab.keep_seed]
    varied_with = [capability, tab.vary_method, tab.vary_change, tab.vary_number, tab.vary_prompt, tab.keep_seed]
    started = [
        tab.start.click(told(act.start), drawn_with, **dialled),
        tab.best.click(told(act.best), drawn_with, **dialled),
        tab.sweep.click(told(act.sweep), swept_with, **dialled),
        tab.vary.click(told(act.vary), varied_with, **dialled),
    ]
    tab.vary_close.click(told(act.unpick), [capability], **wide, queue=False)
    tab.stop.click(told(act.stop), [capability], **wide, queue=False)
    for panel in (tab.grid, tab.ranked):
        panel.click(told(act.press), [capability], **wide, trigger_mode="multiple")
    tab.history.click(told(act.again), [capability], **wide)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    ranking: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    # `input`, not `release`: the arrow keys and the number box count too
    tab.keep.input(told(act.keep_best), [capability, tab.keep], tab.ranked, **ranking)
    tab.only.input(told(act.filter), [capability, tab.only], tab.ranked, **ranking)
    for side in (tab.left, tab.right):
        side.input(told(act.over), [capability, tab.left, tab.right], tab.compared, **quiet)
    filled = [tab.style, tab.prompt, tab.negative, tab.steps, tab.guidance, tab.unknown, tab.chips]
    tab.style.click(told(act.pick), [capability], filled, trigger_mode="always_last", **quiet)
    tab.chips.click(told(act.add), [capability, tab.prompt], [tab.style, tab.prompt, tab.unknown, tab.chips], **quiet)
    tab.prompt.input(
        told(act.check), [capability, tab.prompt], [tab.style, tab.unknown, tab.chips], queue=False,
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    tab.dice.click(lambda: secrets.randbelow(NEW_SEEDS), None, tab.seed, queue=False, **quiet)
    imports.wire(tab.imports, tab.columns, services, capability, show)
    tab.reuse.upload(told(act.reuse), [capability, tab.reuse], list(tab.used), **quiet)
    return started


class Actions:
    """What the tab's controls do. Every argument comes from a browser; `UserError` is told to the person."""

    def __init__(self, tab: GenerateTab, services: Services, show: Show) -> None:
        self.tab, self.services, self.show = tab, services, show

    # -- drawing

    def start(self, kept: object, columns: object, keep_seed: object, **dials: Any) -> Updates:
        view = self._ready(kept)
        dials["seed"] = first_seed(keep_seed, dials["seed"])
        return self._draw(kept, view, _chosen(view, columns), samplings(view.row, **dials))

    def best(self, kept: object, columns: object, keep_seed: object, **dials: Any) -> Updates:
        """Many pictures, of which the most alike are kept."""
        view = self._ready(kept)
        chosen = tuple(column for column in _chosen(view, columns) if column != "none")
        if not chosen:
            raise UserError("The untrained base draws nobody in particular. Choose at least one trained method.")
        dials |= {"number": BEST_NUMBER, "seed": first_seed(keep_seed, dials["seed"])}
        plan = samplings(view.row, **dials)
        self.services.sessions.choose(self.services.sessions.need(kept), keep=BEST_KEPT)
        return {**self._draw(kept, view, chosen, plan), self.tab.number: BEST_NUMBER, self.tab.keep: BEST_KEPT}

    def sweep(
        self, kept: object, method: object, many_steps: object, many_guidances: object, keep_seed: object, **dials: Any
    ) -> Updates:
        """One prompt and seed at several steps and guidances."""
        view = self._ready(kept)
        (column,) = _chosen(view, [method])
        dials |= {"number": 1, "seed": first_seed(keep_seed, dials["seed"])}
        (one,) = samplings(view.row, **dials)
        return self._draw(kept, view, (column,), swept(one, steps=many_steps, guidance=many_guidances))

    def vary(
        self,
        kept: object,
        method: object,
        change: object,
        many: object,
        with_prompt: object,
        keep_seed: object,
        **dials: Any,
    ) -> Updates:
        """Pictures that start from the picked one instead of from noise alone."""
        view = self._ready(kept)
        picked = view.picked
        if picked is None or picked.sampling is None:
            raise UserError("No picture is picked. Press the button for variations below one.")
        (column,) = _chosen(view, [method])
        count = whole("Variations", many, 1, MAX_VARIATIONS)
        changed = decimal("How much may change", change, LEAST_CHANGE, 1.0)
        first = whole("Seed", first_seed(keep_seed, dials["seed"]), 0, MAX_SEED)
        like = picked.sampling
        if with_prompt is True:
            (asked,) = samplings(view.row, **(dials | {"number": 1}))
            like = replace(like, prompt=asked.prompt, negative_prompt=asked.negative_prompt)
        plan = tuple(
            replace(like, source=picked.path, change=changed, seed=(first + i) % (MAX_SEED + 1)) for i in range(count)
        )
        return self._draw(kept, view, (column,), plan)

    def _ready(self, kept: object) -> View:
        self.services.sessions.need(kept)
        view = self.services.view(kept)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or press Stop first.")
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        return view

    def _draw(self, kept: object, view: View, columns: Sequence[str], plan: tuple[Sampling, ...]) -> Updates:
        session = self.services.sessions.need(kept)
        self.services.start_generation(session, columns=tuple(columns), samplings=plan)
        self.services.sessions.choose(session, shown=None)
        return {**self.show(kept), self.tab.seed: plan[0].seed}

    def stop(self, kept: object) -> Updates:
        self.services.stop(self.services.sessions.need(kept).run.drawing)
        return self.show(kept)

    # -- pictures

    def press(self, kept: object, event: gr.EventData) -> Updates:
        """A button below a picture."""
        session = self.services.sessions.need(kept)
        sent = getattr(event, "_data", None)
        pressed = sent if isinstance(sent, dict) else {}
        view = self.services.view(kept)
        shot = pictures.find(view.pictures, pressed.get("picture"))
        action = pressed.get("action")
        if action in ("like", "unlike"):
            self.services.like(session.run, shot, action == "like")
            return self.show(kept)
        if action == "vary":
            self.services.sessions.choose(session, picked=shot.id)
            varied = shot.method if shot.method in view.columns else view.columns[-1]
            return {**self.show(kept), self.tab.vary_method: varied}
        if action == "finish":
            self.services.sessions.choose(session, finishing=shot.id)
            return self.show(kept)
        if action == "use" and shot.sampling is not None:
            return self._use(kept, view, shot.sampling)
        if action == "compare":
            pair = _pair_with(view, shot)
            if pair is None:
                raise UserError(
                    "Nothing else was drawn with this seed and these settings. Draw it with another method as well, "
                    "then compare."
                )
            return {**self.tab.compare(view, pair), self.tab.compare_box: gr.update(open=True, visible=True)}
        raise UserError("That button does nothing here. Reload the page and try again.")

    def _use(self, kept: object, view: View, sampling: Sampling, *, number: int = 1) -> Updates:
        """The dials of a picture; of a variation also the picture it came from."""
        updates = self.tab.use(view.row, sampling, number=number)
        source = _source(view, sampling)
        if source is None:
            return updates
        self.services.sessions.choose(self.services.sessions.need(kept), picked=source.id)
        return {**self.show(kept), **updates, self.tab.vary_change: sampling.change}

    def unpick(self, kept: object) -> Updates:
        self.services.sessions.choose(self.services.sessions.need(kept), picked="")
        return self.show(kept)

    def over(self, kept: object, left: object, right: object) -> str:
        view = self.services.view(kept)
        return views.before_after(pictures.find(view.pictures, left), pictures.find(view.pictures, right))

    def keep_best(self, kept: object, keep: object) -> str:
        session = self.services.sessions.need(kept)
        wanted = int(keep) if isinstance(keep, int | float) and 0 <= keep <= MAX_KEPT else 0
        self.services.sessions.choose(session, keep=wanted)
        return _gallery(self.services.view(kept))

    def filter(self, kept: object, only: object) -> str:
        self.services.sessions.choose(self.services.sessions.need(kept), only_favourites=only is True)
        return _gallery(self.services.view(kept))

    def again(self, kept: object, event: gr.EventData) -> Updates:
        """An earlier job: its pictures, and the dials as they were."""
        session = self.services.sessions.need(kept)
        sent = getattr(event, "_data", None)
        wanted = sent.get("job") if isinstance(sent, dict) else None
        view = self.services.view(kept)
        job = next((each for each in view.history if type(wanted) is int and each.number == wanted), None)
        if job is None:
            raise UserError("These pictures are no longer here. Reload the page and try again.")
        self.services.sessions.choose(session, shown=job.number)
        if not job.samplings:
            return self.show(kept)
        seeds = {sampling.seed for sampling in job.samplings}
        filled = self._use(kept, view, job.samplings[0], number=len(seeds))
        columns = [method for method in job.methods if method in view.columns]
        pairs = [(each.steps, each.guidance) for each in job.samplings]
        if len(set(pairs)) > 1:
            for box, values in zip((self.tab.sweep_steps, self.tab.sweep_guidance), zip(*pairs)):
                filled[box] = ", ".join(f"{value:g}" for value in sorted(set(values)))
        return {**self.show(kept), **filled, self.tab.columns: gr.update(value=columns)}

    # -- words

    def pick(self, kept: object, event: gr.EventData) -> Updates:
        """A card of a style."""
        sent = getattr(event, "_data", None)
        wanted = sent.get("style") if isinstance(sent, dict) else None
        row = self.services.view(kept).row
        style = presets.styles().get(wanted) if isinstance(wanted, str) else None
        if style is None or presets.style_problem(style, row) is not None:
            return {self.tab.style: gr.update(selected=OWN)}
        return {self.tab.style: gr.update(selected=style.id), **self.tab.fill(row, style)}

    def add(self, kept: object, prompt: object, event: gr.EventData) -> Updates:
        """A suggestion, put where it belongs."""
        sent = getattr(event, "_data", None)
        phrase = sent.get("phrase") if isinstance(sent, dict) else None
        row = self.services.view(kept).row
        text = completed(str(prompt or ""), phrase[:PROMPT_LIMIT]) if isinstance(phrase, str) else str(prompt or "")
        return {self.tab.prompt: text, **self._said(row, text)}

    def check(self, kept: object, prompt: object) -> Updates:
        return self._said(self.services.view(kept).row, str(prompt or ""))

    def _said(self, row: BaseRow, prompt: str) -> Updates:
        return {self.tab.style: gr.update(selected=style_of(row, prompt)), **self.tab.helped(row, prompt)}

    def reuse(self, kept: object, file: str | None) -> Updates:
        """The settings inside a picture that was made here, or by somebody else with this app."""
        from pipelines.generation.generation import read_settings

        path = Path(file or "")
        try:
            found = read_settings(path) if file else None
        finally:
            if file:
                photobox.drop_upload(path)
        if found is None:
            raise UserError("That picture carries no settings of ours. Choose a PNG that this app made.")
        return self.tab.use(self.services.view(kept).row, found)


def _chosen(view: View, columns: object) -> tuple[str, ...]:
    """Those of `columns` that can be drawn. Raises UserError when there is none."""
    wanted = columns if isinstance(columns, list) else []
    chosen = tuple(column for column in view.columns if column in wanted)
    if not chosen:
        raise UserError("Choose at least one column to draw: the untrained base or a trained method.")
    return chosen


def first_seed(keep: object, seed: object) -> object:
    """The seed as it stands when it is to be kept (unchecked: `samplings` does that), else a new one."""
    return seed if keep is True else secrets.randbelow(NEW_SEEDS)


def swept(one: Sampling, *, steps: object, guidance: object) -> tuple[Sampling, ...]:
    """`one` at every pair of the steps and guidances that a person wrote. Raises UserError naming what is wrong."""
    many_steps = [whole("Steps", value, 1, 60) for value in numbers("Steps", steps)]
    many_guidances = [decimal("Guidance", value, 0.0, 15.0) for value in numbers("Guidance", guidance)]
    if len(many_steps) * len(many_guidances) < 2:
        raise UserError("A sweep of one picture compares nothing. Write at least two values of steps or of guidance.")
    return tuple(replace(one, steps=each, guidance=how) for each in many_steps for how in many_guidances)


def numbers(label: str, text: object) -> list[float]:
    """ "10, 20; 40" -> [10, 20, 40]: 1 to SWEPT different ones, smallest first. Raises UserError."""
    parts = [part for part in re.split(r"[,;\s]+", str(text or "")[:200]) if part]
    try:
        found = sorted({float(part) for part in parts})
    except ValueError:
        raise UserError(f"{label} must be numbers with commas between them, such as 10, 20, 40.") from None
    if not 1 <= len(found) <= SWEPT:
        raise UserError(f"Write 1 to {SWEPT} different values of {label.lower()}, not {len(found)}.")
    return found


def samplings(
    row: BaseRow,
    *,
    prompt: object,
    negative_prompt: object,
    number: object,
    seed: object,
    steps: object,
    guidance: object,
    scheduler: object,
    width: object,
    height: object,
    strength: object,
) -> tuple[Sampling, ...]:
    """One Sampling per picture, with seeds that count up. Every value comes from a browser and is checked here.

    Raises UserError naming the setting: Gradio's own bounds let NaN and fractions through.
    """
    count = whole("Pictures per method", number, 1, MAX_NUMBER)
    first = whole("Seed", seed, 0, MAX_SEED)
    text = words("Prompt", prompt)
    if not text:
        raise UserError("The prompt is empty. Describe the picture, or pick a style.")
    if "{subject}" not in text:
        raise UserError("The prompt has no {subject}. Write {subject} where the person belongs.")
    negative = words("Negative prompt", negative_prompt)
    safety.check_prompt(text, negative)
    if missing := unknown_words(row, text):
        raise UserError(f"{called(row)} does not know: {', '.join(missing)}. Remove or replace these words.")
    if scheduler not in schedulers(row):
        raise UserError(f"There is no such scheduler. Choose one of: {', '.join(schedulers(row))}.")
    sizes = (0, *SIZES.get(row.family, ()))
    if width not in sizes or height not in sizes:
        raise UserError(f"{row.title} does not draw that size. Choose width and height from the lists.")
    common = Sampling(
        prompt=text,
        negative_prompt=negative,
        steps=whole("Steps", steps, 1, 60),
        guidance=decimal("Guidance", guidance, 0.0, 15.0),
        width_px=int(str(width)) or None,
        height_px=int(str(height)) or None,
        scheduler=str(scheduler),
        strength=decimal("LoRA strength", strength, 0.0, 1.5),
    )
    return tuple(Sampling(**{**vars(common), "seed": (first + i) % (MAX_SEED + 1)}) for i in range(count))


def schedulers(row: BaseRow) -> tuple[str, ...]:
    """What it can draw with, its own first."""
    return SCHEDULERS[:1] if row.own_scheduler else SCHEDULERS


def _named_schedulers(row: BaseRow) -> list[tuple[str, str]]:
    own, *others = schedulers(row)
    return [(tell("default"), own), *((name, name) for name in others)]


def decimal(label: str, value: object, low: float, high: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise UserError(f"{label} must be a number from {low:g} to {high:g}. Correct it and try again.")
    return float(value)


def whole(label: str, value: object, low: int, high: int) -> int:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or int(number) != number or not low <= number <= high:
        raise UserError(f"{label} must be a whole number from {low} to {high}. Correct it and try again.")
    return int(number)


def words(label: str, value: object) -> str:
    text = " ".join(str(value or "").split())
    if len(text) > PROMPT_LIMIT:
        raise UserError(f"{label} has {len(text)} characters; at most {PROMPT_LIMIT} are used. Shorten it.")
    return text


def unknown_note(row: BaseRow, prompt: str) -> str:
    """What is said about a prompt that can't be drawn: why, or which words this base never learned."""
    if refusal := safety.problem(prompt[:PROMPT_LIMIT]):
        return views.note(refusal, "bad")
    missing = unknown_words(row, prompt[:PROMPT_LIMIT])
    if not missing:
        return ""
    return views.note(tell("{base} does not know: {words}.", base=called(row), words=", ".join(missing)), "bad")


def called(row: BaseRow) -> str:
    """A base's short name; of a local one never its path."""
    return row.name if row.name in BASES else row.title


@lru_cache(maxsize=256)
def _thumbnail(name: str) -> str | None:
    """A style's small picture as a data: address, None where there is none: Gradio's own file route is closed."""
    file = (presets.PRESETS / name).resolve()
    kinds = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
    if not file.is_relative_to(presets.PRESETS.resolve()) or file.suffix.lower() not in kinds:
        return None
    if not file.is_file() or file.stat().st_size > THUMBNAIL_LIMIT:
        return None
    return f"data:image/{kinds[file.suffix.lower()]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def look_cards(row: BaseRow) -> tuple[list[LookCard], str]:
    """(a card per style this base can draw, the last one for own words; HTML list of the others with their reasons)."""
    choices, marked = style_choices(row)
    known = presets.styles()
    cards = []
    for name, style_id in choices:
        style = known.get(style_id)
        picture = _thumbnail(style.thumbnail) if style and style.thumbnail else None
        cards.append(LookCard(style_id, name, picture, style.prompt if style else ""))
    return cards, marked


def style_of(row: BaseRow, prompt: str) -> str:
    """The style whose prompt this is, else "own"."""
    text = " ".join(prompt.split())
    for style in presets.styles().values():
        if style.prompt == text and presets.style_problem(style, row) is None:
            return style.id
    return OWN


def _source(view: View, sampling: Sampling) -> Shot | None:
    """The picture a variation came from, when it is still there."""
    return next((shot for shot in view.pictures if sampling.source and shot.path == sampling.source), None)


def _fellows(view: View, shot: Shot) -> list[Shot]:
    """`shot` and every picture it can be laid over: of the same settings by another method, and its source."""
    same = {each.method: each for each in view.pictures if each.sampling == shot.sampling} | {shot.method: shot}
    source = _source(view, shot.sampling) if shot.sampling else None
    return [same[column] for column in sorted(same, key=place_of)] + ([source] if source else [])


def _pair_with(view: View, shot: Shot) -> tuple[Shot, Shot] | None:
    """What a picture is compared with at first: what it came from, the untrained base, else the most alike other."""
    others = [each for each in _fellows(view, shot) if each.id != shot.id]
    if not others:
        return None
    first = max(
        others, key=lambda each: (each.sampling != shot.sampling, each.method == "none", each.similarity or -1.0)
    )
    if shot.method == "none" and first.sampling == shot.sampling:
        return shot, first
    return first, shot


def _pair(view: View) -> tuple[Shot, Shot] | None:
    """What lies under the slider at first: of the pictures shown the first that two methods drew, else of all."""
    for shots in (view.latest_shots, view.pictures):
        for row in views.rows_of(shots):
            there = [row[column] for column in sorted(row, key=place_of)]
            if len(there) > 1:
                return there[0], there[-1]
            if there and there[0].sampling and (source := _source(view, there[0].sampling)):
                return source, there[0]
    return None


def _called(shot: Shot, beside: Shot) -> str:
    return views.named(shot.method) if shot.sampling == beside.sampling else tell("The picture it came from")


def _gallery(view: View) -> str:
    return views.gallery(view.shots, view.choices.keep, only_favourites=view.choices.only_favourites)


def _job_card(view: View, job: Drawing) -> JobCard:
    """A job in the list: what was asked for, by which methods, how many."""
    prompts = {shot.prompt for shot in job.shots}
    style = presets.styles().get(style_of(view.row, job.shots[0].prompt))
    title = style.name if style else views.look(job.shots[0].prompt)
    if len(prompts) > 1:
        title = tell("{look}, and {count} more", look=title, count=len(prompts) - 1)
    if any(sampling.source for sampling in job.samplings):
        title = tell("Variations: {look}", look=title)
    elif len({(sampling.steps, sampling.guidance) for sampling in job.samplings}) > len(prompts):
        title = tell("Sweep: {look}", look=title)
    detail = f"{views.pictures(len(job.shots))}: {', '.join(views.named(method) for method in job.methods)}"
    shown = view.shown_job is not None and view.shown_job.number == job.number
    return JobCard(job.number, title, detail, job.when_s, job.shots[-1].link, shown)


def _rank(style_id: str) -> int:
    return COMPARED_STYLES.index(style_id) if style_id in COMPARED_STYLES else len(COMPARED_STYLES)


def style_choices(row: BaseRow) -> tuple[list[tuple[str, str]], str]:
    """(choices this base can draw, HTML list of the others with their reasons)."""
    can, cannot = [], []
    known = presets.styles()
    plain_first = sorted(known.values(), key=lambda style: (_rank(style.id), not style.photoreal))
    for style in plain_first:
        problem = presets.style_problem(style, row)
        if problem is None:
            can.append((style.name, style.id))
        else:
            cannot.append(f"<li><b>{escape(style.name)}</b> - {escape(retell(problem))}</li>")
    marked = (
        f'<ul class="lk-note lk-list">{"".join(cannot)}</ul>'
        if cannot
        else views.note(tell("This base can draw all of them."))
    )
    return [*can, (tell("Own words"), OWN)], marked


def _status(view: View) -> str:
    drawing = view.drawing
    if drawing.problem:
        return views.note(drawing.problem, "bad")
    if drawing.busy:
        return views.note(
            f"{views.waiting(drawing.ahead, drawing.starts_in_s) or drawing.text or tell('Starting ...')} "
            f"{view.drawn_text} {view.safe_to_leave}"
        )
    if drawing.refused:
        refused = tell(
            "Taken for sexual content by the image filter and not saved: {pictures}. Try another prompt or seed.",
            pictures=views.pictures(drawing.refused),
        )
        return views.note(refused, "warn")
    if not view.shots and view.generate_blocked is None:
        return views.note(tell("Pick a style and press Generate."))
    return ""
