"""What the command line refuses and prints, whatever the names and whatever the terminal's encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.core.files import write_json
from pipelines.core.records import Event
from pipelines.core.run import run_at
from pipelines.runs.jobspec import JobSpec

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "presets" / "sample_person"


@pytest.fixture
def trained(tmp_path):
    """A run in which something was asked for; nothing is loaded before the arguments are found right."""
    run = run_at(tmp_path / "run")
    write_json(run.spec, JobSpec(kind="train"))
    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "500"], "Steps must be a whole number from 1 to 200, not 500."),
        (["--guidance", "51"], "Guidance must be a number from 0 to 50, not 51."),
        (["--width", "5"], "Width must be a whole number from 64 to 4096, not 5."),
        (["--prompt", "portrait of {Subject}"], "The prompt says {Subject}."),
        (["--prompt", "portrait of {}"], "The prompt says {}."),
        (["--number", "0"], "0 is not a whole number from 1"),
    ],
)
def test_generate_refuses_before_the_base_loads(trained, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("pipelines.runs.jobs.start", lambda *_: pytest.fail("a worker was started"))
    try:
        code = main(["generate", str(trained.folder), *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2 and said in capsys.readouterr().err


def test_a_prompt_without_subject_gets_it_in_front_and_says_so(trained, capsys, monkeypatch):

    started = []

    def start(run, spec):
        started.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.runs.jobs.start", start)
    main(["generate", str(trained.folder), "--prompt", "grey background"])
    assert "{subject}, grey background" in capsys.readouterr().err
    assert {each.prompt for each in started[0].samplings} == {"{subject}, grey background"}


def test_a_wrong_column_name_is_refused_before_there_is_a_run(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(next(SAMPLE.glob("*.png")).read_bytes())
    out = tmp_path / "run"
    images = f"bad name={tmp_path / 'pictures'}"
    assert main(["compare", str(SAMPLE), "--base", "portrait-128", "--images", images, "--out", str(out)]) == 2
    assert "bad name can't name a column" in capsys.readouterr().err and not out.exists()


def test_only_unreadable_pictures_are_a_failure(tmp_path, capsys):
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no picture")
    person = next(SAMPLE.glob("*.png"))
    assert main(["score", str(torn), "--against", str(person), "--judge", "dlib"]) == 1
    assert "Save it as JPEG or PNG.\n" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "said"), [(["--width", "130"], "Drawn at 128 x 128 px"), (["--width", "128"], "")])
def test_a_size_that_was_rounded_is_said(trained, capsys, monkeypatch, asked, said):
    from pipelines.core.files import append_line

    def work(run, spec):
        assert spec.samplings[0].width_px == int(asked[1])
        path = run.folder / "renders" / "none" / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (128, 128)).save(path)
        append_line(run.events, Event("render", "none", 1, 1, path="renders/none/a.png", data=spec.samplings[0]))
        return 0

    monkeypatch.setattr("pipelines.cli.generate.work", work)
    assert main(["generate", str(trained.folder), "--methods", "none", "--number", "1", *asked]) == 0
    told = capsys.readouterr()
    assert said in told.err and ("Drawn at" in told.err) == bool(said)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
@pytest.mark.parametrize("json_too", [True, False])
def test_no_name_and_no_encoding_stops_a_command(tmp_path, encoding, json_too):
    for name in ("日本 🙂.png".encode(), b"caf\xe9.png", b"red\x1b[31m.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"no picture")
    command = [sys.executable, "-m", "pipelines", "check", str(tmp_path), *(["--json"] if json_too else [])]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    assert b"\x1b" not in done.stdout and b"\x1b" not in done.stderr
    if json_too:
        names = set(json.loads(done.stdout.decode(encoding))["photos"])
        assert "日本 🙂.png" in names and len(names) == 3


@pytest.mark.parametrize("command", ["train", "compare", "replay"])
@pytest.mark.parametrize("kind", ["below a file", "long", "nothing can be made"])
def test_a_run_that_cannot_be_made_is_wrong_use_before_the_work(tmp_path, capsys, monkeypatch, command, kind):
    monkeypatch.setattr("pipelines.photos.gather.gather", lambda *_: pytest.fail("photos were read"))
    monkeypatch.setattr("pipelines.runs.replay.prepare", lambda *_: pytest.fail("a run was copied"))
    (tmp_path / "file").write_text("x")
    out = {"below a file": tmp_path / "file" / "run", "long": tmp_path / ("n" * 300)}.get(kind, Path("/proc/run"))
    given = [str(tmp_path / "manifest.json")] if command == "replay" else [str(SAMPLE), "--base", "portrait-128"]
    assert main([command, *given, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "can't be used" in said and "our fault" not in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [["generate"], ["import", "--remove", "x"], ["import", "lora.safetensors"]])
def test_a_run_that_may_not_be_written_is_wrong_use_before_the_work(trained, capsys, monkeypatch, command):
    monkeypatch.setattr("pipelines.runs.jobs.start", lambda *_: pytest.fail("a worker was started"))
    monkeypatch.setattr("pipelines.methods.imports.remove", lambda *_: pytest.fail("something was removed"))
    monkeypatch.setattr("pipelines.methods.imports.add", lambda *_, **__: pytest.fail("a file was read"))
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(trained.folder))
    assert main([command[0], str(trained.folder), *command[1:]]) == 2
    assert "this program may not write or read there" in capsys.readouterr().err
