"""The Generate tab: a look or one's own words, a few dials, and the same noise drawn by every method side by side."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines import presets
from pipelines.bases.registry import BASES, BaseRow, unknown_words
from pipelines.comparison import COMPARED_STYLES
from pipelines.schema import Sampling, Style, UserError
from ui import photobox, views
from ui.errors import told
from ui.state import Services, View
from ui.theme import METHOD_NAMES
from ui.wiring import Show, Updates

OWN = "own"
MAX_SEED = 2**31 - 1
MAX_NUMBER = 24
MAX_KEPT = 24
SIZES = {"portrait": (), "sd15": (512, 640, 768), "sdxl": (768, 896, 1024)}
# The generator's own list; it is not imported because it brings torch with it. A test holds the two equal.
SCHEDULERS = ("default", "ddim", "dpm++", "unipc", "euler", "euler ancestral")
PROMPT_LIMIT = 500


@dataclass
class GenerateTab:
    blocked: gr.HTML
    style: gr.Radio
    undrawable: gr.HTML
    prompt: gr.Textbox
    unknown: gr.HTML
    columns: gr.CheckboxGroup
    number: gr.Slider
    seed: gr.Number
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
    status: gr.HTML
    grid: gr.HTML
    keep: gr.Slider
    ranked: gr.HTML
    ranked_box: gr.Accordion

    def show(self, view: View) -> Updates:
        busy, closed = view.drawing.busy, view.generate_blocked
        return {
            self.blocked: gr.update(value=views.note(closed or "", "warn"), visible=closed is not None),
            self.start: gr.update(interactive=closed is None and not busy),
            self.stop: gr.update(visible=busy),
            self.status: gr.update(value=_status(view)),
            self.grid: gr.update(value=views.side_by_side(view.latest_shots, view.drawn_columns)),
            self.ranked_box: gr.update(visible=bool(view.shots)),
            self.ranked: gr.update(value=views.gallery(view.shots, view.choices.keep)),
            self.columns: gr.update(choices=[(METHOD_NAMES[c], c) for c in view.columns]),
        }

    def restore(self, view: View) -> Updates:
        """What depends on the base, and the columns that exist."""
        choices, marked = style_choices(view.row)
        sizes = [("the base's own", 0), *((f"{size} px", size) for size in SIZES.get(view.row.family, ()))]
        portrait = not SIZES.get(view.row.family)
        first = choices[0][1]
        style = presets.styles().get(first)
        return {
            self.style: gr.update(choices=choices, value=first),
            self.undrawable: gr.update(value=marked),
            self.columns: gr.update(choices=[(METHOD_NAMES[c], c) for c in view.columns], value=list(view.columns)),
            self.size_row: gr.update(visible=not portrait),
            self.keep: gr.update(value=view.choices.keep),
            self.width: gr.update(choices=sizes, value=0),
            self.height: gr.update(choices=sizes, value=0),
            **(self.fill(style) if style else {}),
        }

    def news(self, view: View) -> Updates:
        """A newly trained method is ticked at once."""
        return {self.columns: gr.update(choices=[(METHOD_NAMES[c], c) for c in view.columns], value=list(view.columns))}

    def fill(self, style: Style) -> Updates:
        return {
            self.prompt: gr.update(value=style.prompt),
            self.negative: gr.update(value=style.negative_prompt),
            self.steps: gr.update(value=style.steps),
            self.guidance: gr.update(value=style.guidance),
            self.unknown: gr.update(value=""),
        }


def build(services: Services) -> GenerateTab:
    blocked = gr.HTML(visible=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            style = gr.Radio([], label="Style", elem_id="lk-style")
            with gr.Accordion("Styles this base can't draw, and why", open=False):
                undrawable = gr.HTML()
            prompt = gr.Textbox(
                label="Prompt",
                lines=2,
                elem_id="lk-prompt",
                info="{subject} becomes the person, for each method in its own way.",
            )
            unknown = gr.HTML(elem_id="lk-unknown")
        with gr.Column(scale=2, min_width=280):
            columns = gr.CheckboxGroup([], label="Draw with", elem_id="lk-columns")
            number = gr.Slider(1, MAX_NUMBER, value=4, step=1, label="Pictures per method", elem_id="lk-number")
            with gr.Row():
                seed = gr.Number(
                    value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", elem_id="lk-seed", min_width=130
                )
                dice = gr.Button("New seed", size="sm", min_width=110, elem_id="lk-dice")
            with gr.Accordion("Advanced", open=False, elem_id="lk-advanced"):
                negative = gr.Textbox(label="Negative prompt", lines=2)
                steps = gr.Slider(1, 60, value=20, step=1, label="Steps")
                guidance = gr.Slider(
                    0.0, 15.0, value=3.0, step=0.1, label="Guidance", info="How closely to follow the prompt."
                )
                strength = gr.Slider(0.0, 1.5, value=1.0, step=0.05, label="LoRA strength")
                scheduler = gr.Dropdown(list(SCHEDULERS), value="default", label="Scheduler")
                with gr.Row(visible=False) as size_row:
                    width = gr.Dropdown([("the base's own", 0)], value=0, label="Width", min_width=120)
                    height = gr.Dropdown([("the base's own", 0)], value=0, label="Height", min_width=120)
                reuse = gr.UploadButton("Reuse the settings of a picture (PNG)", file_types=[".png"], size="sm")
            start = gr.Button("Generate", variant="primary", size="lg", elem_id="lk-generate")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="lk-generate-stop")
    status = gr.HTML(elem_id="lk-generate-status")
    grid = gr.HTML(elem_id="lk-grid")
    with gr.Accordion("All pictures, best score first", open=True, visible=False) as ranked_box:
        keep = gr.Slider(
            0, MAX_KEPT, value=0, step=1, label="Keep the best", elem_id="lk-keep",
            info="Of all pictures so many stay, the most alike; each says why. 0 keeps them all.",
        )  # fmt: skip
        ranked = gr.HTML(elem_id="lk-ranked")
    return GenerateTab(
        blocked, style, undrawable, prompt, unknown, columns, number, seed, dice, negative, steps, guidance, scheduler,
        width, height, size_row, strength, reuse, start, stop, status, grid, keep, ranked, ranked_box,
    )  # fmt: skip


def wire(tab: GenerateTab, services: Services, capability: gr.BrowserState, show: Show) -> list[Any]:
    """Connects the tab's handlers; returns the events that put a job in the line."""
    named: dict[str, Any] = {
        "prompt": tab.prompt, "negative_prompt": tab.negative, "number": tab.number, "seed": tab.seed,
        "steps": tab.steps, "guidance": tab.guidance, "scheduler": tab.scheduler, "width": tab.width,
        "height": tab.height, "strength": tab.strength,
    }  # fmt: skip

    @told
    def start(kept: object, style: str, columns: list[str], **dials: Any) -> Updates:
        session = services.sessions.need(kept)
        view = services.view(kept)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or press Stop first.")
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        chosen = [column for column in view.columns if column in (columns or [])]
        if not chosen:
            raise UserError("Choose at least one column to draw: the untrained base or a trained method.")
        plan = samplings(view.row, **dials)
        services.start_generation(session, columns=tuple(chosen), samplings=plan)
        return show(kept)

    @told
    def keep_best(kept: object, keep: float) -> str:
        session = services.sessions.need(kept)
        wanted = int(keep) if isinstance(keep, int | float) and 0 <= keep <= MAX_KEPT else 0
        services.sessions.choose(session, keep=wanted)
        return views.gallery(services.view(kept).shots, wanted)

    @told
    def stop(kept: object) -> Updates:
        services.stop(services.sessions.need(kept).run.drawing)
        return show(kept)

    @told
    def pick(style_id: str) -> Updates:
        style = presets.styles().get(style_id)
        return tab.fill(style) if style else {tab.unknown: ""}

    @told
    def check(kept: object, prompt: str) -> str:
        return unknown_note(services.view(kept).row, prompt or "")

    @told
    def reuse(kept: object, file: str | None) -> Updates:
        from pipelines.generation import read_settings

        path = Path(file or "")
        try:
            found = read_settings(path) if file else None
        finally:
            if file:
                photobox.drop_upload(path)
        if found is None:
            raise UserError("That picture carries no settings of ours. Choose a PNG that this app made.")
        return {
            tab.style: OWN,
            tab.prompt: found.prompt,
            tab.unknown: unknown_note(services.view(kept).row, found.prompt),
            tab.negative: found.negative_prompt,
            tab.steps: found.steps,
            tab.guidance: found.guidance,
            tab.seed: found.seed,
            tab.scheduler: found.scheduler,
            tab.strength: found.strength,
            tab.number: 1,
        }

    outputs: dict[str, Any] = {"outputs": show.outputs, "api_visibility": "private", "show_progress": "hidden"}
    started = tab.start.click(
        start, [capability, tab.style, tab.columns], inputs_kwargs=named, **outputs, trigger_mode="once"
    )
    tab.stop.click(stop, [capability], **outputs, queue=False)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # `input`, not `release`: the arrow keys and the number box count too
    tab.keep.input(keep_best, [capability, tab.keep], tab.ranked, trigger_mode="always_last", **quiet)
    filled = [tab.prompt, tab.negative, tab.steps, tab.guidance, tab.unknown]
    tab.style.input(pick, [tab.style], filled, **quiet)
    tab.prompt.input(check, [capability, tab.prompt], tab.unknown, queue=False, trigger_mode="always_last", **quiet)
    tab.dice.click(lambda: secrets.randbelow(MAX_SEED), None, tab.seed, queue=False, **quiet)
    reused = [
        tab.style,
        tab.prompt,
        tab.unknown,
        tab.negative,
        tab.steps,
        tab.guidance,
        tab.seed,
        tab.scheduler,
        tab.strength,
        tab.number,
    ]
    tab.reuse.upload(reuse, [capability, tab.reuse], reused, **quiet)
    return [started]


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
    if missing := unknown_words(row, text):
        raise UserError(f"{called(row)} does not know: {', '.join(missing)}. Remove or replace these words.")
    if scheduler not in SCHEDULERS:
        raise UserError(f"There is no such scheduler. Choose one of: {', '.join(SCHEDULERS)}.")
    sizes = (0, *SIZES.get(row.family, ()))
    if width not in sizes or height not in sizes:
        raise UserError(f"{row.title} does not draw that size. Choose width and height from the lists.")
    common = Sampling(
        prompt=text,
        negative_prompt=words("Negative prompt", negative_prompt),
        steps=whole("Steps", steps, 1, 60),
        guidance=decimal("Guidance", guidance, 0.0, 15.0),
        width_px=int(str(width)) or None,
        height_px=int(str(height)) or None,
        scheduler=str(scheduler),
        strength=decimal("LoRA strength", strength, 0.0, 1.5),
    )
    return tuple(Sampling(**{**vars(common), "seed": (first + i) % (MAX_SEED + 1)}) for i in range(count))


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
    """Names the words that this base never learned."""
    missing = unknown_words(row, prompt[:PROMPT_LIMIT])
    return views.note(f"{called(row)} does not know: {', '.join(missing)}", "bad") if missing else ""


def called(row: BaseRow) -> str:
    """A base's short name; of a local one never its path."""
    return row.name if row.name in BASES else row.title


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
            cannot.append(f"<li><b>{escape(style.name)}</b> - {escape(problem)}</li>")
    marked = (
        f'<ul class="lk-note lk-list">{"".join(cannot)}</ul>'
        if cannot
        else views.note("This base can draw all of them.")
    )
    return [*can, ("Own words", OWN)], marked


def _status(view: View) -> str:
    drawing = view.drawing
    if drawing.problem:
        return views.note(drawing.problem, "bad")
    if drawing.busy:
        return views.note(
            f"{views.waiting(drawing.ahead, drawing.starts_in_s) or drawing.text or 'Starting ...'} {view.drawn_text} "
            f"{view.safe_to_leave}"
        )
    if not view.shots and view.generate_blocked is None:
        return views.note("Pick a style and press Generate.")
    return ""
