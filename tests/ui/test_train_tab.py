"""Laws of the Train tab: what the dials ask for is what is taught, and nothing else; an earlier training goes on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipelines.bases.registry import find_base
from pipelines.core import presets
from pipelines.core.files import read_json, write_json
from pipelines.core.records import METHODS, UserError
from pipelines.core.run import load_photo_set
from pipelines.runs import jobs
from tests.ui.test_app import base, own_home, services, take_in, teach  # noqa: F401  (fixtures)


@pytest.fixture
def asked(monkeypatch):
    """What reaches the line, with the run's own files as `enqueue` leaves them."""
    found = []

    def enqueue(run, spec=None, *, owner, estimate_s=None, serve=True):
        found.append(spec)
        if spec is not None:
            write_json(run.spec, spec)

    monkeypatch.setattr(jobs, "enqueue", enqueue)
    return found


def ready(services):  # noqa: F811
    capability, session = services.sessions.create()
    found = take_in(session.run)
    return capability, services.sessions.choose(session, class_word="man", consent_at="now"), found


def usual(view, quality="draft"):
    """The dials as the page shows them."""
    from ui.train.dials import COMMON, DIALS, dial_name

    recipes = view.services.recipes(view.row, quality, view.row.trainable, {})
    dials = {dial_name(dial): getattr(recipes[dial.method], dial.setting) for dial in DIALS if dial.method in recipes}
    dials |= {dial.setting: max(getattr(recipe, dial.setting) for recipe in recipes.values()) for dial in COMMON}
    return dials | {"optimizer": "adamw", "lora_dora": False}


def test_untouched_dials_change_nothing_and_a_touched_one_changes_one_thing(services):  # noqa: F811
    from ui.train.dials import requested

    capability, _, _ = ready(services)
    view = services.view(capability)
    dials = usual(view)
    assert requested(view, "draft", list(METHODS), dials) == {}
    assert requested(view, "draft", list(METHODS), dials | {"lora_rank": 4}) == {"lora": {"rank": 4}}
    assert requested(view, "draft", ["dreambooth"], dials | {"lora_rank": 4}) == {}
    changed = requested(view, "draft", list(METHODS), dials | {"batch": dials["batch"] + 1})
    assert changed == {method: {"batch": dials["batch"] + 1} for method in METHODS}
    changed = requested(view, "draft", [*METHODS, "pivotal"], dials | {"face_weight": 3, "lora_dora": True})
    assert changed == {m: {"face_weight": 3.0} | ({"dora": True} if m == "lora" else {}) for m in (*METHODS, "pivotal")}
    assert requested(view, "draft", ["lora"], dials | {"optimizer": "prodigy"}) == {"lora": {"optimizer": "prodigy"}}


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"optimizer": "sgd"}, "There is no such optimizer"),
        ({"optimizer": ["adamw"]}, "There is no such optimizer"),
        ({"optimizer": math.nan}, "There is no such optimizer"),
        ({"lora_dora": "yes"}, "DoRA is on or off"),
        ({"lora_dora": 1.5}, "DoRA is on or off"),
        ({"face_weight": math.nan}, "Weight of the face"),
        ({"face_weight": 11}, "Weight of the face"),
    ],
)
def test_forged_choices_are_refused_in_words(services, forged, said):  # noqa: F811
    from ui.train.dials import requested

    capability, _, _ = ready(services)
    view = services.view(capability)
    with pytest.raises(UserError, match=said):
        requested(view, "draft", ["lora"], usual(view) | forged)


def test_the_fourth_lane_is_asked_for_and_never_taken_for_granted(services):  # noqa: F811
    from ui.train.dials import chosen_methods

    capability, _, _ = ready(services)
    view = services.view(capability)
    assert chosen_methods(view, "draft", list(METHODS), []) == list(METHODS)
    assert chosen_methods(view, "draft", ["lora"], ["pivotal"]) == ["lora", "pivotal"]
    assert chosen_methods(view, "draft", [], "pivotal") == [] and chosen_methods(view, "draft", [], [["pivotal"]]) == []
    assert view.row.methods == METHODS and view.row.trainable == (*METHODS, "pivotal")
    assert "Pivotal tuning" in view.estimate("draft", ["pivotal"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e9, "many", True, [3], 2.5])
def test_a_forged_dial_is_refused_in_words(services, value):  # noqa: F811
    from ui.train.dials import requested

    capability, _, _ = ready(services)
    view = services.view(capability)
    with pytest.raises(UserError, match="LoRA: Rank must be a whole number from 1 to 128"):
        requested(view, "draft", list(METHODS), usual(view) | {"lora_rank": value})


def test_every_dial_is_a_setting_of_a_recipe_within_its_limits():
    from dataclasses import fields

    from pipelines.core.decode import limits
    from pipelines.core.records import Recipe
    from ui.train.dials import COMMON, DIALS

    known = {each.name for each in fields(Recipe)}
    assert len(DIALS) + len(COMMON) == 14
    for dial in (*DIALS, *COMMON):
        low, high = limits(Recipe, dial.setting)
        assert dial.setting in known and low <= dial.low < dial.high <= high
    for family in ("portrait-128", "sd15", "sdxl", "z-image"):  # and no recipe lies outside
        for dial in DIALS:
            for quality in ("draft", "good", "best"):
                try:
                    recipe = presets.recipe(find_base(family), dial.method, quality, class_word="man")
                except UserError:
                    continue  # this base does not offer the method
                assert dial.low <= getattr(recipe, dial.setting) <= dial.high, (family, dial, quality)


def test_the_estimate_follows_the_dials(services):  # noqa: F811
    capability, session, found = ready(services)
    view = services.view(capability)
    teach(session.run, view.row.name, found.digest)
    view = services.view(capability)
    steps = presets.recipe(view.row, "lora", "draft", class_word="person").steps
    from ui.words import phrases

    twice = view.estimate("draft", ["lora"], {"lora": {"steps": 2 * steps}})
    assert f"about {phrases.duration(phrases.rounded(steps))}" in twice and f"LoRA {2 * steps}" in twice


def test_the_estimate_knows_what_the_training_that_ended_took(services):  # noqa: F811
    """The page shows it without a reload, for the controls as the page has them."""
    import gradio as gr

    from ui.train import dials
    from ui.train import layout as train_layout
    from ui.words import phrases

    with gr.Blocks():
        tab = train_layout.build(services)
    capability, session, found = ready(services)
    view = services.view(capability)
    tab.restore(view)
    tab.estimated(view, dials.Asked("draft", ["lora"], {}, True))  # what `estimate` does when a box is ticked
    before = tab.news(services.view(capability))[tab.estimate]["value"]
    teach(session.run, view.row.name, found.digest)
    after = tab.news(services.view(capability))[tab.estimate]["value"]
    steps = presets.recipe(view.row, "lora", "draft", class_word="person").steps
    assert "as measured on this machine" not in before and "as measured on this machine" in after
    assert f"about {phrases.duration(phrases.rounded(steps / 2))}" in after and "DreamBooth" not in after
    assert "value" not in tab.news(services.view(None))[tab.estimate]


def test_a_visitor_who_touched_nothing_gets_the_new_estimate_too(services):  # noqa: F811
    import gradio as gr

    from ui.train import dials
    from ui.train import layout as train_layout

    with gr.Blocks():
        tab = train_layout.build(services)
    capability, session, found = ready(services)
    teach(session.run, services.view(capability).row.name, found.digest)
    assert "Takes" in tab.news(services.view(capability))[tab.estimate]["value"]
    many = train_layout.REMEMBERED + 5
    view = services.view(capability)
    from dataclasses import replace

    for number in range(many):
        other = replace(view, session=replace(view.session, key=str(number)))
        tab.asked.setdefault(str(number), dials.Asked("draft", ["lora"], {}, True))
        if number == many - 1:
            tab.estimated(other, dials.Asked("draft", ["lora"], {}, True))
    assert len(tab.asked) == train_layout.REMEMBERED


def test_what_was_stopped_continues_unless_something_else_is_asked_for(services, asked):  # noqa: F811
    from ui.run.start import start_training

    capability, session, _ = ready(services)
    start_training(services, session, methods=("lora",), quality="draft", settings={"lora": {"rank": 4}})
    assert asked[-1].settings["lora"]["rank"] == 4 and asked[-1].settings["lora"]["watch_every"] >= 10
    write_json(session.run.status, jobs.JobStatus("cancelled", "train"))
    session = services.sessions.find(capability)
    start_training(services, session, methods=("lora",), quality="draft", settings={"lora": {"rank": 4}})
    assert asked[-1] is None, "the same again: the run's own spec is continued"
    start_training(services, session, methods=("lora",), quality="draft", settings={"lora": {"rank": 8}})
    assert asked[-1].settings["lora"]["rank"] == 8


def test_nobody_keeps_the_machine_for_a_day(services, asked):  # noqa: F811
    from ui.run.start import MAX_STEPS, start_training
    from ui.train.dials import BATCH, DIALS

    _, session, _ = ready(services)
    with pytest.raises(UserError, match="others get their turn"):
        start_training(services, session, methods=("lora",), quality="draft", settings={"lora": {"steps": 100_000}})
    assert asked == []
    assert {dial.high for dial in DIALS if dial.setting == "steps"} == {MAX_STEPS} and BATCH.high == 32


def test_with_more_photos_training_goes_on_from_what_was_learned(services, asked):  # noqa: F811
    from ui.run import photobox
    from ui.run.start import start_training

    capability, session, found = ready(services)
    start_training(services, session, methods=("lora",), quality="draft")
    full = asked[-1]
    assert "start_from" not in full.settings["lora"]
    row = services.view(capability).row
    teach(session.run, row.name, found.digest)
    card = read_json(session.run.method("lora") / "subject.json") | {"sha256": "abc"}
    write_json(session.run.method("lora") / "subject.json", card)
    assert services.view(capability).older == (), "the photos are the same"

    # the judging photos stay, one more to learn from
    box = photobox.load(session.run)
    more = photobox.Staged("new.jpg", "099.png")
    (session.run.folder / photobox.STAGED / "099.png").write_bytes(b"another picture")
    wider = load_photo_set(session.run)
    from dataclasses import replace

    extra = replace(wider.train[0], name="new.jpg", sha256="f" * 64)
    photobox._save(
        session.run, replace(box, staged=(*box.staged, more), photo_set=replace(wider, train=(*wider.train, extra)))
    )
    view = services.view(capability)
    assert view.older == ("lora",) and view.stale
    session = services.sessions.find(capability)
    whole = presets.recipe(row, "lora", "draft", class_word="man").steps
    fresh, going_on = (view.estimate("draft", ["lora", "dreambooth"], go_on=each) for each in (False, True))
    assert f"LoRA {whole}" in fresh and f"LoRA {round(whole / 2)}" in going_on
    other = presets.recipe(row, "dreambooth", "draft", class_word="man").steps
    assert f"DreamBooth {other}" in fresh and f"DreamBooth {other}" in going_on, "it has learned nothing to go on from"
    start_training(services, session, methods=("lora", "dreambooth"), quality="draft", go_on=True)
    spec = asked[-1]
    whole = presets.recipe(row, "lora", "draft", class_word="man").steps
    assert spec.settings["lora"]["start_from"] == "abc" and spec.settings["lora"]["steps"] == round(whole / 2)
    assert "start_from" not in spec.settings["dreambooth"]

    # a photo that was learned from judges now: only a fresh start is honest
    learned, judging = wider.train[0], wider.held_out
    photobox._save(
        session.run, replace(box, photo_set=replace(wider, train=wider.train[1:], held_out=(*judging, learned)))
    )
    assert services.view(capability).older == ()
    start_training(services, session, methods=("lora",), quality="draft", go_on=True)
    assert "start_from" not in asked[-1].settings["lora"]

    # nor does one that is gone from the list: it may come back as a copy that nobody recognises
    photobox._save(session.run, replace(box, staged=box.staged[:-1], photo_set=replace(wider, train=wider.train[:-1])))
    assert services.view(capability).older == ()


def test_a_photo_that_was_learned_from_stays_out_of_judging(services, monkeypatch):  # noqa: F811
    """Whatever the new split would like: `_settle` hands `intake` the names of what was seen."""
    from pipelines.photos import intake as real
    from ui.run import photobox

    capability, session, found = ready(services)
    photobox.note_learned(session.run, ("lora",))
    box = photobox.load(session.run)
    seen = {}

    def intake(files, folder, **options):
        seen.update(options)
        raise UserError("enough")

    monkeypatch.setattr(real, "intake", intake)
    monkeypatch.setattr(real, "check", lambda files, **_: ([], None))
    photobox._settle(session.run, box.staged, services.view(capability).row)
    learned = {photo.name for photo in found.train}
    assert set(seen["trained"]) == {one.file for one in box.staged if one.name in learned} and seen["held_out"] == []


def test_a_base_with_one_method_shows_one(services):  # noqa: F811
    import gradio as gr

    from pipelines.bases.registry import BASES
    from ui.generate import layout as generate_layout
    from ui.train import layout as train_layout

    view = replace(services.view(None), row=BASES["z-image"])
    with gr.Blocks():
        tab, drawing = train_layout.build(services), generate_layout.build(services)
    updates = tab.restore(view)
    assert updates[tab.methods]["choices"] == [("LoRA", "lora")] and updates[tab.methods]["value"] == ["lora"]
    assert {method for method, column in tab.advanced.items() if updates[column]["visible"]} == {"lora"}
    shown = {name for name, dial in tab.dials.items() if updates[dial].get("visible", True)}
    own = {"lora_steps", "lora_learning_rate", "lora_rank", "lora_dora"}
    assert shown == own | {"batch", "face_weight", "optimizer"}
    offered = drawing.restore(view)
    assert offered[drawing.scheduler]["choices"] == [("default", "default")]
    huge = tab.restore(replace(view, row=BASES["sdxl"]))
    assert [method for _, method in huge[tab.methods]["choices"]] == list(METHODS)
    assert huge[tab.methods]["value"] == ["textual_inversion", "lora"] and huge[tab.advanced["dreambooth"]]["visible"]
    usual = tab.restore(replace(view, row=BASES["sd15"]))
    assert all(usual[column]["visible"] for column in tab.advanced.values())
