"""Laws of the pixel rules: what is painted is what is read, and captions stay in the base's grammar."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.photos import attributes


def portrait(background, jacket, face=(200, 150, 120)) -> np.ndarray:
    frame = np.full((128, 128, 3), background, np.uint8)
    frame[104:] = jacket
    frame[30:100, 38:90] = face
    return frame


@pytest.mark.parametrize("name", attributes.COLOURS)
def test_every_prototype_gets_its_own_name(name):
    for shade in attributes.COLOURS[name]:
        assert attributes.name_colour(np.array(shade)) == name


def test_colours_survive_noise_and_light():
    rng = np.random.default_rng(0)
    for name in ("navy", "red", "green", "white", "grey", "black"):
        shade = np.array(attributes.COLOURS[name][0])
        noisy = portrait((130, 130, 132), shade) + rng.normal(0, 6, (128, 128, 3))
        assert attributes.measure(noisy.clip(0, 255).astype(np.uint8)).jacket == name


def test_what_is_painted_is_what_is_read():
    seen = attributes.measure(portrait((130, 130, 132), (22, 28, 58)))
    assert (seen.background, seen.jacket, seen.tone) == ("grey", "navy", "colour")
    assert attributes.measure(portrait((60, 110, 190), (12, 12, 14))).background == "blue"


def test_a_collar_does_not_count_as_the_jacket():
    frame = portrait((130, 130, 132), (22, 28, 58))
    frame[104:, 48:80] = 240
    assert attributes.measure(frame).jacket == "navy"


def test_black_and_white_has_no_colour_words():
    for level, word in ((20, "black"), (130, "grey"), (230, "white")):
        seen = attributes.measure(portrait((level,) * 3, (40, 40, 40), face=(170, 170, 170)))
        assert (seen.background, seen.jacket, seen.tone) == (word, None, "black and white")


def test_sepia_is_one_warm_hue_over_everything():
    rng = np.random.default_rng(1)
    light = rng.uniform(0.3, 0.75, (128, 128, 1))
    sepia = (light * np.array([255, 222, 173])).clip(0, 255).astype(np.uint8)
    assert attributes.tone(sepia) == "sepia"
    assert attributes.tone(portrait((130, 130, 132), (22, 28, 58))) == "colour"


def test_caption_grammar():
    seen = attributes.Attributes("grey", "navy", "colour")
    text = attributes.caption("a man", seen, age="middle aged", extra=("warm light",))
    assert text == "portrait of a man, middle aged, grey background, navy jacket, warm light"
    assert attributes.caption("{subject}", attributes.Attributes(None, None, "colour")) == "portrait of {subject}"
    grey = attributes.Attributes("white", None, "black and white")
    assert attributes.caption("{subject}", grey) == "portrait of {subject}, white background, black and white"
