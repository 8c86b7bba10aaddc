"""The Generate tab: a style or one's own words, a few dials, and the same noise drawn by every method side by side.

In: a view of the run. Out: the tab's components and what they show. What its buttons do stands in `events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from pipelines.bases.registry import BaseRow
from pipelines.core import presets
from pipelines.core.decode import limits
from pipelines.core.records import Sampling, Style
from ui.generate import html as generate_html
from ui.generate import imports
from ui.generate.compare import fellows, first_pair, job_card, name_beside
from ui.generate.completion import completions
from ui.generate.styles import OWN, look_cards, style_of
from ui.generate.values import (
    MAX_NUMBER,
    MAX_SEED,
    PROMPT_LIMIT,
    SCHEDULERS,
    called,
    named_schedulers,
    schedulers,
    unknown_note,
)
from ui.page import html as page_html
from ui.page.fields import UploadButton
from ui.page.html import script
from ui.page.refresh import Updates
from ui.page.views import RESEARCH
from ui.run.cards import Shot
from ui.run.services import Services
from ui.run.view import View
from ui.words import phrases
from ui.words.words import say, tell

MAX_KEPT = 24
MAX_VARIATIONS = 12
LEAST_CHANGE = 0.05
BEST_NUMBER, BEST_KEPT = 24, 6  # and these
SUGGESTIONS = 8
Parts = dict[str, Any]  # a field of GenerateTab -> its component
# A radio group: one card can be tabbed to, arrows move the choice, which is sent once the keys rest. The first choice
# stands in the HTML: a tab that was never opened knows no property yet.
ON_STYLE = script("generate/style.js")
ON_CHIP = script("generate/chip.js")
# One press at a time: what is pressed while the last one is under way (the page then moves) is no second press. A
# picture that moves takes the keyboard's place with it.
ON_SHOT = script("generate/shot.js")
ON_JOB = script("generate/job.js")
ON_SLIDE = script("generate/slide.js")


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
    seed: gr.Slider
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
        methods = [(phrases.named(c), c) for c in view.columns]
        return {
            self.blocked: gr.update(value=page_html.note(closed or "", "warn"), visible=closed is not None),
            self.start: gr.update(interactive=ready),
            self.best: gr.update(interactive=ready),
            self.sweep: gr.update(interactive=ready),
            self.vary: gr.update(interactive=ready and picked is not None),
            self.stop: gr.update(visible=busy),
            self.status: gr.update(value=_status(view)),
            self.history_box: gr.update(visible=len(view.history) > 0),
            self.history: gr.update(
                value=generate_html.history([job_card(view, job) for job in reversed(view.history)])
            ),
            self.vary_box: gr.update(visible=picked is not None),
            self.vary_picture: gr.update(value=generate_html.picked(picked) if picked else ""),
            self.grid: gr.update(value=generate_html.side_by_side(view.latest_shots, view.drawn_columns)),
            self.compare_box: gr.update(visible=bool(first_pair(view))),
            self.ranked_box: gr.update(visible=bool(view.shots)),
            self.ranked: gr.update(value=gallery_of(view)),
            self.columns: gr.update(choices=methods),
            self.sweep_method: gr.update(choices=methods),
            self.vary_method: gr.update(choices=methods),
            **self.imports.show(view),
        }

    def restore(self, view: View) -> Updates:
        """What depends on the base, and the columns that exist."""
        cards, marked = look_cards(view.row)
        sizes = [(tell("the base's own"), 0), *((f"{size} px", size) for size in view.row.sizes_px)]
        portrait = not view.row.sizes_px
        style = presets.styles().get(cards[0].id)
        return {
            self.style: gr.update(value=generate_html.look_cards(cards, cards[0].id), selected=cards[0].id),
            self.undrawable: gr.update(value=marked),
            self.columns: gr.update(choices=[(phrases.named(c), c) for c in view.columns], value=list(view.columns)),
            self.size_row: gr.update(visible=not portrait),
            self.keep: gr.update(value=view.choices.keep),
            self.only: gr.update(value=view.choices.only_favourites),
            self.scheduler: gr.update(choices=named_schedulers(view.row), value=SCHEDULERS[0]),
            self.width: gr.update(choices=sizes, value=0),
            self.height: gr.update(choices=sizes, value=0),
            **self._methods(view),
            **self.imports.restore(view),
            **self.compare(view, first_pair(view)),
            **(self.fill(view.row, style) if style else self.helped(view.row, "")),
        }

    def news(self, view: View) -> Updates:
        """A newly trained method is ticked at once; the comparison goes on to what was drawn last."""
        return {
            self.columns: gr.update(choices=[(phrases.named(c), c) for c in view.columns], value=list(view.columns)),
            **self._methods(view),
            # not while pictures are being drawn and scored: whoever compares meanwhile keeps what they look at
            **({} if view.drawing.busy else self.compare(view, first_pair(view))),
        }

    def _methods(self, view: View) -> Updates:
        choices = [(phrases.named(c), c) for c in view.columns]
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
            self.chips: gr.update(value=generate_html.chips(completions(row, prompt[:PROMPT_LIMIT], SUGGESTIONS))),
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
        sizes, offered = (0, *row.sizes_px), schedulers(row)
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
        choices = [(name_beside(shot, pair[1]), shot.id) for shot in fellows(view, pair[1])]
        return {
            self.left: gr.update(choices=choices, value=pair[0].id),
            self.right: gr.update(choices=choices, value=pair[1].id),
            self.compared: gr.update(value=generate_html.before_after(*pair)),
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
            words = _words()
            sweep = _sweep()
        with gr.Column(scale=2, min_width=280):
            dials = _dials()
            with gr.Accordion(say("Advanced"), open=False, elem_id="lk-advanced"):
                advanced = _advanced()
            with gr.Column(elem_classes=RESEARCH):
                imported = imports.build()
            start = gr.Button(say("Generate"), variant="primary", size="lg", elem_id="lk-generate")
            stop = gr.Button(say("Stop"), variant="stop", visible=False, elem_id="lk-generate-stop")
            best = gr.Button(say("Make 24 per method, keep the 6 most like me"), size="sm", elem_id="lk-best")
    status = gr.HTML(elem_id="lk-generate-status")
    with gr.Accordion(say("History"), open=False, visible=False, elem_id="lk-history-box") as history_box:
        history = gr.HTML(elem_id="lk-history", js_on_load=ON_JOB)
    varied = _variations()
    pictures = _pictures()
    return GenerateTab(
        blocked=blocked, start=start, stop=stop, best=best, status=status, history_box=history_box,
        history=history, imports=imported, **words, **sweep, **dials, **advanced, **varied, **pictures,
    )  # fmt: skip


def _words() -> Parts:
    style = gr.HTML(elem_id="lk-style", js_on_load=ON_STYLE, selected=OWN)
    with gr.Accordion(say("Styles this base can't draw, and why"), open=False, elem_classes=RESEARCH):
        undrawable = gr.HTML()
    prompt = gr.Textbox(
        label=say("Prompt"), lines=2, elem_id="lk-prompt",
        info=say("{subject} is the person; without it, it is put in front. Shift + Enter draws."),
    )  # fmt: skip
    chips = gr.HTML(elem_id="lk-chips", js_on_load=ON_CHIP)
    unknown = gr.HTML(elem_id="lk-unknown")
    return {"style": style, "undrawable": undrawable, "prompt": prompt, "chips": chips, "unknown": unknown}


def _dials() -> Parts:
    """What every visitor sees: methods, how many, steps, guidance, seed."""
    columns = gr.CheckboxGroup([], label=say("Draw with"), elem_id="lk-columns")
    number = gr.Slider(1, MAX_NUMBER, value=4, step=1, label=say("Pictures per method"), elem_id="lk-number")
    steps = gr.Slider(
        *limits(Sampling, "steps"), value=20, step=1, label=say("Steps"), elem_id="lk-steps-dial",
        info=say("How often the picture is refined. More takes longer and is often cleaner."),
    )  # fmt: skip
    guidance = gr.Slider(
        *limits(Sampling, "guidance"), value=3.0, step=0.1, label=say("Guidance"), elem_id="lk-guidance",
        info=say("How closely to follow the prompt. Too high looks harsh."),
    )  # fmt: skip
    seed = gr.Slider(
        0, MAX_SEED, value=0, step=1, label=say("Seed"), elem_id="lk-seed",
        info=say("The random start. The same seed and settings draw the same picture again."),
    )  # fmt: skip
    with gr.Row(elem_id="lk-seeds"):
        keep_seed = gr.Checkbox(
            value=False, label=say("Keep this seed"), elem_id="lk-keep-seed", container=False, min_width=140,
            info=say("Off: every Generate draws new ones."),
        )  # fmt: skip
        dice = gr.Button(say("New seed"), size="sm", min_width=100, elem_id="lk-dice")
    return {
        "columns": columns, "number": number, "steps": steps, "guidance": guidance, "seed": seed,
        "keep_seed": keep_seed, "dice": dice,
    }  # fmt: skip


def _advanced() -> Parts:
    negative = gr.Textbox(label=say("Negative prompt"), lines=2)
    strength = gr.Slider(*limits(Sampling, "strength"), value=1.0, step=0.05, label=say("LoRA strength"))
    scheduler = gr.Dropdown(list(SCHEDULERS), value="default", label=say("Scheduler"))
    with gr.Row(visible=False) as size_row:
        width = gr.Dropdown([("the base's own", 0)], value=0, label=say("Width"), min_width=120)
        height = gr.Dropdown([("the base's own", 0)], value=0, label=say("Height"), min_width=120)
    reuse = UploadButton(say("Reuse the settings of a picture (PNG)"), file_types=[".png"], size="sm")
    return {
        "negative": negative, "strength": strength, "scheduler": scheduler, "size_row": size_row, "width": width,
        "height": height, "reuse": reuse,
    }  # fmt: skip


def _sweep() -> Parts:
    with gr.Accordion(say("Sweep: steps × guidance"), open=False, elem_id="lk-sweep", elem_classes=RESEARCH):
        gr.HTML(
            '<p class="lk-note lk-small">'
            + say(
                "One prompt, one seed: how many steps, and how closely to follow the prompt? Up to 4 values "
                "each, with commas between them."
            )
            + "</p>"
        )
        method = gr.Dropdown([], label=say("Draw with"), elem_id="lk-sweep-method")
        with gr.Row():
            steps = gr.Textbox("10, 20, 40", label=say("Steps"), elem_id="lk-sweep-steps", min_width=110)
            guidance = gr.Textbox("1, 3, 5", label=say("Guidance"), elem_id="lk-sweep-guidance", min_width=110)
        sweep = gr.Button(say("Draw the sweep"), size="sm", elem_id="lk-sweep-start")
    return {"sweep_method": method, "sweep_steps": steps, "sweep_guidance": guidance, "sweep": sweep}


def _variations() -> Parts:
    with gr.Column(visible=False, elem_id="lk-vary") as box, gr.Row(equal_height=False):
        with gr.Column(min_width=150, scale=1):
            picture = gr.HTML(elem_id="lk-vary-picture")
        with gr.Column(min_width=260, scale=3):
            change = gr.Slider(
                LEAST_CHANGE, 1.0, value=0.4, step=0.05, label=say("How much may change"), elem_id="lk-vary-change",
                info=say("Little: a touch of it. 1: a new picture."),
            )  # fmt: skip
            number = gr.Slider(1, MAX_VARIATIONS, value=4, step=1, label=say("Variations"), elem_id="lk-vary-number")
        with gr.Column(min_width=200, scale=2):
            method = gr.Dropdown([], label=say("Draw with"), elem_id="lk-vary-method")
            prompt = gr.Checkbox(
                value=False, label=say("With the prompt above"), info=say("Off: with the picture's own."),
                elem_id="lk-vary-prompt",
            )  # fmt: skip
            with gr.Row():
                vary = gr.Button(say("Draw variations"), variant="primary", size="sm", elem_id="lk-vary-start")
                close = gr.Button(say("Close"), size="sm", elem_id="lk-vary-close", min_width=70)
    return {
        "vary_box": box, "vary_picture": picture, "vary_change": change, "vary_number": number, "vary_method": method,
        "vary_prompt": prompt, "vary": vary, "vary_close": close,
    }  # fmt: skip


def _pictures() -> Parts:
    grid = gr.HTML(elem_id="lk-grid", js_on_load=ON_SHOT, elem_classes=RESEARCH)
    with gr.Accordion(say("Before and after"), open=False, visible=False, elem_id="lk-compare") as compare_box:
        with gr.Row():
            left = gr.Dropdown([], label=say("Left"), elem_id="lk-left", min_width=140)
            right = gr.Dropdown([], label=say("Right"), elem_id="lk-right", min_width=140)
        compared = gr.HTML(elem_id="lk-compared", js_on_load=ON_SLIDE)
    with gr.Accordion(say("All pictures, best score first"), open=True, visible=False) as ranked_box:
        keep = gr.Slider(
            0, MAX_KEPT, value=0, step=1, label=say("Keep the best"), elem_id="lk-keep",
            info=say("Show the best N matches; the rest are dimmed, with the reason. 0 dims none."),
        )  # fmt: skip
        only = gr.Checkbox(value=False, label=say("Favourites only"), elem_id="lk-only", container=False)
        ranked = gr.HTML(elem_id="lk-ranked", js_on_load=ON_SHOT)
    return {
        "grid": grid, "compare_box": compare_box, "left": left, "right": right, "compared": compared, "keep": keep,
        "only": only, "ranked": ranked, "ranked_box": ranked_box,
    }  # fmt: skip


def gallery_of(view: View) -> str:
    return generate_html.gallery(view.shots, view.choices.keep, only_favourites=view.choices.only_favourites)


def _overall(view: View) -> str:
    """A bar for the pictures under way, with the time that the rest takes at this machine's pace."""
    drawing = view.drawing
    if not drawing.to_draw or drawing.kind != "generate":
        return ""
    left = (drawing.to_draw - drawing.drawn) * view.picture_s if view.picture_s else None
    text = tell("{time} left", time=phrases.duration(phrases.rounded(left))) if left else ""
    return page_html.bar(tell("Pictures"), drawing.drawn / drawing.to_draw, text)


def _takes(view: View) -> str:
    """How long drawing takes on this machine, as far as that was timed."""
    columns = [column for column in view.columns if column != "none"]
    picture_s = view.picture_s
    if picture_s is None or not columns:
        return ""
    said = tell(
        "A picture takes about {time} here, {count} per method about {all}.", time=phrases.duration(picture_s),
        count=BEST_NUMBER, all=phrases.duration(phrases.rounded(picture_s * BEST_NUMBER * len(columns))),
    )  # fmt: skip
    return f'<p class="lk-note lk-small">{escape(said)}</p>'


def _status(view: View) -> str:
    base = called(view.row)
    unread = [
        tell("The prompt is longer than {base} reads. Not read: {words}", base=base, words=words)
        for words in view.drawing.unread
    ]
    return _standing(view) + "".join(page_html.note(each, "warn") for each in unread)


def _standing(view: View) -> str:
    """Where the drawing stands."""
    drawing = view.drawing
    if drawing.problem:
        return page_html.note(drawing.problem, "bad")
    if drawing.busy:
        return page_html.note(
            f"{phrases.waiting(drawing.ahead, drawing.starts_in_s) or drawing.text or tell('Starting ...')} "
            f"{view.drawn_text} {view.safe_to_leave}"
        ) + _overall(view)
    if drawing.refused:
        refused = tell(
            "Taken for sexual content by the image filter and not saved: {pictures}. Try another prompt or seed.",
            pictures=phrases.pictures(drawing.refused),
        )
        return page_html.note(refused, "warn")
    if view.generate_blocked is not None:
        return ""
    return ("" if view.shots else page_html.note(tell("Pick a style and press Generate."))) + _takes(view)
