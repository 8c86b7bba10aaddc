"""The whole job on a tiny base: the report's shape, the marks of its files, and that nothing is done twice.

Scores need faces, so these tests read the photos beside the repository and are skipped where those are absent.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.bases.registry import BASES, find_base
from pipelines.core.control import Control
from pipelines.core.files import jsonable, read_json, read_lines
from pipelines.core.records import METHODS, Event, PhotoSet, Sampling, Score, UserError
from pipelines.core.run import Run, load_photo_set, run_at
from pipelines.evaluation.facts import Worth
from pipelines.evaluation.scale import Scale
from pipelines.generation.draw import render_name
from pipelines.reports.findings import Findings, ScoredRender, verdict
from pipelines.reports.grid import TILE_PX
from pipelines.reports.page import to_html
from pipelines.reports.tables import to_csv, to_json
from pipelines.runs import jobs, replay
from pipelines.runs.compare import compare, perform
from pipelines.runs.jobspec import JobSpec, default_samplings, samplings_of
from pipelines.training.teach import Taught, in_turn
from pipelines.training.world import World
from tests.runs import PEOPLE, make_run, quick
from tests.tiny import tiny_folder

needs_people = pytest.mark.skipif(not PEOPLE.is_dir(), reason="the photos of people lie outside the repository")
SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
COLUMNS = ("none", "zero_shot", *METHODS)  # of a comparison where nobody names methods
FAST = {name: quick(name, steps=2)[name] for name in METHODS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        shutil.copy(PEOPLE / "p03" / f"{index:02d}.jpg", folder)
    (folder / "notes.jpg").write_text("not a photo")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event]]:
    """One complete comparison, judged by what is embedded (no ArcFace pack in sight)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_FACE_MODELS", str(tmp_path_factory.mktemp("no-packs")))
        out = tmp_path_factory.mktemp("runs") / "run"
        told = list(_compare(photos, out))
    return Run(out), told


def _compare(photos: Path, out: Path, **changes):
    options = {"class_word": "man", "base": str(tiny_folder("portrait")), "quality": "draft", "out": out}
    return compare(photos, **(options | {"renders": 2, "settings": FAST} | changes))


@needs_people
def test_the_report_has_its_shape(finished):
    run, told = finished
    saved = json.loads(run.report.read_text())
    assert list(saved) == ["schema", "base", "wall_s", "photos", "judges", "methods", "clip"]
    assert saved["clip"] is None, "pixel rules know all of this base's words"
    assert saved["schema"] == 1 and saved["wall_s"] > 0
    assert len(saved["photos"]["train"]) == 4 and len(saved["photos"]["held_out"]) == 1
    assert list(saved["photos"]["rejected"]) == ["notes.jpg"]
    assert list(saved["judges"]) == ["arcface-mini", "dlib"]
    assert set(saved["judges"]["dlib"]) == {"ceiling", "impostor", "threshold"}
    assert saved["judges"]["dlib"]["ceiling"] > saved["judges"]["dlib"]["threshold"]
    assert list(saved["methods"]) == list(COLUMNS)
    for name, row in saved["methods"].items():
        learned = ["steps", "train_s", "peak_mem_mb", "artifact_bytes", "trainable_params"]
        closer = [each.name for each in fields(Worth)]
        assert list(row) == [*learned, "renders", "faces_found", "refused", "identity", *closer]
        assert row["usable"] is not None and row["copies"] == 0
        assert row["renders"] == 2 and 0 <= row["faces_found"] <= 2
        assert set(row["identity"]["dlib"]) == {"mean", "best", "normalised"}
        figures = [row[key] for key in learned]
        if name == "none":
            assert figures == [None] * 5 and row["identity"]["dlib"]["normalised"] == 0.0
        elif name == "zero_shot":
            assert (row["steps"], row["trainable_params"]) == (0, 0) and 0 < row["train_s"] < 60
        else:
            assert row["steps"] == 2 and all(value > 0 for value in figures)
    assert told[-1].kind == "done" and told[-1].method is None and told[-1].path == str(run.report)


@needs_people
def test_every_column_draws_the_same_prompts_and_seeds(finished):
    run, told = finished
    names = [sorted(path.name for path in run.renders(column).glob("*.png")) for column in COLUMNS]
    assert len(names[0]) == 2 and all(each == names[0] for each in names)
    drawn = [event for event in told if event.kind == "render"]
    assert len(drawn) == 10 and {event.method for event in drawn} == set(COLUMNS)
    assert len([event for event in told if event.kind == "score"]) == 20  # two judges
    assert [event.method for event in told if event.kind == "step"] == [*METHODS] * 2  # side by side


@needs_people
def test_what_lies_in_a_run(finished):
    run, _ = finished
    with Image.open(run.grid) as grid:
        assert grid.width > 5 * TILE_PX and grid.height > 2 * TILE_PX
    rows = list(csv.DictReader(io.StringIO(run.cells.read_text())))
    assert len(rows) == 10 and all((run.folder / row["file"]).is_file() for row in rows)
    scores = read_lines(run.scores)
    assert len(scores) == 20 and all(score["similarity"] is not None or score["reason"] for score in scores)
    marks = read_json(run.marks)["dlib"]
    assert marks["ceiling"] is not None and marks["impostor"] > 0 and marks["floor"] is not None
    manifest = read_json(run.manifest)
    newest = max(p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file() and p.name != "clock.json")
    assert run.manifest.stat().st_mtime_ns == newest, "the manifest is written last"
    assert manifest["versions"]["torch"] and manifest["device"]["reason"] and manifest["peak_mem_mb"] > 0
    assert set(manifest["methods"]) == set(COLUMNS) - {"none"}
    assert all(len(method["sha256"]) == 64 for method in manifest["methods"].values())
    assert [manifest["methods"][name]["recipe"]["steps"] for name in METHODS] == [2] * 3
    assert len(manifest["renders"]) == 10 and len(manifest["samplings"]) == 2
    assert len(manifest["judges"]["dlib"]["weights_sha256"]) == 64
    assert [len(photo["sha256"]) for photo in manifest["photos"]["held_out"]] == [64]
    assert (run.method("lora") / "pytorch_lora_weights.safetensors").is_file()
    assert (run.method("textual_inversion") / "learned_embeds.safetensors").is_file()
    assert (run.method("dreambooth") / "model_index.json").is_file()
    assert read_json(run.consent)["means"] == "Python API"


@needs_people
def test_the_page_needs_nothing_from_outside(finished):
    run, _ = finished
    page = run.page.read_text()
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)[a-z]*:?//", page)
    assert "<script" not in page and "default-src 'none'" in page
    pictures = re.findall(r"<img [^>]*>", page)
    side_by_side, worst = 10, 8
    assert len(pictures) >= side_by_side + worst and len(pictures) % 2 == 0, "nearest photos come in pairs"
    assert all(re.search(r'src="data:image/png;base64,[^"]+" alt="[^"]+"', each) for each in pictures)
    assert page.count("<svg") >= 4 and 'role="img"' in page
    assert "notes.jpg was not used" in page


@needs_people
def test_pictures_are_looked_at_closely_once(finished, monkeypatch):
    run, _ = finished
    before = json.loads(run.report.read_text())["methods"]
    manifest = run.manifest.read_text()
    saved = read_json(run.folder / "closer.json")
    assert len(saved["pictures"]) == 10
    spec = jobs.load_spec(run) if run.spec.exists() else None
    assert spec is not None
    run.manifest.unlink()
    monkeypatch.setattr("pipelines.evaluation.facts.facts_of", lambda *_: pytest.fail("it was looked at before"))
    assert [event.kind for event in perform(run, spec)][-1] == "done"
    assert json.loads(run.report.read_text())["methods"] == before
    assert json.loads(run.manifest.read_text())["renders"] == json.loads(manifest)["renders"]


@needs_people
def test_no_embedding_is_written_anywhere(finished):
    """A face embedding is 128 or 512 numbers; no JSON of the run holds a list of more than a few."""
    run, _ = finished

    def longest(value: object) -> int:
        if isinstance(value, list):
            numbers = len(value) if value and all(isinstance(each, int | float) for each in value) else 0
            return max([numbers, *(longest(each) for each in value)], default=0)
        if isinstance(value, dict):
            return max((longest(each) for each in value.values()), default=0)
        return 0

    for path in [*run.folder.glob("*.json"), *run.folder.glob("*.jsonl")]:
        values = read_lines(path) if path.suffix == ".jsonl" else [read_json(path)]
        assert longest(values) < 16, path.name


@needs_people
def test_nothing_is_done_twice(finished, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path))
    copied = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*.png")}

    # complete: nothing at all happens
    told = list(_compare(photos, copied.folder))
    assert [event.kind for event in told] == ["note", "done"]

    # one picture is missing (a crash, say): that one is drawn, nobody learns again, the others are not touched
    missing = next(copied.renders("lora").glob("*.png"))
    pixels = np.asarray(Image.open(missing), np.int16)
    missing.unlink()
    told = list(_compare(photos, copied.folder))
    assert not [event for event in told if event.kind in ("step", "preview")]
    changed = [p for p, at in before.items() if p.stat().st_mtime_ns != at and p != copied.grid]
    assert changed == [missing]
    # the same seed, the same picture, up to the rounding of bfloat16 in a batch of another size
    assert np.abs(np.asarray(Image.open(missing), np.int16) - pixels).mean() < 1
    assert copied.manifest.is_file() and told[-1].kind == "done"


@needs_people
def test_pictures_of_an_earlier_training_are_kept_apart(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path))
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    base = str(tiny_folder("portrait"))
    spec = JobSpec("train", base, "man", ("lora",), "draft", settings={"lora": FAST["lora"] | {"steps": 3}})
    assert list(perform(run, spec))[-1].kind == "done"
    assert not run.manifest.exists() and not run.report.exists()  # they spoke of what was learned before

    asked = Sampling("portrait of {subject}, spaceship, =1+1", seed=5, steps=2)
    spec = JobSpec("generate", base, "man", ("none", "lora"), samplings=(asked,))
    told = list(perform(run, spec))
    assert [event.text.split(": ")[1] for event in told if "does not know" in (event.text or "")] == ["spaceship", "1"]
    assert sum(event.kind == "render" for event in told) == 2
    assert [path.name for path in run.renders("lora").glob("*.png")] == [render_name(asked)]
    assert len(list((run.renders("lora") / "earlier").glob("*.png"))) == 2
    assert len(list(run.renders("none").glob("*.png"))) == 3  # the untrained base is what it was
    rows = json.loads(run.report.read_text())["methods"]
    assert rows["none"]["renders"] == 3 and rows["lora"]["renders"] == 1 and rows["lora"]["steps"] == 3
    scored = {line["render"] for line in read_lines(run.scores)}
    assert f"renders/lora/{render_name(asked)}" in scored


@needs_people
def test_variations_are_scored_and_count_for_no_column(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path))
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    base = str(tiny_folder("portrait"))
    source = sorted(run.renders("lora").glob("*.png"))[0]
    before = read_json(run.marks)
    run.manifest.unlink()  # so that the report is written anew
    asked = Sampling("portrait of {subject}", seed=5, steps=4, source=run.relative(source), change=0.5)
    spec = JobSpec("generate", base, "man", ("none", "lora"), samplings=(asked,))
    counts = {name: json.loads(run.report.read_text())["methods"][name]["renders"] for name in ("none", "lora")}
    assert list(perform(run, spec))[-1].kind == "done"
    drawn = run.renders("none") / render_name(asked)
    scored = {line["render"] for line in read_lines(run.scores)}
    assert {f"renders/{column}/{render_name(asked)}" for column in ("none", "lora")} <= scored
    after = read_json(run.marks)
    assert {judge: found["floor"] for judge, found in after.items()} == {j: f["floor"] for j, f in before.items()}
    rows = json.loads(run.report.read_text())["methods"]
    assert {name: rows[name]["renders"] for name in counts} == counts
    saved = [each for each in json.loads(run.manifest.read_text())["samplings"] if "source" in each]
    assert saved == [jsonable(asked)] and saved[0]["change"] == 0.5
    # it is not drawn twice; it is drawn again when its source was
    first = drawn.stat().st_mtime_ns
    assert list(perform(run, spec))[-1].kind == "done" and drawn.stat().st_mtime_ns == first
    with Image.open(source) as image:
        settings = PngInfo()
        settings.add_text("likeness", image.info["likeness"])
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source, pnginfo=settings)
    assert list(perform(run, spec))[-1].kind == "done" and drawn.stat().st_mtime_ns != first
    source.unlink()
    with pytest.raises(UserError, match="not there any more"):
        list(perform(run, replace(spec, samplings=(replace(asked, seed=6),))))


@needs_people
def test_a_method_that_fails_leaves_its_row_empty_and_the_job_failed(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path))
    settings = FAST | {"lora": FAST["lora"] | {"targets": "everything"}}
    with pytest.raises(UserError, match=r"LoRA was not trained.*The report shows the others"):
        list(_compare(photos, tmp_path / "run", settings=settings, methods=("textual_inversion", "lora"), renders=1))
    saved = json.loads((tmp_path / "run" / "report.json").read_text())["methods"]
    assert list(saved) == ["none", "textual_inversion", "lora"]
    assert saved["lora"]["steps"] is None and saved["lora"]["renders"] is None
    assert saved["lora"]["identity"]["dlib"] == {"mean": None, "best": None, "normalised": None}
    assert saved["textual_inversion"]["renders"] == 1
    assert "What did not work" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["errors"]


def test_photos_are_needed(tmp_path):
    with pytest.raises(UserError, match="no photos in this run"):
        list(perform(run_at(tmp_path / "run"), JobSpec(base=str(tiny_folder("portrait")))))
    with pytest.raises(UserError, match="not trained in this run yet"):
        spec = JobSpec("generate", str(tiny_folder("portrait")), methods=("lora",), samplings=(Sampling("x"),))
        list(perform(make_run(tmp_path / "other"), spec))


def test_larger_bases_learn_one_after_another():
    row = find_base(str(tiny_folder("sd15")))
    assert not row.is_small

    def learner(name):
        yield from (Event("step", name, step, 2) for step in (1, 2))

    told = list(in_turn({name: learner(name) for name in METHODS}, Taught(), row, Control(), World()))
    assert [event.method for event in told] == [name for name in METHODS for _ in range(2)]


def test_what_a_comparison_draws_by_default():
    for row in (find_base(str(tiny_folder("portrait"))), BASES["sd15"], BASES["sdxl"], BASES["z-image"]):
        made = default_samplings(row, renders=8, seed=3)
        assert len(made) == 8 and len(set(made)) == 8
        assert [each.seed for each in made] == list(range(3, 11))
        assert all("{subject}" in each.prompt and not row.unknown_words(each.prompt) for each in made)
    own = samplings_of(BASES["sd15"], ["photo of {subject}", "{subject} smiling"], renders=3, seed=1)
    assert [(each.prompt[:5], each.seed) for each in own] == [("photo", 1), ("{subj", 2), ("photo", 3)]


def test_pictures_made_elsewhere_are_one_more_column_and_frauds_are_caught(tmp_path, monkeypatch):
    """A "method" that hands back training photos, one that hands back the base's pictures, one that makes noise."""
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    first = list(_compare(SAMPLE, tmp_path / "run", methods=("lora",)))
    run = Run(tmp_path / "run")
    frauds = {name: tmp_path / name for name in ("copier", "sleeper", "noise")}
    for folder in frauds.values():
        folder.mkdir()
    for number, photo in enumerate(load_photo_set(run).train):
        Image.open(photo.path).convert("RGB").resize((200, 200)).save(frauds["copier"] / f"{number}.jpg", quality=70)
    for render in run.renders("none").glob("*.png"):
        shutil.copy(render, frauds["sleeper"])
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    for number, picture in enumerate(noise):
        Image.fromarray(picture).save(frauds["noise"] / f"{number}.png")
    images = {name: tuple(map(str, sorted(folder.iterdir()))) for name, folder in frauds.items()}
    spec = replace(jobs.load_spec(run), images=images)
    events = list(perform(run, spec))
    assert first[-1].kind == events[-1].kind == "done"
    rows = json.loads(run.report.read_text())["methods"]
    assert list(rows) == ["none", "lora", *frauds] and rows["copier"]["train_s"] is None
    assert rows["copier"]["copies"] == rows["copier"]["renders"] and rows["copier"]["copy_score"] > 0.75
    assert rows["copier"]["memorisation_gap"] > 0
    assert rows["sleeper"]["identity"]["dlib"]["normalised"] == pytest.approx(0.0, abs=0.02)
    assert rows["sleeper"]["copies"] == 0 and rows["noise"]["usable"] == 0 and rows["noise"]["faces_found"] == 0
    page = run.page.read_text()
    assert "copier, made elsewhere" in page
    for wrong in ({"lora": ("a.png",)}, {"A b": ("a.png",)}, {"x": ()}):
        with pytest.raises(UserError, match="made elsewhere|needs 1 to 500"):
            replace(spec, images=wrong).check()


def test_a_run_is_repeated_to_the_bit_from_its_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    list(_compare(SAMPLE, tmp_path / "run", methods=("lora", "textual_inversion")))
    old = Run(tmp_path / "run")
    run, spec = replay.prepare(old.manifest, tmp_path / "again")
    assert list(perform(run, spec))[-1].kind == "done"
    before, after = (json.loads(each.manifest.read_text()) for each in (old, run))
    found = replay.differences(before, after)
    assert "consents" in before["consent"]["statement"] or "agrees" in before["consent"]["statement"]
    assert found["identical"] and found["artefacts"] == 2 and found["pictures"] == 6
    assert not any(found["different"].values()), found["different"]
    # and it says so when something differs
    after["methods"]["lora"]["sha256"] = "other"
    after["versions"]["torch"] = "9"
    first = next(iter(after["renders"]))
    after["renders"][first] = "other"
    after["report"]["methods"]["lora"]["identity"]["dlib"]["mean"] = 0.5
    told = replay.differences(before, after)
    assert not told["identical"] and told["different"]["artefacts"] == ["lora"]
    assert told["different"]["pictures"] == [first] and told["different"]["conditions"] == ["versions"]
    assert told["different"]["scores"]["lora dlib mean"][1] == 0.5
    with pytest.raises(UserError, match="no manifest"):
        replay.prepare(tmp_path / "nowhere" / "manifest.json", tmp_path / "x")
    Path(load_photo_set(old).train[0].path).unlink()
    with pytest.raises(UserError, match="no longer in the run"):
        replay.prepare(old.manifest, tmp_path / "third")


# -- the figures of a report, by hand ------------------------------------------------------------------------------


def _findings(similarities: dict[str, list[float | None]], **changes) -> Findings:
    cells = [
        ScoredRender(column, Sampling("portrait of {subject}", seed=seed), f"renders/{column}/{seed}.png",
                    (Score(f"{column}{seed}", "dlib", value, None if value is not None else "no face found"),))
        for column, values in similarities.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    none = [value or 0.0 for value in similarities["none"]]
    mark = Scale("dlib", 0.3, sum(none) / len(none), 0.6, 0.8, 0.7, 0.9, 0.45)
    found = Findings(
        "b", "B", "man", "draft", 0, 1.0, PhotoSet((), (), ()), tuple(similarities), tuple(cells), {"dlib": mark}, {}
    )
    return replace(found, **changes)


def test_a_picture_without_a_face_costs():
    found = _findings({"none": [0.1, 0.1], "lora": [0.6, None]})
    row = to_json(found)["methods"]["lora"]
    assert row["identity"]["dlib"] == {"mean": 0.3, "best": 0.6, "normalised": round(0.2 / 0.7, 4)}
    assert row["faces_found"] == 1


def test_the_verdict_says_no_more_than_the_figures():
    clear = _findings({"none": [0.0, 0.1, 0.05] * 3, "lora": [0.5, 0.6, 0.4] * 3, "dreambooth": [0.3] * 9})
    assert verdict(clear).startswith("LoRA comes closest")
    chance = _findings({"none": [0.0, 0.5, 0.1, 0.4], "lora": [0.1, 0.4, 0.1, 0.45]})
    assert "No method is clearly closer" in verdict(chance)
    assert verdict(replace(clear, marks={})) == "No method could be compared."


def test_a_tie_is_told_as_a_tie():
    near = {"none": [0.0] * 8, "lora": [0.5, 0.6] * 4, "dreambooth": [0.61, 0.48] * 4, "textual_inversion": [0.1] * 8}
    said = verdict(_findings(near))
    assert said.startswith("LoRA (0.55) and DreamBooth (0.54) come closest to the person by dlib; no difference")
    apart = verdict(_findings(near | {"dreambooth": [0.3, 0.4] * 4}))
    assert apart.startswith("LoRA comes closest to the person: mean similarity 0.55 by dlib")


def test_a_few_pictures_show_nothing():
    five = {"none": [0.0] * 5, "lora": [0.9] * 5}
    assert verdict(_findings(five)).startswith("No method is clearly closer")
    assert verdict(_findings({name: [*values, values[0]] for name, values in five.items()})).startswith("LoRA comes")


def test_a_spreadsheet_runs_nothing_that_was_typed(tmp_path):
    found = _findings({"none": [0.1]})
    cell = replace(found.cells[0], sampling=Sampling('=HYPERLINK("http://x")', "@cmd"))
    row = list(csv.DictReader(io.StringIO(to_csv(replace(found, cells=(cell,))))))[0]
    assert row["prompt"].startswith("'=") and row["negative_prompt"] == "'@cmd" and row["dlib"] == "0.1000"


def test_a_page_shows_names_as_text(tmp_path):
    run = run_at(tmp_path / "run")
    run.renders("none").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run.renders("none") / "0.png")
    evil = "<img src=x onerror=alert(1)>.jpg"
    found = _findings(
        {"none": [None]}, photo_set=PhotoSet((), (), (), rejected={evil: "<b>no face</b>"}), title="<i>B</i>"
    )
    cell = replace(found.cells[0], sampling=Sampling('"><script>alert(1)</script>'))
    page = to_html(replace(found, cells=(cell,)), run)
    assert "<script" not in page and "onerror=alert(1)>.jpg" not in page.replace("&gt;", "") and "&lt;img src=x" in page
    assert "<b>no face" not in page and "<i>B" not in page


@needs_people
def test_a_report_names_no_path_of_this_machine(finished):
    run, _ = finished
    folder = tiny_folder("portrait")
    for text in (run.report.read_text(), run.page.read_text(), run.cells.read_text(), run.figures.read_text()):
        assert str(folder) not in text and str(folder.parent) not in text and str(run.folder) not in text
    assert json.loads(run.report.read_text())["base"] == folder.name


# -- SDXL by its own row -------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_sdxl(monkeypatch):
    """The registry's row of SDXL (methods, recipes, identifier, memory) over a tiny pipeline of its classes."""
    row = replace(
        BASES["sdxl"], repo=None, revision=None, variant=None, path=str(tiny_folder("sdxl")), resolution_px=64,
        buckets=((64, 64), (96, 64)),
    )  # fmt: skip
    monkeypatch.setitem(BASES, "sdxl", row)
    return row


def quick_sdxl(*methods):
    plain = {"steps": 2, "batch": 1, "preview_every_s": 0.0, "learning_rate": 1e-2, "prior_images": 1}
    return JobSpec("train", "sdxl", "man", methods, "draft", settings=dict.fromkeys(methods, plain))


def test_dreambooth_of_sdxl_trains_saves_and_loads_in_stock_diffusers(tiny_sdxl, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from pipelines.training.subjects import load_subject

    run = make_run(tmp_path / "run")
    told = list(perform(run, quick_sdxl("dreambooth")))
    assert told[-1].kind == "done", told[-1].text
    card = load_subject(run.method("dreambooth"))
    assert card.base == "sdxl" and card.phrase == f"{tiny_sdxl.identifier} man" and card.recipe.prior_weight == 1.0
    stock = StableDiffusionXLPipeline.from_pretrained(run.method("dreambooth"))
    plain = StableDiffusionXLPipeline.from_pretrained(tiny_folder("sdxl"))
    pairs = zip(stock.unet.parameters(), plain.unet.parameters(), strict=True)
    assert all(float((one - other).detach().abs().max()) > 5e-3 for one, other in pairs), (
        "every tensor of the denoiser learned"
    )


def test_a_gpu_too_small_for_it_is_told_before_anything_is_loaded(tiny_sdxl, tmp_path, monkeypatch):
    from pipelines.bases import loading

    monkeypatch.setattr("pipelines.core.device.free_memory_gb", lambda device=None: 24.0)
    # what it computes in is counted, and depends on the machine
    monkeypatch.setattr("pipelines.core.device._cpu_has_matrix_units", lambda: False)
    loaded = []
    load = loading.load_family
    monkeypatch.setattr(loading, "load_family", lambda *args, **options: loaded.append(1) or load(*args, **options))
    run = make_run(tmp_path / "run")
    said = r"DreamBooth was not trained: it needs about 46 GB of the GPU's memory on Stable Diffusion XL, and 24.0 GB"
    with pytest.raises(UserError, match=said):
        list(perform(run, quick_sdxl("dreambooth")))
    assert not loaded and not run.method("dreambooth").exists()

    told = []
    with pytest.raises(UserError, match=said + r".* The others are trained\."):
        for event in perform(run, quick_sdxl("dreambooth", "lora")):
            told.append((event.kind, event.method, len(loaded)))
    assert ("failed", "dreambooth", 0) in told and ("done", "lora", 1) in told
