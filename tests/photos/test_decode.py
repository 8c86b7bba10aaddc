"""Laws of decoding: any file is either upright sRGB pixels or a sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.core.schema import UserError
from pipelines.photos import decode, gather
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
