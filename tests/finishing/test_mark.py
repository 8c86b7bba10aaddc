"""Every finished file says three ways that an AI drew it; what is read back is what is there, whoever made the file."""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import socket
import stat
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.cli.entry import main
from pipelines.core.records import UserError
from pipelines.finishing import credentials, mark, watermark
from pipelines.photos.decode import decode

SAMPLE = sorted((Path(__file__).resolve().parents[2] / "presets" / "sample_person").glob("*.png"))
ENDS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "AVIF": ".avif"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))
    for name in (credentials.CERT_VARIABLE, credentials.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return decode(SAMPLE[0])


def by_name(found: mark.Verification) -> dict[str, mark.Mark]:
    return {mark.name: mark for mark in found.marks}


def saved(image: np.ndarray, path: Path, **options) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


# ------------------------------------------------------------------------------------------------- all three


@pytest.mark.parametrize("kind", ENDS)
def test_every_container_holds_all_three_marks_and_they_read_back(kind, tmp_path, portrait):
    out = tmp_path / f"portrait{ENDS[kind]}"
    made = mark.mark(portrait, out, base="portrait-128")
    assert made.credentials and made.field and made.watermark and not made.left_out
    assert made.size_bytes == out.stat().st_size
    with Image.open(out) as picture:
        assert picture.format == kind and picture.info["icc_profile"] == mark.srgb_profile()
    found = mark.verify(out)
    assert found.found and not found.tampered and [mark.generated for mark in found.marks] == [True] * 3
    said = by_name(found)
    assert said["credentials"].state == "trusted" and "self-signed" in said["credentials"].sentence
    assert "Likeness" in said["credentials"].sentence and "trainedAlgorithmicMedia" in said["field"].sentence


def test_an_unmarked_picture_has_none_and_is_not_called_a_photo(tmp_path):
    found = mark.verify(SAMPLE[1])
    assert not found.found and not any(mark.present for mark in found.marks)
    assert "does not show that it is a photo" in found.sentence


def test_reading_makes_no_certificate(home):
    mark.verify(SAMPLE[1])
    assert not home.exists()


@pytest.mark.parametrize("kind", ENDS)
def test_nothing_personal_is_in_the_file(kind, tmp_path, home, portrait):
    source = tmp_path / "Anna Privat.png"
    chunks = PngInfo()
    chunks.add_text("likeness", json.dumps({"prompt": "portrait of Anna Privat"}))
    exif = Image.Exif()
    exif[0x010E] = "Anna Privat in Rome"
    Image.fromarray(portrait).save(source, pnginfo=chunks, exif=exif)
    out = tmp_path / f"out{ENDS[kind]}"
    mark.mark(source, out, base=str(tmp_path / "models" / "anna"))
    data = out.read_bytes()
    own = [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]  # shorter ones occur by chance
    for secret in (str(tmp_path), str(home), str(Path.home()), *own, "Anna", "Privat", "Rome", "likeness\0"):
        assert secret.encode() not in data, secret
    assert b"http://cv.iptc.org" in data or kind == "AVIF"
    year = re.findall(rb"20[2-5]\d[-:][01]\d[-:][0-3]\d", data)
    assert not year, "a date would say when the picture was made"
    with Image.open(out) as picture:
        assert not picture.getexif()


def test_a_base_is_named_and_a_path_is_not(portrait):
    assert b"portrait-128" in mark.xmp_packet(base="portrait-128")
    for other in ("/models/anna", "models\\anna", "a name with words", "~x", "", 'x"><b'):
        assert mark.xmp_packet(base=other) == mark.xmp_packet()


def test_the_field_is_found_in_either_way_of_writing_it_and_other_values_are_no_ai(tmp_path, portrait):
    uri = "http://cv.iptc.org/newscodes/digitalsourcetype/"
    for packet, generated in (
        (f"<Iptc4xmpExt:DigitalSourceType>{uri}trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>", True),
        (f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{uri}compositeWithTrainedAlgorithmicMedia"/>', True),
        (f'<x Iptc4xmpExt:DigitalSourceType="{uri}digitalCapture"/>', False),
    ):
        said = by_name(mark.verify(saved(portrait, tmp_path / "x.jpg", xmp=packet.encode())))["field"]
        assert said.present and said.generated is generated, packet
    for packet in ("DigitalSourceType", f"<a>{uri}trainedAlgorithmicMedia</a>", "<!ENTITY a 'b'>" * 1000):
        assert not by_name(mark.verify(saved(portrait, tmp_path / "x.jpg", xmp=packet.encode())))["field"].present


def test_what_cannot_be_written_is_said(tmp_path, portrait, monkeypatch):
    with pytest.raises(UserError, match="can't be saved as"):
        mark.mark(portrait, tmp_path / "x.bmp")
    with pytest.raises(UserError, match="transparency"):
        mark.encode(np.dstack([portrait, portrait[:, :, :1]]), "JPEG")
    monkeypatch.setenv(credentials.CERT_VARIABLE, str(tmp_path / "none.pem"))
    made = mark.mark(portrait, tmp_path / "x.jpg")
    assert not made.credentials and made.watermark and credentials.KEY_VARIABLE in made.left_out[0]
    assert not by_name(mark.verify(tmp_path / "x.jpg"))["credentials"].present
    small = mark.mark(np.ascontiguousarray(portrait[:80, :80]), tmp_path / "small.png")
    assert not small.watermark and "no room" in " ".join(small.left_out)


# ------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize("kind", ENDS)
def test_one_changed_bit_of_the_picture_shows(kind, tmp_path, portrait):
    out = tmp_path / f"portrait{ENDS[kind]}"
    mark.mark(portrait, out)
    data = bytearray(out.read_bytes())
    pixels = {"PNG": b"IDAT", "JPEG": b"\xff\xda", "WEBP": b"VP8 ", "AVIF": b"mdat"}[kind]
    at = data.rindex(pixels) + 300
    data[at] ^= 1
    if kind == "PNG":  # its own checksum is put right, as somebody who changes a file on purpose would
        start = data.rindex(b"IDAT")
        (length,) = struct.unpack(">I", data[start - 4 : start])
        data[start + 4 + length : start + 8 + length] = struct.pack(">I", zlib.crc32(data[start : start + 4 + length]))
    out.write_bytes(bytes(data))
    found = credentials.read(out)
    assert found.state == "tampered" and any("mismatch" in code.lower() for code in found.problems)


def test_tampering_takes_the_credentials_word_away(tmp_path, portrait):
    out = tmp_path / "portrait.jpg"
    mark.mark(portrait, out)
    data = out.read_bytes()
    out.write_bytes(data.replace(b"trainedAlgorithmicMedia", b"digitalCapture\0\0\0\0\0\0\0\0\0"))
    found = mark.verify(out)
    said = by_name(found)["credentials"]
    assert said.state in ("tampered", "unreadable") and not said.generated
    assert by_name(found)["watermark"].generated and found.found


def test_another_copys_signature_is_valid_but_not_ours(tmp_path, portrait, monkeypatch):
    out = tmp_path / "portrait.jpg"
    mark.mark(portrait, out)
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "elsewhere"))
    mark.mark(portrait, tmp_path / "other.jpg")  # this copy now has a certificate of its own
    said = by_name(mark.verify(out))["credentials"]
    assert said.state == "valid" and said.generated and "not who made it" in said.sentence
    assert by_name(mark.verify(tmp_path / "other.jpg"))["credentials"].state == "trusted"


def test_a_certificate_of_ones_own_is_used_and_named(tmp_path, portrait, monkeypatch, home):
    made = credentials.self_signed()
    for name, content in (("cert.pem", made.chain), ("key.pem", made.key)):
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv(credentials.CERT_VARIABLE, str(tmp_path / "cert.pem"))
    monkeypatch.setenv(credentials.KEY_VARIABLE, str(tmp_path / "key.pem"))
    assert mark.mark(portrait, tmp_path / "x.png").credentials
    assert not (home / ".credentials").exists()
    assert credentials.read(tmp_path / "x.png").ours
    (tmp_path / "key.pem").write_bytes(credentials.self_signed().key)  # of another pair
    assert not mark.mark(portrait, tmp_path / "y.png").credentials
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UserError, match="PEM"):
        credentials.sign((tmp_path / "x.png").read_bytes(), "PNG")


def test_the_own_key_is_private_made_once_and_never_shown(home):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: credentials.identity(), range(16)))
    assert len({one.key for one in made}) == 1 and len({one.chain for one in made}) == 1
    folder = home / ".credentials"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [entry.name for entry in home.iterdir()] == [".credentials"], "nothing half made is left"
    assert "PRIVATE" not in repr(made[0])


def test_signing_and_reading_never_touch_a_network(tmp_path, portrait, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    mark.mark(portrait, tmp_path / "x.jpg")
    assert mark.verify(tmp_path / "x.jpg").found
    assert credentials.OFFLINE["verify"]["remote_manifest_fetch"] is False
    assert credentials.OFFLINE["verify"]["ocsp_fetch"] is False
    data = (tmp_path / "x.jpg").read_bytes()
    known = (b"http://ns.adobe.com", b"http://iptc.org", b"http://cv.iptc.org", b"http://www.w3.org")
    hosts = re.findall(rb"https?://[a-z0-9.]+", data)
    assert hosts and set(hosts) <= set(known), "no time stamp service, no remote manifest"


def test_hostile_files_break_nothing(tmp_path, portrait):
    good = tmp_path / "good.jpg"
    mark.mark(portrait, good)
    data = good.read_bytes()
    manifest = data.index(b"jumb")
    rng = np.random.default_rng(0)
    for number in range(6):
        broken = bytearray(data)
        for _ in range(12):
            broken[manifest + int(rng.integers(0, 3000))] = int(rng.integers(0, 256))
        (tmp_path / f"{number}.jpg").write_bytes(bytes(broken))
        assert credentials.read(tmp_path / f"{number}.jpg").state in ("tampered", "unreadable", "none")
    huge = bytearray(data)
    inner = data.index(b"jumb", manifest + 4)
    huge[inner - 4 : inner] = b"\xff\xff\xff\xff"  # a box that claims 4 GB
    (tmp_path / "huge.jpg").write_bytes(bytes(huge))
    assert credentials.read(tmp_path / "huge.jpg").state in ("trusted", "tampered", "unreadable", "none")
    for name, content in (("empty.jpg", b""), ("text.png", b"<script>alert(1)</script>")):
        (tmp_path / name).write_bytes(content)
        assert credentials.read(tmp_path / name).state == "none"
        with pytest.raises(UserError, match=name):
            mark.verify(tmp_path / name)
    with pytest.raises(UserError, match="pixels"):
        mark.verify(bomb(tmp_path / "bomb.png"))


def bomb(path: Path) -> Path:
    """A PNG that says it has 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_reader_that_hangs_or_dies_is_no_answer_and_no_crash(tmp_path, portrait, monkeypatch):
    mark.mark(portrait, tmp_path / "x.jpg")
    assert credentials.read(tmp_path / "x.jpg", timeout_s=0.001).state == "unreadable"
    monkeypatch.setattr(credentials.sys, "executable", "/bin/false")
    assert credentials.read(tmp_path / "x.jpg").state == "unreadable"
    monkeypatch.setattr(credentials.sys, "executable", str(tmp_path / "not-there"))
    said = by_name(mark.verify(tmp_path / "x.jpg"))["credentials"]
    assert said.state == "unreadable" and not said.generated


def test_a_strangers_texts_are_short_lines():
    assert credentials._one_line("a\n\x1b[31mb\u202e" + "c" * 500) == ("a [31mb " + "c" * 500)[:80]


# ------------------------------------------------------------------------------------------------- watermark


def test_the_same_picture_gets_the_same_bits_and_the_key_never_changes(portrait):
    assert np.array_equal(watermark.embed(portrait), watermark.embed(portrait.copy()))
    where, phases, amplitudes = watermark.lattice()
    assert len(where) == len(phases) == len(amplitudes) == 364
    assert phases[:3] == pytest.approx([4.99208295, 2.01804838, 0.27641965], abs=1e-6), (
        "older pictures would lose theirs"
    )


@pytest.mark.parametrize("file", SAMPLE[:3], ids=lambda file: file.stem)
def test_the_watermark_is_faint(file):
    image = decode(file)
    marked = watermark.embed(image)
    assert marked.shape == image.shape and marked.dtype == np.uint8 and not np.array_equal(marked, image)
    assert psnr_db(image, marked) >= 39.8
    assert np.abs(marked.astype(int) - image).max() <= 16


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=quality)
    return np.array(Image.open(packed).convert("RGB"))


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


CHANGES = {
    "JPEG 75": lambda image: jpeg(image, 75),
    "half the size": lambda image: resized(image, image.shape[1] // 2, image.shape[0] // 2),
    "twice the size": lambda image: resized(image, image.shape[1] * 2, image.shape[0] * 2),
    "cropped by a tenth": lambda image: np.ascontiguousarray(image[: -image.shape[0] // 10, image.shape[1] // 10 :]),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "brighter": lambda image: np.clip(image * 1.1 + 6, 0, 255).astype(np.uint8),
    "grey": lambda image: np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, axis=2),
    "screenshot": lambda image: jpeg(resized(image, image.shape[1] * 5 // 6 | 1, image.shape[0] * 5 // 6 | 1), 80),
}


@pytest.mark.parametrize("size_px", [256, 512])
@pytest.mark.parametrize("change", CHANGES)
def test_the_watermark_survives(change, size_px):
    image = resized(decode(SAMPLE[2]), size_px, size_px)
    assert not watermark.read(CHANGES[change](image)).present
    assert watermark.read(CHANGES[change](watermark.embed(image))).present


def test_pictures_of_every_shape_carry_it(portrait):
    for width, height in ((413, 531), (1584, 396), (400, 400), (1181, 1772), (128, 128)):
        assert watermark.read(watermark.embed(resized(portrait, width, height))).present, (width, height)


def test_extreme_pictures_break_nothing():
    rng = np.random.default_rng(0)
    for image in (
        np.zeros((256, 256, 3), np.uint8),
        np.full((256, 300, 3), 255, np.uint8),
        rng.integers(0, 256, (200, 256, 3)).astype(np.uint8),
    ):
        assert not watermark.read(image).present
        assert watermark.embed(image).shape == image.shape
    flat = np.full((256, 256, 3), 128, np.uint8)
    assert watermark.read(watermark.embed(flat)).present
    small = np.zeros((40, 400, 3), np.uint8)
    assert np.array_equal(watermark.embed(small), small) and watermark.read(small).reason
    assert not watermark.read(np.zeros((60, 5000, 3), np.uint8)).present


def test_no_unmarked_picture_is_called_marked_and_the_bound_is_tiny():
    assert watermark.false_alarm_bound() < 2e-6
    strengths = [watermark.read(decode(path)).strength for path in SAMPLE]
    rng = np.random.default_rng(1)
    for _ in range(20):  # noise whose spectrum falls off like a photo's
        spectrum = np.fft.rfft2(rng.standard_normal((256, 256)))
        radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]) + 1 / 256
        grey = np.fft.irfft2(spectrum / radius)
        grey = np.clip(128 + 45 * grey / grey.std(), 0, 255).astype(np.uint8)
        strengths.append(watermark.read(np.repeat(grey[:, :, None], 3, axis=2)).strength)
    assert max(strengths) < watermark.THRESHOLD - 1


def test_transparency_is_left_alone(portrait):
    alpha = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 1))
    marked = mark.with_watermark(np.dstack([portrait, alpha]))
    assert np.array_equal(marked[:, :, 3:], alpha)


# ------------------------------------------------------------------------------------------------- command line


def test_verify_on_the_command_line(tmp_path, portrait, capsys):
    out = tmp_path / "portrait.webp"
    mark.mark(portrait, out)
    assert main(["verify", str(out)]) == 0
    assert "3 of 3 marks" in capsys.readouterr().out
    assert main(["verify", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["found"] and set(said["marks"]) == set(mark.MARK_NAMES)
    assert main(["verify", str(SAMPLE[0])]) == 1
    assert main(["verify", str(tmp_path / "none.jpg")]) == 2
    (tmp_path / "text.jpg").write_text("no picture")
    assert main(["verify", str(tmp_path / "text.jpg")]) == 2


def test_a_file_does_not_say_when_it_was_made(tmp_path, portrait, monkeypatch):
    first = mark.encode(portrait, "PNG", base="portrait-128")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert mark.encode(portrait, "PNG", base="portrait-128") == first
    assert os.environ["TZ"] == "Pacific/Auckland"


# ------------------------------------------------------------------------------------------------- settings of others

A1111 = "portrait photo\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
COMFY = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 1}}})
GENERATORS = {
    "Stable Diffusion web UI (A1111)": {"parameters": A1111},
    "SwarmUI": {"parameters": json.dumps({"sui_image_params": {"prompt": "x"}})},
    "Fooocus": {"parameters": json.dumps({"prompt": "x"}), "fooocus_scheme": "fooocus"},
    "ComfyUI": {"prompt": COMFY, "workflow": json.dumps({"nodes": []})},
    "InvokeAI": {"invokeai_metadata": json.dumps({"positive_prompt": "x", "app_version": "4"})},
    "NovelAI": {"Title": "NovelAI generated image", "Software": "NovelAI", "Comment": json.dumps({"steps": 28})},
    "Likeness": {"likeness": json.dumps({"base": "portrait-128"})},
}


@pytest.mark.parametrize("program", GENERATORS)
def test_a_png_with_the_settings_of_a_generator_is_a_hint(program, tmp_path, portrait, capsys):
    chunks = PngInfo()
    for name, text in GENERATORS[program].items():
        chunks.add_text(name, text)
    path = saved(portrait, tmp_path / "picture.png", pnginfo=chunks)
    found = mark.verify(path)
    assert found.found and found.settings_of.startswith(program) and not any(each.present for each in found.marks)
    assert found.sentence.startswith("No mark says that an AI drew this picture. The file holds settings of " + program)
    assert "a hint, neither signed nor hard to change." in found.sentence and "photo" not in found.sentence
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings_of"].startswith(program)


def test_settings_in_the_exif_of_a_jpeg_or_webp_are_a_hint_too(tmp_path, portrait):
    for order in ("utf-16-be", "utf-16-le"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(order)
        assert mark.verify(saved(portrait, tmp_path / "x.jpg", exif=exif)).settings_of.startswith("Stable Diffusion")
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{COMFY}"
    assert mark.verify(saved(portrait, tmp_path / "x.webp", exif=exif)).settings_of == "ComfyUI"


def test_other_texts_are_no_hint(tmp_path, portrait):
    chunks = PngInfo()
    for name, text in {"Software": "GIMP", "Title": "Steps: 3", "parameters": "size 4", "prompt": "go on"}.items():
        chunks.add_text(name, text)
    found = mark.verify(saved(portrait, tmp_path / "x.png", pnginfo=chunks))
    assert not found.found and found.settings_of == "" and "does not show that it is a photo" in found.sentence


# ------------------------------------------------------------------------------------------------- grain


@pytest.mark.parametrize("sigma", [0, 15, 40, 80, 1000])
@pytest.mark.parametrize("quality", [75, 90, 92, 94, 95, 100])
def test_a_jpeg_with_any_grain_is_written(sigma, quality):
    grain = np.random.default_rng(0).normal(128, sigma, (512, 512, 3))
    data = mark.encode(np.clip(grain, 0, 255).astype(np.uint8), "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.size == (512, 512) and opened.info["progressive"]
