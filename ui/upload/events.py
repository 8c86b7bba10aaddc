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
from ui.page.refresh import Refresh, Updates
from ui.run import photobox
from ui.run.services import Services
from ui.run.sessions import Session
from ui.upload import html as upload_html
from ui.upload.layout import CONSENT, SAMPLE, SAMPLE_SENTENCE, UploadTab, about
from ui.web.visitors import browser_of
from ui.words import phrases
from ui.words.retold import retell
from ui.words.words import tell


def wire(tab: UploadTab, services: Services, page: Refresh) -> None:
    """Connects the tab's handlers; each acts, and the tab is then shown as the run's folder says."""
    act, kept = Actions(tab, services, page), page.capability
    chosen: list[Any] = [tab.class_word, tab.base, tab.consent]
    restored = list(tab.restore(services.view(None)))
    common: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # One person's photos are judged in order; several people's at the same time.
    slots: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "photos"}
    taking: dict[str, Any] = {
        "outputs": [kept, page.seen, tab.drop, tab.camera, tab.receipt, tab.cards, tab.status, *restored],
        "trigger_mode": "once", **common, **slots,
    }  # fmt: skip
    events = [
        tab.drop.upload(told(act.add), [kept, tab.drop, *chosen], **taking),
        # "input" is the person's own shot; setting it empty again is none
        tab.camera.input(told(act.add), [kept, tab.camera, *chosen], **taking),
        tab.sample.click(told(act.use_sample), [kept, tab.base], **taking),
        gr.on([tab.cards.click, tab.crops.click], told(act.press), [kept], **common, **slots),
    ]
    choosing = [kept, page.seen, tab.about, *restored]
    inputs = [control.input for control in chosen]
    events.append(gr.on(inputs, told(act.choose), [kept, *chosen], choosing, trigger_mode="always_last", **common))
    hide: dict[str, Any] = {"outputs": [tab.delete, tab.really], "api_visibility": "private", "queue": False}
    tab.delete.click(lambda: (gr.update(visible=False), gr.update(visible=True)), **hide)
    tab.no.click(lambda: (gr.update(visible=True), gr.update(visible=False)), **hide)
    forgotten = [kept, page.seen, tab.receipt, tab.really, tab.delete, *restored]
    events.append(tab.yes.click(told(act.forget), [kept], forgotten, **common))
    for event in events:
        page.after(event, "upload")


class Actions:
    """What the tab's controls do. Every argument comes from a browser; `UserError` is told to the person."""

    def __init__(self, tab: UploadTab, services: Services, page: Refresh) -> None:
        self.tab, self.services, self.page = tab, services, page

    def add(
        self,
        kept: object,
        files: list[str] | str | None,
        class_word: object,
        base: object,
        agreed: object,
    ) -> Iterator[Updates]:
        services, tab = self.services, self.tab
        paths = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
        if not paths:
            raise UserError("No photos arrived. Drop 5 to 15 photos of one person.")
        before, kept = kept, example.left(services, kept)
        left = kept is not before
        agreed = False if left else agreed  # the box was ticked for the example's person
        first, gone = kept is None, left or (kept is not None and services.sessions.find(kept) is None)
        if first:
            self._check(class_word, base, agreed)
        kept, session = services.sessions.ensure(kept)
        if first:  # what was chosen while there was no run to keep it
            session = self._consent(services.sessions.choose(session, class_word=class_word, base=base), agreed)
        services.require_idle(session.run)
        replaced = session.choices.sample
        if replaced:  # own photos replace the sample person
            photobox.clear(session.run)
            session = services.sessions.choose(session, sample=False, consent_at=None)
        # Said at once: what a person ticks or picks while the photos are looked at stays as they want it.
        afresh: Updates = {}
        if gone or replaced or (first and base != services.default_base):
            afresh = self._afresh(kept)
        yield {**afresh, self.page.capability: kept, tab.drop: None, tab.camera: None, tab.receipt: ""}
        for box in photobox.add(session.run, paths, services.view(kept).row):
            yield {
                tab.cards: upload_html.photo_cards(services.photo_cards(session.run, box)),
                tab.status: page_html.note(tell("{count} read so far.", count=box.stored)),
            }

    def use_sample(self, kept: object, base: object) -> Iterator[Updates]:
        services, tab = self.services, self.tab
        kept = example.left(services, kept)
        first = kept is None
        if first:
            self._check(CLASS_WORDS[0], base, False)
        kept, session = services.sessions.ensure(kept)
        if first:
            session = services.sessions.choose(session, base=base)
        services.require_idle(session.run)
        pictures = sorted(SAMPLE.glob("*.png"))[: photobox.MAX_PHOTOS]
        if len(pictures) < photobox.MIN_PHOTOS:
            raise UserError("The sample person is not in this copy. Use photos of your own.")
        photobox.clear(session.run)
        session = services.sessions.choose(session, sample=True, consent_at=None, class_word=_sample_class_word())
        record_consent(session.run, means="app", statement=SAMPLE_SENTENCE)
        reading = page_html.note(tell("Taking in the sample person ..."))
        yield {self.page.capability: kept, tab.status: reading, tab.receipt: ""}
        for box in photobox.add(session.run, pictures, services.view(kept).row):
            yield {tab.cards: upload_html.photo_cards(services.photo_cards(session.run, box))}
        yield self._afresh(kept)

    def press(self, kept: object, event: gr.EventData) -> None:
        """A button of a photo's card."""
        session = self.services.sessions.need(kept)
        self.services.require_idle(session.run)
        pressed = getattr(event, "_data", None)
        pressed = pressed if isinstance(pressed, dict) else {}
        row = self.services.view(kept).row
        if pressed.get("action") == "remove":
            photobox.remove(session.run, pressed.get("photo"), row)
        else:
            photobox.change(session.run, pressed.get("photo"), pressed.get("action"), row, pressed.get("value"))

    def choose(self, kept: object, class_word: object, base: str, agreed: object) -> Updates:
        self._check(class_word, base, agreed)
        services = self.services
        session = services.sessions.find(kept)
        if session is None:  # the page keeps what was chosen until there are photos
            return {self.tab.about: about(services.bases[base], services.problem(base))}
        moved = base != services.view(kept).row.name
        if moved or (session.choices.consent_at is not None and not agreed):
            services.require_idle(session.run)  # what is being learned from stays as it is
        session = self._consent(services.sessions.choose(session, class_word=class_word, base=base), agreed)
        if not moved:
            return {self.page.capability: kept}
        photobox.judge_again(session.run, services.bases[base])  # it learns from smaller faces, or needs larger ones
        return {self.page.capability: kept, **self._afresh(kept)}

    def forget(self, kept: object, request: gr.Request) -> Updates:
        services, tab = self.services, self.tab
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
        return {
            **self._afresh(None), self.page.capability: None, tab.receipt: page_html.note(sentence, "ok"),
            tab.really: gr.update(visible=False), tab.delete: gr.update(visible=True),
        }  # fmt: skip

    def _afresh(self, kept: object) -> Updates:
        """The person's choices on this tab; the others bring theirs back when they are opened."""
        return {**self.tab.restore(self.services.view(kept)), self.page.seen: {"upload": {}}}

    def _check(self, class_word: object, base: object, agreed: object) -> None:
        if class_word not in CLASS_WORDS:
            raise UserError(f"The photos show a {', '.join(CLASS_WORDS)}: choose one of these.")
        if not isinstance(base, str) or base not in self.services.bases:
            raise UserError("That base model is not offered here. Choose one from the list.")
        if not isinstance(agreed, bool):
            raise UserError("The consent box is either ticked or not. Reload the page.")

    def _consent(self, session: Session, agreed: object) -> Session:
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
        return self.services.sessions.choose(session, consent_at=consent_at)


def _sample_class_word() -> str:
    """The word `presets/sample_person/person.txt` gives, else "person"."""
    try:
        word = (SAMPLE / "person.txt").read_text().strip()
    except OSError:
        word = CLASS_WORDS[0]
    return word if word in CLASS_WORDS else CLASS_WORDS[0]
