"""The command line: help at once, nothing but JSON on stdout, exit codes 0, 1 and 2, one sentence for every problem."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli.entry import main
from pipelines.core.files import read_json
from tests.runs import PEOPLE, make_run
from tests.tiny import tiny_folder

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "generate", "finish", "score", "compare", "verify", "forget", "worker")
needs_people = pytest.mark.skipif(not PEOPLE.is_dir(), reason="the photos of people lie outside the repository")


def run_cli(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_help_is_there_at_once():
    times = []
    for command in ("--help", "compare"):
        started = time.perf_counter()
        done = run_cli(*([command] if command == "--help" else [command, "--help"]))
        times.append(time.perf_counter() - started)
        assert done.returncode == 0 and "usage: python -m pipelines" in done.stdout and done.stderr == ""
    assert min(times) < 1.5, times


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    said = capsys.readouterr()
    assert left.value.code == 0 and command in said.out
    assert "--json" in said.out or command == "worker"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["compare"],
        ["compare", "PHOTOS", "--quality", "perfect"],
        ["compare", "PHOTOS", "--class-word", "dog"],
        ["compare", "PHOTOS", "--methods", "magic"],
        ["compare", "PHOTOS", "--methods", ","],
        ["compare", "PHOTOS", "--seed", "nan"],
        ["compare", "PHOTOS", "--seed", "-1"],
        ["compare", "PHOTOS", "--set", "rank"],
        ["compare", "PHOTOS", "--set", "lora.rank=NaN"],
        ["compare", "PHOTOS", "--set", "lora.magic=1"],
        ["compare", "PHOTOS", "--base", "portrait-9000"],
        ["compare", "PHOTOS", "--base", "z-image", "--methods", "dreambooth"],
        ["compare", "PHOTOS", "--renders", "0"],
        ["compare", "PHOTOS", "--face-models", "NOWHERE"],
        ["compare", "PHOTOS", "--out", "PHOTOS"],
        ["compare", "NOWHERE"],
        ["train", "NOWHERE"],
        ["generate", "NOWHERE"],
        ["generate", "PHOTOS"],
        ["generate", "PHOTOS", "--guidance", "nan"],
        ["forget", "NOWHERE"],
        ["forget", "PHOTOS"],
        ["score", "NOWHERE", "--against", "NOWHERE"],
        ["score", "PHOTOS"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2_and_one_sentence(arguments, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("x")
    places = {"PHOTOS": str(photos), "NOWHERE": str(tmp_path / "nowhere")}
    try:
        code = main([places.get(each, each) for each in arguments])
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and said.err.strip() and "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jpg", "photos"], "nothing was made or lost"


def test_failure_is_exit_code_1_and_json_all_the_same(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    base = str(tiny_folder("portrait"))
    capsys.readouterr()  # what the libraries say when the tiny base is made
    assert main(["compare", str(photos), "--base", base, "--json"]) == 1
    said = capsys.readouterr()
    assert "holds no photos" in json.loads(said.out)["error"] and said.err.count("\n") == 1


def test_bad_photos_fail_in_words_through_the_worker(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "text.jpg").write_text("not a photo")
    (photos / "empty.png").touch()
    Image.new("RGB", (300, 300), "grey").save(photos / "grey.png")
    whole = (photos / "grey.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    base = tiny_folder("portrait")
    done = run_cli("compare", photos, "--base", base, "--quality", "draft", "--out", tmp_path / "run", "--json")
    assert done.returncode == 1
    sentence = json.loads(done.stdout)["error"]
    assert "at least 5 are needed" in sentence
    assert all(name in sentence for name in ("text.jpg", "empty.png", "grey.png", "cut.png"))
    assert "Traceback" not in done.stderr and sentence in done.stderr
    status = read_json(tmp_path / "run" / "status.json")
    assert status["state"] == "failed" and status["reason"] == sentence


@needs_people
def test_one_method_then_the_whole_job_then_more_pictures_then_forgotten(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        shutil.copy(PEOPLE / "p04" / f"{index:02d}.jpg", photos)
    run = tmp_path / "run"
    quick = [f"{name}.{change}" for name in ("textual_inversion", "lora") for change in ("steps=2", "batch=2")]
    common = [
        photos, "--class-word", "man", "--base", tiny_folder("portrait"), "--quality", "draft", "--seed", 3,
        "--out", run, *(part for change in quick for part in ("--set", change)), "--json",
    ]  # fmt: skip
    done = run_cli("train", *common, "--methods", "lora")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)["methods"]
    assert list(trained) == ["lora"] and trained["lora"]["steps"] == 2 and trained["lora"]["complete"]
    learned_at = (run / "methods" / "lora" / "subject.json").stat().st_mtime_ns

    done = run_cli(
        "compare", *common, "--methods", "textual_inversion,lora", "--renders", 1, "--face-models", tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == read_json(run / "report.json")
    assert list(report["methods"]) == ["none", "textual_inversion", "lora"]
    assert (run / "methods" / "lora" / "subject.json").stat().st_mtime_ns == learned_at, "it was learned already"
    assert read_json(run / "consent.json")["means"] == "command line: train"
    assert read_json(run / "spec.json")["seed"] == 3
    assert "drawing" in done.stderr.lower() and "Traceback" not in done.stderr

    done = run_cli(
        "generate", run, "--style", "studio-grey", "--prompt", "portrait of {subject}, blue background", "--methods",
        "none,lora", "--seed", 9, "--steps", 2, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    renders = json.loads(done.stdout)["renders"]
    assert [(each["method"], each["seed"]) for each in renders] == [("none", 9)] * 2 + [("lora", 9)] * 2
    assert all(Path(each["file"]).is_file() and set(each["similarity"]) for each in renders)

    done = run_cli("forget", run, "--json")
    assert done.returncode == 0
    receipt = json.loads(done.stdout)
    assert receipt["files"] > 20 and receipt["remaining_files"] == 0 and not run.exists()


@needs_people
def test_score_prints_what_other_programs_rely_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path))
    shutil.copy(PEOPLE / "p03" / "04.jpg", tmp_path / "same.jpg")
    shutil.copy(PEOPLE / "p01" / "00.jpg", tmp_path / "other.jpg")
    Image.new("RGB", (128, 128), "grey").save(tmp_path / "grey.png")
    against = [str(PEOPLE / "p03" / f"{index:02d}.jpg") for index in range(3)]
    images = [str(tmp_path / name) for name in ("same.jpg", "other.jpg", "grey.png")]
    assert main(["score", *images, "--against", *against, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert list(found) == ["same.jpg", "other.jpg", "grey.png"] and list(found["same.jpg"]) == ["arcface-mini", "dlib"]
    for judge in ("arcface-mini", "dlib"):
        assert found["same.jpg"][judge]["similarity"] > found["other.jpg"][judge]["similarity"]
        verdicts = [found[name][judge]["verdict"] for name in found]
        assert verdicts == ["looks like you", "someone else", "no face"]
        assert found["grey.png"][judge]["similarity"] is None
    assert all(set(one["dlib"]) == {"similarity", "verdict", "in_words", "note"} for one in found.values())
    assert main(["score", images[0], "--against", *against, "--judge", "dlib"]) == 0
    said = capsys.readouterr().out
    assert "dlib: looks like you (0." in said and "of different-person pairs" in said and "arcface" not in said
    # the same name twice: the paths as given tell them apart
    assert main(["score", images[0], against[0], "--against", str(tmp_path / "grey.png"), "--json"]) == 1
    said = capsys.readouterr()
    assert "finds no face" in said.err and "error" in json.loads(said.out)


def test_forget_prints_a_receipt_for_people(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["forget", str(run.folder)]) == 0
    assert "Removed run run: " in capsys.readouterr().out and not run.folder.exists()


def test_a_run_with_nothing_learned_can_not_generate(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["generate", str(run.folder)]) == 2
    assert "Train first" in capsys.readouterr().err


def test_a_variation_is_asked_for_by_its_source():
    from pipelines.cli.generate import samplings_of
    from pipelines.cli.parser import parser

    told = ["generate", "RUN", "--prompt", "portrait of {subject}"]
    (plain,) = samplings_of(parser().parse_args(told), "portrait-128")
    assert (plain.source, plain.change) == (None, 1.0)
    (varied,) = samplings_of(parser().parse_args([*told, "--source", "renders/lora/a.png"]), "portrait-128")
    assert (varied.source, varied.change) == ("renders/lora/a.png", 0.5)
    asked = parser().parse_args([*told, "--source", "renders/lora/a.png", "--change", "0.3"])
    assert samplings_of(asked, "portrait-128")[0].change == 0.3
