"""Laws of the files: what is written is read back as it was."""

from __future__ import annotations

import os

from pipelines.core import files


def test_names_that_are_no_utf8_are_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x99\x82.jpg")
    files.write_json(tmp_path / "a.json", {"name": name})
    files.append_line(tmp_path / "b.jsonl", {"name": name})
    assert files.read_json(tmp_path / "a.json") == {"name": name}
    assert files.read_lines(tmp_path / "b.jsonl") == [{"name": name}]
    assert (tmp_path / "a.json").read_bytes().decode() and files.printable(name) == "caf\\xe9 🙂.jpg"
