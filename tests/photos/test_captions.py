"""Laws of the pixel rules: what is painted is what is read, and captions stay in the base's grammar."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.photos import captions


def portrait(background, jacket, face=(200, 150, 120)) -> np.ndarray:
    frame = np.full((128, 128, 3), background, np.uint8)
    frame[104:] = jacket
    frame[30:100, 38:90] = face
    return frame


@pytest.mark.parametrize("name", captions.COLOURS)
def test_every_prototype_gets_its_own_name(name):
    for shade in captions.COLOURS[name]:
        assert captions.name_colour(np.array(shade)) == name


def test_colours_survive_noise_and_light():
    rng = np.random.default_rng(0)
    for name in ("navy", "red", "green", "white", "grey", "black"):
        shade = np.array(captions.COLOURS[name][0])
        noisy = portrait((130, 130, 132), shade) + rng.normal(0, 6, (128, 128, 3))
        assert captions.measure(noisy.clip(0, 255).astype(np.uint8)).jacket == name


def test_what_is_painted_is_what_is_read():
    seen = captions.measure(portrait((130, 130, 132), (22, 28, 58)))
    assert (seen.background, seen.jacket, seen.tone) == ("grey", "navy", "colour")
    assert captions.measure(portrait((60, 110, 190), (12, 12, 14))).background == "blue"


def test_a_collar_does_not_count_as_the_jacket():
    frame = portrait((130, 130, 132), (22, 28, 58))
    frame[104:, 48:80] = 240
    assert captions.measure(frame).jacket == "navy"


def test_black_and_white_has_no_colour_words():
    for level, word in ((20, "black"), (130, "grey"), (230, "white")):
        seen = captions.measure(portrait((level,) * 3, (40, 40, 40), face=(170, 170, 170)))
        assert (seen.background, seen.jacket, seen.tone) == (word, None, "black and white")


def test_sepia_is_one_warm_hue_over_everything():
    rng = np.random.default_rng(1)
    light = rng.uniform(0.3, 0.75, (128, 128, 1))
    sepia = (light * np.array([255, 222, 173])).clip(0, 255).astype(np.uint8)
    assert captions.tone(sepia) == "sepia"
    assert captions.tone(portrait((130, 130, 132), (22, 28, 58))) == "colour"


def test_caption_grammar():
    seen = captions.Attributes("grey", "navy", "colour")
    text = captions.caption("a man", seen, age="middle aged", extra=("warm light",))
    assert text == "portrait of a man, middle aged, grey background, navy jacket, warm light"
    assert captions.caption("{subject}", captions.Attributes(None, None, "colour")) == "portrait of {subject}"
    grey = captions.Attributes("white", None, "black and white")
    assert captions.caption("{subject}", grey) == "portrait of {subject}, white background, black and white"


def test_captions_say_what_the_frame_shows():
    frame = np.full((128, 128, 3), 130, np.uint8)
    frame[100:] = (22, 28, 58)
    frame[40:80, 40:90] = (200, 150, 120)
    text = captions.frame_captions(frame[None])
    assert text == ("portrait of {subject}, grey background, navy jacket",)
    large = np.repeat(np.repeat(frame, 4, 0), 4, 1)
    assert captions.frame_captions(large[None]) == ("portrait of {subject}, grey background",)
