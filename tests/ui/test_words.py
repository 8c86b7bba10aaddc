"""Laws of the translations: each language has every fixed text of the pages, and nothing else."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.context import LocalContext

from pipelines.bases.registry import BASES
from pipelines.core.records import CLASS_WORDS, LOW_CEILING, REASONS
from pipelines.evaluation import lookalike, votes
from pipelines.faces.calibration import BORDERLINE, LOOKS_LIKE, SOMEONE_ELSE
from pipelines.finishing import deliver
from pipelines.photos import checks
from pipelines.reports import figures
from pipelines.training import estimates
from ui.generate import html as generate_html
from ui.page import errors
from ui.run import cards, photobox
from ui.score import html as score_html
from ui.train import dials
from ui.train import html as train_html
from ui.train import layout as train_layout
from ui.upload import html as upload_html
from ui.words import phrases, retold, words


@pytest.fixture(autouse=True)
def texts_of_one_test(monkeypatch):
    """The texts that a test asks for are not sent with the page of a later test."""
    monkeypatch.setattr(words, "_said", set(words._said))


ROOT = Path(__file__).resolve().parents[2]
SOURCES = (*sorted((ROOT / "ui").rglob("*.py")), ROOT / "app.py")
# Lower rooms whose sentences are told with their values.
LOWER = [ROOT / "pipelines" / name for name in ("evaluation/lookalike.py", "evaluation/votes.py", "reports/figures.py")]
LANGUAGES = ("de", "es")
# Names of products and methods, and words that a language took over as they are.
SAME = {"de": {"Prompt", "Seed", "Scheduler", "Guidance", "DoRA"}, "es": {"Prompt", "DoRA", "Megabytes", "no"}}
VERDICTS = {LOOKS_LIKE, BORDERLINE, SOMEONE_ELSE, "uncalibrated", "no face"}


def measured(luma: float, yaw: float = 0.0, sharpness: float = 1e3, mouth: str | None = "open") -> Any:
    return SimpleNamespace(luma=luma, yaw=yaw, pitch=0.0, sharpness=sharpness, mouth=mouth)


CHECKLIST = set(checks.report([], [measured(99)], [], None).checklist)
NEXT_PHOTOS = {
    checks._next_photo([measured(luma)] * count, dict(zip(sorted(CHECKLIST), there, strict=True)))
    for luma, count, there in product((50, 150), (3, 6, 12), product((False, True), repeat=len(CHECKLIST)))
} - {None}
# What is said by a variable, and which texts that can be.
TABLES = {
    "dial.label": {dial.label for dial in (*dials.DIALS, *dials.COMMON)},
    "dial.info": {dial.info for dial in (*dials.DIALS, *dials.COMMON)} - {""},
    # what `tell` says of things that have a fixed set of names
    "word": {word for _, word in upload_html.VERDICTS.values()}
    | {*upload_html.PHOTO_ACTS.values(), *dict(generate_html.SHOT_ACTS).values(), *CLASS_WORDS},
    "part": {*upload_html.PARTS, *upload_html.PINNED.values()},
    "head": {*score_html.TABLE_HEADS, "Friends' picks"},
    "data.state": {"waiting", "training", "done", "stopped", "failed"},
    "shot.verdict": VERDICTS,
    "best.verdict or ''": VERDICTS,
    "LOW_CEILING": {LOW_CEILING},
    "REASONS[code]": set(REASONS.values()),
    "what": CHECKLIST,
    "report.next_photo": NEXT_PHOTOS,
    "row.about": {row.about for row in BASES.values()},
    "QUALITY_MEANS[q]": set(train_layout.QUALITY_MEANS.values()),
    "basis": {"as measured on this machine", estimates.UNTIMED},
    "title": {errors.CHECK, errors.NOT_DONE},
    "CHECK": {errors.CHECK},
    "size.name": {size.name for size in deliver.sizes().values()},
    "MARKS[mark.name]": set(score_html.MARKS.values()),
    "score_html.MARKS[key]": set(score_html.MARKS.values()),
    "NAMING[code]": set(photobox.NAMING.values()),
    "template": set(retold.SENTENCES),
    "name": {lookalike.PERSON, lookalike.SAMPLE, lookalike.BASE},
    "heading": {heading for heading, _, _ in figures.SECTIONS if heading},
    "sentence": {sentence for _, _, sentences in figures.SECTIONS for sentence in sentences},
    "PARTS[part]": set(figures.PARTS.values()),
    "sentence(error)": {errors.OURS, errors.DISK_FULL, errors.MEMORY, votes.GONE},
}


def constants(tree: ast.Module) -> dict[str, str]:
    """The texts that a module gives a name."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def said(source: str) -> set[str]:
    """The texts that a module translates. A text that can't be read off the source is a mistake."""
    tree = ast.parse(source)
    named, found = constants(tree), set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id not in ("say", "tell", "translate", "Said"):
            continue
        text = node.args[0]
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            found.add(text.value)
        elif isinstance(text, ast.Name) and text.id in named:
            found.add(named[text.id])
        else:
            assert ast.unparse(text) in TABLES, (
                f"line {node.lineno}: what is translated must be a text, not made of parts"
            )
            found |= TABLES[ast.unparse(text)]
    return found


def refusals(path: Path, *, but: str = "") -> set[str]:
    """What the functions of a module say to a voter, except the function `but`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [
        call
        for function in tree.body
        if isinstance(function, ast.FunctionDef) and function.name != but
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "UserError"
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


@cache
def every_text() -> frozenset[str]:
    found = {
        text
        for path in (*SOURCES, *LOWER)
        if path.name != "words.py"
        for text in said(path.read_text(encoding="utf-8"))
    }
    # votes.start speaks to whoever starts a vote: an error, and those are English
    found |= refusals(ROOT / "ui" / "web" / "ballot.py")
    found |= refusals(ROOT / "pipelines" / "evaluation" / "votes.py", but="start")
    return frozenset(found)


def file_of(language: str) -> dict[str, str]:
    return json.loads((words.FOLDER / f"{language}.json").read_text(encoding="utf-8"))


def test_the_languages_are_those_of_the_files():
    assert words.available() == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_has_a_translation_and_none_is_left_over(language):
    there = set(file_of(language))
    assert len(every_text()) > 80
    assert sorted(every_text() - there) == [] and sorted(there - every_text()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_what_is_no_word(language):
    for text, translation in file_of(language).items():
        assert translation == translation.strip() != "", text
        for kept in (r"\{\w*\}", r"</?\w[^>]*>", r"\d+"):
            assert sorted(re.findall(kept, text)) == sorted(re.findall(kept, translation)), (text, translation)
        assert text[-1] not in "?!:" or translation[-1] == text[-1], (text, translation)
        assert text.endswith(".") == translation.endswith("."), (text, translation)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_was_left_in_english(language):
    same = {text for text, translation in file_of(language).items() if text == translation}
    assert same == SAME[language]


def test_no_key_appears_twice():
    for language in LANGUAGES:
        pairs = json.loads((words.FOLDER / f"{language}.json").read_text(encoding="utf-8"), object_pairs_hook=list)
        assert len(pairs) == len({key for key, _ in pairs})


def test_the_page_gets_every_text_that_was_asked_for():
    for text in every_text():
        words.say(text)
    given = words.languages().translations_dict
    keys = {text: json.loads(words.say(text).removeprefix("__i18n__"))["key"] for text in every_text()}
    assert len(set(keys.values())) == len(keys), "no two texts share a key"
    assert set(given) == {"en", *LANGUAGES}
    for language in LANGUAGES:
        for text, key in keys.items():
            assert given[language][key] == words.translate(text, language)
    # a text that English lacks is shown as its key
    assert {text: given["en"].get(key, key) for text, key in keys.items()} == {text: text for text in keys}


def test_a_marker_ends_at_its_first_brace_as_the_page_reads_it():
    for text in every_text():
        marker = words.say(text)
        assert marker.index("}") == len(marker) - 1, text


def test_what_has_no_translation_stays_english():
    assert words.translate("Train", "fr") == "Train" == words.translate("Train", "en")
    assert words.translate("A text nobody translated", "de") == "A text nobody translated"
    assert words.translate("Train", "../de") == "Train"


def test_what_is_worked_out_is_told_in_the_language_of_the_browser_that_asks():
    asks = {
        "en-GB": "{0} good photos",
        "de-AT,en;q=0.5": "{0} gute Fotos",
        "es": "{0} fotos buenas",
        "fr": "{0} good photos",
        "fr-FR,fr;q=0.9,de;q=0.8": "{0} good photos",  # the page itself looks at the first alone
    }
    for header, wanted in asks.items():
        token = LocalContext.request.set(SimpleNamespace(headers={"accept-language": header}))  # type: ignore[arg-type]
        assert words.tell("{count} good photos", count=3) == wanted.format(3)
        LocalContext.request.reset(token)
    assert words.spoken() == "en", "a worker, or a program, is told in English"
    with words.speaking("es"):
        assert words.tell("Train") == "Entrenar"
    assert words.tell("Train") == "Train" and words.tell("a {subject} stays") == "a {subject} stays"


def test_an_answer_is_told_whole(tmp_path):
    """No English word is left in what a photo, a lane and a step say, where all of it is known words."""
    card = cards.PhotoCard("a.jpg", "/a", "overruled", "", "training", "k", True, "held_out")
    lane = cards.Lane("lora", "training", 3, 9, 5.0, 60.0, 0.2, None, "", ((1, 0.1), (2, 0.3)))
    english = [
        upload_html.photo_cards([card]),
        train_html.lane(lane),
        phrases.waiting(2, 30.0),
        phrases.waiting(1, None),
    ]
    for language in LANGUAGES:
        with words.speaking(language):
            other = [
                upload_html.photo_cards([card]),
                train_html.lane(lane),
                phrases.waiting(2, 30.0),
                phrases.waiting(1, None),
            ]
        for before, after in zip(english, other, strict=True):
            shown = set(re.findall(r"[a-z]{4,}", re.sub(r"<[^>]*>", " ", before)))
            assert shown and not shown & set(re.findall(r"[a-z]{4,}", re.sub(r"<[^>]*>", " ", after))), (before, after)


def test_a_photos_reasons_are_told_by_their_codes():
    def staged(text: str, *codes: str) -> Any:
        return SimpleNamespace(reasons=codes, text=text)

    both = "; ".join((REASONS["dark"], REASONS["tilted"]))
    with words.speaking("de"):
        assert photobox.told(staged(both, "dark", "tilted")).startswith("das Gesicht ist dunkel; ein Foto bei")
        assert photobox.told(staged("it is a film", "unreadable")) == "it is a film", "its own words hold more"
        assert photobox.told(staged("")) == ""
    assert photobox.told(staged(both, "dark", "tilted")) == both


def test_a_text_made_of_parts_is_found_out():
    for source in ('say(f"{1} photos")', 'say("a" + name)', "translate(text, language)"):
        with pytest.raises(AssertionError, match="made of parts"):
            said(source)
    assert said('A = "one"\nsay(A)\nsay("two" " three")') == {"one", "two three"}


def test_the_numbers_in_fixed_texts_are_those_of_the_code():
    from ui.generate import layout as generate_layout
    from ui.generate import values

    assert (
        f"Make {generate_layout.BEST_NUMBER} per method, keep the {generate_layout.BEST_KEPT} most like me"
        in every_text()
    )
    assert any(f"Up to {values.SWEPT} values each" in text for text in every_text())


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("es-419, es;q=0.9", "es"),
        ("en-US,en;q=0.9,de;q=0.8", "en"),
        ("fr-FR,fr;q=0.9", "en"),
        ("fr,de;q=0.5,es;q=0.7", "es"),
        ("de;q=0,es;q=0.1", "es"),
        ("de;q=0", "en"),
        ("*", "en"),
        ("de;q=nan,es;q=9,;;,=", "en"),
        ("../../etc/passwd", "en"),
        (",".join(["x"] * 100_000), "en"),
    ],
)
def test_a_voter_reads_the_language_the_browser_likes_best(header, language):
    assert words.preferred(header) == language


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_vote_page_speaks_it(tmp_path, language):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from ui.web.ballot import Ballots

    client = TestClient(Ballots(Starlette(), root=tmp_path))
    found = client.get("/vote/x/y", headers={"accept-language": f"{language}-XX,en;q=0.5"})
    told = words.translate("There is no such vote. Ask for a new link.", language)
    assert found.status_code == 404 and f'<html lang="{language}">' in found.text and told in found.text


def test_a_round_is_asked_in_the_voters_language(monkeypatch, tmp_path):
    from pipelines.core.run import Run
    from ui.web import ballot

    monkeypatch.setattr(ballot, "picture", lambda path: "data:,")
    monkeypatch.setattr(ballot, "photo", lambda run, name: "data:,")
    shown = votes.Round("photos/0.png", ("lora", "none"), ("a.png", "b.png"))
    for language in ("en", *LANGUAGES):
        html = ballot._round(Run(tmp_path), shown, 2, 7, language)
        assert words.translate("Which picture looks most like this person?", language) in html
        assert words.translate("Picture {number}", language).format(number=2) in html
        about = next(text for text in every_text() if text.startswith("Round {number}"))
        assert words.translate(about, language).format(number=3, rounds=7) in html and "{" not in html
