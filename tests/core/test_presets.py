"""Presets: every file is valid, and what is wrong is said."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.bases.registry import BASES, find_base
from pipelines.core import presets
from pipelines.core.records import QUALITIES, Style, UserError
from tests.tiny import tiny_folder


def test_every_style_is_valid_and_enough_of_them_fit():
    found = presets.styles()
    assert len(found) >= 24
    row = find_base(str(tiny_folder("portrait")))  # knows the embedded base's words
    fit = [style for style in found.values() if presets.style_problem(style, row) is None]
    assert len(fit) >= 12
    assert len(found) - len(fit) >= 12
    for name in ("sd15", "sdxl"):
        assert sum(presets.style_problem(style, BASES[name]) is None for style in found.values()) >= 12


def test_a_style_a_base_cannot_express_names_the_words():
    row = find_base(str(tiny_folder("portrait")))
    style = Style("x", "Space", "portrait of {subject} in a spaceship, navy background")
    assert presets.style_problem(style, row) == f"{row.title} does not know: in, spaceship."
    assert "written for" in str(presets.style_problem(Style("x", "Oil", "{subject}", bases=("sdxl",)), row))


@pytest.mark.parametrize("base", list(BASES))
def test_every_base_and_method_has_three_recipes(base):
    for method in BASES[base].offered:
        steps = [
            presets.recipe(find_base(base), method, quality, class_word="man", seed=3).steps for quality in QUALITIES
        ]
        assert steps == sorted(steps) and (steps[0] < steps[2] or method not in BASES[base].trainable)
        recipe = presets.recipe(find_base(base), method, "draft", class_word="man", seed=3)
        assert (recipe.base, recipe.method, recipe.class_word, recipe.seed) == (base, method, "man", 3)


@pytest.mark.parametrize("file", sorted((presets.PRESETS / "recipes").glob("*.json")), ids=lambda file: file.stem)
def test_recipes_carry_what_was_measured_and_nothing_else(file):
    evidence = json.loads(file.read_text())["evidence"]
    assert set(evidence) == set(QUALITIES)
    for found in evidence.values():
        if found is None:  # nobody measured it
            continue
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]) and found["hardware"] and found["command"]
        assert found["minutes"] > 0 and found["people"] >= 2
        for span in (found["identity"], found["following"]):
            assert -1 <= span["low"] <= span["mean"] <= span["high"] <= 1


def test_recipe_files_are_all_used():
    names = {f"{row.family}-{method}" for row in BASES.values() for method in row.trainable}
    names |= {f"{row.family}-zero_shot" for row in BASES.values() if row.face_encoder or row.face_adapter}
    assert {file.stem for file in (presets.PRESETS / "recipes").glob("*.json")} == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("portrait-128", "lora", "perfect", "man"), "no quality perfect"),
        (("portrait-128", "hypernetwork", "draft", "man"), "no method hypernetwork"),
        (("portrait-128", "lora", "draft", "cat"), "class word"),
        (("z-image", "dreambooth", "draft", "man"), "does not offer dreambooth"),
        (("nowhere", "lora", "draft", "man"), "no base model nowhere"),
    ],
)
def test_wrong_choices_are_sentences(arguments, said):
    base, method, quality, word = arguments
    with pytest.raises(UserError, match=said):
        presets.recipe(find_base(base), method, quality, class_word=word)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": "many"}, "steps must be a whole number from 1 to 200"),
        ({"colour": 1}, "unknown settings: colour"),
        ({"prompt": "portrait of a man"}, "no {subject}"),
        ({"guidance": True}, "guidance must be a number from 0 to 50"),
    ],
)
def test_a_wrong_style_file_is_named(tmp_path, change, said):
    good = {"id": "a", "name": "A", "prompt": "portrait of {subject}"}
    (tmp_path / "a.json").write_text(json.dumps(good))
    assert presets.styles(tmp_path)["a"].prompt == good["prompt"]
    (tmp_path / "a.json").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=said) as caught:
        presets.styles(tmp_path)
    assert "a.json" in str(caught.value)


def test_every_style_the_embedded_base_can_draw_shows_what_it_looks_like():
    """128 pixels, at most 6 kB each; the other styles' bases are not in this repository, so they have none."""
    from PIL import Image

    row, named = BASES["portrait-128"], set()
    for style in presets.styles().values():
        if presets.style_problem(style, row) is not None:
            assert style.thumbnail is None, style.id
            continue
        assert style.thumbnail == f"thumbnails/{style.id}.jpg"
        file = presets.PRESETS / style.thumbnail
        assert file.stat().st_size <= 6000, style.id
        with Image.open(file) as picture:
            assert picture.size == (128, 128) and picture.format == "JPEG" and not picture.getexif()
            assert max(high - low for low, high in picture.convert("RGB").getextrema()) > 100, "it shows something"
        named.add(file.name)
    assert {file.name for file in (presets.PRESETS / "thumbnails").iterdir()} == named, "no thumbnail is left over"
