"""The Generate tab without a browser: cards, words, sweeps, variations, favourites, history, and forged values."""

# ruff: noqa: F811 - fixtures come from test_app

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.bases.registry import find_base, unknown_words
from pipelines.core import inscription, presets
from pipelines.core.files import append_line, write_json
from pipelines.core.records import Event, Sampling, UserError
from pipelines.core.run import Run
from pipelines.generation.draw import render_name
from pipelines.runs import jobs
from tests.ui.test_app import DIALS, base, own_home, services, take_in, teach  # noqa: F401
from ui.generate.completion import completions

PROMPT = "portrait of {subject}, grey background"
SAMPLING = Sampling(PROMPT, steps=4, guidance=2.0)
EVIL = '<script>alert("x")</script>'


def draw(run: Run, column: str, sampling: Sampling, base_name: str, subject: str | None) -> Path:
    """A picture with its settings inside, as the worker leaves it."""
    text = PngInfo()
    text.add_text("likeness", json.dumps({"sampling": asdict(sampling), "base": base_name, "subject": subject}))
    path = run.renders(column) / render_name(sampling)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path, pnginfo=text)
    return path


def job(run: Run, files: list[Path]) -> None:
    """The events of a job that drew `files`."""
    for place, file in enumerate(files, start=1):
        run.drawing.job_folder.mkdir(exist_ok=True)
        append_line(run.drawing.events, Event("render", file.parent.name, place, len(files), path=str(file)))


class Page:
    """One person's tab, with a trained LoRA; `asked` collects the jobs it started."""

    def __init__(self, services, monkeypatch) -> None:
        import gradio as gr

        from ui.generate import events as generate_events
        from ui.generate import layout as generate_layout

        self.services = services
        self.capability, session = services.sessions.create()
        found = take_in(session.run)
        self.row = services.view(self.capability).row
        services.sessions.choose(session, consent_at="now", base=self.row.name)
        teach(session.run, self.row.name, found.digest)
        self.run = session.run
        with gr.Blocks():
            self.tab = generate_layout.build(services)
        self.act = generate_events.Actions(self.tab, services)
        self.asked: list = []
        monkeypatch.setattr(jobs, "enqueue", lambda run, spec, **_: (spec.check(), self.asked.append(spec)))

    @property
    def view(self):
        return self.services.view(self.capability)

    def draw(self, sampling: Sampling = SAMPLING, columns=("none", "lora")) -> list[Path]:
        subjects = {"none": None, "lora": "lora-1"}
        files = [draw(self.run, column, sampling, self.row.name, subjects[column]) for column in columns]
        job(self.run, files)
        return files

    def press(self, action: object, picture: object):
        return self.act.press(self.capability, SimpleNamespace(_data={"action": action, "picture": picture}))

    def shot(self, method: str = "lora"):
        return next(shot for shot in self.view.pictures if shot.method == method)


@pytest.fixture
def page(services, monkeypatch):
    return Page(services, monkeypatch)


def value(update):
    return update["value"] if isinstance(update, dict) else update


# ------------------------------------------------------------------------------------------------- styles, words


def test_every_style_the_base_draws_has_a_card_and_own_words_come_last(base):
    from ui.generate import html as generate_html
    from ui.generate.styles import look_cards, style_choices
    from ui.run import cards

    row = find_base(str(base))
    cards, marked = look_cards(row)
    assert [(card.name, card.id) for card in cards] == style_choices(row)[0] and cards[-1].id == "own"
    html = generate_html.look_cards(cards, cards[0].id)
    assert html.count('aria-checked="true"') == html.count('tabindex="0"') == 1
    assert html.count('role="radio"') == len(cards) and 'role="radiogroup"' in html
    assert "Astronaut" in marked and "Astronaut" not in html


def test_thumbnails_come_from_their_folder_only(tmp_path, monkeypatch):
    from ui.generate import html as generate_html
    from ui.generate import styles
    from ui.run import cards

    (tmp_path / "presets" / "thumbnails").mkdir(parents=True)
    for name, size in (("small.jpg", 8), ("large.png", 400)):
        noise = Image.frombytes("RGB", (size, size), os.urandom(3 * size * size))
        noise.save(tmp_path / "presets" / "thumbnails" / name)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "presets" / "notes.txt").write_text("secret")
    monkeypatch.setattr(presets, "PRESETS", tmp_path / "presets")
    styles._thumbnail.cache_clear()
    try:
        assert styles._thumbnail("thumbnails/small.jpg") == "thumbnails/small.jpg"
        for wrong in ("../secret.jpg", str(tmp_path / "secret.jpg"), "notes.txt", "thumbnails/gone.jpg", "gone.jpg"):
            assert styles._thumbnail(wrong) is None, wrong
    finally:
        styles._thumbnail.cache_clear()
    pictured = generate_html.look_cards(
        [cards.LookCard("a", "A", "data:image/jpeg;base64,AA=="), cards.LookCard("b", "B")]
    )
    assert pictured.count("<img") == 1 and 'alt="Example of A"' in pictured


def test_a_card_fills_the_dials_and_a_forged_one_fills_nothing(page):
    picked = page.act.pick(page.capability, SimpleNamespace(_data={"style": "studio-grey"}))
    style = presets.styles()["studio-grey"]
    assert value(picked[page.tab.prompt]) == style.prompt and picked[page.tab.style]["selected"] == "studio-grey"
    for forged in (None, "astronaut", "../studio-grey", 7, ["studio-grey"], {"a": 1}):
        found = page.act.pick(page.capability, SimpleNamespace(_data={"style": forged}))
        assert found[page.tab.style]["selected"] == "own" and page.tab.prompt not in found, forged
    assert page.act.pick(page.capability, SimpleNamespace(_data=None))[page.tab.style]["selected"] == "own"


def test_the_card_follows_the_words(page):
    style = presets.styles()["studio-grey"]
    assert page.act.check(page.capability, style.prompt)[page.tab.style]["selected"] == "studio-grey"
    said = page.act.check(page.capability, style.prompt + ", spaceship")
    assert said[page.tab.style]["selected"] == "own" and "does not know: spaceship" in value(said[page.tab.unknown])


def test_suggestions_bring_no_word_the_base_does_not_know(page):
    for text in ("", "portrait of {subject}", "portrait of {subject}, te", "portrait of {subject}, grey background, "):
        found = completions(page.row, text)
        assert found and len(found) <= 8 and len(set(found)) == len(found), text
        for phrase in found:
            added = page.act.add(page.capability, text, SimpleNamespace(_data={"phrase": phrase}))
            grown = added[page.tab.prompt]
            assert grown.endswith(phrase) and len(grown) > len(text.rstrip(" ,")), (text, phrase)
            assert unknown_words(page.row, grown) == [], (text, phrase)
            assert value(added[page.tab.unknown]) == ""
    for forged in (None, 7, ["x"], "x" * 100_000):
        grown = page.act.add(page.capability, PROMPT, SimpleNamespace(_data={"phrase": forged}))[page.tab.prompt]
        assert grown.startswith(PROMPT) and len(grown) < 600


def test_words_of_a_prompt_that_were_not_read_are_told(page):
    """On the page and to a program; of the last job only."""
    from ui.programs.answers import status_of

    page.run.drawing.job_folder.mkdir(exist_ok=True)
    for words in (f"tail {EVIL}", "tail"):
        append_line(page.run.drawing.events, Event("unread", text=words))
    page.draw()
    said = value(page.tab.show(page.view)[page.tab.status])
    assert said.count("The prompt is longer than") == 2 and "Not read: tail" in said and "<script" not in said
    assert status_of(page.view)["unread"] == [f"tail {EVIL}", "tail"]
    first = len(page.run.drawing.events.read_text().splitlines())
    jobs.save_status(page.run.drawing, jobs.JobStatus("done", "generate", job="two", first_event=first))
    assert status_of(page.view)["unread"] == [] and "Not read" not in value(page.tab.show(page.view)[page.tab.status])


# ------------------------------------------------------------------------------------------------- drawing


def test_an_open_seed_is_new_every_time_and_shown_a_kept_one_repeats(page):
    seeds = set()
    for keep in (False, False, True, "yes", None):
        updates = page.act.start(page.capability, ["lora"], keep, **DIALS)
        drawn = page.asked[-1].samplings[0].seed
        assert updates[page.tab.seed] == drawn, "the page shows which"
        if keep is True:
            assert drawn == DIALS["seed"]
        else:
            seeds.add(drawn)
    assert len(seeds) == 4
    with pytest.raises(UserError, match="Seed must be a whole number"):
        page.act.start(page.capability, ["lora"], True, **(DIALS | {"seed": math.nan}))


@pytest.mark.parametrize("columns", [[], None, "lora", ["dreambooth"], {"lora": 1}, 7, [["lora"]]])
def test_only_trained_columns_are_drawn(page, columns):
    with pytest.raises(UserError, match="Choose at least one column"):
        page.act.start(page.capability, columns, False, **DIALS)
    assert page.asked == []


def test_best_of_many_is_one_press(page):
    updates = page.act.best(page.capability, ["none", "lora"], False, **DIALS)
    (spec,) = page.asked
    assert spec.methods == ("lora",) and len(spec.samplings) == 24, "the base draws nobody: it is left out"
    assert len({each.seed for each in spec.samplings}) == 24
    assert updates[page.tab.number] == 24 and updates[page.tab.keep] == 6 and page.view.choices.keep == 6
    with pytest.raises(UserError, match="at least one trained method"):
        page.act.best(page.capability, ["none"], False, **DIALS)


def test_a_sweep_draws_every_pair_on_one_seed(page):
    from ui.generate import html as generate_html

    page.act.sweep(page.capability, "lora", "20, 10;10", "1 2.5", True, **(DIALS | {"number": 9}))
    (spec,) = page.asked
    assert spec.kind == "generate" and spec.methods == ("lora",)
    pairs = [(each.steps, each.guidance) for each in spec.samplings]
    assert pairs == [(10, 1.0), (10, 2.5), (20, 1.0), (20, 2.5)]
    assert {(each.seed, each.prompt) for each in spec.samplings} == {(DIALS["seed"], DIALS["prompt"])}
    files = [draw(page.run, "lora", each, page.row.name, "lora-1") for each in spec.samplings[:3]]
    job(page.run, files)
    html = generate_html.side_by_side(page.view.latest_shots, page.view.drawn_columns)
    assert html.count('scope="row"') == 2 and html.count('scope="col"') == 2
    assert html.count("<img") == 3 and html.count("not drawn") == 1
    assert "Sweep" in generate_html.history([_card(page.view)])


def _card(view):
    from ui.generate.compare import job_card

    return job_card(view, view.history[-1])


@pytest.mark.parametrize(
    ("steps", "guidance", "says"),
    [
        ("", "1, 2", "Write 1 to 4 different values of steps, not 0"),
        ("10, 20", None, "values of guidance, not 0"),
        ("1,2,3,4,5", "1", "values of steps, not 5"),
        ("10", "3", "compares nothing"),
        ("10, x", "3", "Steps must be numbers"),
        ("10, 1e9", "3", "Steps must be a whole number"),
        ("10.5, 20", "3", "Steps must be a whole number"),
        ("10, nan", "3", "Steps must be a whole number"),
        ("10, 20", "-1", "Guidance must be a number"),
        ("10, 20", "inf", "Guidance must be a number"),
        (["10", "20"], "3", "Steps must be numbers"),
        (EVIL, "3", "Steps must be numbers"),
    ],
)
def test_a_sweep_checks_what_was_written(page, steps, guidance, says):
    with pytest.raises(UserError, match=re.escape(says)):
        page.act.sweep(page.capability, "lora", steps, guidance, True, **DIALS)
    with pytest.raises(UserError, match="Choose at least one column"):
        page.act.sweep(page.capability, "dreambooth", "10, 20", "3", True, **DIALS)
    assert page.asked == []


def test_variations_start_from_the_picked_picture(page):
    from ui.generate import html as generate_html

    page.draw()
    shot = page.shot()
    page.press("vary", shot.id)
    assert page.view.picked == shot
    with pytest.raises(UserError, match="How much may change"):
        page.act.vary(page.capability, "lora", math.nan, 2, False, True, **DIALS)
    with pytest.raises(UserError, match="Variations must be"):
        page.act.vary(page.capability, "lora", 0.4, 13, False, True, **DIALS)
    with pytest.raises(UserError, match="Seed must be"):
        page.act.vary(page.capability, "lora", 0.4, 2, False, True, **(DIALS | {"seed": "x"}))
    page.act.vary(page.capability, "lora", 0.4, 2, False, True, **DIALS)
    own = page.asked[-1].samplings
    assert [each.seed for each in own] == [7, 8]
    assert all((each.source, each.change, each.prompt) == (shot.path, 0.4, PROMPT) for each in own)
    page.act.vary(page.capability, "none", 0.05, 1, True, False, **(DIALS | {"prompt": "portrait of {subject}, red"}))
    assert page.asked[-1].methods == ("none",) and page.asked[-1].samplings[0].prompt.endswith("red")
    file = draw(page.run, "lora", own[0], page.row.name, "lora-1")
    job(page.run, [file])
    assert "seed 7, change 0.4" in generate_html.side_by_side(page.view.latest_shots, ("lora",))
    used = page.press("use", page.view.latest_shots[0].id)
    assert used[page.tab.vary_change] == 0.4, "its settings include where it came from"
    page.act.unpick(page.capability)
    with pytest.raises(UserError, match="No picture is picked"):
        page.act.vary(page.capability, "lora", 0.4, 2, False, True, **DIALS)


# ------------------------------------------------------------------------------------------------- pictures


def test_a_page_that_looks_while_pictures_are_written_and_set_aside_shows_the_whole_ones(page, monkeypatch):
    none, lora = page.draw()
    half = lora.with_name(f".part-1-{lora.name}")
    half.write_bytes(lora.read_bytes())  # complete, but not renamed yet
    assert [shot.path for shot in page.view.pictures] == [page.run.relative(none), page.run.relative(lora)]
    read = inscription.read_again

    def then_it_goes(path: Path):
        found = read(path)
        if path == lora:
            lora.unlink()
        return found

    monkeypatch.setattr(inscription, "read_again", then_it_goes)
    assert [shot.path for shot in page.view.pictures] == [page.run.relative(none)]


@pytest.mark.parametrize(
    "forged", [None, "", 0, "renders/lora/seed0.png", "../../etc/passwd", ["x"], {"id": 1}, "0" * 16, EVIL]
)
def test_a_forged_picture_gets_a_sentence(page, forged):
    page.draw()
    for action in ("like", "use", "vary", "compare"):
        with pytest.raises(UserError, match="no longer here"):
            page.press(action, forged)
    with pytest.raises(UserError, match="no longer here"):
        page.act.over(page.capability, forged, page.shot().id)
    assert not page.run.favourites.exists() and page.view.picked is None


def test_pictures_of_somebody_else_are_not_found(page, services, monkeypatch):
    page.draw()
    yours = Page(services, monkeypatch)
    yours.draw(replace(SAMPLING, seed=9))
    with pytest.raises(UserError, match="no longer here"):
        yours.press("like", page.shot().id)
    for sent in (None, [], "like", {"action": "delete", "picture": yours.shot().id}, {"picture": yours.shot().id}):
        with pytest.raises(UserError):
            yours.act.press(yours.capability, SimpleNamespace(_data=sent))


def test_favourites_stay_come_first_and_are_in_the_download(page):
    from ui.generate import html as generate_html
    from ui.run.package import pack
    from ui.run.services import Services

    page.draw()
    low, high = page.draw(replace(SAMPLING, seed=1))
    for file, score in zip((low, high), (0.1, 0.9), strict=True):
        line = {"render": page.run.relative(file), "judge": "dlib", "similarity": score, "reason": None}
        append_line(page.run.scores, line)
    shot = next(each for each in page.view.pictures if each.path == page.run.relative(low))
    page.press("like", shot.id)
    page.press("like", shot.id)
    assert len(json.loads(page.run.favourites.read_text())["pictures"]) == 1, "twice is once"
    assert [each.favourite for each in Services().view(page.capability).pictures].count(True) == 1
    html = generate_html.gallery(page.view.pictures)
    assert html.index(shot.id) == min(html.index(each.id) for each in page.view.pictures)
    page.act.filter(page.capability, True)
    assert page.view.choices.only_favourites
    only = generate_html.gallery(page.view.pictures, only_favourites=True)
    assert only.count("<img") == 1 and 'aria-pressed="true"' in only
    pack(page.run, page.services.media)
    names = zipfile.ZipFile(page.run.folder / "likeness.zip").namelist()
    assert [name for name in names if name.startswith("favourites/")] == [f"favourites/01-none-{low.name}"]
    page.press("unlike", shot.id)
    assert not any(each.favourite for each in page.view.pictures)
    assert "No favourites yet" in generate_html.gallery(page.view.pictures, only_favourites=True)


def test_a_favourite_is_a_picture_not_a_place(page):
    """A later training sets its picture aside; what is drawn in its place is another one."""
    from ui.run import pictures

    (file,) = page.draw(columns=("lora",))
    page.press("like", page.shot().id)
    aside = file.parent / "earlier" / f"lora-1-{file.name}"
    aside.parent.mkdir()
    os.replace(file, aside)
    draw(page.run, "lora", SAMPLING, page.row.name, "lora-2")
    assert pictures.favourite_files(page.run) == [aside]
    entries = [{"path": path, "base": page.row.name, "subject": "lora-1"} for path in ("../x.png", "/etc/passwd", "")]
    write_json(page.run.favourites, {"schema": 1, "pictures": [*entries, 7, None, {"path": 3}]})
    assert pictures.favourite_files(page.run) == [], "only pictures of this run"


def test_history_is_read_from_the_run_and_survives_a_restart(page):
    from ui.run.services import Services

    page.draw()
    page.draw(replace(SAMPLING, seed=5, steps=9), columns=("lora",))
    page.draw(replace(SAMPLING, seed=6))
    view = Services().view(page.capability)
    assert [(each.number, len(each.shots)) for each in view.history] == [(0, 2), (1, 1), (2, 2)]
    assert {shot.seed for shot in view.latest_shots} == {6}, "the last one is shown"
    again = page.act.again(page.capability, SimpleNamespace(_data={"job": 1}))
    assert {shot.seed for shot in page.view.latest_shots} == {5}
    assert value(again[page.tab.seed]) == 5 and value(again[page.tab.steps]) == 9
    assert value(again[page.tab.columns]) == ["lora"] and value(again[page.tab.keep_seed]) is True
    for forged in (None, "1", 99, -1, True, 1.0, [1], {"job": 1}):
        with pytest.raises(UserError, match="no longer here"):
            page.act.again(page.capability, SimpleNamespace(_data={"job": forged}))
    page.act.start(page.capability, ["lora"], False, **DIALS)
    assert {shot.seed for shot in page.view.latest_shots} == {6}, "a new job is shown when it draws"


def test_the_same_pictures_drawn_again_are_one_entry(page):
    from ui.run import pictures

    files = page.draw()
    job(page.run, files)
    assert [each.number for each in page.view.history] == [1]
    shots = page.view.pictures
    assert pictures.drawings([Event("render", "lora", 2, 2, path=str(files[1]))], shots, page.run.relative)
    assert pictures.drawings([Event("render", "lora", 1, 1, path="/gone.png")], shots, lambda path: path) == ()


def test_the_settings_of_any_picture_fill_the_dials(page):
    page.draw(replace(SAMPLING, seed=11, guidance=4.5, scheduler="ddim", strength=0.7, negative_prompt="dim"))
    used = page.press("use", page.shot().id)
    tab = page.tab
    dials = (tab.prompt, tab.negative, tab.seed, tab.steps, tab.guidance, tab.scheduler, tab.strength, tab.number)
    assert [value(used[dial]) for dial in dials] == [PROMPT, "dim", 11, 4, 4.5, "ddim", 0.7, 1]
    assert value(used[tab.keep_seed]) is True, "the next press draws it again"


def test_what_can_be_laid_over_each_other_has_the_same_noise(page):
    page.draw()
    page.draw(replace(SAMPLING, seed=3), columns=("lora",))
    lonely = next(shot for shot in page.view.pictures if shot.seed == 3)
    with pytest.raises(UserError, match="Nothing else was drawn with this seed"):
        page.press("compare", lonely.id)
    shot = next(each for each in page.view.pictures if each.seed == 0 and each.method == "lora")
    opened = page.press("compare", shot.id)
    sides = [opened[side] for side in (page.tab.left, page.tab.right)]
    assert [side["value"] for side in sides] == [page.shot("none").id, shot.id]
    assert [name for name, _ in sides[0]["choices"]] == ["Untrained base", "LoRA"]
    html = page.act.over(page.capability, sides[0]["value"], sides[1]["value"])
    assert html == opened[page.tab.compared]["value"] and html.count("<img") == 2 and 'type="range"' in html
    varied = replace(SAMPLING, seed=4, source=shot.path, change=0.3)
    page.draw(varied, columns=("lora",))
    opened = page.press("compare", next(each.id for each in page.view.pictures if each.seed == 4))
    assert opened[page.tab.left]["value"] == shot.id, "a variation lies over what it came from"


def test_pictures_of_one_seed_and_other_steps_do_not_hide_each_other(page):
    from ui.generate import html as generate_html

    for steps in (4, 8):
        page.draw(replace(SAMPLING, steps=steps))
    html = generate_html.side_by_side(page.view.pictures, ("none", "lora"))
    assert html.count("<img") == 4
    buttons = 4 * len(generate_html.SHOT_ACTS)
    assert html.count("data-picture") == buttons and html.count("aria-label") == buttons


def test_nothing_a_person_typed_gets_through_unescaped():
    from ui.generate import html as generate_html
    from ui.run import cards

    shot = cards.Shot("lora", 1, EVIL, EVIL, None, EVIL, EVIL, EVIL, EVIL, True, id=EVIL, path=EVIL,
                      sampling=Sampling(EVIL, source=EVIL))  # fmt: skip
    other = replace(shot, sampling=Sampling(EVIL, steps=7, source=EVIL))
    html = (
        generate_html.look_cards([cards.LookCard(EVIL, EVIL, EVIL, EVIL)])
        + generate_html.chips([EVIL])
        + generate_html.picked(shot)
    )
    html += generate_html.history([cards.JobCard(0, EVIL, EVIL, 0.0, EVIL)]) + generate_html.before_after(shot, shot)
    html += generate_html.side_by_side([shot, other], ["lora"]) + generate_html.side_by_side([shot], ["lora"])
    html += generate_html.gallery([shot, other], 1) + generate_html.gallery([shot], only_favourites=True)
    assert "<script" not in html and 'alert("x")' not in html
