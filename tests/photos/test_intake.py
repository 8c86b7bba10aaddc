"""Laws of intake: stored copies are clean and private, and every file has its sentence."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from pipelines.core.records import UserError
from pipelines.photos import captions, checks, framing, gather, intake
from tests.photos.pictures import centre_face, save_scenes, scene

SHARED = Path(__file__).resolve().parents[3] / "shared"
PEOPLE = SHARED / "data" / "people"


@pytest.fixture
def every_photo_has_a_face(monkeypatch):
    monkeypatch.setattr(checks, "detect_faces", centre_face)
    monkeypatch.setattr(intake, "_recogniser", lambda: None)  # scenes show nobody


def test_stored_copies_carry_no_metadata_and_are_private(tmp_path, every_photo_has_a_face):
    from PIL import PngImagePlugin

    paths = []
    for seed in range(5):
        path = tmp_path / f"p{seed}.jpg"
        exif = Image.Exif()
        exif[271], exif[274] = "SECRETCAMERA", 6
        exif.get_ifd(0x8825)[1] = "N"
        scene(seed).save(path, exif=exif, comment=b"SECRETCOMMENT", quality=95)
        paths.append(path)
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "SECRETAUTHOR")
    scene(9).save(tmp_path / "p9.png", pnginfo=text)
    result = intake.intake([*paths, tmp_path / "p9.png"], tmp_path / "set")
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o700
    for photo in result.photos:
        stored = Path(photo.path)
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        assert b"SECRET" not in stored.read_bytes()
        with Image.open(stored) as image:
            assert not image.getexif() and set(image.info) <= {"dpi"}
            assert image.size == (photo.width_px, photo.height_px)
    assert {p.name for p in (tmp_path / "set").iterdir()} == {f"0{i}.png" for i in range(6)}


def test_order_and_names_change_neither_digest_nor_split(tmp_path, every_photo_has_a_face):
    paths = save_scenes(tmp_path / "in", 9)
    first = intake.intake(paths, tmp_path / "a")
    turned = intake.intake(list(reversed(paths)), tmp_path / "b")
    renamed = []
    for index, path in enumerate(paths):
        renamed.append(tmp_path / "in" / f"{9 - index}_other.png")
        path.rename(renamed[-1])
    third = intake.intake(renamed, tmp_path / "c")
    for other in (turned, third):
        assert other.digest == first.digest
        assert [p.sha256 for p in other.held_out] == [p.sha256 for p in first.held_out]
        assert [p.sha256 for p in other.train] == [p.sha256 for p in first.train]
    renamed_back = intake.intake(renamed, tmp_path / "d", seed=1)
    digests = {first.digest, renamed_back.digest}
    digests |= {intake.intake(renamed, tmp_path / f"s{seed}", seed=seed).digest for seed in (2, 3)}
    assert len(digests) > 1  # the seed draws


def test_stored_sha_is_that_of_the_file(tmp_path, every_photo_has_a_face):
    import hashlib

    for photo in intake.intake(save_scenes(tmp_path / "in", 5), tmp_path / "a").photos:
        assert hashlib.sha256(Path(photo.path).read_bytes()).hexdigest() == photo.sha256


def test_large_photos_are_stored_as_jpeg(tmp_path, every_photo_has_a_face):
    paths = save_scenes(tmp_path / "in", 4)
    paths.append(tmp_path / "in" / "large.jpg")
    scene(50, 2400, 1800).save(paths[-1])
    suffixes = {Path(p.path).suffix: p.name for p in intake.intake(paths, tmp_path / "a").photos}
    assert suffixes[".jpg"] == "large.jpg" and ".png" in suffixes


def test_duplicates_count_once_and_near_duplicates_stay_together(tmp_path, every_photo_has_a_face):
    paths = save_scenes(tmp_path / "in", 8)
    again = tmp_path / "in" / "photo0_copy.png"
    again.write_bytes(paths[0].read_bytes())
    burst = []
    for index, seed in enumerate((1, 1, 2)):
        burst.append(tmp_path / "in" / f"burst{index}.jpg")
        take = scene(seed, 164 + index, 124).filter(ImageFilter.GaussianBlur(0.6 + 0.2 * index))
        take.save(burst[-1], quality=70 + 5 * index)
    for seed in range(6):
        result = intake.intake([*paths, again, *burst], tmp_path / f"s{seed}", seed=seed)
        assert result.rejected == {"photo0_copy.png": "it is the same picture as photo0.png; it counts once"}
        part = {p.name: i for i, ps in enumerate((result.train, result.validation, result.held_out)) for p in ps}
        assert len(part) == 11
        assert part["photo1.png"] == part["burst0.jpg"] == part["burst1.jpg"]
        assert part["photo2.png"] == part["burst2.jpg"]
        noted = {p.name for p in result.photos if any("nearly the same" in note for note in p.notes)}
        assert noted == {"photo1.png", "photo2.png", "burst0.jpg", "burst1.jpg", "burst2.jpg"}


def test_too_few_photos_name_every_reason(tmp_path, every_photo_has_a_face):
    paths = save_scenes(tmp_path / "in", 4)
    bad = tmp_path / "in" / "notes.jpg"
    bad.write_text("hello")
    tiny = tmp_path / "in" / "tiny.png"
    scene(3, 40, 40).save(tiny)
    with pytest.raises(UserError) as caught:
        intake.intake([*paths, bad, tiny], tmp_path / "out")
    sentence = str(caught.value)
    assert sentence.startswith("Only 4 of 6 photos can be used, and at least 5 are needed.")
    assert "notes.jpg: is not a photo" in sentence and "tiny.png: the picture is too small" in sentence
    assert list((tmp_path / "out").iterdir()) == []  # nothing of the person stays


def test_none_too_many_and_one_moment(tmp_path, every_photo_has_a_face):
    with pytest.raises(UserError, match="No photos were given"):
        intake.intake([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="Remove 2"):
        intake.intake([Path("a.jpg")] * 6, tmp_path / "out", max_photos=4)
    burst = []
    for quality in range(60, 66):
        burst.append(tmp_path / f"b{quality}.jpg")
        scene(1).save(burst[-1], quality=quality)
    with pytest.raises(UserError, match="nearly the same picture"):
        intake.intake(burst, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_photos_without_a_face_are_named(tmp_path):
    paths = save_scenes(tmp_path / "in", 5)
    with pytest.raises(UserError, match=r"None of the 5 photos.*photo3\.png: no face was found"):
        intake.intake(paths, tmp_path / "out")


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch, every_photo_has_a_face):
    import errno

    def full(image, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(intake, "_write", full)
    with pytest.raises(UserError, match="disk is full"):
        intake.intake(save_scenes(tmp_path / "in", 5), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_intake_again_replaces_what_was_there(tmp_path, every_photo_has_a_face):
    intake.intake(save_scenes(tmp_path / "in", 9), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    intake.intake(save_scenes(tmp_path / "in", 5), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*(f"0{i}.png" for i in range(5)), "notes.txt"]


def test_progress_names_every_file(tmp_path, every_photo_has_a_face):
    seen: list[tuple[int, int, str]] = []
    intake.intake(save_scenes(tmp_path / "in", 5), tmp_path / "out", progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == [1, 2, 3, 4, 5] and {step[1] for step in seen} == {5}


@pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")
def test_real_photos_of_one_person(tmp_path):
    paths = gather.photo_files(PEOPLE / "p01")
    result = intake.intake(paths[:9], tmp_path / "a")
    assert not result.rejected and len(result.photos) == 9
    assert (len(result.train), len(result.validation), len(result.held_out)) == (6, 1, 2)
    assert intake.intake(list(reversed(paths[:9])), tmp_path / "b").digest == result.digest
    assert not any("nearly the same" in note for photo in result.photos for note in photo.notes)
    cut = framing.frames(result.train, aligned=True, resolution_px=128)
    assert cut.shape == (6, 128, 128, 3)
    assert all("{subject}" in text for text in captions.frame_captions(cut))


def test_however_many_photos_are_read_at_once_the_set_is_the_same(tmp_path, monkeypatch):
    sample = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
    files = [*sorted(sample.glob("*.png"))[:5], tmp_path / "broken.jpg"]
    files[-1].write_text("not a photo")
    found = {}
    for readers in (1, 4):
        monkeypatch.setattr(intake, "_readers", lambda readers=readers: readers)
        told = []
        taken = intake.intake(files, tmp_path / str(readers), progress=lambda *said, told=told: told.append(said))
        found[readers] = (taken.digest, taken.checks, list(taken.rejected), told)
    assert found[1] == found[4] and [done for done, *_ in told] == [1, 2, 3, 4, 5, 6]
