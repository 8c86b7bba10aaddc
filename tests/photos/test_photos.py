"""Laws of intake: any file is either a clean photo or a sentence; the split depends on the pictures alone."""

from __future__ import annotations

import io
import itertools
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipelines.core.records import Photo, UserError
from pipelines.faces.faces import Face
from pipelines.photos import captions, checks, decode, files, framing, intake, split

SHARED = Path(__file__).resolve().parents[3] / "shared"
PEOPLE = SHARED / "data" / "people"


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A smooth random picture: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def centre_face(image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    x, y = width / 2, height / 2
    eyes = np.array([(x - 20, y - 10), (x + 20, y - 10)])
    return [Face((x - 40, y - 45, x + 40, y + 45), eyes, eyes, np.array([x, y]), 1.0)]


@pytest.fixture
def every_photo_has_a_face(monkeypatch):
    monkeypatch.setattr(checks, "detect_faces", centre_face)
    monkeypatch.setattr(intake, "_recogniser", lambda: None)  # scenes show nobody


def save_scenes(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for seed in range(count):
        paths.append(folder / f"photo{seed}.png")
        scene(seed).save(paths[-1])
    return paths


def flag() -> Image.Image:
    """Left half red, right half blue, with a green bar at the top: shows any turn or mirror."""
    image = Image.new("RGB", (96, 64), (220, 20, 20))
    image.paste((20, 20, 220), (48, 0, 96, 64))
    image.paste((20, 220, 20), (0, 0, 96, 12))
    return image


def close(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(float) - b.astype(float)).mean()) < within


# ------------------------------------------------------------------------------------------------------ decode


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    # How a camera stores the upright picture so that `orientation` brings it back (EXIF 2.3, tag 274).
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    image = flag() if stored is None else flag().transpose(stored)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.jpg", quality=95, exif=exif)
    assert close(decode.decode(tmp_path / "a.jpg"), np.asarray(flag()), 6)


def test_a_phone_heic_is_turned_once(tmp_path):
    """Phones write the turn twice, in the container and in EXIF; only the first counts."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[274] = 6
    flag().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.heic", exif=exif.tobytes())
    assert b"irot" in (tmp_path / "a.heic").read_bytes()
    assert close(decode.decode(tmp_path / "a.heic"), np.asarray(flag()), 6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif", "heic", "avif"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif suffix == "avif":
        from PIL import features

        if not features.check("avif"):
            pytest.skip("this Pillow reads no AVIF")
    flag().save(path)
    assert close(decode.decode(path), np.asarray(flag()), 10)


def test_colour_kinds_become_rgb(tmp_path):
    flag().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert close(decode.decode(tmp_path / "cmyk.jpg"), np.asarray(flag()), 12)

    flag().convert("L").save(tmp_path / "grey.jpg", quality=95)
    grey = decode.decode(tmp_path / "grey.jpg")
    assert grey.shape == (64, 96, 3) and (grey[..., 0] == grey[..., 2]).all()

    ramp = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert close(decode.decode(tmp_path / "deep.png")[..., 0], ramp // 257, 1.5)

    clear = flag().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    clear.save(tmp_path / "clear.png")
    assert (decode.decode(tmp_path / "clear.png") == 255).all()

    flag().quantize(8).save(tmp_path / "palette.png")
    assert close(decode.decode(tmp_path / "palette.png"), np.asarray(flag()), 3)


def test_an_embedded_profile_is_applied(tmp_path):
    from PIL import ImageCms

    lab = ImageCms.profileToProfile(
        flag(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "lab.tiff")
    assert decode.decode(tmp_path / "lab.tiff").shape == (64, 96, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    flag().save(tmp_path / "srgb.png", icc_profile=srgb)
    assert (decode.decode(tmp_path / "srgb.png") == np.asarray(flag())).all()
    flag().save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert (decode.decode(tmp_path / "broken.png") == np.asarray(flag())).all()


def test_first_frame_of_an_animation(tmp_path):
    flag().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (96, 64), "black")])
    assert close(decode.decode(tmp_path / "a.gif"), np.asarray(flag()), 10)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` pixels and holds a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch, side):
    from PIL import ImageFile

    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UserError, match=r"bomb\.png has .*(144 megapixels|too many pixels).*40"):
        decode.decode(path)


def jpeg(quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    scene(1, 320, 240).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


BAD_FILES = {
    "text.jpg": (b"Dear diary, this is no photo.", "not a photo"),
    "empty.jpg": (b"", "is empty"),
    "cut.jpg": (jpeg()[: len(jpeg()) // 2], "damaged or cut short"),
    "cut.png": (png_header(200, 200), "damaged or cut short"),
    "head.jpg": (jpeg()[:20], "not a photo"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a photo"),
    "noise.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(range(200)), "not a photo|damaged"),
    "zeros.avif": (b"\x00\x00\x00\x1cftypavif" + bytes(200), "not a photo|damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_sentences(tmp_path, name):
    data, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        decode.decode(tmp_path / name)
    assert str(caught.value).startswith(name) and str(caught.value).endswith(".")


def test_no_cut_of_a_file_crashes(tmp_path):
    whole = {"jpg": jpeg(60)}
    for suffix in ("png", "webp", "gif"):
        buffer = io.BytesIO()
        scene(2, 48, 40).save(buffer, suffix)
        whole[suffix] = buffer.getvalue()
    for suffix, data in whole.items():
        for length in np.linspace(1, len(data) - 1, 12).astype(int):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(data[:length])
            try:
                assert decode.decode(path).dtype == np.uint8
            except UserError as problem:
                assert "cut." in str(problem)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UserError, match=path.name):
            decode.decode(path)
    with pytest.raises(UserError, match="holds no photos"):
        files.photo_files(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        files.photo_files(tmp_path / "gone")


# --------------------------------------------------------------------------------------------------------- zip


def zipped(path: Path, entries: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_of_photos_is_unpacked_flat_and_private(tmp_path):
    entries = {"a/me.jpg": jpeg(), "b/me.jpg": jpeg(80), "notes.txt": b"x", "__MACOSX/._me.jpg": b"x", "🙂.png": b"y"}
    found = files.unpack(zipped(tmp_path / "all.zip", entries), tmp_path / "out")
    assert [path.name for path in found] == ["me.jpg", "me.jpg", "🙂.png"]
    assert found[0].read_bytes() == jpeg() and stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_hostile_zips_are_sentences(tmp_path, monkeypatch):
    bomb = zipped(tmp_path / "bomb.zip", {"a.png": bytes(30 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    many = zipped(tmp_path / "many.zip", {f"{k}.jpg": b"" for k in range(201)})
    away = zipped(tmp_path / "away.zip", {"../../evil.jpg": jpeg()})
    none = zipped(tmp_path / "none.zip", {"readme.md": b"x"})
    link = tmp_path / "link.zip"
    with zipfile.ZipFile(link, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    torn = tmp_path / "torn.zip"
    torn.write_bytes(zipped(tmp_path / "whole.zip", {"a.jpg": jpeg()}).read_bytes()[:200])
    for path, words in ((bomb, "far more"), (many, "201 files"), (away, "leads out"), (none, "no photos"),
                        (link, "a link"), (torn, "not a ZIP")):  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            files.unpack(path, tmp_path / path.stem)
        assert str(caught.value).startswith(path.name)
    assert not (tmp_path.parent / "evil.jpg").exists()
    monkeypatch.setattr(files, "ZIP_TOTAL_BYTES", 2 * len(jpeg()))
    with pytest.raises(UserError, match="far more"):
        files.unpack(zipped(tmp_path / "much.zip", {f"{k}.jpg": jpeg() for k in range(4)}), tmp_path / "much")


# ------------------------------------------------------------------------------------------------------ intake


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


# ------------------------------------------------------------------------------------------------------- split


def plain(index: int) -> Photo:
    return Photo(f"{index}.png", f"{index:02d}.png", f"{index * 7919:064x}", 9, 9, (0, 0, 9, 9), ((3, 3), (6, 3)), 3.0)


@pytest.mark.parametrize("count", range(5, 31))
def test_split_sizes(count):
    train, validation, held_out = split.split_sizes(count)
    assert train + validation + held_out == count and train > held_out >= 1
    assert validation == (0 if count < 8 else 1 if count < 12 else 2)
    assert abs(held_out - count / 4) <= 0.5
    result = split.split([[plain(i)] for i in range(count)])
    assert (len(result.train), len(result.validation), len(result.held_out)) == (train, validation, held_out)
    assert result.weak == (count == 5)


def test_groups_never_cross_whatever_their_sizes():
    for sizes in itertools.product((1, 2, 5), repeat=3):
        groups, at = [], 0
        for size in sizes:
            groups.append([plain(i) for i in range(at, at + size)])
            at += size
        result = split.split(groups)
        parts = [{p.name for p in part} for part in (result.train, result.validation, result.held_out)]
        assert parts[0] and parts[2] and sum(map(len, parts)) == sum(sizes)
        for group in groups:
            assert sum(bool(part & {p.name for p in group}) for part in parts) == 1
    with pytest.raises(UserError, match="nearly the same"):
        split.split([[plain(0), plain(1)]])


def test_what_leaves_no_photo_over_is_said_without_naming_pins_nobody_set():
    groups = [[plain(0), plain(1)], [plain(2)]]
    names = [plain(index).name for index in (0, 2)]
    with pytest.raises(UserError, match="No photo is left to judge with: .*was learned from before.*pin one to be"):
        split.split(groups, trained=names)
    with pytest.raises(UserError, match="No photo is left to learn from: each is pinned to be held out, or shows the"):
        split.split(groups, held_out=names)


# ------------------------------------------------------------------------------------------------------ frames


def test_aligned_frames_put_the_eyes_on_their_points(tmp_path):
    image = np.full((300, 400, 3), 90, np.uint8)
    for x, y in ((150, 140), (225, 160)):  # red dots as eyes, tilted
        image[y - 4 : y + 5, x - 4 : x + 5] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    photo = Photo("a.png", str(tmp_path / "a.png"), "0", 400, 300, (100, 80, 280, 260), ((150, 140), (225, 160)), 77.6)
    for size in (128, 256):
        (frame,) = framing.frames([photo], aligned=True, resolution_px=size)
        assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
        red = (frame[..., 0].astype(int) - frame[..., 1]) > 90
        left = np.argwhere(red & (np.arange(size) < size / 2)).mean(0)
        right = np.argwhere(red & (np.arange(size) >= size / 2)).mean(0)
        scale = size / 128
        assert np.allclose(left, (58.5 * scale - 0.5, 49.5 * scale - 0.5), atol=1.0)
        assert np.allclose(right, (58.5 * scale - 0.5, 79.5 * scale - 0.5), atol=1.0)


@pytest.mark.parametrize("box", [(100, 80, 280, 260), (0, 0, 60, 60), (350, 250, 399, 299), (-20, -30, 300, 290)])
def test_square_frames_hold_the_face(tmp_path, box):
    image = np.full((300, 400, 3), 90, np.uint8)
    x, y = (int(np.clip((box[0] + box[2]) / 2, 5, 394)), int(np.clip((box[1] + box[3]) / 2, 5, 294)))
    image[y - 5 : y + 5, x - 5 : x + 5] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    photo = Photo("a.png", str(tmp_path / "a.png"), "0", 400, 300, box, ((150, 140), (225, 160)), 75.0)

    class Row:
        aligned = False
        resolution_px = 64

    (frame,) = framing.frames([photo], Row())
    assert frame.shape == (64, 64, 3)
    assert ((frame[..., 0].astype(int) - frame[..., 1]) > 60).any()
    with pytest.raises(ValueError, match="resolution"):
        framing.frames([photo])


def test_a_photo_keeps_the_picture_shape_nearest_to_its_own(tmp_path):
    from dataclasses import replace

    from pipelines.bases.registry import find_base

    row = replace(find_base("sdxl"), resolution_px=64, buckets=((64, 64), (80, 48)))
    shown = []
    for name, (width, height) in {"upright": (300, 480), "square": (400, 410), "wide": (480, 300)}.items():
        image = np.full((height, width, 3), 90, np.uint8)
        image[100:160, 120:180] = (255, 0, 0)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        box = (120, 100, 180, 160)
        shown.append(
            Photo(name, str(tmp_path / f"{name}.png"), "0", width, height, box, ((130, 120), (170, 120)), 40.0)
        )
    upright, square, wide = framing.crops(shown, row)
    assert upright.shape == (80, 48, 3) and square.shape == wide.shape == (64, 64, 3)
    for crop in (upright, square, wide):
        red = np.argwhere((crop[..., 0] > 200) & (crop[..., 1] < 60))
        tall, across = np.ptp(red, 0) + 1
        assert abs(tall - across) <= 2, "the face keeps its proportions"
    assert all(crop.shape == (128, 128, 3) for crop in framing.crops(shown, find_base("portrait-128")))


def test_captions_say_what_the_frame_shows():
    frame = np.full((128, 128, 3), 130, np.uint8)
    frame[100:] = (22, 28, 58)
    frame[40:80, 40:90] = (200, 150, 120)
    text = captions.frame_captions(frame[None])
    assert text == ("portrait of {subject}, grey background, navy jacket",)
    large = np.repeat(np.repeat(frame, 4, 0), 4, 1)
    assert captions.frame_captions(large[None]) == ("portrait of {subject}, grey background",)


# ------------------------------------------------------------------------------------------------- real photos


@pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")
def test_real_photos_of_one_person(tmp_path):
    paths = files.photo_files(PEOPLE / "p01")
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
