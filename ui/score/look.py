"""Any picture, dropped into the Score tab: how alike is each face in it to this person, and who is it nearest to?"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from pipelines.core.records import UserError
from ui.page import html as page_html
from ui.page.errors import told
from ui.page.fields import File
from ui.page.refresh import Refresh, Updates
from ui.run.cards import StripData
from ui.run.services import Services
from ui.run.view import View
from ui.score import html as score_html
from ui.upload.layout import SAMPLE
from ui.words import phrases
from ui.words.words import in_words, say, tell

if TYPE_CHECKING:
    import numpy as np

    from pipelines.evaluation.lookalike import Answer

SHOWN_PX = 360  # the dropped picture, as it is shown beside the answer
ABOUT = say(
    '<h2>Who does any picture look like?</h2><p class="lk-note">Drop any one picture - a photo, a portrait made '
    "elsewhere, an old print. Every face in it is compared with this person's held-out photos and, once they are "
    "there, with two others: the synthetic sample person and what the untrained base draws. There is no database of "
    "other people. The picture is looked at and dropped: it is not kept, not learned from, not "
    "written to a log.</p>"
)


@dataclass
class LookSection:
    about: gr.HTML
    drop: gr.File
    answer: gr.HTML

    def show(self, view: View) -> Updates:
        why = view.look_blocked
        return {
            self.about: gr.update(value=ABOUT + (page_html.note(why, "warn") if why else "")),
            self.drop: gr.update(interactive=why is None),
        }

    def restore(self, view: View) -> Updates:
        return {self.answer: gr.update(value="")}

    def news(self, view: View) -> Updates:
        return {}


def build(services: Services) -> LookSection:
    about = gr.HTML(ABOUT, elem_id="lk-look")
    drop = File(
        label=say("Any one picture"), file_count="single", file_types=["image", ".heic", ".heif", ".avif"], height=130,
        elem_id="lk-any",
    )  # fmt: skip
    return LookSection(about, drop, gr.HTML(elem_id="lk-answer"))


def wire(section: LookSection, services: Services, page: Refresh) -> None:
    @told
    def look(kept: object, file: str | None) -> Iterator[Updates]:
        from pipelines.evaluation import lookalike
        from pipelines.photos.decode import decode

        try:
            yield {section.drop: None, section.answer: page_html.note(tell("Looking ..."))}
            session = services.sessions.need(kept)
            view = services.view(kept)
            if view.look_blocked:
                raise UserError(view.look_blocked)
            if not file:
                raise UserError("No picture arrived. Drop one picture.")
            image = decode(Path(file))
        except UserError as problem:  # it stays beside the drop zone: a toast is gone when the person looks up
            yield {section.answer: page_html.note(str(problem), "bad")}
            return
        try:
            assert view.box.photo_set is not None
            knowing, notes = lookalike.known_of(
                session.run.folder, view.box.photo_set, sample=sample_pictures(view), base=base_pictures(view)
            )
            answer = lookalike.look_at_any(image, knowing)
            yield {
                section.answer: answer_html(view, answer, image) + page_html.notes([in_words(note) for note in notes])
            }
        except UserError as problem:
            yield {section.answer: page_html.note(str(problem), "bad")}

    # Two at a time: a look takes a second of one core. Not the photos' slots: intake may take a minute.
    section.drop.upload(
        look, [page.capability, section.drop], [section.drop, section.answer], concurrency_limit=2,
        concurrency_id="look", trigger_mode="once", api_visibility="private", show_progress="hidden",
    )  # fmt: skip


def sample_pictures(view: View) -> list[Path]:
    """The sample person's, unless the run is about her."""
    return [] if view.choices.sample or not SAMPLE.is_dir() else sorted(SAMPLE.glob("*.png"))


def base_pictures(view: View) -> list[Path]:
    """The untrained base's pictures of this run that were meant as photographs; [] before there are any."""
    if view.session is None:
        return []
    shots = [shot for shot in view.shots if shot.method == "none" and not shot.drawing and shot.path]
    return [view.session.run.folder / shot.path for shot in shots]


def answer_html(view: View, answer: Answer, image: np.ndarray) -> str:
    if not answer.faces:
        return shown(image, []) + page_html.note(
            tell(
                "No face was found in this picture. Try one in which the face is larger and looks towards the camera."
            ),
            "warn",
        )
    strips = "".join(
        f"<details{' open' if number == 0 else ''}>"
        f"<summary>{score_html.judge_title(judge, first=number == 0)}</summary>"
        f"{score_html.strip(axis(view, answer, judge))}</details>"
        for number, judge in enumerate(answer.judges)
    )
    best = {judge: view.best_score(judge) for judge in answer.judges}
    return shown(image, [face.box for face in answer.faces]) + score_html.looked(answer, best) + strips


def axis(view: View, answer: Answer, judge: str) -> StripData:
    """The run's strip with the dropped faces on it; before anything was scored, with the marks of the photos alone."""
    found = answer.marks[judge]
    measured = {name: getattr(found, name) for name in ("impostor", "ceiling", "ceiling_low", "ceiling_high")}
    data = view.axis(judge, measured)
    dots: dict[str, tuple[float, ...]] = {}
    for number, face in enumerate(answer.faces, start=1):
        value = face.opinions[answer.judges.index(judge)].score.similarity
        name = tell("Face {number}", number=number) if len(answer.faces) > 1 else tell("This picture")
        dots[name] = () if value is None else (value,)
    best = view.best_score(judge)
    if best is not None:
        dots[tell("Best render ({method})", method=phrases.named(best[0]))] = (best[1],)
    return StripData(judge, data.marks, dots)


def shown(image: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> str:
    """The picture itself, small, with its faces numbered. It lives in the answer only."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    picture.thumbnail((SHOWN_PX, SHOWN_PX))
    scale = picture.width / image.shape[1]
    draw = ImageDraw.Draw(picture)
    for number, box in enumerate(boxes, start=1):
        left, top, right, bottom = (value * scale for value in box)
        draw.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline="#12a37f", width=2)
        if len(boxes) > 1:
            draw.rectangle((left, top, left + 17, top + 18), fill="#0f766e")
            draw.text((left + 5, top + 1), str(number), fill="white", font=ImageFont.load_default(14))
    packed = io.BytesIO()
    picture.save(packed, format="JPEG", quality=88)
    uri = "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()
    alt = tell("The dropped picture; faces marked in it: {count}", count=len(boxes))
    return f'<figure class="lk-dropped-in"><img src="{uri}" alt="{escape(alt)}"></figure>'
