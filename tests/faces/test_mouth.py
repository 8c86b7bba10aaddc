"""Laws of the mouth's network: it claims only what it is sure of, and is right about people it never saw."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.faces import mouth
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import Face
from pipelines.photos.decode import decode

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = ROOT.parent / "shared" / "data" / "people"
LABELS = ROOT / "tools" / "mouth_labels.csv"
needs_people = pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")


@pytest.mark.parametrize(
    ("logit", "word"), [(1.1, "open"), (-2.1, "closed"), (0.9, None), (-1.9, None), (0.0, None), (math.nan, None)]
)
def test_nothing_is_claimed_within_the_margins(logit, word):
    assert mouth.word(logit, {"open": 1.0, "closed": 2.0}) == word


def test_the_crop_is_the_lower_half_of_the_face_however_large_and_turned():
    picture = np.zeros((400, 400, 3), np.uint8)
    eyes = np.array([(150.0, 150.0), (214.0, 150.0)])
    picture[215:225, 172:192] = 255  # a mouth, 70 px below eyes that are 64 px apart
    face = Face((100.0, 100.0, 260.0, 280.0), eyes, eyes, np.array([182.0, 185.0]), 1.0)
    cut = mouth.crop(picture, face)
    assert cut.shape == (64, 64, 3)
    lit = np.argwhere(cut[..., 0] > 128).mean(0)
    assert np.allclose(lit, (-5 + 70 / 2, 32), atol=1.5)


def test_a_picture_and_its_mirror_image_say_the_same():
    picture = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    eyes = np.array([(80.0, 80.0), (119.0, 80.0)])
    face = Face((60.0, 50.0, 140.0, 140.0), eyes, eyes, np.array([99.5, 105.0]), 1.0)
    assert mouth.read(picture, face) == mouth.read(np.ascontiguousarray(picture[:, ::-1]), face)


def test_the_card_s_figures_hold_a_bar():
    saved = json.loads(mouth.CARD.read_text())
    for found in saved["measured"].values():
        assert found["right_of_claimed"] >= 0.95 and found["claimed"] >= 0.6


@needs_people
def test_it_is_right_about_people_it_never_saw():
    with LABELS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "people"]
    said = []
    for row in rows[::3]:
        image = decode(PEOPLE.parent / row["file"])
        found = detect_faces(image)
        word = mouth.read(image, found[0]) if found else None
        if word is not None:
            said.append(word == ("open" if row["open"] == "1" else "closed"))
    assert len(said) >= 20 and np.mean(said) >= 0.9
