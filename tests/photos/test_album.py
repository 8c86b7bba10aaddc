"""Laws of the album: a picture is decoded once, each judge looks at it once, in memory only, memory is bounded."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.records import REASONS, Photo, UserError
from pipelines.faces.face import Face, Seen
from pipelines.photos import album as album_module
from pipelines.photos import framing
from pipelines.photos.album import Album

BOX, EYES = (310.0, 60.0, 370.0, 120.0), ((330.0, 80.0), (350.0, 80.0))


class Counting:
    """A judge that describes a picture by its mean colour and counts how often it looks."""

    licence = "test"
    calibration = None

    def __init__(self, name: str = "one", weights: str = "w"):
        self.name, self.weights_sha256, self.looks = name, weights, 0

    def look(self, image: np.ndarray) -> Seen:
        self.looks += 1
        vector = image.reshape(-1, 3).mean(0) + 1e-3
        return Seen(vector / np.linalg.norm(vector), None, 10.0, 1)

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        return [self.look(image)]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b)


@pytest.fixture
def group(tmp_path) -> Photo:
    """Left half blue (somebody larger), right half red (the person)."""
    image = np.zeros((200, 400, 3), np.uint8)
    image[:, :250, 2], image[:, 250:, 0] = 255, 255
    Image.fromarray(image).save(tmp_path / "group.png")
    return Photo("group.png", str(tmp_path / "group.png"), "0", 400, 200, BOX, EYES, 20.0, reasons=("several_faces",))


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    counted: Counter[str] = Counter()

    def count(name: str):
        real = getattr(album_module, name)

        def counting(*args):
            counted[name] += 1
            return real(*args)

        monkeypatch.setattr(album_module, name, counting)

    count("decode")
    count("detect_faces")
    return counted


def test_whoever_asks_how_often_a_photo_is_decoded_searched_and_embedded_once(group, calls):
    album, judges = Album(), [Counting("one"), Counting("two"), Counting("two", "other weights")]
    for _ in range(3):
        for judge in judges:
            album.vector(judge, group)
        album.vector(Counting("one"), group)  # the same judge, made anew
        album.frames([group], 64)
        album.aligned_frames([group], 128)
        album.faces(group)
        album.face(group)
    assert calls == {"decode": 1, "detect_faces": 1} and [judge.looks for judge in judges] == [1, 1, 1]


class ByDlib(Counting):
    """One of the judges that read dlib's landmarks."""

    detector = "dlib"

    def look(self, image: np.ndarray, faces: list[Face] | None = None) -> Seen:
        assert faces is not None, "it would look for them again"
        return super().look(image)


def test_judges_that_read_one_detectors_faces_are_given_them(group, calls):
    photos = [replace(group, reasons=()), replace(group, path=str(Path(group.path).with_name("b.png")), reasons=())]
    Image.new("RGB", (64, 64)).save(photos[1].path)
    album = Album()
    for judge in (ByDlib("one"), ByDlib("two")):
        for photo in photos:
            assert album.vector(judge, photo) is not None
    assert calls == {"decode": 2, "detect_faces": 2}


def test_what_an_album_gives_is_what_the_single_steps_give(group):
    album = Album()
    assert (album.aligned_frames([group], 64) == framing.frames([group], aligned=True, resolution_px=64)).all()
    assert (album.frames([group], 64) == framing.frames([group], 64)).all()
    assert (album.image(group) == album.image(Path(group.path))).all()
    with pytest.raises(ValueError, match="read-only"):
        album.image(group)[0] = 0


def test_which_face_of_a_group_is_the_persons_is_data_and_no_sentence(group):
    alone = replace(group, reasons=(), notes=(REASONS["several_faces"],))
    worded_anew = replace(group, notes=("somebody else is in it too",))
    red, blue = (int(np.argmax(Album().vector(Counting(), photo))) for photo in (worded_anew, alone))
    assert (red, blue) == (0, 2)


def test_the_face_of_the_person_is_the_one_noted_at_intake(group, monkeypatch):
    def at(left: float, side: float) -> Face:
        points = np.array([(left, 80.0), (left + 20, 80.0)])
        return Face((left, 90 - side / 2, left + side, 90 + side / 2), points, points, points[0], 1.0)

    large, person, inside = at(20, 160), at(308, 62), at(335, 10)
    monkeypatch.setattr(album_module, "detect_faces", lambda image: [large, person, inside])
    assert Album().face(group) is person
    monkeypatch.setattr(album_module, "detect_faces", lambda image: [large])
    assert Album().face(group) is None


def test_pixels_that_do_not_fit_are_not_kept_but_what_was_found_in_them_is(group, calls):
    album, judge = Album(limit_bytes=400 * 200 * 3 - 1), Counting()
    for _ in range(3):
        album.vector(judge, group)
        album.faces(group)
    assert calls["decode"] == 2 and judge.looks == 1  # once to look, once to search
    album.image(group)
    assert calls["decode"] == 3


def test_an_album_stays_in_memory_and_names_the_file_that_is_gone(group, tmp_path):
    with pytest.raises(TypeError, match="stays in memory"):
        pickle.dumps(Album())
    with pytest.raises(UserError, match=r"gone\.png could not be opened"):
        Album().vector(Counting(), tmp_path / "gone.png")
