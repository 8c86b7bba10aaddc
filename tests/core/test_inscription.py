"""What a picture says about itself is read from files that anybody may have written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.core import inscription
from pipelines.core.records import Sampling

SAID = {"sampling": {"prompt": "portrait of {subject}", "seed": 7}, "base": "portrait-128", "subject": "lora-1"}


def write(path: Path, text: str) -> Path:
    chunks = PngInfo()
    chunks.add_text(inscription.TEXT_CHUNK, text)
    Image.new("RGB", (64, 64), "teal").save(path, pnginfo=chunks)
    return path


def test_it_is_read_back_and_settings_of_a_later_version_are_left_out(tmp_path):
    said: dict[str, Any] = SAID | {"sampling": SAID["sampling"] | {"of_a_later_version": 1}}  # type: ignore[operator]
    found = inscription.read(write(tmp_path / "a.png", json.dumps(said)))
    assert found == inscription.Inscription(Sampling("portrait of {subject}", seed=7), "portrait-128", "lora-1")
    untrained = SAID | {"subject": None, "source_sha256": "ab"}
    found = inscription.read(write(tmp_path / "b.png", json.dumps(untrained)))
    assert found is not None and (found.subject, found.source_sha256) == (None, "ab")


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", "[" * 5000, json.dumps({"base": "x"}), json.dumps(SAID | {"sampling": []}),
        json.dumps(SAID | {"sampling": {"prompt": ["a"]}}),
        json.dumps(SAID | {"sampling": {"prompt": "a", "steps": []}}),
        json.dumps({"sampling": {"prompt": "a"}, "subject": "x"}), json.dumps(SAID | {"more": "x" * 100_001}),
    ],
)  # fmt: skip
def test_what_is_no_inscription_is_none(tmp_path, text):
    assert inscription.read(write(tmp_path / "a.png", text)) is None


def test_a_missing_a_torn_and_a_strange_file_are_none(tmp_path):
    assert inscription.read(tmp_path / "none.png") is None and inscription.read_again(tmp_path / "none.png") is None
    whole = write(tmp_path / "a.png", json.dumps(SAID))
    torn = tmp_path / "torn.png"
    torn.write_bytes(whole.read_bytes()[:-40])
    assert inscription.read(whole, whole=True) is not None and inscription.read(torn, whole=True) is None
    (tmp_path / "b.png").write_text("no picture")
    assert inscription.read(tmp_path / "b.png") is None


def test_a_page_reads_a_file_once_until_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", json.dumps(SAID))
    reads = []
    read = inscription.read
    monkeypatch.setattr(inscription, "read", lambda file: reads.append(file) or read(file))
    first = inscription.read_again(path)
    assert inscription.read_again(path) is first and len(reads) == 1
    write(path, json.dumps(SAID | {"subject": "lora-2"}))
    os.utime(path, ns=(1, 1))
    again = inscription.read_again(path)
    assert again is not None and again.subject == "lora-2" and len(reads) == 2
