"""Files: what the machine refuses is told in a sentence, before the work, and nothing is lost by asking."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipelines.core import files
from pipelines.core.records import UserError
from pipelines.runs.supervisor import OURS
from pipelines.runs.worker import explain


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        files.check_target(path)
    return str(caught.value)


def test_a_good_target_is_left_as_it_is(tmp_path):
    files.check_target(tmp_path / "new" / "er" / "a.jpg")
    assert list(tmp_path.iterdir()) == []
    old = tmp_path / "b.jpg"
    old.write_bytes(b"old")
    files.check_target(old)
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_a_folder_a_file_above_and_too_long_a_name_are_refused(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    assert "folder.jpg can't be used: it is a folder" in refused(tmp_path / "folder.jpg")
    assert "file" in refused(tmp_path / "file" / "a.jpg")
    assert "the name is too long" in refused(tmp_path / ("x" * 300 + ".jpg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.jpg"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "old.jpg").write_bytes(b"x")
    (tmp_path / "old.jpg").chmod(0o400)
    assert "may not write" in refused(tmp_path / "old.jpg")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "may not write" in refused(tmp_path / "closed" / "a.jpg")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_refuses_is_told(tmp_path, monkeypatch, number):
    def touch(path, *args, **keys):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "touch", touch)
    said = refused(tmp_path / "a.jpg")
    assert said.startswith("a.jpg can't be used: ") and ".part" not in said and str(tmp_path) not in said


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENOSPC],
)
def test_what_the_machine_refuses_is_never_our_fault(number):
    error = OSError(number, os.strerror(number), "/somewhere/private/picture.jpg")
    said = explain(error)
    assert said != OURS and "private" not in said
    assert number == errno.ENOSPC or said.startswith("picture.jpg can't be used: ")


def test_the_longest_name_that_is_allowed_can_be_written(tmp_path):
    for name in ("x" * 251 + ".jpg", "肖" * 83 + ".jpg"):
        files.write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"
    assert files.sweep_partials(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 2


def test_names_that_are_no_utf8_are_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x99\x82.jpg")
    files.write_json(tmp_path / "a.json", {"name": name})
    files.append_line(tmp_path / "b.jsonl", {"name": name})
    assert files.read_json(tmp_path / "a.json") == {"name": name}
    assert files.read_lines(tmp_path / "b.jsonl") == [{"name": name}]
    assert (tmp_path / "a.json").read_bytes().decode() and files.printable(name) == "caf\\xe9 🙂.jpg"
