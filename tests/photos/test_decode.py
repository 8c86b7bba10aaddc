"""Laws of decoding: any file is either upright sRGB pixels or a sentence."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pipelines.core.records import UserError
from pipelines.photos import colour, decode, gather
from tests.photos.pictures import close, flag, jpeg, png_header, scene


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


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch, side):
    from PIL import ImageFile

    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UserError, match=r"bomb\.png has .*(144 megapixels|too many pixels).*40"):
        decode.decode(path)


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
        gather.photo_files(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        gather.photo_files(tmp_path / "gone")


# --------------------------------------------------------------------------------------------- hostile pictures


ROOT = Path(__file__).resolve().parents[2]
POSTSCRIPT = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
/dummy 0 def
%ImageData: 64 64 8 1 0 1 1 "image"
(RAN) print (OUT) (w) file closefile showpage
"""


@pytest.mark.parametrize("starts", ["app", "command"])
def test_from_the_start_pillow_opens_nothing_but_photos_and_never_runs_ghostscript(tmp_path, starts):
    """In a process of its own, by the very call that was unsafe: whoever opens a visitor's file by mistake."""
    (tmp_path / "photo.png").write_text(POSTSCRIPT)
    Image.new("P", (8, 8)).save(tmp_path / "old.pcx")
    start = {
        "app": "from ui.page.startup import prepare_environment; prepare_environment()",
        "command": "from pipelines.__main__ import main; main(['check', 'nowhere'])",
    }[starts]
    code = f"""
import sys
{start}
from PIL import EpsImagePlugin, Image
assert EpsImagePlugin.gs_binary is False and EpsImagePlugin.has_ghostscript() is False
for name in sys.argv[1:]:
    try:
        Image.open(name).convert("RGB")
    except Image.UnidentifiedImageError:
        print("refused")
print(*sorted(set(Image.OPEN) | set(Image.ID)))
"""
    files = [str(tmp_path / "photo.png"), str(tmp_path / "old.pcx")]
    done = subprocess.run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True, timeout=120)
    *told, formats = done.stdout.splitlines()
    assert told == ["refused", "refused"] and set(formats.split()) <= set(decode.FORMATS), done.stderr


def progressive(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `scans` of them."""
    buffer = io.BytesIO()
    scene(1, side, side).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    from PIL import ImageFile

    (tmp_path / "usual.jpg").write_bytes(progressive(10))
    (tmp_path / "many.jpg").write_bytes(progressive(64))
    for name in ("usual.jpg", "many.jpg"):
        assert decode.decode(tmp_path / name).shape == (64, 64, 3)
    (tmp_path / "bomb.jpg").write_bytes(progressive(1000, side=4096))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    (tmp_path / "large.jpg").write_bytes(progressive(64, side=4096))
    for name, said in (("bomb.jpg", "of more than 64 scans"), ("large.jpg", "of 64 scans, too many for 17 megapixels")):
        with pytest.raises(UserError, match=f"{name} is a JPEG {said}"):
            decode.decode(tmp_path / name)
    segments = b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_000 + jpeg()[2:]
    (tmp_path / "parts.jpg").write_bytes(segments)
    with pytest.raises(UserError, match=r"parts\.jpg is made of far too many parts"):
        decode.decode(tmp_path / "parts.jpg")


def test_a_thumbnail_inside_exif_and_a_second_picture_are_no_scans_of_the_first(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 200  # the bytes of a scan's start, in a description
    scene(1).save(tmp_path / "a.jpg", exif=exif)
    scene(1).save(tmp_path / "b.mpo", save_all=True, append_images=[scene(k) for k in range(70)])
    for name in ("a.jpg", "b.mpo"):
        assert decode.decode(tmp_path / name).shape == (120, 160, 3)


PEAK = """
import resource, sys
from pathlib import Path
from pipelines.photos.decode import decode
from tests.photos.pictures import scene
scene(1).save(sys.argv[1] + ".small.png"); decode(Path(sys.argv[1] + ".small.png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(decode(Path(sys.argv[1])).shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_large_grey_picture_of_16_bits_takes_little_more_memory_than_its_pixels(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((5000, 8000), 30_000, np.uint16)).save(path)
    assert path.stat().st_size < 300_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    shape, _, peak = done.stdout.strip().rpartition(" ")
    assert shape == "(5000, 8000, 3)" and int(peak) < 300, f"{peak} MB for 80 MB of values and 120 MB of pixels"


def test_a_photo_that_may_not_be_read_is_told_as_that():
    """As another user where this one may read everything; outside of tmp_path, which only this one may enter."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        flag().save(folder / "mine.png")
        (folder / "mine.png").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"^mine\.png may not be read \(permission denied\)"):
                decode.decode(folder / "mine.png")
        finally:
            os.seteuid(user)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "shown"), [
    ("\x1b[31mred.jpg", "\\x1b[31mred.jpg"), ("a\nb.jpg", "a\\nb.jpg"), (os.fsdecode(b"caf\xe9.jpg"), "caf\\xe9.jpg"),
    ("\u202egpj.exe", "\\u202egpj.exe"), ("Bild 1\u202fPM 🙂.jpg", "Bild 1\u202fPM 🙂.jpg"), ("照片.jpg", "照片.jpg"),
])  # fmt: skip
def test_names_are_told_without_what_steers_a_terminal(tmp_path, name, shown):
    try:
        (tmp_path / name).write_bytes(b"no photo")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UserError) as caught:
        decode.decode(tmp_path / name)
    assert str(caught.value) == f"{shown} is not a photo that can be read. Save it as JPEG or PNG."


# ------------------------------------------------------------------------------------------ colours and depths


PATCHES = ((200, 60, 40), (40, 180, 60), (224, 172, 140), (128, 128, 128))  # sRGB
LUMA = tuple(round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in PATCHES)


def patches(values: tuple, dtype: type = np.uint8) -> np.ndarray:
    """Four patches of 32 x 48 pixels: upper left, upper right, lower left, lower right."""
    blocks = [np.broadcast_to(np.array(value, dtype), (32, 48, *np.shape(value))) for value in values]
    return np.concatenate([np.concatenate(blocks[:2], 1), np.concatenate(blocks[2:], 1)])


def corners(path: Path) -> list[tuple[int, ...]]:
    image = decode.decode(path).astype(int)
    return [tuple(image[y, x]) for y, x in ((5, 5), (5, -6), (-6, 5), (-6, -6))]


def assert_patches(path: Path, wanted: tuple, within: int) -> None:
    wanted = tuple(value if isinstance(value, tuple) else (value,) * 3 for value in wanted)
    got = corners(path)
    assert np.abs(np.array(got) - np.array(wanted)).max() <= within, got


def linear(value: float) -> float:
    value /= 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def grey_profile() -> bytes:
    """A grey profile with a linear curve."""
    body = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061), b"curv\0\0\0\0" + struct.pack(">I", 0)
    at = 128 + 4 + 24
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", at, 20, b"kTRC", at + 20, 12)
    head = struct.pack(">I4xI4s4s4s", at + 32, 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp"
    return head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061) + bytes(48) + tags + b"".join(body)


def named(profile: bytes, name: bytes) -> bytes:
    """The same ICC profile with a description."""
    count = struct.unpack(">I", profile[128:132])[0]
    rows = [struct.unpack(">4sII", profile[132 + 12 * k : 144 + 12 * k]) for k in range(count)]
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(79)
    start = 132 + 12 * count
    table = b"".join(struct.pack(">4sII", tag, at + 12, size) for tag, at, size in rows)
    table += struct.pack(">4sII", b"desc", len(profile) + 12, len(text))
    whole = profile[:128] + struct.pack(">I", count + 1) + table + profile[start:] + text
    return struct.pack(">I", len(whole)) + whole[4:]


def test_a_profile_is_judged_by_its_numbers_and_not_by_its_name(tmp_path):
    profile = named(colour.matrix_profile(colour.SRGB_PRIMARIES, 1.0), b"GIMP built-in Linear sRGB")
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    stored = tuple(tuple(round(255 * linear(v)) for v in patch) for patch in PATCHES)
    Image.fromarray(patches(stored)).save(tmp_path / "linear.png", icc_profile=profile)
    assert_patches(tmp_path / "linear.png", PATCHES, 2)
    own = named(colour.matrix_profile(colour.SRGB_PRIMARIES, None), b"a monitor")  # sRGB by another name: untouched
    scene(1).save(tmp_path / "own.png", icc_profile=own)
    assert (decode.decode(tmp_path / "own.png") == np.asarray(scene(1))).all()


@pytest.mark.parametrize("kind", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied_to_every_kind_of_grey(tmp_path, kind):
    stored = patches(tuple(round(65535 * linear(v)) for v in LUMA), np.uint16)
    image = Image.fromarray(stored if kind == "I;16" else (stored / 257).round().astype(np.uint8))
    if kind == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "a.png", icc_profile=grey_profile())
    assert_patches(tmp_path / "a.png", LUMA, 2)


def p3(patch: tuple[int, int, int]) -> tuple[int, ...]:
    """An sRGB colour written in Display P3."""
    to_p3 = np.array([[0.82246, 0.17754, 0.0], [0.03319, 0.96681, 0.0], [0.01708, 0.07240, 0.91052]])
    light = to_p3 @ np.array([linear(v) for v in patch])
    return tuple(round(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055)) for v in light)


def with_chunk(png: Path, kind: bytes, data: bytes) -> None:
    whole = png.read_bytes()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    png.write_bytes(whole[:33] + chunk + whole[33:])


def test_display_p3_is_converted_however_the_file_says_it(tmp_path):
    image = Image.fromarray(patches(tuple(p3(patch) for patch in PATCHES)))
    image.save(tmp_path / "icc.png", icc_profile=colour.matrix_profile(colour.P3_PRIMARIES, None))
    image.save(tmp_path / "cicp.png")
    with_chunk(tmp_path / "cicp.png", b"cICP", bytes([12, 13, 0, 1]))
    image.resize((192, 128), Image.Resampling.NEAREST).save(tmp_path / "nclx.avif", quality=100, subsampling="4:4:4")
    data = (tmp_path / "nclx.avif").read_bytes()
    assert data.count(b"colrnclx") == 1  # as Pillow writes it: sRGB
    at = data.index(b"colrnclx") + 8
    (tmp_path / "nclx.avif").write_bytes(data[:at] + struct.pack(">H", 12) + data[at + 2 :])
    for name, within in (("icc.png", 3), ("cicp.png", 3), ("nclx.avif", 6)):  # AVIF rounds to 8 bits of Y, Cb and Cr
        assert_patches(tmp_path / name, PATCHES, within)


@pytest.mark.parametrize(("transfer", "word"), [(16, "PQ"), (18, "HLG")])
def test_a_high_dynamic_range_is_refused_in_a_sentence(tmp_path, transfer, word):
    flag().save(tmp_path / "hdr.png")
    with_chunk(tmp_path / "hdr.png", b"cICP", bytes([9, transfer, 0, 1]))
    with pytest.raises(UserError, match=rf"^hdr\.png is an HDR picture \({word}\)"):
        decode.decode(tmp_path / "hdr.png")


def test_adobe_rgb_is_known_by_exif_alone(tmp_path):
    profile = colour.matrix_profile(colour.ADOBE_PRIMARIES, 563 / 256)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    flag().save(tmp_path / "icc.jpg", quality=95, icc_profile=profile)
    flag().save(tmp_path / "exif.jpg", quality=95, exif=exif)
    one, other = decode.decode(tmp_path / "icc.jpg"), decode.decode(tmp_path / "exif.jpg")
    assert (one == other).all() and not close(one, np.asarray(flag()), 3)


@pytest.mark.parametrize(("dtype", "top"), [
    (np.float32, 1.0), (np.float32, 255.0), (np.float32, 65535.0), (np.int32, 255), (np.int32, 65535),
    (np.uint16, 1023), (np.uint16, 4095), (np.uint16, 16383), (np.uint16, 65535), (np.uint16, 255),
])  # fmt: skip
def test_deep_greys_are_scaled_by_the_range_that_they_use(tmp_path, dtype, top):
    values = patches(tuple(luma / 255 * top for luma in LUMA), dtype)
    if dtype is np.float32:
        values[30, 30] = np.nan
    Image.fromarray(values).save(tmp_path / "deep.tif")
    assert_patches(tmp_path / "deep.tif", LUMA, 2)


def tiff(tags: dict[int, tuple[int, tuple[int, ...]]], data: bytes) -> bytes:
    """A little-endian TIFF of one strip. {tag: (type 3 or 4, values)}."""
    tags = tags | {273: (4, (8,)), 279: (4, (len(data),))}
    at = 8 + len(data) + len(data) % 2
    rows, extra = b"", b""
    behind = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", behind + len(extra)), extra + packed
        rows += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return (
        struct.pack("<2sHI", b"II", 42, at) + data.ljust(at - 8, b"\0") + struct.pack("<H", len(tags)) + rows + bytes(4)
        + extra
    )  # fmt: skip


RGB_TIFF = {256: (4, (96,)), 257: (4, (64,)), 258: (3, (8, 8, 8)), 259: (3, (1,)), 262: (3, (2,)), 277: (3, (3,)),
            278: (4, (64,))}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), [
    ({262: (3, (6,)), 259: (3, (32946,)), 530: (3, (3, 1))}, "keeps its colours as YCbCr"),
    ({50706: (4, (1,))}, "is a raw file of a camera"),
    ({258: (3, (16, 16, 16))}, "uses only the lowest of its 16 bits"),
    ({}, None),
])  # fmt: skip
def test_tiffs_that_can_not_be_read_are_told_as_what_they_are(tmp_path, changes, words):
    pixels = np.asarray(patches(PATCHES)) if 258 not in changes else patches(PATCHES, np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(RGB_TIFF | changes, pixels.tobytes()))
    if words is None:
        assert_patches(tmp_path / "a.tif", PATCHES, 0)
    else:
        with pytest.raises(UserError, match=rf"^a\.tif {words}"):
            decode.decode(tmp_path / "a.tif")


@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_uncompressed_ycbcr_tiff_is_read(tmp_path, shared, orientation):
    """`shared`: so many pixels across and down have one Cb and one Cr, which stand behind their Y."""
    across, down = shared
    values = np.asarray(
        patches(PATCHES) if orientation == 1 else Image.fromarray(patches(PATCHES)).rotate(90, expand=True)
    )
    ycbcr = np.asarray(Image.fromarray(values).convert("YCbCr"))
    height, width = ycbcr.shape[:2]
    luma = ycbcr[..., 0].reshape(height // down, down, width // across, across).swapaxes(1, 2)
    luma = luma.reshape(height // down, width // across, down * across)
    data = np.concatenate([luma, ycbcr[::down, ::across, 1:]], -1).tobytes()
    tags = {256: (4, (width,)), 257: (4, (height,)), 278: (4, (height,)), 262: (3, (6,)), 530: (3, shared),
            274: (3, (orientation,))}  # fmt: skip
    (tmp_path / "a.tif").write_bytes(tiff(RGB_TIFF | tags, data))
    assert_patches(tmp_path / "a.tif", PATCHES, 2)


def test_a_tile_that_is_far_larger_than_its_tiff_is_not_unpacked(tmp_path):
    side, packer = 8192, zlib.compressobj()
    data = b"".join(packer.compress(bytes(side)) for _ in range(side)) + packer.flush()
    tags = {256: (3, (64,)), 257: (3, (64,)), 258: (3, (8,)), 259: (3, (8,)), 262: (3, (1,)), 277: (3, (1,)),
            322: (4, (side,)), 323: (4, (side,)), 324: (4, (8,)), 325: (4, (len(data),))}  # fmt: skip
    (tmp_path / "a.tif").write_bytes(tiff(tags, data))
    with pytest.raises(UserError, match="67 megapixels"):
        decode.decode(tmp_path / "a.tif")


@pytest.mark.parametrize(("data", "words"), [
    (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"), (b"FUJIFILMCCD-RAW 0201", "raw file"),
    (b"8BPS\0\1", "Photoshop"), (b"%PDF-1.4", "PDF"), (b"\xff\x0a\xfa", "JPEG XL"), (b"PK\3\4", "archive"),
    (b"\0\0\0\x14ftypqt  \0\0\0\0", "film"),
])  # fmt: skip
def test_what_is_no_photo_is_told_as_what_it_is(tmp_path, data, words):
    (tmp_path / "a.jpg").write_bytes(data + bytes(300))
    with pytest.raises(UserError, match=rf"^a\.jpg is .*{words}"):
        decode.decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("tag", [254, 258, 262, 281, 330, 50706])
@pytest.mark.parametrize("kind", [2, 5, 7, 11, 12])  # text, rational, bytes, float, double: none of them a whole number
def test_damaged_tags_of_a_tiff_are_no_traceback(tmp_path, tag, kind):
    data = bytearray(tiff(RGB_TIFF | {tag: (3, (1,) if tag != 258 else (8, 8, 8))}, patches(PATCHES).tobytes()))
    at = data.rindex(struct.pack("<HH", tag, 3)) + 2
    data[at : at + 2] = struct.pack("<H", kind)
    (tmp_path / "a.tif").write_bytes(data)
    try:
        assert decode.decode(tmp_path / "a.tif").shape == (64, 96, 3)
    except UserError as problem:
        assert str(problem).startswith("a.tif ")


def test_an_avif_is_read_by_a_process_of_its_own(tmp_path, monkeypatch):
    from pipelines.photos import decode as room

    Image.fromarray(np.full((48, 64, 3), 128, np.uint8)).save(tmp_path / "a.avif")
    monkeypatch.setattr(room, "_decoded", lambda file: pytest.fail("it was read in this process"))
    assert room.decode(tmp_path / "a.avif").shape == (48, 64, 3)


@pytest.mark.parametrize("gamma", [1.0, 0.55])
def test_a_png_that_tells_its_gamma_alone_is_transformed(tmp_path, gamma):
    values = (np.asarray(patches(PATCHES)) / 255.0) ** 2.2  # light; the file keeps light ** gamma
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"gAMA", struct.pack(">I", round(gamma * 100000)))
    Image.fromarray((255 * values**gamma + 0.5).astype(np.uint8)).save(tmp_path / "a.png", pnginfo=chunk)
    assert_patches(tmp_path / "a.png", PATCHES, 8)


def test_the_usual_gamma_of_a_png_changes_nothing(tmp_path):
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"gAMA", struct.pack(">I", 45455))
    Image.fromarray(patches(PATCHES)).save(tmp_path / "a.png", pnginfo=chunk)
    assert_patches(tmp_path / "a.png", PATCHES, 0)
