"""Planted pictures: copies, noise, wrong colours, a class word that became the person."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.core.records import Sampling, Score
from pipelines.evaluation.facts import (
    COPY,
    asked_for,
    copy_paste,
    facts_from_json,
    facts_of,
    facts_to_json,
    following,
    holds,
    is_subject,
    structure,
    usable,
    worth_of,
)
from pipelines.faces.calibration import LOOKS_LIKE
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import align_by_eyes

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
ASKED = Sampling("portrait of {subject}, grey background")


@pytest.fixture(scope="module")
def pictures():
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(SAMPLE.glob("*.png"))[:5]]


@pytest.fixture(scope="module")
def training(pictures):
    return {f"photo{k}": structure(aligned(image)) for k, image in enumerate(pictures[:3])}


def aligned(image):
    return align_by_eyes(image, detect_faces(image)[0].eyes)


def spoiled(image, quality=60):
    """The same picture after a smaller size, JPEG and a shift."""
    small = Image.fromarray(image).resize((108, 108)).resize((128, 128))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return np.roll(np.asarray(Image.open(out)), (3, -4), (0, 1))


def test_a_copy_of_a_training_photo_is_caught_and_another_picture_is_not(pictures, training):
    copied = facts_of(spoiled(pictures[1]), ASKED, training)
    assert copied.copy >= COPY and copied.nearest == "photo1"
    fresh = [facts_of(image, ASKED, training) for image in pictures[3:]]
    assert all(seen.copy < COPY for seen in fresh), [seen.copy for seen in fresh]


def test_noise_is_no_portrait(training):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    seen = facts_of(noise, ASKED, training)
    assert seen.faces == 0 and seen.copy is None and seen.structure is None
    alike = Score("n", "judge", 0.9, verdict=LOOKS_LIKE)  # even if a judge were fooled
    found = worth_of([(ASKED, seen, (alike,))] * 4, [], to_training=[0.9] * 4)
    assert found.usable == 0 and found.following == 0 and found.quality == 0 and found.copies == 0


def test_usable_needs_everything(pictures, training):
    seen = facts_of(pictures[3], Sampling("portrait of {subject}"), training)
    yes, no = (Score("a", "judge", 0.5, verdict=verdict) for verdict in (LOOKS_LIKE, "borderline"))
    assert seen.prominent and not seen.quality and usable(seen, (yes,))
    assert not usable(seen, (no,)) and not usable(seen, ())
    blurred = cv2.GaussianBlur(pictures[3], (0, 0), 7)
    assert "blurred" in facts_of(blurred, ASKED, training).quality
    dark = (pictures[3] * 0.25).astype(np.uint8)
    assert "dark" in facts_of(dark, ASKED, training).quality


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("portrait of {subject}, teal background, navy jacket", {"background": "teal", "jacket": "navy"}),
        ("portrait of {subject}, Grey background, black and white", {"background": "grey", "tone": "black and white"}),
        ("portrait of {subject}, wooden background, open jacket", {}),
        ("portrait of {subject}", {}),
    ],
)
def test_what_can_be_checked_is_read_from_the_prompt(prompt, asked):
    assert asked_for(prompt) == asked


def test_following_is_the_share_that_holds():
    frame = np.full((128, 128, 3), 130, np.uint8)
    frame[100:] = (22, 28, 58)
    frame[40:80, 40:90] = (200, 150, 120)
    assert following(frame, "portrait of a man, grey background, navy jacket") == 1.0
    assert following(frame, "portrait of a man, grey background, red jacket") == 0.5
    assert following(frame, "portrait of a man, red background") == 0.0
    assert following(frame, "portrait of a man") is None
    assert holds("blue", "navy") and not holds("teal", "blue") and not holds(None, "grey")


def test_drift_and_preservation_come_from_class_only_prompts(pictures, training):
    plain = Sampling("portrait of man, grey background", seed=3)
    assert not is_subject(plain) and is_subject(ASKED) and is_subject(Sampling(""))
    before = (plain, facts_of(pictures[3], plain, training), (Score("b", "judge", 0.1),))
    became = (plain, facts_of(pictures[0], plain, training), (Score("a", "judge", 0.6),))
    person = (ASKED, facts_of(pictures[4], ASKED, training), (Score("p", "judge", 0.7),))
    drifted = worth_of([person, became], [before], to_training=[0.75, 0.6])
    assert drifted.drift == pytest.approx(0.5) and drifted.preserved < 0.75
    assert drifted.memorisation_gap == pytest.approx(0.05), "of the person's pictures only"
    same = worth_of([person, before], [before], to_training=[0.75, 0.1])
    assert same.drift == 0 and same.preserved == pytest.approx(1.0)


def test_one_picture_over_and_over_has_no_variety(pictures, training):
    def of(images):
        shown = [(ASKED, facts_of(image, ASKED, training), ()) for image in images]
        return worth_of(shown, [], to_training=[None] * len(images))

    assert of([pictures[0]] * 3).diversity == pytest.approx(0.0, abs=1e-6)
    assert of(pictures).diversity > 0.2 and of(pictures[:1]).diversity is None


def test_facts_survive_being_written_down(pictures, training):
    for picture in (pictures[0], np.zeros((128, 128, 3), np.uint8)):
        found = facts_of(picture, ASKED, training)
        again = facts_from_json(json.loads(json.dumps(facts_to_json(found))), picture)
        assert again == found and (again.structure is None) == (found.structure is None)
        if found.structure is not None:
            assert np.array_equal(again.structure, found.structure)
    assert "structure" not in facts_to_json(found), "no picture of a face in a JSON file"


# -- copy-paste, worked out by hand ----------------------------------------------------------------------------------


def at(degrees: float) -> np.ndarray:
    """A unit vector in the plane."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def test_copy_paste_is_one_for_the_training_photo_and_minus_one_for_the_held_out_one():
    held_out, training = [at(0)], [at(60)]
    assert copy_paste(at(60), held_out, training) == pytest.approx(1)
    assert copy_paste(at(0), held_out, training) == pytest.approx(-1)
    assert copy_paste(at(30), held_out, training) == pytest.approx(0, abs=1e-6)
    assert copy_paste(at(45), held_out, training) == pytest.approx((45 - 15) / 60), "angles, not cosines"


def test_copy_paste_is_the_mean_over_all_pairs():
    # held out at 0 and 20 degrees, training at 60: (50-10)/60 and (30-10)/40
    assert copy_paste(at(50), [at(0), at(20)], [at(60)]) == pytest.approx((40 / 60 + 20 / 40) / 2)
    assert copy_paste(at(50), [at(0)], [at(60), at(0)]) == pytest.approx(40 / 60), "the same photo twice says nothing"
    assert copy_paste(at(50), [], [at(60)]) is None and copy_paste(at(50), [at(0)], []) is None
    assert copy_paste(at(50), [at(0)], [at(0)]) is None


def test_pictures_without_a_face_count_as_0_in_copy_paste_and_others(pictures, training):
    seen = facts_of(pictures[3], ASKED, training)
    shown = [(ASKED, replace(seen, copy_paste=0.6, others=0.2), ()), (ASKED, seen, ())]
    found = worth_of(shown, [], to_training=[None, None])
    assert found.copy_paste == pytest.approx(0.3) and found.others == pytest.approx(0.1)
    assert worth_of(shown[1:], [], to_training=[None]).copy_paste is None, "never measured"
