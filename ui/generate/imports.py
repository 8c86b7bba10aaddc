"""Compare with a LoRA or embedding you have: one file in, one more column in Generate, Score and the report.

The file is checked while the person waits (`methods/imports.py`); Gradio's copy goes with the event (`ui.web.uploads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.core.files import read_json
from pipelines.core.records import IMPORTED, UserError
from pipelines.core.run import Run, imported_columns
from pipelines.methods import imports
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.fields import File
from ui.page.refresh import Refresh, Updates
from ui.page.views import RESEARCH
from ui.run import photobox
from ui.run.services import Services
from ui.run.view import View
from ui.web.limits import require_room
from ui.words import phrases
from ui.words.words import say, tell

LIMIT = 200  # characters of trigger words


@dataclass
class ImportSection:
    file: gr.File
    trigger: gr.Textbox
    add: gr.Button
    answer: gr.HTML
    listed: gr.HTML
    remove_box: gr.Row
    which: gr.Dropdown
    remove: gr.Button

    def show(self, view: View) -> Updates:
        choices = [(phrases.named(column), column) for column in view.imported]
        return {
            self.listed: gr.update(value=_listed(view)),
            self.remove_box: gr.update(visible=bool(choices)),
            self.which: gr.update(choices=choices),
        }

    def restore(self, view: View) -> Updates:
        return {self.which: gr.update(value=next(iter(view.imported), None)), self.answer: gr.update(value="")}


def build() -> ImportSection:
    compare = say("Compare with a LoRA or embedding you have")
    with gr.Accordion(compare, open=False, elem_id="lk-import", elem_classes=RESEARCH):
        file = File(
            label=say("A .safetensors file for this base"),
            file_count="single",
            file_types=[".safetensors"],
            height=120,
            elem_id="lk-import-file",
        )
        trigger = gr.Textbox(
            label=say("Trigger words"), max_length=LIMIT, elem_id="lk-import-trigger",
            info=say("As its maker says. Empty: what the file says, else man, woman or person."),
        )  # fmt: skip
        add = gr.Button(say("Add as a column"), size="sm", elem_id="lk-import-add")
        answer = gr.HTML(elem_id="lk-import-answer")
        listed = gr.HTML(elem_id="lk-imported")
        with gr.Row(visible=False) as remove_box:
            which = gr.Dropdown([], label=say("Imported"), elem_id="lk-import-which", min_width=140)
            remove = gr.Button(say("Remove it"), size="sm", elem_id="lk-import-remove", min_width=90)
    return ImportSection(file, trigger, add, answer, listed, remove_box, which, remove)


def wire(section: ImportSection, columns: gr.CheckboxGroup, services: Services, page: Refresh) -> None:
    act = Actions(section, columns, services)
    common: dict[str, Any] = {
        "outputs": [section.file, section.trigger, section.answer, section.which, columns],
        "api_visibility": "private",
        "trigger_mode": "once",
    }
    # one at a time: a gigabyte is read and written
    one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "import"}
    added = section.add.click(
        told(act.add), [page.capability, section.file, section.trigger], **common, **one, show_progress="minimal",
        show_progress_on=section.answer,
    )  # fmt: skip
    removed = section.remove.click(told(act.remove), [page.capability, section.which], **common, show_progress="hidden")
    for event in (added, removed):
        page.after(event, "generate")


class Actions:
    """What the buttons do. Every argument comes from a browser."""

    def __init__(self, section: ImportSection, columns: gr.CheckboxGroup, services: Services) -> None:
        self.section, self.columns, self.services = section, columns, services

    def add(self, kept: object, file: object, trigger: object) -> Updates:
        path = Path(file) if isinstance(file, str) else None
        try:
            session = self.services.sessions.need(kept)
            view = self._ready(kept)
            if path is None:
                raise UserError("No file arrived. Choose a .safetensors file.")
            require_room(session.run.folder)
            imports.add(
                session.run,
                path,
                view.row,
                name=free_name(session.run, path.stem),
                class_word=session.choices.class_word,
                phrase=trigger.strip() if isinstance(trigger, str) else "",
                called=photobox.display_name(path.name),
            )
        except UserError as problem:  # it stays beside the field: a toast is gone when the person looks up
            return {self.section.file: None, self.section.answer: page_html.note(str(problem), "bad")}
        newest = tell("It is a column now. Draw the same prompt and seed with it and with your own methods.")
        return {
            **self._shown(kept),
            self.section.file: None,
            self.section.trigger: "",
            self.section.answer: page_html.note(newest),
        }

    def remove(self, kept: object, column: object) -> Updates:
        session = self.services.sessions.need(kept)
        view = self.services.view(kept)
        if view.busy:
            raise UserError("This run is still working. Wait until it is done, or press Stop first.")
        imports.remove(session.run, column if isinstance(column, str) else "")
        return {**self._shown(kept), self.section.answer: ""}

    def _ready(self, kept: object) -> View:
        view = self.services.view(kept)
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn. Wait until they are there, or press Stop first.")
        return view

    def _shown(self, kept: object) -> Updates:
        view = self.services.view(kept)
        choices = [(phrases.named(column), column) for column in view.columns]
        return {
            self.columns: gr.update(choices=choices, value=list(view.columns)),
            self.section.which: gr.update(
                choices=[(phrases.named(column), column) for column in view.imported],
                value=next(reversed(view.imported), None),
            ),
        }


def free_name(run: Run, stem: str) -> str:
    """A column's name from a file's that no other column of the run has."""
    first = name = imports.slug(stem)
    count = 2
    while IMPORTED + name in imported_columns(run):
        name = f"{first[:20].rstrip('-')}-{count}"
        count += 1
    return name


def _listed(view: View) -> str:
    """What was imported, each in a line; nothing of it was trained here."""
    if view.session is None:
        return ""
    items = []
    for column in view.imported:
        card = read_json(view.session.run.method(column) / "subject.json") or {}
        about = card.get("imported", {})
        size, phrase = about.get("rank", "–"), card.get("phrase", "")
        if about.get("kind") == "embedding":
            said = tell("embedding, vectors {count}, called by “{phrase}”.", count=size, phrase=phrase)
        else:
            said = tell("LoRA, rank {rank}, called by “{phrase}”.", rank=size, phrase=phrase)
        unknown = tell("Not trained here: steps and time unknown.")
        if left := about.get("left_out"):
            names = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
            unknown += " " + tell(
                "Left out, because the base has no such layer: {names} (tensors: {count}).",
                names=names,
                count=len(left),
            )
        if idle := about.get("idle"):
            unknown += " " + tell(
                "Layers with an alpha of 0, which change nothing: {idle} of {layers}.",
                idle=idle,
                layers=about["layers"],
            )
        items.append(f"<li><b>{escape(phrases.named(column))}</b>: {escape(f'{said} {unknown}')}</li>")
    return f'<ul class="lk-note lk-small">{"".join(items)}</ul>' if items else ""
