"""A delivered file keeps to its size, its shape and its weight, marks included, and says what was done."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.records import UserError
from pipelines.faces.face import Face
from pipelines.finishing import deliver, mark
from pipelines.finishing.deliver import Size
from pipelines.photos.decode import decode

SAMPLE = sorted((Path(__file__).resolve().parents[2] / "presets" / "sample_person").glob("*.png"))
SIZES = deliver.sizes()
unmarked = partial(deliver.deliver, marked=False)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return decode(SAMPLE[0])


def face_at(x: float, y: float, apart: float) -> Face:
    eyes = np.array([(x - apart / 2, y), (x + apart / 2, y)])
    box = (x - 1.2 * apart, y - 0.7 * apart, x + 1.2 * apart, y + 1.7 * apart)
    return Face(box, eyes, eyes, np.array([x, y + 0.6 * apart]), 1.0)


FACE = face_at(128, 116, 60)


def opened(made: deliver.Delivered) -> Image.Image:
    return Image.open(io.BytesIO(made.data))


def disc(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    """A white disc on grey."""
    down, across = np.ogrid[:height, :width]
    image = np.full((height, width, 3), 90, np.uint8)
    image[np.hypot(across - x, down - y) <= radius] = 255
    return image


# ------------------------------------------------------------------------------------------------- sizes


def test_the_sizes_people_asked_for_are_there():
    assert (SIZES["linkedin-400"].width_px, SIZES["linkedin-400"].height_px) == (400, 400)
    assert (SIZES["banner-1584x396"].width_px, SIZES["banner-1584x396"].height_px) == (1584, 396)
    for name, width_mm, height_mm in (("passport-35x45", 35, 45), ("print-10x15", 100, 150), ("print-13x18", 130, 180)):
        size = SIZES[name]
        assert size.width_px == pytest.approx(width_mm / 25.4 * size.dpi, abs=1)
        assert size.height_px == pytest.approx(height_mm / 25.4 * size.dpi, abs=1)
    assert SIZES["avatar-circle"].circle
    assert "not accept" in SIZES["passport-35x45"].note


def test_dropping_a_file_in_adds_a_size_and_a_wrong_one_is_named(tmp_path):
    wrong = {"width_px": 5, "head_share": 2.0, "eye_line": 0.0, "outside": "stretch", "dpi": -1}
    good = {"id": "mine", "name": "Mine", "width_px": 300, "height_px": 200}
    (tmp_path / "a.json").write_text(json.dumps(good))
    assert deliver.sizes(tmp_path) == {"mine": Size("mine", "Mine", 300, 200)}
    (tmp_path / "b.json").write_text(json.dumps(good))
    with pytest.raises(UserError, match="mine"):
        deliver.sizes(tmp_path)
    for name, value in wrong.items():
        (tmp_path / "b.json").write_text(json.dumps(good | {"id": "b", name: value}))
        with pytest.raises(UserError, match=r"b\.json"):
            deliver.sizes(tmp_path)
    (tmp_path / "b.json").write_text(json.dumps(good | {"id": "b", "circle": True}))
    with pytest.raises(UserError, match="round"):
        deliver.sizes(tmp_path)
    with pytest.raises(UserError, match="linkedin-400"):
        deliver.find_size("nothing")


# ------------------------------------------------------------------------------------------------- cropping


@pytest.mark.parametrize("size", [size for size in SIZES.values() if size.width_px], ids=lambda size: size.id)
@pytest.mark.parametrize("shape", [(900, 900), (1000, 600), (500, 1100)])
def test_nothing_is_stretched(size, shape):
    height, width = shape
    x, y, radius = width / 2, 0.42 * height, 40.0
    image = disc(width, height, x, y, radius)
    cut, _ = deliver.crop(image, size, face=face_at(x, y, min(shape) * 0.09))
    assert cut.shape[:2] == (size.height_px, size.width_px)
    white = cut[:, :, 1] > 170
    if size.circle:
        white &= cut[:, :, 3] == 255
    columns, rows = np.flatnonzero(white.any(0)), np.flatnonzero(white.any(1))
    assert len(columns) and np.ptp(columns) == pytest.approx(np.ptp(rows), abs=2), "a disc stays a disc"


def test_the_crop_is_placed_by_the_face():
    size = SIZES["linkedin-400"]
    assert size.head_share is not None
    for x, y in ((300, 300), (900, 420), (620, 700)):
        cut, notes = deliver.crop(disc(1200, 1000, x, y, 6), size, face=face_at(x, y, 50))
        down, across = np.nonzero(cut[:, :, 0] > 200)
        assert across.mean() == pytest.approx(200, abs=2) and down.mean() == pytest.approx(size.eye_line * 400, abs=2)
        scale = np.ptp(across) / 12
        assert deliver.HEAD_PER_EYES * 50 * scale == pytest.approx(size.head_share * 400, rel=0.1)
    moved, _ = deliver.crop(disc(1200, 1000, 20, 30, 6), size, face=face_at(20, 30, 50))  # at the edge: moved inside
    down, across = np.nonzero(moved[:, :, 0] > 200)
    assert across.mean() < 100 and down.mean() < 100


def test_a_banner_continues_the_backdrop_and_says_so(portrait):
    size = SIZES["banner-1584x396"]
    image = np.full((400, 400, 3), (60, 90, 120), np.uint8)
    image[120:, 120:280] = (200, 160, 140)
    cut, notes = deliver.crop(image, size, face=face_at(200, 220, 40))
    assert any("continued at the sides" in note for note in notes)
    assert np.abs(cut[40:350, [5, 1500]].astype(int) - (60, 90, 120)).max() <= 3
    alone, notes = deliver.crop(image, replace(size, outside="fit"), face=face_at(200, 220, 40))
    assert alone.shape == (396, 1584, 3) and not any("continued" in note for note in notes)


def test_a_head_at_the_upper_edge_is_not_continued_upwards():
    image = np.full((300, 300, 3), (90, 120, 150), np.uint8)
    image[:260, 100:200] = (60, 30, 20)
    size = SIZES["passport-35x45"]
    cut, notes = deliver.crop(image, size, face=face_at(150, 120, 75))
    assert not any("above" in note for note in notes) and any("close to the head" in note for note in notes)
    image[:40, 100:200] = (90, 120, 150)
    _, notes = deliver.crop(image, size, face=face_at(150, 120, 75))
    assert any("above" in note for note in notes)


def test_a_circle_keeps_nothing_outside_it(portrait):
    made = deliver.deliver(portrait, SIZES["avatar-circle"], format_name="PNG", face=FACE)
    pixels = np.array(opened(made))
    assert pixels.shape == (512, 512, 4)
    alpha = pixels[:, :, 3]
    assert alpha[0, 0] == alpha[-1, -1] == 0 and alpha[256, 256] == 255 and alpha[1, 256] > 0
    assert alpha.mean() / 255 == pytest.approx(np.pi / 4, abs=0.01)
    outside = pixels[alpha == 0][:, :3]
    assert (outside == 255).all(), "no part of the picture is out there"
    with pytest.raises(UserError, match="JPEG lacks"):
        unmarked(portrait, SIZES["avatar-circle"], format_name="JPEG")


def test_as_drawn_changes_no_pixel(portrait):
    made = unmarked(portrait, SIZES["as-drawn"], format_name="PNG")
    assert np.array_equal(np.array(opened(made)), portrait) and made.marks is None and made.quality is None


# ------------------------------------------------------------------------------------------------- weight


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("max_kb", [16, 40])
def test_the_file_keeps_to_its_weight_with_all_marks_in_it(format_name, max_kb, portrait, tmp_path):
    made = deliver.deliver(
        portrait, SIZES["linkedin-400"], format_name=format_name, max_kb=max_kb, face=FACE, base="portrait-128"
    )
    assert len(made.data) <= max_kb * 1000 and made.kb == len(made.data) / 1000
    assert made.marks is not None and made.marks.credentials and made.marks.field
    out = tmp_path / f"x{made.suffix}"
    out.write_bytes(made.data)
    found = {each.name: each.generated for each in mark.verify(out).marks}
    assert found == {"credentials": True, "field": True, "watermark": made.marks.watermark}
    assert made.marks.watermark or any("watermark can't be read" in note for note in made.notes)


def test_the_best_quality_that_fits_is_found(portrait):
    size = SIZES["linkedin-400"]
    made = unmarked(portrait, size, max_kb=20, face=FACE)
    assert made.quality is not None and made.quality < deliver.HIGHEST_QUALITY["JPEG"]
    cut, _ = deliver.crop(portrait, size, face=FACE)
    assert len(mark.encode(cut, "JPEG", quality=made.quality)) == len(made.data) <= 20_000
    assert len(mark.encode(cut, "JPEG", quality=made.quality + 1)) > 20_000
    assert unmarked(portrait, size, max_kb=20, face=FACE, quality=50).quality == 50


def test_what_cannot_be_reached_is_said_and_shrinks_only_when_asked(portrait):
    size = SIZES["square-1080"]
    with pytest.raises(UserError, match="does not fit into 12 kB"):
        deliver.deliver(portrait, size, max_kb=12, face=FACE)
    made = deliver.deliver(portrait, size, max_kb=12, face=FACE, shrink=True)
    assert len(made.data) <= 12_000 and made.width_px == made.height_px < 1080
    assert any("more would not have fitted" in note for note in made.notes)
    with pytest.raises(UserError, match="PNG has no quality"):
        unmarked(portrait, size, format_name="PNG", max_kb=30)
    small = unmarked(portrait, SIZES["as-drawn"], format_name="PNG", max_kb=30, shrink=True)
    assert len(small.data) <= 30_000 and small.width_px == small.height_px < 256
    with pytest.raises(UserError, match="does not fit"):
        deliver.deliver(portrait, size, max_kb=2, shrink=True)


def test_wishes_are_checked(portrait):
    size = SIZES["linkedin-400"]
    for wrong in (
        {"max_kb": float("nan")}, {"max_kb": 0.1}, {"max_kb": -5}, {"max_kb": float("inf")}, {"quality": 0},
        {"quality": 101}, {"format_name": "BMP"}, {"format_name": "../x"},
    ):  # fmt: skip
        with pytest.raises(UserError):
            unmarked(portrait, size, **wrong)
    with pytest.raises(UserError, match="pixels wide"):
        unmarked(portrait, replace(size, width_px=10**9, height_px=10**9))


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("format_name", mark.FORMATS)
def test_profile_and_dpi_are_in_the_file_and_exif_is_not(format_name, portrait):
    made = deliver.deliver(portrait, SIZES["passport-35x45"], format_name=format_name, face=FACE)
    picture = opened(made)
    assert (picture.width, picture.height) == (413, 531) == (made.width_px, made.height_px)
    assert picture.info["icc_profile"] == mark.srgb_profile()
    assert not dict(picture.getexif())
    if format_name in ("JPEG", "PNG"):
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_picture_with_far_too_few_pixels_is_told_of(portrait):
    made = unmarked(portrait, SIZES["print-10x15"], face=FACE)
    assert any("Enlarged" in note for note in made.notes)
    large = np.repeat(np.repeat(portrait, 12, 0), 12, 1)
    fine = unmarked(large, SIZES["print-10x15"], face=face_at(1536, 1390, 300))
    assert not any("Enlarged" in note for note in fine.notes)


def test_a_contact_sheet_shows_every_picture(portrait):
    red = np.zeros((50, 300, 3), np.uint8)
    red[:, :, 0] = 255
    seen = np.dstack([np.full((40, 40), v, np.uint8) for v in (0, 0, 255, 255)])
    page = deliver.contact_sheet([portrait, red, seen], ["one", "x" * 400, ""], columns=2)
    assert page.dtype == np.uint8 and page.shape[1] < 2 * 300
    assert (page == (255, 0, 0)).all(2).sum() > 5000 and (page == (0, 0, 255)).all(2).sum() == 1600
    with pytest.raises(ValueError):
        deliver.contact_sheet([], [])


def test_a_zip_holds_every_file_under_a_safe_name_and_a_marked_sheet(portrait, tmp_path):
    made = deliver.deliver(portrait, SIZES["linkedin-400"], max_kb=40, face=FACE)
    circle = deliver.deliver(portrait, SIZES["avatar-circle"], format_name="WEBP", face=FACE)
    names = ["../../etc/passwd", "a b", "a b", "", "contact-sheet"]
    done: list[int] = []
    out = deliver.batch_zip(
        [(name, made) for name in names] + [("round", circle)],
        tmp_path / "all.zip",
        progress=lambda n, _: done.append(n),
    )
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        entries = archive.namelist()
        assert len(entries) == len(set(entries)) == 7 and done == [1, 2, 3, 4, 5, 6]
        assert all("/" not in entry and not entry.startswith(".") for entry in entries)
        assert {"a-b.jpg", "a-b-2.jpg", "portrait.jpg", "round.webp", "contact-sheet.jpg"} < set(entries)
        assert archive.read("a-b.jpg") == made.data
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        (tmp_path / "sheet.jpg").write_bytes(archive.read("contact-sheet.jpg"))
    found = {each.name: each.generated for each in mark.verify(tmp_path / "sheet.jpg").marks}
    assert found["credentials"] and found["field"]
    with pytest.raises(UserError, match="nothing to pack"):
        deliver.batch_zip([], tmp_path / "none.zip")
