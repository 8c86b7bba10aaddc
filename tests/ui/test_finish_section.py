"""The Finish section without a browser: what is chosen, what becomes a job, forged values, and what is shown of it."""

# ruff: noqa: F811 - fixtures come from test_app

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipelines.core.files import write_json
from pipelines.core.records import UserError
from pipelines.finishing import refine, stage
from tests.ui.test_app import base, own_home, services, take_in, teach  # noqa: F401
from tests.ui.test_generate_tab import SAMPLING, Page
from ui.generate import finish
from ui.generate import html as generate_html
from ui.run import pictures
from ui.run.package import pack

EVIL = '<script>alert("x")</script>'
DIALS = {
    "steps": ["exposure", "sharpen"], "background": "", "size": "linkedin-400", "max_kb": 200, "format_name": "JPEG",
    "upscaler": "",
}  # fmt: skip


@pytest.fixture
def page(services, monkeypatch):
    import gradio as gr

    made = Page(services, monkeypatch)
    with gr.Blocks():
        made.section = finish.build(services)
    made.finish = finish.Actions(services)
    return made


def record(page, **changes) -> dict:
    """What the worker leaves of the LoRA's picture."""
    shot = page.shot()
    folder = page.run.finished(shot.path)
    folder.mkdir(parents=True)
    for name in ("portrait.jpg", "preview_0-raw.jpg", "preview_9-refined.jpg", "preview_1-sharpen.jpg"):
        (folder / name).write_bytes(b"x")
    saved = {
        "picture": shot.path, "base": shot.base, "subject": shot.subject, "file": "portrait.jpg", "format": "JPEG",
        "raw_file": "preview_0-raw.jpg", "refined_file": "preview_9-refined.jpg", "width_px": 400, "height_px": 400,
        "bytes": 41_000, "marks": {"credentials": True, "field": True, "watermark": False}, "notes": [EVIL],
        "reference": refine.HELD_OUT, "reference_photos": 2, "order": {"pictures": [shot.path]}, "flaws": None,
        "similarity": {"dlib": {"raw": 0.61, "refined": 0.6, "delivered": 0.59, "may_lose": 0.04}},
        "steps": [
            {"step": "sharpen", "name": "Gentle sharpening", "choice": EVIL, "state": "dropped", "sentence": EVIL,
             "before_file": "preview_0-raw.jpg", "after_file": "preview_1-sharpen.jpg"},
            {"step": "enlarge", "name": "Super-resolution", "choice": "", "state": "kept", "sentence": "Fine."},
        ],
    } | changes  # fmt: skip
    write_json(folder / stage.RECORD, saved)
    return saved


def test_the_section_opens_with_the_first_picture_and_offers_the_most_alike(page):
    assert not page.section.show(page.view)[page.section.box]["visible"]
    page.draw()
    shown = page.section.show(page.view)
    assert shown[page.section.box]["visible"] and shown[page.section.start]["interactive"]
    assert not shown[page.section.favourites]["interactive"], "nothing is liked yet"
    assert finish.shot_of(page.view).method == "lora", "the untrained base draws nobody in particular"


def test_the_wand_below_a_picture_chooses_it_and_only_real_pictures_can_be(page):
    page.draw()
    chosen = page.shot("none")
    page.press("finish", chosen.id)
    assert finish.shot_of(page.view).id == chosen.id
    assert 'data-action="finish"' in generate_html.gallery(page.view.pictures)
    with pytest.raises(UserError, match="no longer here"):
        page.press("finish", "0" * 16)
    assert finish.shot_of(page.view).id == chosen.id


def test_what_was_chosen_becomes_a_job_that_needs_no_base(page):
    page.draw()
    page.finish.one(page.capability, **DIALS)
    (spec,) = page.asked
    assert (spec.kind, spec.methods, spec.finish.pictures) == ("finish", ("none",), (page.shot().path,))
    assert (spec.finish.steps, spec.finish.max_kb, spec.finish.restorer) == (("exposure", "sharpen"), 200, "")


def test_all_favourites_are_finished_together(page):
    page.draw()
    with pytest.raises(UserError, match="favourite"):
        page.finish.favourites(page.capability, **DIALS)
    for method in ("none", "lora"):
        page.press("like", page.shot(method).id)
    page.finish.favourites(page.capability, **DIALS | {"background": "studio", "format_name": "WEBP"})
    (spec,) = page.asked
    assert len(spec.finish.pictures) == 2 and (spec.finish.background, spec.finish.format_name) == ("studio", "WEBP")


@pytest.mark.parametrize(
    "forged",
    [
        {"steps": "exposure"},
        {"steps": [["exposure"]]},
        {"steps": ["retouch"]},
        {"background": "../../etc"},
        {"background": {"a": 1}},
        {"size": "poster"},
        {"size": None},
        {"max_kb": float("nan")},
        {"max_kb": True},
        {"max_kb": "200"},
        {"max_kb": 1e12},
        {"format_name": "SVG"},
        {"upscaler": "/etc/passwd"},
        {"upscaler": "weights.safetensors"},
    ],
    ids=str,
)
def test_forged_values_become_a_sentence_and_no_job(page, forged):
    page.draw()
    with pytest.raises(UserError):
        page.finish.one(page.capability, **DIALS | forged)
    assert page.asked == []


def test_strangers_and_an_empty_run_get_a_sentence(page):
    for kept in ("A" * 43, None, {"path": 3}):
        with pytest.raises(UserError, match="no longer here"):
            page.finish.one(kept, **DIALS)
    with pytest.raises(UserError, match="no picture"):
        page.finish.one(page.capability, **DIALS)


def test_nothing_is_started_while_pictures_are_being_drawn(page, monkeypatch):
    page.draw()
    busy = SimpleNamespace(**{**vars(page.view.drawing), "busy": True})
    view = page.view
    monkeypatch.setattr(page.services, "view", lambda kept: SimpleNamespace(drawing=busy, pictures=view.pictures))
    with pytest.raises(UserError, match="already"):
        page.finish.one(page.capability, **DIALS)


def test_a_finished_picture_shows_before_and_after_judges_and_reasons(page):
    page.draw()
    record(page)
    html = page.section.show(page.view)[page.section.result]["value"]
    assert html.count('type="range"') == 2, "the whole, and the step that made a picture"
    assert "Steps kept: 1 of 2." in html and "Dropped: 1" in html and "0.61" in html and "0.59" in html
    assert "2 photos that training never saw" in html and "Content credentials, IPTC field" in html
    assert EVIL not in html and "&lt;script&gt;" in html
    assert "Download: 400 × 400 JPEG, 41 kB" in html and "ZIP" not in html
    links = [part.split('"')[0] for part in html.split('src="')[1:]]
    assert links and all(page.services.media.path_of(link.replace("&amp;", "&")) is not None for link in links)
    assert str(page.run.folder) not in html, "signed links only, no path of this machine"


def test_a_record_of_an_earlier_trainings_picture_is_not_shown(page):
    page.draw()
    record(page, subject="lora-0")
    assert "lk-fin" not in page.section.show(page.view)[page.section.result]["value"]
    assert pictures.picture_id(page.shot().path, page.shot().base, "lora-0") != page.shot().id


def test_a_damaged_record_is_as_if_it_were_not_there(page):
    page.draw()
    record(page)
    (page.run.finished(page.shot().path) / stage.RECORD).write_text("{", encoding="utf-8")
    assert page.section.show(page.view)[page.section.result]["value"] == ""
    assert stage.records(page.run) == []


def test_the_download_takes_finished_files_along_and_no_previews(page):
    import zipfile

    page.draw()
    record(page)
    links = pack(page.run, page.services.media)
    with zipfile.ZipFile(page.services.media.path_of(links[0][1])) as archive:
        names = [name for name in archive.namelist() if name.startswith("finished/")]
    assert sorted(name.rpartition("/")[2] for name in names) == ["finished.json", "portrait.jpg"]


def test_a_choice_made_before_this_existed_still_opens(page):
    file = next(page.services.sessions.folder.glob("*.json"))
    saved = json.loads(file.read_text())
    saved["choices"].pop("finishing", None)
    file.write_text(json.dumps(saved))
    assert page.view.choices.finishing == "" and SAMPLING.seed == 0
