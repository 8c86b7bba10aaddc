"""Laws of what is read from folders and archives: names and sizes are checked before anything is unpacked."""

from __future__ import annotations

import stat
import struct
import subprocess
import sys
import traceback
import zipfile
import zlib
from pathlib import Path

import pytest

from pipelines.core.records import UserError
from pipelines.photos import gather, intake
from tests.photos.pictures import jpeg, scene


def zipped(path: Path, entries: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_of_photos_is_unpacked_flat_and_private(tmp_path):
    entries = {"a/me.jpg": jpeg(), "b/me.jpg": jpeg(80), "notes.txt": b"x", "__MACOSX/._me.jpg": b"x", "🙂.png": b"y"}
    all_of_it = gather.unpack(zipped(tmp_path / "all.zip", entries), tmp_path / "out")
    found = all_of_it.photos
    assert [path.name for path in found] == ["me.jpg", "me.jpg", "🙂.png"]
    assert all_of_it.left_out == {"notes.txt": gather.NO_PHOTO}
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
            gather.unpack(path, tmp_path / path.stem)
        assert str(caught.value).startswith(path.name)
    assert not (tmp_path.parent / "evil.jpg").exists()
    monkeypatch.setattr(gather, "ZIP_TOTAL_BYTES", 2 * len(jpeg()))
    with pytest.raises(UserError, match="far more"):
        gather.unpack(zipped(tmp_path / "much.zip", {f"{k}.jpg": jpeg() for k in range(4)}), tmp_path / "much")


def raw_member(
    name: bytes, data: bytes, method: int = 0, *, flags: int = 0, crc: int = 0, size: int = 4096
) -> tuple[bytes, bytes]:
    """(local header and data, central directory entry without its offset) of one member, made by hand."""
    both = struct.pack("<HHHHHIII", 20, flags, method, 0, 0x21, crc, len(data), size)
    local = b"PK\3\4" + both + struct.pack("<HH", len(name), 0) + name + data
    central = b"PK\1\2" + struct.pack("<H", 20) + both + struct.pack("<HHHHHI", len(name), 0, 0, 0, 0, 0)
    return local, central


def raw_zip(path: Path, members: list[tuple[bytes, bytes]]) -> Path:
    body, directory = b"", b""
    for local, central in members:
        name = local[30 : 30 + struct.unpack("<H", local[26:28])[0]]
        directory += central + struct.pack("<I", len(body)) + name
        body += local
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


ROOT = Path(__file__).resolve().parents[2]
SECRET = "grandmother-in-hospital"


@pytest.mark.parametrize(
    ("name", "method", "data"),
    [
        (SECRET, 8, b"\xff" * 100),  # deflate
        (SECRET, 12, b"BZh9" + b"\xff" * 100),
        (SECRET, 14, b"\x09\x04\x05\x00\xff\xff\xff\xff\xff" + b"\xff" * 100),  # LZMA
        (SECRET, 99, b"x" * 100),  # a method that nobody knows
        (SECRET, 0, b"x" * 100),  # bad CRC, cut short
        (SECRET * 40, 8, b"\xff" * 100),  # a name that no file system takes
    ],
    ids=["deflate", "bzip2", "lzma", "unknown", "crc", "name"],
)
def test_a_damaged_member_is_left_out_by_name_and_nothing_of_it_reaches_a_log(tmp_path, name, method, data):
    bad = raw_member(f"{name}.jpg".encode(), data, method, crc=1)
    alone = raw_zip(tmp_path / "alone.zip", [bad])
    with pytest.raises(UserError, match=r"^alone\.zip holds no photos that can be read") as caught:
        gather.unpack(alone, tmp_path / "alone")
    error = caught.value
    log = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert SECRET not in log.replace(str(error), "") and error.__cause__ is None
    both = raw_zip(
        tmp_path / "both.zip", [bad, raw_member(b"good.jpg", jpeg(), crc=zlib.crc32(jpeg()), size=len(jpeg()))]
    )
    found = gather.unpack(both, tmp_path / "both")
    assert [path.name for path in found.photos] == ["good.jpg"] and found.photos[0].read_bytes() == jpeg()
    assert list(found.left_out.values()) == [gather.BROKEN] and SECRET in next(iter(found.left_out))


def test_one_flat_picture_or_one_locked_member_refuses_no_zip(tmp_path):
    entries = {"flat.bmp": b"BM" + bytes(30 << 20), "me.jpg": jpeg()}
    found = gather.unpack(zipped(tmp_path / "a.zip", entries, compression=zipfile.ZIP_DEFLATED), tmp_path / "a")
    assert [path.name for path in found.photos] == ["me.jpg"] and found.left_out == {"flat.bmp": gather.TOO_TIGHT}
    assert sorted(path.name for path in (tmp_path / "a").rglob("*") if path.is_file()) == ["me.jpg"]
    locked = raw_member(b"locked.jpg", b"x" * 64, flags=1)
    with pytest.raises(UserError, match=r"locked\.jpg is locked with a password"):
        gather.unpack(raw_zip(tmp_path / "b.zip", [locked]), tmp_path / "b")


@pytest.mark.parametrize("name", ["照片" * 100 + ".jpg", "🙂" * 64 + ".jpeg", "x" * 500 + ".png", "no suffix" * 40])
def test_long_names_are_cut_by_bytes_before_their_suffix(tmp_path, name):
    found = gather.unpack(zipped(tmp_path / "a.zip", {name: jpeg()}), tmp_path / "a")
    (path,) = found.photos
    assert len(path.name.encode()) <= 200 and path.suffix == Path(name).suffix and name.startswith(path.stem)


def test_names_of_other_systems_and_broken_ones(tmp_path):
    names = ["Urlaub\\Strand\\ich.jpg", ".hidden.jpg", "Thumbs.db", "\x1b[31m.jpg"]
    found = gather.unpack(zipped(tmp_path / "a.zip", dict.fromkeys(names, jpeg())), tmp_path / "a")
    assert [path.name for path in found.photos] == ["ich.jpg", "\x1b[31m.jpg"]
    no_utf8 = raw_member(b"\xff\xfe.jpg", jpeg(), flags=0x800)
    with pytest.raises(UserError, match=r"^b\.zip is not a ZIP that can be read"):
        gather.unpack(raw_zip(tmp_path / "b.zip", [no_utf8]), tmp_path / "b")


LISTED = """
import resource, sys, time
from pathlib import Path
from pipelines.core.records import UserError
from pipelines.photos.gather import unpack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[1] + ".out"))
except UserError as problem:
    print(problem)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, time.process_time() - began)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("said", [400_000, 5])
def test_a_zip_of_400000_members_is_refused_before_they_are_listed(tmp_path, said):
    """Whatever number its last record says."""
    central = b"PK\1\2" + bytes(24) + struct.pack("<H", 5) + bytes(16) + b"%05d"
    directory = b"".join(central.replace(b"%05d", b"%05d" % (k % 100_000)) for k in range(400_000))
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, min(said, 65535), min(said, 65535), len(directory), 0, 0)
    (tmp_path / "many.zip").write_bytes(directory + end)
    code = [sys.executable, "-c", LISTED, str(tmp_path / "many.zip")]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    sentence, figures = done.stdout.strip().splitlines()
    megabytes, seconds = (float(each) for each in figures.split())
    assert sentence == "many.zip holds far more than the 200 files that are read. Send fewer."
    assert megabytes < 10 and seconds < 0.5, figures


# ------------------------------------------------------------------------------------------------------ folders


def test_a_folder_is_read_by_content_and_everything_else_is_named(tmp_path):
    for name in ("me.hif", "me.JPE", "me.dat", "noending", "me.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    (tmp_path / "sensor.dng").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "sensor.CR3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom")
    (tmp_path / "broken.jpg").write_text("oh")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x14ftypisom\0\0\0\0")
    (tmp_path / ".DS_Store").write_bytes(jpeg())
    found = gather.gather(tmp_path)
    assert {path.name for path in found.photos} == {
        "me.hif", "me.JPE", "me.dat", "noending", "me.jpg", "sensor.dng", "sensor.CR3", "broken.jpg"
    }  # fmt: skip
    assert found.told == ("Not taken, because they are no photos: clip.mp4, notes.txt.",)
    checks, _ = intake.check(found.photos)
    told = {check.name: check.text for check in checks if check.reasons == ("unreadable",)}
    assert told.keys() == {"sensor.dng", "sensor.CR3", "broken.jpg"} and "raw file" in told["sensor.CR3"]


def test_one_folder_down_is_looked_into_and_that_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "in" / "me.jpg").write_bytes(jpeg())
    found = gather.gather(tmp_path)
    assert found.photos == (tmp_path / "in" / "me.jpg",) and "those in its folder in were taken" in found.told[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "you.jpg").write_bytes(jpeg())
    with pytest.raises(UserError, match="several of its folders do: in, other. Name one of them"):
        gather.gather(tmp_path)
    (tmp_path / "top.jpg").write_bytes(jpeg())
    found = gather.gather(tmp_path)
    assert found.photos == (tmp_path / "top.jpg",) and "were not taken: in, other" in found.told[0]


def test_raw_files_beside_the_photos_are_not_counted_as_photos(tmp_path):
    for index in range(30):
        (tmp_path / f"{index:02d}.raf").write_bytes(b"FUJIFILMCCD-RAW 0201" + bytes(80))
    scene(1).save(tmp_path / "me.png")
    with pytest.raises(UserError, match=r"None of the 31 photos can be used.*00\.raf: is a raw file"):
        intake.intake(sorted(tmp_path.iterdir()), tmp_path / "set")
