"""Laws of what is read from folders and archives: names and sizes are checked before anything is unpacked."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from pipelines.core.schema import UserError
from pipelines.photos import gather
from tests.photos.pictures import jpeg


def zipped(path: Path, entries: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_of_photos_is_unpacked_flat_and_private(tmp_path):
    entries = {"a/me.jpg": jpeg(), "b/me.jpg": jpeg(80), "notes.txt": b"x", "__MACOSX/._me.jpg": b"x", "🙂.png": b"y"}
    found = gather.unpack(zipped(tmp_path / "all.zip", entries), tmp_path / "out")
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
            gather.unpack(path, tmp_path / path.stem)
        assert str(caught.value).startswith(path.name)
    assert not (tmp_path.parent / "evil.jpg").exists()
    monkeypatch.setattr(gather, "ZIP_TOTAL_BYTES", 2 * len(jpeg()))
    with pytest.raises(UserError, match="far more"):
        gather.unpack(zipped(tmp_path / "much.zip", {f"{k}.jpg": jpeg() for k in range(4)}), tmp_path / "much")
