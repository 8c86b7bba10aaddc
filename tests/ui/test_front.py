"""What stands above the tabs, without a browser: the first screen, the example, portraits with one button."""

# ruff: noqa: F811 - fixtures come from test_app

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipelines.bases.registry import BASES
from pipelines.core import presets
from pipelines.core.records import UserError
from pipelines.runs import jobs
from pipelines.runs.jobspec import portrait_spec
from tests.ui.test_app import own_home  # noqa: F401
from ui.front import chain, example
from ui.front import html as front_html
from ui.front.events import Actions
from ui.page import views
from ui.run.start import AROUND_S, portrait_s, start_portrait

ASKING = SimpleNamespace(headers={}, client=None)  # a request


@pytest.fixture
def services():
    from ui.run.services import Services

    return Services()


@pytest.fixture
def front(services):
    """The buttons above the tabs, with nothing else on the page."""
    import gradio as gr

    from ui.front import layout
    from ui.page.refresh import Refresh

    with gr.Blocks():
        built = layout.build()
        act = Actions(built, services, Refresh(services, (built,), {}), gr.Tabs())
    return act


def test_the_first_screen_has_three_buttons_and_one_after_photos(front):
    shown = front.front.show(front.services.view(None))
    assert all(shown[button].get("visible", True) for button in (front.front.make, front.front.compare))
    assert not any(shown[part]["visible"] for part in (front.front.bar, front.front.results, front.front.banner))


def test_compare_the_methods_shows_research_and_asks_for_photos(front):
    told = front.compare(None)
    assert told[front.front.switch] == views.VIEWS[1] and told[front.tabs]["selected"] == "upload"


def test_make_my_portrait_says_what_is_missing(front):
    told = front.make(None)
    assert "Add 5 more photos" in told[front.front.hint]["value"] and told[front.tabs]["selected"] == "upload"
    key, _ = front.services.sessions.create()
    assert "Add 5 more photos" in front.make(key)[front.front.hint]["value"]


@pytest.mark.parametrize("name", list(BASES))
def test_every_base_has_a_plan_for_portraits(name):
    spec = portrait_spec(BASES[name], class_word="woman")
    spec.check()
    assert spec.kind == "portrait" and len(spec.samplings) == 8 and len({each.prompt for each in spec.samplings}) == 3
    assert set(spec.methods) <= set(BASES[name].offered) and len({each.seed for each in spec.samplings}) == 8


def test_a_base_that_offers_no_planned_method_says_so(tmp_path):
    saved = json.loads((presets.PRESETS / "portraits.json").read_text())
    saved["families"]["portrait"]["methods"] = ["zero_shot_of_tomorrow"]
    (tmp_path / "portraits.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="can't make portraits with one click"):
        presets.portrait_plan(BASES["portrait-128"], tmp_path / "portraits.json")


def test_the_bar_tells_the_share_and_the_time_left(services, monkeypatch):
    view = services.view(None)
    bar = front_html.bar(view, chain.Chain(0.25, 90.0, 3, 8))
    assert 'aria-valuenow="25"' in bar and "3 of 8 portraits" in bar and "1 min 30 s left" in bar
    ended = SimpleNamespace(progress=SimpleNamespace(problem=None, state="cancelled"))
    assert "What is there is kept" in front_html.bar(ended, None)
    assert chain.chain_of(view) is None and chain.best(view) == []


def test_the_time_left_shrinks_with_what_is_learned_and_drawn(services):
    row = BASES["portrait-128"]
    spec = portrait_spec(row, class_word="woman")
    every = 2 * len(spec.samplings)
    left = [portrait_s(services, row, spec, learned, drawn=drawn)
            for learned, drawn in (((), 0), ((), 8), (spec.methods, 8), (spec.methods, every))]  # fmt: skip
    assert left == sorted(left, reverse=True) and left[-1] == AROUND_S and left[0] > 2 * left[2]


def test_the_next_press_goes_on_or_draws_other_pictures(front, monkeypatch):
    from pipelines.core.files import write_json
    from pipelines.runs.status import JobStatus, save_status

    kept, session = front.services.sessions.create()
    asked = []
    monkeypatch.setattr(jobs, "enqueue", lambda run, spec, **more: (asked.append(spec), write_json(run.spec, spec)))
    for state, seed in (("none", 0), ("cancelled", 0), ("done", 8), ("interrupted", 8), ("done", 16)):
        save_status(session.run, JobStatus(state, "portrait" if asked else ""))
        start_portrait(front.services, session)
        assert asked[-1].samplings[0].seed == seed, state


def test_a_chain_is_one_long_job():
    assert "portrait" in jobs.LONG and "portrait" not in jobs.SHORT


# ------------------------------------------------------------------------------------------------- the example

there = pytest.mark.skipif(not example.is_there(), reason="the example is not built")


@there
def test_the_example_opens_on_every_tab_without_computing(front, monkeypatch):
    """Also after a format of a run has changed: every reader of its files reads it."""
    started = []
    monkeypatch.setattr(jobs, "enqueue", lambda *args, **more: started.append(args))
    told = front.open_example(None, ASKING)
    view = front.services.view(told[front.page.capability])
    assert view.choices.example and view.choices.sample and view.choices.consent_at is None
    assert view.train_blocked is None and view.generate_blocked is None and view.score_blocked is None
    assert set(view.trained) == {"textual_inversion", "dreambooth", "lora"} and not view.stale
    assert {shot.method for shot in view.pictures} == {"none", *view.trained} and len(view.pictures) == 32
    assert all(shot.scored for shot in view.pictures) and view.judges and view.drawings
    assert "dreambooth" not in view.columns and "lora" in view.columns, "DreamBooth's weights are not in it"
    assert all(view.lane(method) is not None for method in view.trained)
    assert len(view.photo_cards()) == 10 and all(card.link for card in view.photo_cards())
    assert len(view.crop_cards()) == 10 and view.session.run.page.is_file() and not started
    assert front.services.paces.known().keys() <= {"gflops"}, "it says nothing about this machine"
    assert len(chain.best(view)) == 4 and front.front.show(view)[front.front.results]["visible"]


@there
def test_the_example_is_no_bigger_than_it_may_be_and_names_no_path_of_a_machine():
    files = [file for file in example.EXAMPLE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6_000_000 and example.HERO.stat().st_size <= 300_000
    for file in files:
        if file.suffix in (".json", ".jsonl", ".html", ".csv"):
            text = file.read_text(encoding="utf-8")
            assert "/home/" not in text and "/work/" not in text and "/tmp/" not in text, file.name


@there
def test_ones_own_photos_clear_the_example(front):
    kept = front.open_example(None, ASKING)[front.page.capability]
    folder = front.services.sessions.need(kept).run.folder
    told = front.use_own(kept)
    assert told[front.page.capability] is None and not folder.exists() and told[front.page.seen] == {}
    assert front.make(front.open_example(None, ASKING)[front.page.capability])[front.page.capability] is None


@there
def test_the_example_replaces_nobodys_photos(front):
    kept, session = front.services.sessions.create()
    (session.run.folder / "incoming.json").write_text('{"staged": [], "split": false, "problem": null}')
    with pytest.raises(UserError, match="photos here already"):
        front.open_example(kept, ASKING)
