"""The page answers as Gradio's own Blocks would, and leaves alone what a handler did not mention."""

from __future__ import annotations

import asyncio
import datetime
import re
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio.state_holder import SessionState, StateHolder

from ui.page.page import Page
from ui.words import words


def answers(kind: type[gr.Blocks], said) -> tuple[list, set[str]]:
    """(what the page is told, which outputs were built anew) when a handler returns `said(one, two, kept)`."""
    with kind() as demo:
        one, two = gr.HTML("a", elem_id="one"), gr.Textbox("b", elem_id="two")
        kept = gr.State({})
        gr.Button().click(lambda: None, None, [one, two, kept])
    (event,) = demo.fns.values()
    state = SessionState(demo)
    before = {block: state.blocks_config.blocks.get(block._id) for block in (one, two)}
    found = asyncio.run(demo.postprocess_data(event, said(one, two, kept), state))
    after = {str(block.elem_id) for block in before if state.blocks_config.blocks.get(block._id) is not before[block]}
    # Gradio's update of an HTML block carries its own marker among the template's properties; it means nothing.
    noise = {"props": {"__type__": "update"}}
    told = [{k: v for k, v in each.items() if (k, v) not in noise.items()} if isinstance(each, dict) else each
            for each in found]  # fmt: skip
    return [*told, state[kept._id]], after


@pytest.mark.parametrize(
    ("said", "rebuilt"),
    [
        (lambda one, two, kept: {one: gr.update(value="new"), kept: {1: "x"}}, {"one"}),
        (lambda one, two, kept: {one: "plain", two: gr.update(visible=False, value="c")}, {"two"}),
        (lambda one, two, kept: {kept: gr.skip()}, set()),
        (lambda one, two, kept: {kept: {2: "y"}}, set()),
        (lambda one, two, kept: gr.skip(), set()),
        (lambda one, two, kept: {one: gr.skip(), two: "d"}, set()),
        (lambda one, two, kept: ["x", gr.update(value="y"), {3: "z"}], {"two"}),
    ],
)
def test_it_says_what_gradio_would_say_and_builds_only_what_changed(said, rebuilt):
    told, built = answers(Page, said)
    assert told == answers(gr.Blocks, said)[0]
    assert built == rebuilt


def test_an_output_that_is_none_is_refused_as_gradio_does():
    stranger = gr.HTML(render=False)
    for kind in (Page, gr.Blocks):
        with pytest.raises(ValueError, match="not specified as output"):
            answers(kind, lambda one, two, kept: {stranger: "x"})


def test_the_page_is_built_as_a_new_visitor_sees_it(tmp_path, monkeypatch):
    """Opening it sends next to nothing, so what it was built with has to be what would have been sent."""
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    import app
    from ui.page import refresh

    pages = []
    real = refresh.Refresh._settle
    monkeypatch.setattr(refresh.Refresh, "_settle", lambda self: (pages.append(self), real(self)))
    demo, _ = app.build()
    (page,) = pages
    nothing = page.services.view(None)
    sent = {each["id"]: each["props"] for each in demo.get_config_file()["components"]}
    for tab in page.tabs:
        opening, known = page.opening["en", tab]
        for component, update in (page.frame(nothing) | page.built(tab, nothing)).items():
            for name, value in update.items():
                if name == "__type__" or name in opening.get(component, {}) or component._id not in known:
                    continue
                held = sent[component._id].get(name)
                wanted = None if value is None else component.postprocess(value) if name == "value" else value
                if name == "choices":
                    wanted, held = ([list(each) for each in choices] for choices in (wanted, held))
                assert held == wanted, (component.elem_id, name)
        assert len(opening) < 5, "what a component can't hold is the exception"
        frame = {component._id: "" for component in page.frame(nothing)}
        told = page.changed(tab, None, {tab: known})[0]
        assert {component._id for component in told} <= {*frame, *(c._id for c in opening)}
    said = page.opening["de", "upload"][0]
    assert any("Frau" in str(update) for update in said.values()) and len(said) < 5


MOST_OUTPUTS, MOST_BYTES = 40, 200_000


def test_no_event_has_many_outputs_and_the_page_is_small(tmp_path, monkeypatch):
    from tests.live import live_app

    factory = SimpleNamespace(mktemp=lambda name: (tmp_path / name).mkdir() or tmp_path / name)
    with live_app(factory) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        answer = client.get("/config")
    events = answer.json()["dependencies"]
    assert {event["api_name"]: len(event["outputs"]) for event in events if len(event["outputs"]) > MOST_OUTPUTS} == {}
    assert len(answer.content) <= MOST_BYTES, len(answer.content)


def test_the_second_visitor_is_told_what_the_first_was(monkeypatch, tmp_path):
    """Gradio takes the updates it is given apart."""
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    import app

    demo, _ = app.build()
    event, *_ = (each for each in demo.fns.values() if getattr(each.fn, "__name__", "") == "load")
    request = gr.Request(headers={"accept-language": "de"}, cookies={})
    answers = []
    for _visit in range(2):
        with words.speaking("de"):
            answer = asyncio.run(demo.postprocess_data(event, event.fn(None, request), SessionState(demo)))
        answers.append(re.sub(r" at 0x\w+", "", repr(answer)))
    assert answers[0] == answers[1] and "Hier geht es los" in answers[0]


def test_a_visit_costs_no_description_of_the_page():
    """Gradio describes every component once more for each visitor and never forgets it."""

    def made(kind: type[gr.Blocks]) -> gr.Blocks:
        with kind() as demo:
            box = gr.Textbox("b", elem_id="two")
            gr.Button().click(lambda: None, None, box)
        return demo

    ours, theirs = made(Page), made(gr.Blocks)
    visit = SessionState(ours)
    assert not list(visit.components) and len(list(SessionState(theirs).components)) >= 2
    assert visit.blocks_config.blocks == ours.blocks and visit.blocks_config.fns == ours.fns
    for described in zip(ours.config["components"], theirs.config["components"], strict=True):
        assert described[0]["type"] == described[1]["type"]
        assert described[0]["props"].items() <= described[1]["props"].items()


def test_closed_pages_are_forgotten_and_open_ones_kept():
    with Page() as demo:
        gr.Textbox("b")
    demo.forget_visits(0)  # not served yet: nothing to forget
    holder = StateHolder()
    holder.set_blocks(demo)
    open_page, closed = holder["open"], holder["closed"]
    holder.time_last_used["closed"] -= datetime.timedelta(seconds=700)
    demo.forget_visits(600)
    assert list(holder.session_data) == ["open"] and holder["open"] is open_page
    assert holder["closed"] is not closed
