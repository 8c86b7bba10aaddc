"""What the Upload tab's buttons do. Every argument comes from a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.core.files import timestamp
from pipelines.core.records import CLASS_WORDS, UserError
from pipelines.core.run import record_consent
from ui.front import example
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.wiring import Show, Updates, refused_while_busy
from ui.run import photobox
from ui.run.services import Services
from ui.run.sessions import Session
from ui.upload import html as upload_html
from ui.upload.layout import CONSENT, SAMPLE, SAMPLE_SENTENCE, UploadTab, about
from ui.web.visitors import browser_of
from ui.words import phrases
from ui.words.retold import retell
from ui.words.words import tell


def wire(tab: UploadTab, services: Services, capability: gr.BrowserState, show: Show) -> None:
    @told
    def add(
        kept: object, files: list[str] | str | None, class_word: object, base: object, agreed: object
    ) -> Iterator[Updates]:
        paths = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
        if not paths:
            raise UserError("No photos arrived. Drop 5 to 15 photos of one person.")
        before, kept = kept, example.left(services, kept)
        left = kept is not before
        agreed = False if left else agreed  # the box was ticked for the example's person
        first, gone = kept is None, left or (kept is not None and services.sessions.find(kept) is None)
        if first:
            check(class_word, base, agreed)
        kept, session = services.sessions.ensure(kept)
        if first:  # what was chosen while there was no run to keep it
            session = consent(services.sessions.choose(session, class_word=class_word, base=base), agreed)
        refused_while_busy(services, session)
        replaced = session.choices.sample
        if replaced:  # own photos replace the sample person
            photobox.clear(session.run)
            session = services.sessions.choose(session, sample=False, consent_at=None)
        # Said at once: what a person ticks or picks while the photos are looked at stays as they want it.
        moved = first and base != services.default_base  # another base has other methods and styles
        afresh = show(kept, restore=True) if gone or replaced or moved else {}
        yield {**afresh, capability: kept, tab.drop: None, tab.camera: None, tab.receipt: ""}
        for box in photobox.add(session.run, paths, services.view(kept).row):
            yield {
                tab.cards: upload_html.photo_cards(services.photo_cards(session.run, box)),
                tab.status: page_html.note(tell("{count} read so far.", count=box.stored)),
            }
        yield show(kept)

    @told
    def use_sample(kept: object, base: object) -> Iterator[Updates]:
        kept = example.left(services, kept)
        first = kept is None
        if first:
            check(CLASS_WORDS[0], base, False)
        kept, session = services.sessions.ensure(kept)
        if first:
            session = services.sessions.choose(session, base=base)
        refused_while_busy(services, session)
        pictures = sorted(SAMPLE.glob("*.png"))[: photobox.MAX_PHOTOS]
        if len(pictures) < photobox.MIN_PHOTOS:
            raise UserError("The sample person is not in this copy. Use photos of your own.")
        photobox.clear(session.run)
        session = services.sessions.choose(session, sample=True, consent_at=None, class_word=_sample_class_word())
        record_consent(session.run, means="app", statement=SAMPLE_SENTENCE)
        yield {capability: kept, tab.status: page_html.note(tell("Taking in the sample person ...")), tab.receipt: ""}
        for box in photobox.add(session.run, pictures, services.view(kept).row):
            yield {tab.cards: upload_html.photo_cards(services.photo_cards(session.run, box))}
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

    def check(class_word: object, base: object, agreed: object) -> None:
        if class_word not in CLASS_WORDS:
            raise UserError(f"The photos show a {', '.join(CLASS_WORDS)}: choose one of these.")
        if not isinstance(base, str) or base not in services.bases:
            raise UserError("That base model is not offered here. Choose one from the list.")
        if not isinstance(agreed, bool):
            raise UserError("The consent box is either ticked or not. Reload the page.")

    def consent(session: Session, agreed: object) -> Session:
        """Record that consent was given, or taken back. The sample person needs none."""
        if session.choices.sample:
            return session
        consent_at = session.choices.consent_at
        if not agreed:
            consent_at = None
            session.run.consent.unlink(missing_ok=True)
        elif consent_at is None:
            consent_at = timestamp()
            record_consent(session.run, means="app", statement=CONSENT)
        return services.sessions.choose(session, consent_at=consent_at)

    @told
    def choose(kept: object, class_word: object, base: str, agreed: object) -> Updates:
        check(class_word, base, agreed)
        session = services.sessions.find(kept)
        if session is None:  # the page keeps what was chosen until there are photos
            return {tab.about: about(services.bases[base], services.problem(base))}
        moved = base != services.view(kept).row.name
        if moved or (session.choices.consent_at is not None and not agreed):
            refused_while_busy(services, session)  # what is being learned from stays as it is
        session = consent(services.sessions.choose(session, class_word=class_word, base=base), agreed)
        if moved:  # another base learns from smaller faces, or needs larger ones
            photobox.judge_again(session.run, services.bases[base])
        return {capability: kept, **show(kept, restore=moved)}  # another base has other methods and styles

    @told
    def forget(kept: object, request: gr.Request) -> Updates:
        session = services.sessions.find(kept)
        receipt = services.forget(session, browser_of(request))
        sentence = tell("There was nothing of yours here.")
        if receipt["files"] or session is not None:
            size = phrases.amount(float(str(receipt["bytes"])))
            sentence = tell(
                "Deleted {count} files, {size}, at {when}.", count=receipt["files"], size=size,
                when=receipt["forgotten"],
            )  # fmt: skip
        if session is not None:
            checked = tell("Checked: {what}.", what=retell(str(receipt["verified"])))
            sentence = f"{sentence} {checked} {retell(str(receipt['note']))}"
        cleared = show(None, restore=True)
        return {
            **cleared, capability: None, tab.receipt: page_html.note(sentence, "ok"),
            tab.really: gr.update(visible=False), tab.delete: gr.update(visible=True),
        }  # fmt: skip

    everything = show.outputs | {tab.drop, tab.camera, tab.receipt, tab.really, tab.delete, capability}
    common: dict[str, Any] = {"outputs": everything, "api_visibility": "private", "show_progress": "hidden"}
    # One person's photos are judged in order; several people's at the same time.
    slots: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "photos"}
    chosen = [tab.class_word, tab.base, tab.consent]
    tab.drop.upload(add, [capability, tab.drop, *chosen], **common, **slots, trigger_mode="once")
    # "input" is the person's own shot; setting it empty again is none
    tab.camera.input(add, [capability, tab.camera, *chosen], **common, **slots, trigger_mode="once")
    tab.sample.click(use_sample, [capability, tab.base], **common, **slots, trigger_mode="once")
    for panel in (tab.cards, tab.crops):
        panel.click(press, [capability], **common, **slots)
    for control in (tab.class_word, tab.base, tab.consent):
        control.input(choose, [capability, *chosen], **common, trigger_mode="always_last")
    hide: dict[str, Any] = {"outputs": [tab.delete, tab.really], "api_visibility": "private", "queue": False}
    tab.delete.click(lambda: (gr.update(visible=False), gr.update(visible=True)), **hide)
    tab.no.click(lambda: (gr.update(visible=True), gr.update(visible=False)), **hide)
    tab.yes.click(forget, [capability], **common)


def _sample_class_word() -> str:
    """The word `presets/sample_person/person.txt` gives, else "person"."""
    try:
        word = (SAMPLE / "person.txt").read_text().strip()
    except OSError:
        word = CLASS_WORDS[0]
    return word if word in CLASS_WORDS else CLASS_WORDS[0]
