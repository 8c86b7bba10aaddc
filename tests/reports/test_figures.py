"""Laws of the drawings: right places, nothing invented, no script, no outside host, nothing of a person but numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pipelines.reports import figures
from pipelines.reports.figures import Axis


def span(mean, half=0.05):
    return {"mean": mean, "low": mean - half, "high": mean + half}


LOOKS = [
    {"step": 10 * k, "seconds": 5.0 * k, "value": 0.1 * k, "identity": 0.1 * k, "following": 0.9, "trained": 0.15 * k}
    for k in range(1, 5)
]
FOUND = {
    "judge": "arc<face>",
    "ceiling": 0.6,
    "threshold": 0.35,
    "different": {"0.5": 0.0, "0.999": 0.35},
    "same": {"0.05": 0.4, "0.5": 0.7},
    "methods": {
        "none": {"identity": span(0.0), "following": span(0.95, 0.02), "similarities": [0.0, 0.05, -0.02]},
        "lora": {"identity": span(0.4), "following": span(0.7), "similarities": [0.3, 0.5, None]},
        "other tool": {"identity": span(0.2), "following": span(0.5), "similarities": [0.2, 0.21]},
    },
    "curves": {"lora": {"judge": "dlib", "chosen": 30, "looks": LOOKS}},
    "strengths": {
        "judge": "dlib",
        "chosen": 0.8,
        "looks": [{"strength": k, "identity": k / 2, "following": None, "value": k / 2} for k in (0.8, 1.0)],
    },
    "heat": {
        "photos": [
            {"name": "a.jpg", "part": "train"},
            {"name": "b<c>.jpg", "part": "held_out"},
            {"name": "z", "part": "other"},
        ],
        "rows": [
            {"column": "none", "file": "n.png", "values": [0.0, 0.1, None]},
            {"column": "lora", "file": "l.png", "values": [0.9, 0.5, 0.1]},
        ],
    },
}


def test_an_axis_puts_values_in_place_and_ticks_are_round():
    axis = Axis(0.0, 2.0, 100.0, 300.0)
    assert (axis(0.0), axis(1.0), axis(2.0)) == (100.0, 200.0, 300.0)
    assert Axis(0.0, 1.0, 0, 1).ticks() == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for low, high in ((-0.07, 0.63), (0, 137.4), (0.3, 0.3001)):
        ticks = Axis(low, high, 0, 1).ticks()
        assert 2 <= len(ticks) <= 12 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_the_pareto_front_is_what_nothing_else_beats():
    points = {"base": (0.95, 0.0), "lora": (0.7, 0.4), "worse": (0.6, 0.3), "copy": (0.2, 0.9), "twin": (0.2, 0.9)}
    assert figures.pareto(points) == ["copy", "twin", "lora", "base"]
    assert figures.pareto({}) == []


@pytest.mark.parametrize("draw", [each for _, each, _ in figures.SECTIONS], ids=lambda each: each.__name__)
def test_every_drawing_is_well_formed_and_escaped(draw):
    picture = draw(FOUND)
    ElementTree.fromstring(picture)
    assert "<script" not in picture and "http" not in picture and "url(" not in picture
    assert "arc<face>" not in picture and "b<c>" not in picture


@pytest.mark.parametrize("draw", [each for _, each, _ in figures.SECTIONS], ids=lambda each: each.__name__)
def test_nothing_is_drawn_of_nothing(draw):
    assert draw({"judge": "x", "methods": {}}) == ""
    assert draw({"judge": "x", "methods": {"none": {"identity": None, "following": None, "similarities": []}}}) == ""


def test_the_scatter_shows_each_method_where_it_lies():
    picture = figures.scatter(FOUND)
    place = {}
    for colour, name in ((figures.COLOURS["lora"], "lora"), (figures.COLOURS["none"], "none")):
        x, y = re.search(rf'<circle cx="([\d.]+)" cy="([\d.]+)" r="6" fill="{colour}"', picture).groups()
        place[name] = float(x), float(y)
    assert place["none"][0] > place["lora"][0], "the base obeys better"
    assert place["none"][1] > place["lora"][1], "the LoRA is more alike, and up is more"
    assert "other tool" in picture and "Untrained base" in picture and "real photos 0.60" in picture


def test_the_heatmap_has_one_square_per_picture_and_photo_and_says_when_there_is_no_face():
    picture = figures.heatmap(FOUND)
    assert picture.count("<title>") == 6 and "no face" in picture
    shade = figures._shade
    assert shade(None) not in {shade(k / 10) for k in range(11)} and shade(-0.2) == shade(0.0) and shade(2) == shade(1)
    order = [picture.index(name) for name in ("learned from", "held out", "other people")]
    assert order == sorted(order)


def test_the_density_is_a_density():
    grid = [k / 100 for k in range(-100, 200)]
    area = sum(figures._kernel([0.1, 0.5, 0.52], grid)) / 100
    assert area == pytest.approx(1.0, abs=0.01)
    assert "looks like you from 0.35" in figures.densities(FOUND)


def test_the_curves_mark_the_checkpoint_that_was_kept():
    picture = figures.convergence(FOUND)
    assert picture.count('r="5"') == 1 and picture.count("<polyline") == 1 + 2 + 1, "axes, two curves, the legend"
    assert "0.8 (kept)" in figures.strengths(FOUND)


def test_sections_leave_out_what_is_not_there():
    page = figures.sections(FOUND | {"curves": {}, "strengths": None})
    assert "While it learned" not in page and "Spread" in page and "kept)" not in page
