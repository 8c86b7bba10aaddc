"""The Upload tab: photos in, a verdict for each, and what we must know: who, on which base, with whose consent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.core import workspace
from pipelines.core.schema import CLASS_WORDS, UserError
from ui import views
from ui.page.errors import told
from ui.page.wiring import Show, Updates, refused_while_busy
from ui.run import photobox
from ui.run.state import Services, View
from ui.words.retold import retell
from ui.words.words import say, tell

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
CONSENT = "I am this person, or I have their permission to do this. Everybody in these photos is 18 or older."
SAMPLE_SENTENCE = (
    "This is the sample person: synthetic pictures of somebody who does not exist, drawn by the embedded base. "
    "No permission is needed."
)
# Our photo cards carry their own buttons; this sends the pressed one's photo and action to the handler.
ON_PRESS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-photo]');
  if (!button) return;
  button.disabled = true;
  trigger('click', {photo: button.dataset.photo, action: button.dataset.action});
});
element.addEventListener('change', (event) => {
  const input = event.target.closest('input[data-photo]');
  if (input) trigger('click', {photo: input.dataset.photo, action: 'caption', value: input.value});
});
"""


@dataclass
class UploadTab:
    drop: gr.File
    camera: gr.Image
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
            self.cards: gr.update(value=view.photo_cards()),
            self.crops: gr.update(value=view.crop_cards()),
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
            drop = gr.File(
                label=say("Photos of one person, or a ZIP of them - 5 to 15 are best"),
                file_count="multiple",
                file_types=["image", ".heic", ".heif", ".avif", ".zip"],
                height=170,
                elem_id="lk-drop",
            )
            with gr.Accordion(say("Or take a photo with this device's camera"), open=False):
                camera = gr.Image(
                    sources=["webcam"], type="filepath", format="png", show_label=False, elem_id="lk-camera", height=260
                )
            status = gr.HTML(elem_id="lk-upload-status")
            cards = gr.HTML(elem_id="lk-cards", js_on_load=ON_PRESS)
            with gr.Accordion(say("What training will see: crops and captions"), open=False, elem_id="lk-crops"):
                crops = gr.HTML(js_on_load=ON_PRESS)
        with gr.Column(scale=2, min_width=280):
            class_word = gr.Radio(
                list(CLASS_WORDS), value=CLASS_WORDS[0], label=say("The photos show a ..."), elem_id="lk-class-word"
            )
            consent = gr.Checkbox(label=say(CONSENT), elem_id="lk-consent")
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
                unused = say("A run that nobody uses is deleted. Hours until then:")
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


def wire(tab: UploadTab, services: Services, capability: gr.BrowserState, show: Show) -> None:
    @told
    def add(kept: object, files: list[str] | str | None) -> Iterator[Updates]:
        paths = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
        try:
            if not paths:
                raise UserError("No photos arrived. Drop 5 to 15 photos of one person.")
            gone = kept is not None and services.sessions.find(kept) is None
            kept, session = services.sessions.ensure(kept)
            refused_while_busy(services, session)
            replaced = session.choices.sample
            if replaced:  # own photos replace the sample person
                photobox.clear(session.run)
                session = services.sessions.choose(session, sample=False, consent_at=None)
            # Said at once: what a person ticks or picks while the photos are looked at stays as they want it.
            afresh = show(kept, restore=True) if gone or replaced else {}
            yield {**afresh, capability: kept, tab.drop: None, tab.camera: None, tab.receipt: ""}
            for box in photobox.add(session.run, paths, services.view(kept).row):
                yield {
                    tab.cards: services.photo_cards(session.run, box),
                    tab.status: views.note(tell("{count} read so far.", count=box.stored)),
                }
        finally:
            for path in paths:
                photobox.drop_upload(path)
        yield show(kept)

    @told
    def use_sample(kept: object) -> Iterator[Updates]:
        kept, session = services.sessions.ensure(kept)
        refused_while_busy(services, session)
        pictures = sorted(SAMPLE.glob("*.png"))[: photobox.MAX_PHOTOS]
        if len(pictures) < photobox.MIN_PHOTOS:
            raise UserError("The sample person is not in this copy. Use photos of your own.")
        photobox.clear(session.run)
        session = services.sessions.choose(session, sample=True, consent_at=None, class_word=_sample_class_word())
        workspace.record_consent(session.run, means="app", statement=SAMPLE_SENTENCE)
        yield {capability: kept, tab.status: views.note(tell("Taking in the sample person ...")), tab.receipt: ""}
        for box in photobox.add(session.run, pictures, services.view(kept).row):
            yield {tab.cards: services.photo_cards(session.run, box)}
        yield show(kept, restore=True)

    @told
    def press(kept: object, event: gr.EventData) -> Updates:
        session = services.sessions.need(kept)
        refused_while_busy(services, session)
        pressed = getattr(event, "_data", None)
        pressed = pressed if isinstance(pressed, dict) else {}
        row = services.view(kept).row
        if pressed.get("action") == "remove":
            photobox.remove(session.run, pressed.get("photo"), row)
        else:
            photobox.change(session.run, pressed.get("photo"), pressed.get("action"), row, pressed.get("value"))
        return show(kept)

    @told
    def choose(kept: object, class_word: str, base: str, agreed: bool) -> Updates:
        if class_word not in CLASS_WORDS:
            raise UserError(f"The photos show a {', '.join(CLASS_WORDS)}: choose one of these.")
        if base not in services.bases:
            raise UserError("That base model is not offered here. Choose one from the list.")
        if not isinstance(agreed, bool):
            raise UserError("The consent box is either ticked or not. Reload the page.")
        kept, session = services.sessions.ensure(kept)
        consent_at = session.choices.consent_at
        moved = base != services.view(kept).row.name
        if moved or (consent_at is not None and not agreed):
            refused_while_busy(services, session)  # what is being learned from stays as it is
        if agreed and consent_at is None and not session.choices.sample:
            consent_at = workspace.timestamp()
            workspace.record_consent(session.run, means="app", statement=CONSENT)
        if not agreed and not session.choices.sample:
            consent_at = None
            session.run.consent.unlink(missing_ok=True)
        session = services.sessions.choose(session, class_word=class_word, base=base, consent_at=consent_at)
        if moved:  # another base learns from smaller faces, or needs larger ones
            photobox.judge_again(session.run, services.bases[base])
        return {capability: kept, **show(kept, restore=moved)}  # another base has other methods and styles

    @told
    def forget(kept: object) -> Updates:
        session = services.sessions.find(kept)
        if session is None:
            sentence = tell("There was nothing of yours here.")
        else:
            services.stop_and_wait(session.run)
            receipt = services.sessions.forget(session)
            size = views.amount(float(str(receipt["bytes"])))
            gone = tell(
                "Deleted {count} files, {size}, at {when}.", count=receipt["files"], size=size,
                when=receipt["forgotten"],
            )  # fmt: skip
            checked = tell("Checked: {what}.", what=retell(str(receipt["verified"])))
            sentence = f"{gone} {checked} {retell(str(receipt['note']))}"
        cleared = show(None, restore=True)
        return {
            **cleared, capability: None, tab.receipt: views.note(sentence, "ok"), tab.really: gr.update(visible=False),
            tab.delete: gr.update(visible=True),
        }  # fmt: skip

    everything = show.outputs | {tab.drop, tab.camera, tab.receipt, tab.really, tab.delete, capability}
    common: dict[str, Any] = {"outputs": everything, "api_visibility": "private", "show_progress": "hidden"}
    # One person's photos are judged in order; several people's at the same time.
    slots: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "photos"}
    tab.drop.upload(add, [capability, tab.drop], **common, **slots, trigger_mode="once")
    # "input" is the person's own shot; setting it empty again is none
    tab.camera.input(add, [capability, tab.camera], **common, **slots, trigger_mode="once")
    tab.sample.click(use_sample, [capability], **common, **slots, trigger_mode="once")
    for panel in (tab.cards, tab.crops):
        panel.click(press, [capability], **common, **slots)
    for control in (tab.class_word, tab.base, tab.consent):
        control.input(choose, [capability, tab.class_word, tab.base, tab.consent], **common, trigger_mode="always_last")
    hide: dict[str, Any] = {"outputs": [tab.delete, tab.really], "api_visibility": "private", "queue": False}
    tab.delete.click(lambda: (gr.update(visible=False), gr.update(visible=True)), **hide)
    tab.no.click(lambda: (gr.update(visible=True), gr.update(visible=False)), **hide)
    tab.yes.click(forget, [capability], **common)


def about(row: Any, problem: str | None) -> str:
    """What the chosen base is, said at once."""
    licence = tell("Licence: {licence}.", licence=retell(row.licence))
    said = f"{retell(tell(row.about))} {licence}"  # what a base of one's own is is made of parts
    return (views.note(problem, "bad") if problem else "") + views.note(said)


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
    panel = views.photo_report(box.report)
    if box.problem:
        return views.note(box.problem, "bad") + panel
    if box.photo_set is None:
        more = tell("Add one more photo.")
        if box.missing != 1:
            more = tell("Add {count} more photos.", count=box.missing)
        return views.note(f"{tell('{count} can be used so far.', count=box.good)} {more}") + panel
    parts = box.photo_set
    words = [tell("{count} to learn from", count=len(parts.train))]
    words += [tell("{count} to watch progress", count=len(parts.validation))] if parts.validation else []
    words += [tell("{count} kept apart to judge with", count=len(parts.held_out))]
    used = tell("{count} photos are used: {parts}.", count=len(parts.photos), parts=", ".join(words))
    weak = tell("With so few photos a verdict is weak: 8 or more are better.") if parts.weak else ""
    return (
        (views.note(tell(SAMPLE_SENTENCE)) if view.choices.sample else "")
        + views.note(f"{used} {weak}".rstrip(), "ok")
        + panel
    )


def _sample_class_word() -> str:
    """The word `presets/sample_person/person.txt` gives, else "person"."""
    try:
        word = (SAMPLE / "person.txt").read_text().strip()
    except OSError:
        word = CLASS_WORDS[0]
    return word if word in CLASS_WORDS else CLASS_WORDS[0]
