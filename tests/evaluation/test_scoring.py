"""Laws of scoring: held-out photos judge, failures count, and the statistics say what they claim."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.records import Photo, PhotoSet, Score, UserError
from pipelines.evaluation import references, statistics
from pipelines.evaluation.scale import Scale, in_words, measure_scale, normalised, summary
from pipelines.faces import calibration
from pipelines.faces.arcface import find_pack
from pipelines.faces.calibration import Calibration, Comparisons
from pipelines.faces.face import Judge, Seen
from pipelines.faces.judges import judge_named
from pipelines.photos import gather, intake

SHARED = Path(__file__).resolve().parents[3] / "shared"
PEOPLE = SHARED / "data" / "people"


def kind(references: int, loose: float, strict: float) -> Comparisons:
    return Comparisons(
        references,
        100_000,
        1000,
        {"0.5": 0.1, "0.99": loose, "0.999": strict, "0.9999": 0.8},
        {"0.05": 0.6, "0.5": 0.8},
        {"0.01": loose, "0.001": strict},
        {"0.01": 0.01, "0.001": 0.05},
        10.0,
        -4.0,
        0.05,
        0.98,
    )


MEASURED = Calibration("colour", "0" * 64, "dlib", "made up", (kind(1, 0.3, 0.4), kind(3, 0.5, 0.6)), {}, 12.0)


class ColourJudge:
    """Judges by the mean colour, so that every expected number can be worked out; black shows no face."""

    name = "colour"
    licence = "none"
    weights_sha256 = "0" * 64
    calibration = MEASURED

    def look(self, image):
        mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0)
        if mean.max() == 0:
            return Seen(None, "no face found")
        return Seen(mean / np.linalg.norm(mean), None, float(len(image)), 1 + (len(image) == 40))

    def similarity(self, a, b):
        return float(np.dot(a, b))


JUDGE = ColourJudge()
RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def flat(colour) -> np.ndarray:
    return np.full((16, 16, 3), colour, np.uint8)


def photo(folder: Path, name: str, colour) -> Photo:
    path = folder / name
    Image.fromarray(flat(colour)).save(path)
    return Photo(name, str(path), name, 16, 16, (0, 0, 16, 16), ((5, 6), (11, 6)), 6.0)


def test_the_reference_is_the_normalised_mean(tmp_path):
    made = references.reference(JUDGE, [photo(tmp_path, "r.png", RED), flat(GREEN), flat(BLACK)])
    assert np.allclose(made.mean, [0.5**0.5, 0.5**0.5, 0]) and made.photos == 2
    assert made.without_face == ("picture 3",) and "picture 3: colour finds no face" in made.notes[0]
    crowd = references.reference(JUDGE, [np.full((40, 40, 3), RED, np.uint8)])
    assert crowd.notes == ("picture 1: 2 faces are in it; the largest is compared with.",)
    with pytest.raises(UserError, match="colour finds no face in picture 1"):
        references.reference(JUDGE, [flat(BLACK)])


def test_in_a_group_photo_the_person_is_compared_with_and_not_the_largest_face(tmp_path):
    """Left half blue (somebody large), right half red (the person)."""
    image = np.zeros((200, 400, 3), np.uint8)
    image[:, :250], image[:, 250:] = BLUE, RED
    Image.fromarray(image).save(tmp_path / "group.png")
    box, eyes = (310, 60, 370, 120), ((330, 80), (350, 80))
    person = Photo("group.png", str(tmp_path / "group.png"), "0", 400, 200, box, eyes, 20.0)
    noted = replace(person, reasons=("several_faces",))
    assert references.reference(JUDGE, [noted]).mean[0] == pytest.approx(1.0)
    assert references.reference(JUDGE, [person]).mean[2] > 0.5


def test_a_reference_stays_in_memory():
    made = references.reference(JUDGE, [flat(RED)])
    with pytest.raises(TypeError, match="stays in memory"):
        pickle.dumps(made)
    assert "0." not in repr(made).replace("0.35", "") and "mean" not in repr(made)


def test_every_picture_keeps_its_row(tmp_path):
    for name, colour in (("a.png", RED), ("b.png", GREEN), ("c.png", BLACK)):
        Image.fromarray(flat(colour)).save(tmp_path / name)
    (tmp_path / "d.png").write_text("no picture")
    paths = [tmp_path / f"{letter}.png" for letter in "abcde"]
    scores = references.score_renders(paths, references.reference(JUDGE, [flat(RED)]))
    assert [score.render for score in scores] == [str(path) for path in paths]
    assert [score.similarity for score in scores] == [1.0, 0.0, None, None, None]
    assert scores[2].reason == "no face found" and "d.png is not a photo" in str(scores[3].reason)
    assert "e.png could not be opened" in str(scores[4].reason)
    assert all(score.judge == JUDGE.name and score.split == "held_out" for score in scores)
    json.dumps([asdict(score) for score in scores])


def test_marks_are_what_they_are_defined_to_be(tmp_path):
    train = tuple(photo(tmp_path, f"t{i}.png", colour) for i, colour in enumerate((RED, RED, BLACK)))
    held_out = tuple(photo(tmp_path, f"h{i}.png", colour) for i, colour in enumerate((RED, (255, 255, 0))))
    people = PhotoSet(train=train, validation=(), held_out=held_out)
    half = 0.5**0.5
    made = measure_scale(
        JUDGE,
        people,
        floor_scores=[0.1, None, Score("x", "buffalo_sc", 0.2)],
        rebuilt_images=[flat(GREEN), flat(BLACK)],
    )
    # held-out red: to train (red) 1, to the other held-out half; yellow: half, and half.
    assert made.ceiling == pytest.approx((1 + 3 * half) / 4, abs=1e-3)
    assert made.ceiling_low == pytest.approx(half, abs=1e-3) and made.ceiling_high == pytest.approx(1)
    assert made.comparisons == 4
    assert made.floor == pytest.approx(0.1)  # (0.1 + 0 + 0.2) / 3
    # rebuilt red came out green: to train 0, to the other held-out (yellow) half; the second shows no face.
    assert made.best_possible == pytest.approx(half / 2, abs=1e-3)
    assert made.impostor == made.threshold == 0.6  # two held out: the figures for several photos
    with pytest.raises(ValueError, match="one each"):
        measure_scale(JUDGE, people, rebuilt_images=[flat(RED)])
    one = PhotoSet(train=train, validation=(), held_out=held_out[:1], weak=True)
    alone = measure_scale(JUDGE, one)
    assert (
        alone.impostor == 0.4 and alone.comparisons == 1 and alone.ceiling == pytest.approx(1) and alone.floor is None
    )


def test_other_people_are_compared_photo_by_photo(tmp_path):
    train = tuple(photo(tmp_path, f"t{i}.png", colour) for i, colour in enumerate((RED, GREEN)))
    held_out = tuple(photo(tmp_path, f"h{i}.png", colour) for i, colour in enumerate((RED, (255, 255, 0))))
    for name, colour in (("green", GREEN), ("blue", BLUE), ("black", BLACK)):
        Image.fromarray(flat(colour)).save(tmp_path / f"{name}.png")
    others = [tmp_path / f"{name}.png" for name in ("green", "blue", "black", "gone")]
    made = measure_scale(JUDGE, PhotoSet(train, (), held_out), others=others)
    half = 0.5**0.5
    assert made.genuine == pytest.approx((1 + 0 + half + half) / 4, abs=1e-3), "held out x training, one by one"
    assert made.strangers == (pytest.approx(half / 2, abs=1e-3), 0.0, None, None), "no face, no file"
    assert measure_scale(JUDGE, PhotoSet(train, (), held_out)).strangers == ()


def test_marks_without_any_face_are_none(tmp_path):
    dark = PhotoSet((photo(tmp_path, "t.png", BLACK),), (), (photo(tmp_path, "h.png", BLACK),))
    made = measure_scale(JUDGE, dark, rebuilt_images=[flat(BLACK)])
    assert made.ceiling is made.best_possible is made.ceiling_low is None


def test_normalised_identity():
    assert normalised(0.1, 0.1, 0.7) == 0
    assert normalised(0.7, 0.1, 0.7) == pytest.approx(1)
    assert normalised(0.4, 0.1, 0.7) == pytest.approx(0.5)
    assert normalised(0.9, 0.1, 0.7) > 1
    for gen, floor, ceiling in ((None, 0.1, 0.7), (0.3, None, 0.7), (0.3, 0.1, None), (0.3, 0.7, 0.7), (0.3, 0.8, 0.2)):
        assert normalised(gen, floor, ceiling) is None


def test_failures_cost(tmp_path):
    marks = Scale("buffalo_sc", 0.25, 0.0, 0.5, 0.8, 0.7, 0.9, 0.35)
    found = [Score("a", "buffalo_sc", 0.6), Score("b", "buffalo_sc", 0.4)]
    whole = summary(found, marks)
    assert (whole.mean, whole.best, whole.faces_found, whole.renders) == (0.5, 0.6, 2, 2)
    assert whole.normalised == pytest.approx(0.625)
    half = summary([*found, *[Score(c, "buffalo_sc", None, "no face found") for c in "cd"]], marks)
    assert half.mean == 0.5 and half.mean_zero_imputed == 0.25 and half.faces_found == 2 and half.renders == 4
    assert half.normalised == pytest.approx(0.3125)
    none = summary([Score("a", "buffalo_sc", None, "no face found")], marks)
    assert none.mean is None and none.best is None and none.mean_zero_imputed == 0 and none.faces_found == 0
    empty = summary([], marks)
    assert empty.mean_zero_imputed is None and empty.renders == 0 and empty.normalised is None
    json.dumps(asdict(whole))


def test_verdicts_come_from_the_calibrated_thresholds():
    several, one = (calibration.verdict(MEASURED, 0.55, count) for count in (3, 1))
    assert several == "borderline" and one == "looks like you"  # a mean of photos is easier to resemble by chance
    assert calibration.verdict(MEASURED, 0.6, 2) == "looks like you"
    assert calibration.verdict(MEASURED, 0.49, 2) == "someone else"
    assert calibration.verdict(MEASURED, None, 2) == "no face"
    assert calibration.verdict(None, 0.99, 2) == "uncalibrated"


def test_a_score_in_words_claims_what_was_measured_and_no_more(tmp_path):
    marks = Scale("colour", 0.6, 0.1, 0.5, 0.66, 0.58, 0.74, 0.6, 4)
    score = Score("a.png", "colour", 0.61, words=calibration.in_words(MEASURED, 0.61, 3))
    assert in_words(score, marks) == (
        "0.61 - higher than 99.9% of different-person pairs; your own photos agree with each other at 0.58-0.74"
    )
    said = {value: calibration.in_words(MEASURED, value, 3) for value in (0.05, 0.3, 0.55, 0.9)}
    assert said[0.05] == "0.05 - like most different-person pairs"
    assert said[0.3] == "0.30 - higher than 50% of different-person pairs"
    assert said[0.55] == "0.55 - higher than 99% of different-person pairs"
    assert said[0.9] == "0.90 - higher than 99.99% of different-person pairs"
    assert "uncalibrated" in calibration.in_words(None, 0.9, 3)
    assert not any("% you" in text or "probab" in text for text in said.values())
    assert calibration.log_likelihood_ratio(MEASURED.kind(1), 0.6) == pytest.approx(2.0)


def test_small_faces_and_company_are_told(tmp_path):
    against = references.reference(JUDGE, [flat(RED)])
    for side, words in ((10, "10 px high, too small to judge"), (40, "2 faces are in the picture"), (16, None)):
        Image.fromarray(np.full((side, side, 3), RED, np.uint8)).save(tmp_path / "a.png")
        (score,) = references.score_renders([tmp_path / "a.png"], against)
        assert score.verdict == "looks like you" and score.face_px == side
        assert (score.note is None) if words is None else words in str(score.note)


# --------------------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_finds_a_real_difference_and_no_other():
    rng = np.random.default_rng(1)
    base = rng.normal(0.1, 0.1, 16)
    better = statistics.paired_bootstrap(base + 0.2 + rng.normal(0, 0.05, 16), base)
    assert better.significant and better.low > 0.15 and 0.15 < better.difference < 0.25
    assert better.p == pytest.approx(2 / 10_001) and better.pairs == 16 and better.people == 1
    same = statistics.paired_bootstrap(base, base)
    assert same.p == 1 and same.difference == 0 and same.low == same.high == 0
    mirrored = statistics.paired_bootstrap(base, base + 0.2)
    assert mirrored.difference == pytest.approx(-0.2) and mirrored.significant


def test_bootstrap_is_paired_seeded_and_knows_people():
    rng = np.random.default_rng(2)
    base = rng.normal(0.0, 1.0, (6, 8))  # far more spread between people than the effect
    a = base + 0.1 + rng.normal(0, 0.01, base.shape)
    first = statistics.paired_bootstrap(a, base, seed=3)
    assert first.significant and first.people == 6 and first.pairs == 48
    assert statistics.paired_bootstrap(a, base, seed=3) == first
    assert statistics.paired_bootstrap(a, base, seed=4).low != first.low
    # An effect that one person alone shows is no finding about people, whatever the number of seeds.
    only_one = np.zeros((6, 200))
    only_one[0] = 1.0
    assert not statistics.paired_bootstrap(only_one, np.zeros_like(only_one)).significant


def test_bootstrap_keeps_its_promise():
    """With no difference at all, about 5% of experiments come out significant."""
    rng = np.random.default_rng(5)
    hits = [
        statistics.paired_bootstrap(rng.normal(size=40), rng.normal(size=40), resamples=400, seed=i).significant
        for i in range(300)
    ]
    assert 0.02 <= np.mean(hits) <= 0.10


def test_bootstrap_counts_missing_faces_as_zero_and_refuses_other_shapes():
    assert statistics.paired_bootstrap([np.nan, 0.4], [0.2, 0.2]).difference == pytest.approx(0.0)
    for a, b in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="one shape"):
            statistics.paired_bootstrap(a, b)


def test_one_level_drawn_all_at_once_gives_the_numbers_of_one_draw_after_another():
    for shape in ((1, 1, 12, 3), (12, 1, 1, 1), (1, 12, 1, 1)):
        values = np.random.default_rng(0).random(shape)
        rng, cells = np.random.default_rng(0), values.mean(3)
        means = [cells.ravel()[rng.integers(12, size=12)].mean() for _ in range(200)]
        found = statistics.cluster_bootstrap(values, resamples=200)
        assert (found.low, found.high) == tuple(np.quantile(means, [0.025, 0.975]))


# ------------------------------------------------------------------------------------------------- real photos


@pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")
def test_real_people_reach_their_ceiling_and_strangers_do_not(tmp_path):
    judges: list[Judge] = [judge_named("arcface-mini"), judge_named("dlib")]
    if find_pack("buffalo_sc", SHARED / "models"):
        pytest.importorskip("insightface")
        judges.append(judge_named("buffalo_sc", SHARED / "models"))
    people = intake.intake(gather.photo_files(PEOPLE / "p04")[:8], tmp_path / "set")
    stranger = gather.photo_files(PEOPLE / "p12")[0]
    for judge in judges:
        made = measure_scale(judge, people)
        against = references.reference(judge, people.held_out)
        own, other = references.score_renders([Path(people.train[0].path), stranger], against)
        assert made.ceiling is not None and made.threshold is not None and made.ceiling > made.threshold
        assert (own.verdict, other.verdict) == ("looks like you", "someone else")
        assert abs(float(own.similarity or 0) - made.ceiling) < 0.25
