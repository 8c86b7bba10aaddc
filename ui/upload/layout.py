"""The Upload tab: photos in, a verdict for each, and what we must know: who, on which base, with whose consent.

In: a view of the run. Out: the tab's components and what they show. What its buttons do stands in `events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.core.records import CLASS_WORDS
from ui.page import html as page_html
from ui.page.fields import Camera, File
from ui.page.html import script
from ui.page.refresh import Updates
from ui.run import photobox
from ui.run.services import Services
from ui.run.view import View
from ui.upload import html as upload_html
from ui.words.retold import retell
from ui.words.words import say, tell

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"


CONSENT = "I am this person, or I have their permission to do this. Everybody in these photos is 18 or older."


SAMPLE_SENTENCE = (
    "This is the sample person: synthetic pictures of somebody who does not exist, drawn by the embedded base. "
    "No permission is needed."
)


# Our photo cards carry their own buttons; this sends the pressed one's photo and action to the handler.
ON_PRESS = script("upload/press.js")


@dataclass
class UploadTab:
    drop: gr.File
    camera: Camera
    status: gr.HTML
    cards: gr.HTML
    crops: gr.HTML
    sample: gr.Button
    class_word: gr.Radio
    base: gr.Dropdown
    about: gr.HTML
    consent: gr.Checkbox
    delete: gr.Button
    really: gr.Group
    receipt: gr.HTML
    yes: gr.Button
    no: gr.Button

    def show(self, view: View) -> Updates:
        """Everything on this tab that follows from the run's state."""
        return {
            self.status: gr.update(value=_status(view)),
            self.cards: gr.update(value=upload_html.photo_cards(view.photo_cards())),
            self.crops: gr.update(value=upload_html.crop_cards(view.crop_cards())),
            self.about: gr.update(value=about(view.row, view.base_problem)),
            self.consent: gr.update(interactive=not view.choices.sample),
            self.delete: gr.update(interactive=view.session is not None),
        }

    def restore(self, view: View) -> Updates:
        """The person's own choices, after a reload."""
        return {
            self.class_word: gr.update(
                choices=[(tell(word), word) for word in CLASS_WORDS], value=view.choices.class_word
            ),
            self.base: gr.update(value=view.row.name),
            self.consent: gr.update(value=view.choices.consent_at is not None or view.choices.sample),
        }

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services, *, keep_hours: float = 0.0) -> UploadTab:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            drop = File(
                label=say("Photos of one person, or a ZIP of them - 5 to 15 are best"),
                file_count="multiple",
                file_types=["image", ".heic", ".heif", ".avif", ".zip"],
                height=170,
                elem_id="lk-drop",
            )
            with gr.Accordion(say("Or take a photo with this device's camera"), open=False):
                camera = Camera(
                    sources=["webcam"], type="filepath", format="png", show_label=False, elem_id="lk-camera", height=260
                )
            consent = gr.Checkbox(label=say(CONSENT), elem_id="lk-consent")
            status = gr.HTML(elem_id="lk-upload-status")
            cards = gr.HTML(elem_id="lk-cards", js_on_load=ON_PRESS)
            with gr.Accordion(say("What training will see: crops and captions"), open=False, elem_id="lk-crops"):
                crops = gr.HTML(js_on_load=ON_PRESS)
        with gr.Column(scale=2, min_width=280):
            class_word = gr.Radio(
                list(CLASS_WORDS), value=CLASS_WORDS[0], label=say("The photos show a ..."), elem_id="lk-class-word"
            )
            base = gr.Dropdown(
                [(row.title, name) for name, row in services.bases.items()],
                value=services.default_base,
                label=say("Base model"),
                elem_id="lk-base",
            )
            about_html = gr.HTML(about(services.bases[services.default_base], services.problem(services.default_base)))
            has_sample = SAMPLE.is_dir() and len(list(SAMPLE.glob("*.png"))) >= photobox.MIN_PHOTOS
            sample = gr.Button(say("No photos at hand? Use the sample person"), visible=has_sample, elem_id="lk-sample")
            delete = gr.Button(say("Delete my data"), variant="stop", size="sm", elem_id="lk-delete")
            with gr.Group(visible=False) as really:
                gr.Markdown(
                    say("This removes your photos, everything learned from them and every picture. It can't be undone.")
                )
                with gr.Row():
                    yes = gr.Button(say("Yes, delete everything"), variant="stop", size="sm", elem_id="lk-delete-yes")
                    no = gr.Button(say("Keep it"), size="sm")
            receipt = gr.HTML(elem_id="lk-receipt")
            gr.HTML(
                '<p class="lk-note">'
                + say(
                    "Photos are stripped of place, time and camera as they arrive, stay on the machine that runs this "
                    "page, and are used for nothing else. Face measurements are never written down."
                )
                + "</p>"
            )
            if keep_hours:
                unused = say("Unused data is deleted after so many hours:")
                gr.HTML(f'<p class="lk-note">{unused} {keep_hours:g}</p>')
    return UploadTab(
        drop,
        camera,
        status,
        cards,
        crops,
        sample,
        class_word,
        base,
        about_html,
        consent,
        delete,
        really,
        receipt,
        yes,
        no,
    )


def about(row: Any, problem: str | None) -> str:
    """What the chosen base is, said at once."""
    licence = tell("Licence: {licence}.", licence=retell(row.licence))
    said = f"{retell(tell(row.about))} {licence}"  # what a base of one's own is is made of parts
    return (page_html.note(problem, "bad") if problem else "") + page_html.note(said)


def _status(view: View) -> str:
    box = view.box
    if not box.staged:
        return (
            '<p class="lk-note">'
            + say(
                "Different days, light and angles; one face, sharp, looking towards the camera. A few photos are kept "
                "apart: training never sees them, and the score compares with them."
            )
            + "</p>"
        )
    panel = upload_html.photo_report(box.report)
    if box.problem:
        return page_html.note(box.problem, "bad") + panel
    if box.photo_set is None:
        more = tell("Add one more photo.")
        if box.missing != 1:
            more = tell("Add {count} more photos.", count=box.missing)
        return page_html.note(f"{tell('{count} can be used so far.', count=box.good)} {more}") + panel
    parts = box.photo_set
    words = [tell("{count} to learn from", count=len(parts.train))]
    words += [tell("{count} to watch progress", count=len(parts.validation))] if parts.validation else []
    words += [tell("{count} kept apart to judge with", count=len(parts.held_out))]
    used = tell("{count} photos are used: {parts}.", count=len(parts.photos), parts=", ".join(words))
    weak = tell("With so few photos a verdict is weak: 8 or more are better.") if parts.weak else ""
    return (
        (page_html.note(tell(SAMPLE_SENTENCE)) if view.choices.sample else "")
        + page_html.note(f"{used} {weak}".rstrip(), "ok")
        + panel
    )
