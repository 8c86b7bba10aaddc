"""Finishing a picture: from the raw render to a file worth using, below the pictures of the Generate tab.

In: a picture of the run, the steps and the size a person chose. Out: a job in the line (it needs no base model), and,
once it is done, before and after of every step, what both judges say, and the file. Nothing is finished in this
process: the worker does it, so it is safe to close the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.core.records import Finish, UserError
from pipelines.finishing import deliver, enlarge, mark, refine, stage
from pipelines.finishing.matte import BACKGROUNDS
from ui.generate import html as generate_html
from ui.generate.layout import ON_SLIDE
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.refresh import Refresh, Updates
from ui.run import pictures
from ui.run.cards import Shot
from ui.run.services import Services
from ui.run.start import start_finishing
from ui.run.view import View
from ui.score import html as score_html
from ui.words import phrases
from ui.words.retold import retell
from ui.words.words import say, tell

AS_IT_IS = ""
KB = 200
ABOUT = say(
    '<h2>Finish a picture</h2><p class="lk-note">Enlarge, clean up, crop and label as AI-made. '
    "After every step both face recognisers look again; a step that changes who it is gets dropped. Skin is never "
    "retouched.</p>"
)


@dataclass
class FinishSection:
    box: gr.Column
    picture: gr.HTML
    steps: gr.CheckboxGroup
    background: gr.Dropdown
    size: gr.Dropdown
    max_kb: gr.Number
    format_name: gr.Dropdown
    upscaler: gr.Dropdown
    start: gr.Button
    favourites: gr.Button
    status: gr.HTML
    result: gr.HTML

    def show(self, view: View) -> Updates:
        shot = shot_of(view)
        ready = shot is not None and not view.drawing.busy
        liked = sum(each.favourite for each in view.pictures)
        return {
            self.box: gr.update(visible=shot is not None),
            self.picture: gr.update(value=_chosen(view, shot) if shot else ""),
            self.start: gr.update(interactive=ready),
            self.favourites: gr.update(interactive=ready and liked > 0),
            self.status: gr.update(value=_status(view, liked)),
            self.result: gr.update(value=_result(view, shot) if shot else ""),
        }

    def restore(self, view: View) -> Updates:
        return {
            self.steps: gr.update(choices=_offered()),
            self.background: gr.update(choices=_backgrounds()),
            self.size: gr.update(choices=_sizes()),
        }

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services) -> FinishSection:
    restorers, upscalers = enlarge.restorers(), enlarge.upscalers()
    with gr.Column(visible=False, elem_id="lk-finish") as box:
        gr.HTML(ABOUT)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=150, scale=1):
                picture = gr.HTML(elem_id="lk-finish-picture")
            with gr.Column(min_width=260, scale=3):
                steps = gr.CheckboxGroup(
                    _offered(), value=list(refine.DEFAULT_STEPS), label=say("Steps"), elem_id="lk-finish-steps"
                )
                background = gr.Dropdown(
                    _backgrounds(), value=AS_IT_IS, label=say("Background"), elem_id="lk-finish-background",
                    info=say("Background is separated by colour; fine hair may be lost."),
                )  # fmt: skip
                if not restorers:
                    gr.HTML(
                        '<p class="lk-note lk-small">'
                        + say("No face restorer is installed here, so none is offered: they often change who it is.")
                        + "</p>"
                    )
                upscaler = gr.Dropdown(
                    list(upscalers), value=upscalers[0], label=say("Upscaler"), visible=len(upscalers) > 1
                )
            with gr.Column(min_width=220, scale=2):
                size = gr.Dropdown(
                    _sizes(), value=stage.size_of("linkedin").id, label=say("Size"), elem_id="lk-finish-size"
                )
                with gr.Row():
                    max_kb = gr.Number(
                        value=KB, precision=0, minimum=stage.KB_LIMITS[0], maximum=stage.KB_LIMITS[1],
                        label=say("At most, in kB"), min_width=100, elem_id="lk-finish-kb",
                    )  # fmt: skip
                    format_name = gr.Dropdown(
                        list(mark.FORMATS), value="JPEG", label=say("Format"), min_width=100,
                        elem_id="lk-finish-format",
                    )  # fmt: skip
                start = gr.Button(say("Finish this picture"), variant="primary", elem_id="lk-finish-start")
                favourites = gr.Button(say("Finish all favourites"), size="sm", elem_id="lk-finish-favourites")
        status = gr.HTML(elem_id="lk-finish-status")
        result = gr.HTML(elem_id="lk-finished", js_on_load=ON_SLIDE)
    return FinishSection(
        box, picture, steps, background, size, max_kb, format_name, upscaler, start, favourites, status, result
    )


def wire(section: FinishSection, services: Services, page: Refresh) -> list[Any]:
    """Connects the section's handlers; returns the events that put a job in the line."""
    act = Actions(services)
    dials: dict[str, Any] = {
        "steps": section.steps, "background": section.background, "size": section.size, "max_kb": section.max_kb,
        "format_name": section.format_name, "upscaler": section.upscaler,
    }  # fmt: skip
    wide: dict[str, Any] = {
        "inputs_kwargs": dials, "api_visibility": "private", "show_progress": "hidden", "trigger_mode": "once",
    }  # fmt: skip
    started = [
        section.start.click(told(act.one), [page.capability], **wide),
        section.favourites.click(told(act.favourites), [page.capability], **wide),
    ]
    return [page.after(event, "generate") for event in started]


class Actions:
    """What the section's buttons do. Every argument comes from a browser; `UserError` is told to the person."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def one(self, kept: object, **dials: Any) -> None:
        view = self._ready(kept)
        shot = shot_of(view)
        if shot is None:
            raise UserError("There is no picture to finish yet. Draw some first.")
        self._start(kept, (shot.path,), dials)

    def favourites(self, kept: object, **dials: Any) -> None:
        view = self._ready(kept)
        liked = tuple(shot.path for shot in view.pictures if shot.favourite)
        if not liked:
            raise UserError("No picture is a favourite yet. Press the heart below a picture.")
        self._start(kept, liked[: stage.AT_MOST], dials)

    def _ready(self, kept: object) -> View:
        self.services.sessions.need(kept)
        view = self.services.view(kept)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn or finished already. Wait until they are there, or press Stop.")
        return view

    def _start(self, kept: object, chosen: tuple[str, ...], dials: Mapping[str, object]) -> None:
        start_finishing(self.services, self.services.sessions.need(kept), order_of(chosen, **dials))


def order_of(
    chosen: tuple[str, ...],
    *,
    steps: object,
    background: object,
    size: object,
    max_kb: object,
    format_name: object,
    upscaler: object = "",
    restorer: object = "",
) -> Finish:
    """A wish made of what a browser or a program sent, checked. Only models that are registered can be named: a path
    would be one of this machine's. Raises UserError.
    """
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise UserError(f"Steps are a list, of {', '.join(refine.STEPS)}.")
    for label, text in (("background", background), ("size", size), ("format", format_name), ("upscaler", upscaler)):
        if not isinstance(text, str) or len(text) > 60:
            raise UserError(f"There is no such {label}. Choose one from the list.")
    if upscaler and upscaler not in enlarge.upscalers():
        raise UserError(f"There is no such upscaler here. Choose one of: {', '.join(enlarge.upscalers())}.")
    there = enlarge.restorers()
    restorer = restorer or (there[0] if there else "")
    if restorer and restorer not in there:
        raise UserError("There is no such face restorer here.")
    low, high = stage.KB_LIMITS
    if isinstance(max_kb, bool) or not isinstance(max_kb, int | float) or not low <= max_kb <= high:
        raise UserError(f"The target must be {low} to {high:,} kB.")
    order = Finish(
        chosen, tuple(steps), str(background), str(upscaler), str(restorer) if "restore" in steps else "", str(size),
        int(max_kb), str(format_name),
    )  # fmt: skip
    stage.check(order)
    return order


def shot_of(view: View) -> Shot | None:
    """The picture to finish: the one whose button was pressed, else the most alike, favourites first."""
    pressed = next((shot for shot in view.pictures if shot.id and shot.id == view.choices.finishing), None)
    if pressed is not None:
        return pressed
    drawn = [shot for shot in view.pictures if shot.method != "none"]
    return max(
        drawn, key=lambda shot: (shot.favourite, not shot.drawing, shot.similarity is not None, shot.similarity or 0.0),
        default=None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- words and pictures


def _offered() -> list[tuple[str, str]]:
    there = [name for name in refine.STEPS if name != "background" and (name != "restore" or enlarge.restorers())]
    return [(retell(refine.STEPS[name].name), name) for name in there]


def _backgrounds() -> list[tuple[str, str]]:
    return [(tell("as it is"), AS_IT_IS), *((retell(name), name) for name in BACKGROUNDS)]


def _sizes() -> list[tuple[str, str]]:
    return [(tell(size.name), size.id) for size in deliver.sizes().values()]


def _chosen(view: View, shot: Shot) -> str:
    alt = tell("To finish: {picture}", picture=phrases.called(shot))
    why = tell("The most alike favourite.") if shot.favourite else tell("The most alike.")
    if shot.id == view.choices.finishing:
        why = tell("The one you chose.")
    score = tell("no score")
    if shot.similarity is not None:
        score = f"{shot.similarity:.2f} {tell(shot.verdict) if shot.verdict else ''}".rstrip()
    another = tell("Press the wand below any picture to finish that one.")
    return (
        f'<figure class="lk-picked"><img src="{escape(shot.link)}" alt="{escape(alt)}"><figcaption>'
        f"<b>{escape(phrases.called(shot))}</b><span>{escape(score)}</span><span>{escape(f'{why} {another}')}</span>"
        "</figcaption></figure>"
    )


def _status(view: View, liked: int) -> str:
    if view.drawing.kind != "finish":
        return ""
    if view.drawing.problem:
        return page_html.note(view.drawing.problem, "bad")
    if view.drawing.busy:
        waiting = phrases.waiting(view.drawing.ahead, view.drawing.starts_in_s)
        now = waiting or view.drawing.text or tell("Starting ...")
        return page_html.note(f"{now} {view.drawn_text} {view.safe_to_leave}")
    return ""


def _result(view: View, shot: Shot) -> str:
    """What was made of this picture, and the ZIP of all that were finished together."""
    assert view.session is not None
    run = view.session.run
    record = stage.record_of(run, shot.path)
    if record is not None and pictures.picture_id(shot.path, record["base"], record["subject"]) != shot.id:
        record = None  # of an earlier training's picture of the same name
    archive = run.folder / "finished" / stage.ARCHIVE
    links = []
    if record is not None:
        file = run.finished(shot.path) / record["file"]
        name = f"portrait-{shot.method}-seed{shot.seed}{file.suffix}"
        text = f"{record['width_px']} × {record['height_px']} {record['format']}, {record['bytes'] / 1000:.0f} kB"
        links.append((tell("Download: {file}", file=text), view.services.media.link(file, name=name)))
    if archive.is_file():
        together = len(record["order"]["pictures"]) if record is not None else 2
        if together > 1:
            links.append((tell("All finished together (ZIP)"), view.services.media.link(archive, name="portraits.zip")))
    if record is None:
        return page_html.downloads(links)
    folder = run.finished(shot.path)
    return finished(record, lambda name: view.services.media.link(folder / Path(name).name), page_html.downloads(links))


def finished(record: Mapping[str, Any], link: Callable[[str], str], downloads: str = "") -> str:
    """A finished picture: the whole before and after, what the judges say, and every step. `link` makes a file's
    name an address; `downloads` is HTML.
    """
    kept = sum(step["state"] == refine.KEPT for step in record["steps"])
    dropped = [step for step in record["steps"] if step["state"] == refine.DROPPED]
    whole = _slider(link(record["raw_file"]), link(record["refined_file"]), tell("raw"), tell("refined"),
                    tell("The whole"))  # fmt: skip
    head = tell("Steps kept: {count} of {all}.", count=kept, all=len(record["steps"]))
    if dropped:
        head += " " + tell("Dropped: {count}, each says why below.", count=len(dropped))
    elif kept:
        head += " " + tell("Every recogniser finds as much of the person in it as in the raw picture.")
    items = "".join(_step(step, link) for step in record["steps"])
    marks = record.get("marks") or {}
    there = ", ".join(tell(score_html.MARKS[key]) for key in score_html.MARKS if marks.get(key))
    marked = tell("Marked as drawn by an AI: {marks}.", marks=there) if there else tell("It could not be marked.")
    notes = "".join(f"<li>{escape(note)}</li>" for note in (marked, *map(retell, record["notes"])))
    return (
        f'<div class="lk-fin"><div>{whole}</div><div>{page_html.note(head, "warn" if dropped else "ok")}{downloads}'
        f'{_judges(record)}<ul class="lk-opinions">{notes}</ul></div></div><div class="lk-fin-steps">{items}'
        f"{_flaws(record, link)}</div>"
    )


def _slider(before: str, after: str, one: str, other: str, what: str) -> str:
    border = tell("Border between {one} and {other}", one=one, other=other)
    left, right = (before, one, f"{what}, {one}"), (after, other, f"{what}, {other}")
    return generate_html.laid_over(left, right, f"{what}: {border}")


def _judges(record: Mapping[str, Any]) -> str:
    """Both judges before and after, and what that means."""
    rows = []
    for judge, found in record["similarity"].items():
        cells = "".join(f"<td>{phrases.number(found[key])}</td>" for key in ("raw", "refined", "delivered"))
        may = "–" if found["may_lose"] is None else f"{found['may_lose']:.2f}"
        rows.append(f'<tr><th scope="row">{escape(judge)}</th>{cells}<td>{may}</td></tr>')
    if record["reference"] == refine.HELD_OUT:
        count = record["reference_photos"]
        about = tell("How alike it is to {count} photos that training never saw.", count=count)
        if count == 1:
            about = tell("How alike it is to one photo that training never saw.")
    else:
        about = tell("How alike it is to the raw picture itself.")
    caption = escape(f"{about} {tell('A step that loses more is dropped.')}")
    heads = page_html.heads(tell("Recogniser"), tell("Raw"), tell("Refined"), tell("File"), tell("May lose"))
    return (
        f'<div class="lk-scroll"><table class="lk-table"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


TAGS = {refine.KEPT: "ok", refine.DROPPED: "no", refine.NOT_NEEDED: ""}


def _step(step: Mapping[str, Any], link: Callable[[str], str]) -> str:
    name = retell(step["name"])
    title = f"{name}: {retell(step['choice'])}" if step["choice"] else name
    tag = f'<span class="lk-tag {TAGS.get(step["state"], "")}">{escape(retell(step["state"]))}</span>'
    pictures = ""
    if step.get("after_file"):
        pictures = _slider(link(step["before_file"]), link(step["after_file"]), tell("before"), tell("after"), name)
    opened = " open" if step["state"] == refine.DROPPED else ""
    return (
        f"<details{opened}><summary>{escape(title)} {tag}</summary><p>{escape(retell(step['sentence']))}</p>"
        f"{pictures}</details>"
    )


def _flaws(record: Mapping[str, Any], link: Callable[[str], str]) -> str:
    found = record.get("flaws")
    if not found:
        return ""
    about = tell(
        "Orange is where a small network would look for mistakes of the drawing: a hint where to look closely, no "
        "proof."
    )
    alt = tell("The picture in grey, suspicious places in orange; {score} of 1 overall", score=f"{found['score']:.2f}")
    return (
        f"<details><summary>{escape(tell('Where it may look drawn'))}</summary><p>{escape(about)}</p>"
        f'<img class="lk-flaws" src="{escape(link(found["file"]))}" alt="{escape(alt)}" loading="lazy"></details>'
    )
