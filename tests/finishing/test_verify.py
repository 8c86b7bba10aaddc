"""`verify` on anything: an answer or one sentence, never a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pipelines.core.records import UserError  # noqa: E402
from pipelines.finishing import credentials, mark  # noqa: E402

pytestmark = pytest.mark.slow
HEADS = (b"\xff\xd8\xff\xe0\x00\x10JFIF\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a",
         b"II*\0", b"MM\0*", b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypheic", b"BM")  # fmt: skip
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")


def read_here(path: Path, *, timeout_s: float = 0.0) -> credentials.Credentials:
    """`credentials.read` without the child process, which takes longer than everything else together."""
    try:
        return credentials.Credentials(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in credentials._read_here(path, "").items()}
        )
    except Exception:  # what ends the child
        return credentials.Credentials("unreadable")


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> list[bytes]:
    """A small picture with all marks, in every format."""
    folder = tmp_path_factory.mktemp("marked")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(pixels).resize((128, 128)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_HOME", str(folder))
        for kind, ends in mark.FORMATS.items():
            mark.mark(image, folder / f"{kind}{ends[0]}", format_name=kind)
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]


def answered(data: bytes, folder: Path) -> None:
    path = folder / "picture.bin"
    path.write_bytes(data)
    try:
        found = mark.verify(path)
    except UserError as problem:
        said = [str(problem)]
    else:
        said = [found.sentence, *(each.sentence for each in found.marks)]
        assert isinstance(found.found, bool) and len(found.marks) == 3
    for sentence in said:
        assert sentence.isprintable() and "fault" not in sentence and "Traceback" not in sentence, sentence
        assert len(sentence) < 700, sentence


anything = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(credentials, "read", read_here)


@anything
@given(head=st.sampled_from((b"", *HEADS)), rest=st.binary(max_size=2000))
def test_any_bytes(tmp_path, head, rest):
    answered(head + rest, tmp_path)


@anything
@given(
    which=st.integers(0, 3), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    end=st.one_of(st.just(1.0), st.floats(0.01, 1)),
)  # fmt: skip
def test_a_marked_file_with_changed_bytes(tmp_path, marked, which, changes, end):
    data = bytearray(marked[which][: max(1, int(end * len(marked[which])))])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    answered(bytes(data), tmp_path)


names = st.one_of(
    st.sampled_from(
        ("parameters", "prompt", "workflow", "invokeai_metadata", "Software", "likeness", "XML:com.adobe.xmp"),
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=79),
)  # fmt: skip


@anything
@given(texts=st.lists(st.tuples(names, st.text(max_size=400)), max_size=6), compressed=st.booleans())
def test_a_png_with_any_texts(tmp_path, texts, compressed):
    chunks = PngInfo()
    for name, text in texts:
        chunks.add_itxt(name, text, zip=compressed)
    out = io.BytesIO()
    Image.new("RGB", (40, 40)).save(out, "PNG", pnginfo=chunks)
    answered(out.getvalue(), tmp_path)


@anything
@given(mode=st.sampled_from(MODES), wide=st.integers(1, 300), high=st.integers(1, 300), level=st.integers(0, 255))
def test_any_size_and_mode(tmp_path, mode, wide, high, level):
    out = io.BytesIO()
    Image.new("L", (wide, high), level).convert(mode if mode != "I;16" else "I").convert(mode).save(out, "PNG")
    answered(out.getvalue(), tmp_path)


def test_the_same_with_the_reader_of_its_own_process(tmp_path, marked, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))
    for number, data in enumerate(marked):
        for seed in range(4):
            rng = np.random.default_rng([number, seed])
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 6):
                broken[place] = rng.integers(0, 256)
            answered(bytes(broken), tmp_path)
