"""Laws of calibration: what is claimed was measured, on enough pairs, with these weights, and no people leave it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.records import UserError
from pipelines.faces import calibration
from pipelines.faces.judges import judge_named
from tools import calibrate_judge as tool

SHARED = Path(__file__).resolve().parents[3] / "shared"
LFW = SHARED / "data" / "lfw"


class Plain:
    name = "plain"

    @staticmethod
    def similarity(a, b):
        return float(np.dot(a, b))


def crowd(people: int, photos: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of `people` x `photos`, and whose they are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 1, 64))
    vectors = (centres + spread * rng.normal(size=(people, photos, 64))).reshape(-1, 64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.repeat(np.arange(people), photos)


def test_pairs_never_compare_a_photo_with_itself_and_know_whose_they_are():
    vectors, who = crowd(30, 5, 0.5)
    one, several = (tool.pairs(Plain, vectors, who, count) for count in (1, 3))
    assert len(one.same) == 30 * 10 and len(several.same) == 30 * 2  # the other two photos against the mean of three
    assert len(one.different) == len(several.different) == 30 * 29
    assert one.same.max() < 0.9999 and np.all(one.different_people[:, 0] != one.different_people[:, 1])
    assert several.same.mean() > one.same.mean() > one.different.mean() + 0.4


def test_thresholds_keep_their_false_match_rate_on_other_people():
    vectors, who = crowd(120, 4, 1.0)
    made = tool.sum_up(tool.pairs(Plain, vectors, who, 1))
    assert set(made.thresholds) == {"0.01", "0.001"}  # 14,280 pairs say nothing about 1 in 10,000
    other = tool.pairs(Plain, *crowd(120, 4, 1.0, seed=1), 1)
    assert 0.004 < (other.different >= made.thresholds["0.01"]).mean() < 0.02
    assert made.missed["0.01"] == pytest.approx((other.same < made.thresholds["0.01"]).mean(), abs=0.1)
    assert made.different["1"] >= made.different["0.999"] > made.different["0.5"]


def test_no_rate_is_claimed_that_the_pairs_do_not_support():
    assert tool.supported((0.01, 0.001, 0.0001), 2_999) == [0.01]
    assert tool.supported((0.01, 0.001, 0.0001), 3_000) == [0.01, 0.001]
    few = tool.sum_up(tool.pairs(Plain, *crowd(24, 4, 1.0), 1))
    assert set(few.thresholds) == {"0.01"} and "0.999" not in few.different


def test_the_logistic_fit_finds_the_true_ratio():
    """Two normal kinds of equal spread: the log likelihood ratio is a known straight line."""
    rng = np.random.default_rng(0)
    same, different = rng.normal(0.7, 0.1, 20_000), rng.normal(0.3, 0.1, 30_000)
    slope, intercept = tool.fit_logistic(same, different)
    assert slope == pytest.approx(0.4 / 0.01, rel=0.05) and intercept == pytest.approx(-0.5 * slope, rel=0.02)
    fitted = tool.cllr(slope * same + intercept, slope * different + intercept)
    assert 0 < fitted < 0.2 < tool.cllr(-slope * same, -slope * different)
    assert tool.cllr(np.zeros(5), np.zeros(5)) == pytest.approx(1.0)


def test_folds_hold_no_person_on_both_sides():
    vectors, who = crowd(60, 4, 1.0)
    found = tool.pairs(Plain, vectors, who, 1)
    cost, accuracy = tool.by_folds(found)
    assert 0.9 < accuracy <= 1 and 0 < cost < 0.5
    shuffled = np.random.default_rng(0).permutation(np.concatenate([found.same, found.different]))
    nothing = tool.Pairs(
        1, shuffled[: len(found.same)], found.same_person, shuffled[len(found.same) :], found.different_people
    )
    cost, accuracy = tool.by_folds(nothing)
    assert cost > 0.95 and 0.4 < accuracy < 0.6


def test_every_shipped_calibration_belongs_to_its_weights_and_says_where_it_comes_from():
    files = sorted(calibration.FOLDER.glob("*.json"))
    assert {"arcface-mini", "dlib"} <= {path.stem for path in files}
    for name in ("arcface-mini", "dlib"):
        assert judge_named(name).calibration is not None, f"{name}: calibrate these weights"
    for path in files:
        text = path.read_text()
        saved = json.loads(text)
        assert "tools/calibrate_judge.py" in saved["source"] and len(saved["weights_sha256"]) == 64
        assert len(text) < 20_000, "figures only, no embedding"
        for kind in saved["comparisons"]:
            assert set(kind["thresholds"]) >= {"0.01", "0.001"}
            assert all(float(rate) >= 3 / kind["pairs_different"] for rate in kind["thresholds"])
            assert kind["different"]["0.5"] < kind["thresholds"]["0.01"] < kind["thresholds"]["0.001"]
            assert kind["thresholds"]["0.001"] < kind["same"]["0.5"] and kind["cllr"] < 0.5


def test_unknown_weights_are_uncalibrated_and_borrow_nothing(tmp_path):
    assert calibration.load("dlib", "0" * 64, "dlib") is None
    assert calibration.load("dlib", judge_named("dlib").weights_sha256, "scrfd") is None
    assert calibration.load("buffalo_l", "0" * 64, "scrfd") is None
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json can't be read"):
        calibration.load("x", "0" * 64, "dlib", tmp_path)
    with pytest.raises(UserError, match="no judge called alice"):
        judge_named("alice")


@pytest.mark.skipif(not LFW.is_dir(), reason="needs ../shared/data/lfw")
def test_the_tool_measures_a_real_judge_on_a_few_people():
    people = tool.people_of(LFW, LFW / "test_people.txt", 12)
    assert all(len(files) > 1 for files in people)
    one = judge_named("dlib")
    vectors, who, missed = tool.embed(one, people, 2)
    assert len(vectors) + missed == 24
    found = tool.pairs(one, vectors, who, 1)
    assert np.median(found.same) > 0.6 > 0.3 > np.median(found.different)
    shares, smallest = tool.by_face_height(one, people, most=2)
    assert set(shares) == {str(height) for height in tool.FACE_HEIGHTS_PX}
    assert shares["96"] > 0.8 and smallest is not None and not math.isnan(smallest)
