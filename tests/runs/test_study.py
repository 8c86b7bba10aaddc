"""Studies: cells that are done once, lost workers, figures checked by hand, and a matrix file that is read strictly."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.records import ALL_METHODS, Event, UserError
from pipelines.core.run import Run, load_photo_set
from pipelines.evaluation.statistics import cluster_bootstrap, holm
from pipelines.reports.study import FinishedRun, table, write_study
from pipelines.runs import jobs, study
from pipelines.runs.study import Budget, Matrix, Person, Study, Variant, read_matrix, read_people
from tests.tiny import tiny_folder

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = sorted((ROOT / "presets" / "sample_person").glob("*.png"))


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Two folders of synthetic photos."""
    folder = tmp_path_factory.mktemp("people")
    for name, files in {"a": SAMPLE[:5], "b": SAMPLE[5:10]}.items():
        (folder / name).mkdir()
        for file in files:
            shutil.copy(file, folder / name)
    (folder / "people.csv").write_text("person,class_word\na,man\nb,woman\n")
    return folder


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    prompts = [{"prompt": "portrait of {subject}, grey background", "kind": "x"},
               {"prompt": "portrait of {subject}, blue background", "kind": "x"},
               {"prompt": "portrait of {class}, grey background", "kind": "class only"}]  # fmt: skip
    (folder / "prompts.json").write_text(json.dumps({"about": "", "prompts": prompts}))
    small = {"steps": 2, "batch": 2, "checkpoint_every": 1}
    saved = {
        "base": str(tiny_folder("portrait")), "methods": {"lora": small, "textual_inversion": small},
        "budgets": [{"name": "two", "steps": 2}], "seeds": [0, 1], "render_seeds": [5],
        "prompts": [str(folder / "prompts.json")],
    }  # fmt: skip
    (folder / "matrix.json").write_text(json.dumps(saved))
    return folder / "matrix.json"


@pytest.fixture(scope="module")
def done(people, matrix, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_FACE_MODELS", str(tmp_path_factory.mktemp("no-packs")))
        said: list[str] = []
        out = tmp_path_factory.mktemp("study")
        doing = Study(read_matrix(matrix), read_people(people), out, said.append)
        finished = doing.run(at_once=2)
        yield doing, finished, said


def test_a_study_does_every_cell_and_none_twice(done):
    doing, finished, said = done
    assert not doing.failed and said[0] == "4 cells, 0 of them done already"
    assert {(c.person.name, c.seed) for c in finished} == {(p, s) for p in "ab" for s in (0, 1)}
    first, second = (c for c in finished if c.person.name == "a")
    photos = [load_photo_set(Run(c.folder)) for c in (first, second)]
    assert photos[0].digest == photos[1].digest, "every training seed learns from the same photos"
    recipes = [json.loads((c.folder / "methods/lora/subject.json").read_text())["recipe"] for c in (first, second)]
    assert [r["seed"] for r in recipes] == [0, 1]
    renders = [sorted(p.name for p in (c.folder / "renders" / "none").glob("*.png")) for c in (first, second)]
    assert renders[0] == renders[1] and len(renders[0]) == 3, "the same pictures are asked of every cell"

    (first.folder / "manifest.json").unlink()
    again: list[str] = []
    doing.tell = again.append
    before = (second.folder / "manifest.json").stat().st_mtime_ns
    trained = (first.folder / "methods/lora/subject.json").stat().st_mtime_ns
    assert len(doing.run(at_once=1)) == 4
    assert again[0] == "4 cells, 3 of them done already" and sum("is done" in line for line in again) == 1
    assert (second.folder / "manifest.json").stat().st_mtime_ns == before
    assert (first.folder / "methods/lora/subject.json").stat().st_mtime_ns == trained, "finished stages are kept"


def test_the_reports_of_a_study(done, tmp_path):
    _, finished, _ = done
    saved = write_study(
        [cell.finished for cell in finished], tmp_path, command="cmd <x>", machine="m", failed={"p x": "why <b>"}
    )
    assert saved == json.loads((tmp_path / "report.json").read_text())
    found = saved["budgets"]["two"]
    assert found["people"] == ["a", "b"] and found["prompts"] == 2 and found["render_seeds"] == 1
    assert list(found["methods"]) == ["none", "textual_inversion", "lora"]
    lines = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert len(lines) == 2 * 2 * 3 * 3 and {line["person"] for line in lines} == {"a", "b"}
    of_base = [line for line in lines if line["method"] == "none" and "{subject}" in line["prompt"]]
    by_hand = np.mean([float(line["dlib"] or 0) for line in of_base])
    assert found["methods"]["none"]["identity"]["dlib"]["mean"] == pytest.approx(by_hand, abs=1e-3)
    assert found["methods"]["none"]["renders"] == 2 * 2 * 2, "class-only pictures are no portraits of the person"
    assert len(found["pairs"]["dlib"]) == 3
    drawn = found["figures"]
    assert drawn["judge"] == next(iter(found["judges"])) and len(drawn["methods"]["none"]["similarities"]) == 8
    assert {row["column"] for row in drawn["heat"]["rows"]} <= {"none", "textual_inversion", "lora"}
    assert len(found["worst"]) == 8 and all(each["method"] != "none" for each in found["worst"])
    page = (tmp_path / "report.html").read_text()
    assert "cmd &lt;x&gt;" in page and "why &lt;b&gt;" in page and "http" not in page.split("</style>")[1]
    assert r"\toprule" in (tmp_path / "table.tex").read_text()


def test_a_plan_counts_cells_and_hours_and_starts_nothing(people, tmp_path, capsys):
    from pipelines.__main__ import main

    saved = {"methods": {"zero_shot": {}, "lora": {}, "dreambooth": {}}, "seeds": [0, 1, 2],
             "budgets": [{"name": "time", "seconds": 100}, {"name": "steps", "steps": 300}]}  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(saved))
    asked = ["compare", str(people), "--matrix", str(tmp_path / "m.json"), "--out", str(tmp_path / "out"), "--plan"]
    assert main([*asked, "--jobs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    time, steps = found["conditions"]
    assert found["people"] == 2 and (time["cells"], time["done"]) == (6, 0)
    assert time["hours"] == round(6 * 2 * 100 / 3600, 2), "two methods train; the instant one takes no time"
    assert steps["hours"] > 0 and found["hours"] == pytest.approx((time["hours"] + steps["hours"]) / 2, abs=0.01)
    assert not (tmp_path / "out").exists()
    assert main(asked) == 0 and "12 cells of 2 people, 0 of them done" in capsys.readouterr().out


def test_a_plan_goes_by_what_finished_cells_took(people, tmp_path, capsys, monkeypatch):
    from pipelines.__main__ import main

    (tmp_path / "m.json").write_text(json.dumps({"methods": {"lora": {}}, "budgets": [{"name": "few", "steps": 3}]}))
    monkeypatch.setattr(study.Cell, "is_done", property(lambda cell: cell.seed == 0))
    for person in "ab":
        folder = tmp_path / "out" / person / "few-seed0"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"wall_s": 1800 if person == "a" else 5400}))
    asked = ["compare", str(people), "--matrix", str(tmp_path / "m.json"), "--out", str(tmp_path / "out"), "--plan"]
    assert main([*asked, "--json"]) == 0
    (few,) = json.loads(capsys.readouterr().out)["conditions"]
    assert (few["cells"], few["done"], few["hours"]) == (6, 2, 4.0), "4 cells of an hour each"


def test_everybody_is_as_often_among_the_others(people):
    many = [Person(f"p{k}", "man", (Path(f"{k}.png"),)) for k in range(20)]
    seen = [other.name for person in many for other in study.others(person, many)]
    assert {seen.count(person.name) for person in many} == {study.OTHERS}
    assert all(person not in study.others(person, many) for person in many)
    assert {len(study.others(person, many[:4])) for person in many[:4]} == {3}


def test_what_people_csv_states_about_people_is_kept(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copy(SAMPLE[0], tmp_path / name)
    (tmp_path / "people.csv").write_text("person,class_word,note,skin\na,man,x,dark\nb,woman,y,\n")
    first, second = read_people(tmp_path)
    assert first.traits == {"class_word": "man", "skin": "dark"} and second.traits == {"class_word": "woman"}


def test_a_lost_worker_is_started_once_more(people, matrix, tmp_path, monkeypatch):
    started: list[str] = []

    def lost(self, folder, spec):
        started.append(folder.name)
        return jobs.JobStatus("interrupted" if len(started) == 1 else "failed", reason="no disk")

    monkeypatch.setattr(Study, "_worker", lost)
    said: list[str] = []
    doing = Study(read_matrix(matrix), read_people(people, ["a"]), tmp_path, said.append)
    assert doing.run() == [] and started == ["two-seed0", "two-seed0", "two-seed1"]
    assert any("starting it again" in line for line in said) and set(doing.failed.values()) == {"no disk"}


def test_seconds_become_steps(people, matrix, tmp_path, monkeypatch):
    wanted = Matrix((Budget("time", seconds=30),), methods={"lora": {}, "dreambooth": {}}, seeds=(0,))
    person = Person("p", "man", ())
    (cell,) = study.cells(wanted, [person], tmp_path, {"": {"lora": 0.5, "dreambooth": 0.25}})
    assert cell.spec.settings["lora"]["steps"] == 60 and cell.spec.settings["dreambooth"]["steps"] == 120
    timed = Study(Matrix((Budget("time", seconds=1),), base=str(tiny_folder("portrait")), methods={"lora": {}}),
                  read_people(people, ["a"]), tmp_path, print)  # fmt: skip
    first = timed._pace(2)
    assert 0 < first[""]["lora"] < 10 and not list(tmp_path.glob(".timing*"))
    assert timed._pace(2) == first, "measured once"
    asked = []
    timed._time = lambda variant, at_once: asked.append(at_once) or {"lora": 1.0}
    assert timed._pace(1) == {"": {"lora": 1.0}} and asked == [1], "another number of jobs is another pace"


def test_looks_count_in_the_time_of_a_step():
    seconds = [0.5 * step + (6.0 if step == study.TIMED_STEPS else 0.0) for step in range(1, study.TIMED_STEPS + 1)]
    events = [Event("step", "lora", step, seconds=at) for step, at in enumerate(seconds, start=1)]
    assert study._per_step(events, {"lora": 60})["lora"] == pytest.approx(0.5 + 6.0 / 60)
    assert study._per_step(events, {"lora": 0})["lora"] == pytest.approx(0.5)


def test_recipes_are_crossed_with_budgets(tmp_path):
    wanted = Matrix(
        (Budget("few", steps=2), Budget("more", steps=3)), methods={"lora": {"rank": 4}}, seeds=(0,),
        recipes=(Variant("plain"), Variant("fast", {"lora": {"learning_rate": 0.01}})),
    )  # fmt: skip
    made = study.cells(wanted, [Person("p", "man", ())], tmp_path, {})
    assert [cell.condition for cell in made] == ["few-plain", "few-fast", "more-plain", "more-fast"]
    assert [cell.folder.name for cell in made] == [f"{cell.condition}-seed0" for cell in made]
    assert [cell.spec.settings["lora"].get("learning_rate") for cell in made] == [None, 0.01, None, 0.01]
    assert all(cell.spec.settings["lora"]["rank"] == 4 for cell in made)


def test_a_cell_knows_photos_of_other_people_and_what_no_recogniser_judges(people, tmp_path):
    wanted = Matrix((Budget("few", steps=2),), prompts=("fastcomposer-40",), seeds=(0,))
    first, second = study.cells(wanted, read_people(people), tmp_path, {})
    assert [Path(each).parent.name for each in (*first.spec.others, *second.spec.others)] == ["b", "a"]
    assert len(first.spec.stylised) == 10 and all("{subject}" in prompt for prompt in first.spec.stylised)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": [{"name": "x"}]}, "says either steps, seconds or quality"),
        ({"budgets": [{"name": "x", "steps": 3, "seconds": 4}]}, "says either steps"),
        ({"budgets": [{"name": "x", "steps": -1}]}, "above 0"),
        ({"budgets": [{"name": "x", "steps": 3}, {"name": "x", "steps": 4}]}, "one name"),
        ({"budgets": []}, "at least one budget"),
        ({"people_": 1}, "unknown parts: people_"),
        ({"methods": {"magic": {}}}, "no method magic"),
        ({"methods": {"lora": {"rank": -1}}}, "rank must be"),
        ({"prompts": ["nowhere"]}, "no prompt set nowhere"),
        ({"recipes": [{"name": "x", "settings": {"dreambooth": {}}}]}, "changes dreambooth, which the matrix does not"),
        ({"recipes": [{"name": "x", "settings": {"lora": {"rank": -1}}}]}, "rank must be"),
        ({"recipes": [{"name": "../x"}]}, "can't name a folder"),
    ],
)
def test_a_wrong_matrix_is_a_sentence(matrix, tmp_path, changes, says):
    file = tmp_path / "m.json"
    file.write_text(json.dumps(json.loads(matrix.read_text()) | changes))
    with pytest.raises(UserError, match=says):
        read_matrix(file)


@pytest.mark.parametrize("text", ["[", "[]", ""])
def test_a_file_that_is_no_matrix_is_a_sentence(tmp_path, text):
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(UserError, match="not a matrix file"):
        read_matrix(file)


def test_the_shipped_studies_and_prompt_sets_are_whole():
    from pipelines.bases.registry import find_base
    from pipelines.core import presets

    for file in sorted((ROOT / "presets" / "studies").glob("*.json")):
        assert read_matrix(file).budgets
    full = read_matrix(ROOT / "presets" / "studies" / "portrait-128-full.json")
    assert set(full.methods) == set(ALL_METHODS) and len(full.seeds) == 3 and len(full.budgets) == 3
    assert len({s.prompt for s in full.samplings("man", find_base("portrait-128")) if "{subject}" in s.prompt}) == 10
    sizes = {file.stem: len(presets.prompts(file.stem)) for file in (ROOT / "presets" / "prompts").glob("*.json")}
    assert sizes == {"fastcomposer-40": 40, "stress-10": 10, "drift-5": 5, "portrait-128": 13, "validation": 4}
    chosen_by = {each.prompt for each in presets.prompts("validation")}
    reported = {each.prompt for name in sizes if name != "validation" for each in presets.prompts(name)}
    assert not chosen_by & reported, "what a checkpoint is chosen by is never reported"
    kinds = [each.kind for each in presets.prompts("fastcomposer-40")]
    assert all(kinds.count(kind) == 10 for kind in ("accessory", "style", "action", "context"))
    row = find_base("portrait-128")
    for each in presets.prompts("portrait-128"):
        assert row.unknown_words(each.prompt.replace("{class}", "man")) == []
    with pytest.raises(UserError, match="no folder of photos named zz"):
        read_people(ROOT / "presets", ["zz"])


# -- statistics by hand --------------------------------------------------------------------------------------------


def test_the_cluster_bootstrap_knows_how_many_witnesses_there_are():
    rng = np.random.default_rng(0)
    effect = rng.normal(0.1, 0.1, (6, 3, 10, 1))
    alone, repeated = cluster_bootstrap(effect), cluster_bootstrap(effect.repeat(8, 3))
    assert alone.difference == pytest.approx(effect.mean()) and alone.low < alone.difference < alone.high
    assert (repeated.low, repeated.high) == (alone.low, alone.high), "more pictures of one prompt are no more witnesses"
    assert alone.p < 0.05 and cluster_bootstrap(effect - effect.mean()).p > 0.5
    one = cluster_bootstrap(np.full((1, 1, 1, 4), 0.3))
    assert one.low == one.high == pytest.approx(0.3)
    missing = effect.copy()
    missing[0] = np.nan
    assert cluster_bootstrap(missing).difference < alone.difference, "no face counts as 0"
    with pytest.raises(ValueError, match="people, seeds, prompts, pictures"):
        cluster_bootstrap(np.zeros((3, 4)))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5] and holm([0.6, 0.7]) == [1.0, 1.0]


# -- more than one machine -----------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_ray_nodes_give_the_same_results_and_a_lost_one_is_made_up_for(people, matrix, done, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")
    import threading
    import time

    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    engine = study.RayEngine(cluster.address)
    try:
        assert engine.at_once == 2
        said: list[str] = []
        doing = Study(read_matrix(matrix), read_people(people), tmp_path / "out", said.append, engine=engine)

        def lose_a_machine() -> None:
            while not list((tmp_path / "out").glob("*/*/events.jsonl")):
                time.sleep(0.2)
            time.sleep(2)
            cluster.remove_node(second, allow_graceful=False)

        threading.Thread(target=lose_a_machine, daemon=True).start()
        finished = doing.run(at_once=2)
    finally:
        engine.close()
        cluster.shutdown()
    assert not doing.failed and len(finished) == 4
    _, local, _ = done
    for here, there in zip(local, finished, strict=True):
        before, after = (json.loads((c.folder / "manifest.json").read_text()) for c in (here, there))
        assert before["renders"] == after["renders"], "the same cells, the same pictures"
        assert {n: m["sha256"] for n, m in before["methods"].items()} == {
            n: m["sha256"] for n, m in after["methods"].items()
        }


def test_a_study_whose_pictures_were_refused_says_so(tmp_path):
    """Methods are compared picture by picture: a gap is no zero."""
    (tmp_path / "report.json").write_text(json.dumps({"methods": {"none": {"refused": 0}, "lora": {"refused": 2}}}))
    with pytest.raises(UserError, match="refused 2 pictures of two"):
        table([FinishedRun("a", "two", 0, tmp_path)])
