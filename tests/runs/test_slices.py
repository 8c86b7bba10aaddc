"""Laws of slices: a job cut as small as can be ends, with what it gives in one go, and no slice overstays by much."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.bases import sampling as sampler
from pipelines.core.files import read_json, read_lines
from pipelines.core.records import Event, Finish, Look, Sampling, Watch
from pipelines.core.run import Run, run_at, save_photo_set
from pipelines.evaluation import facts, references
from pipelines.finishing import stage
from pipelines.photos import intake
from pipelines.runs import jobs, worker
from pipelines.runs.compare import perform
from pipelines.runs.jobs import enqueue, read_status, status
from pipelines.runs.jobspec import JobSpec
from pipelines.runs.ledger import Ledger
from pipelines.runs.prepare import Resident
from pipelines.training import previews
from pipelines.training.batches import Batches
from pipelines.training.subjects import load_subject
from pipelines.training.watch import STRENGTHS
from tests.runs import quick
from tests.tiny import tiny_folder

SAMPLE = sorted((Path(__file__).resolve().parents[2] / "presets" / "sample_person").glob("*.png"))
STEPS, PRIOR = 3, 4
PLAN = tuple(Sampling("portrait of {subject}", steps=steps, seed=1) for steps in (2, 3))  # never in one batch
SETTINGS = {
    # a look after every step but the first, and one of five strengths at the end
    **quick("lora", steps=STEPS, watch_every=2, choose_strength=True, ema=0.5),
    **quick("dreambooth", steps=STEPS, prior_weight=1.0, prior_images=PRIOR, watch_every=2),
}
WATCHED = ("portrait of {subject}", "portrait of {subject}, grey background")


@pytest.fixture(scope="module")
def taken_in(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The sample person's photos, taken in once for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKENESS_FACE_MODELS", str(tmp_path_factory.mktemp("no-packs")))
        run = run_at(tmp_path_factory.mktemp("photos") / "run")
        save_photo_set(run, intake.intake(SAMPLE[:5], run.photos, seed=0, keep=[each.name for each in SAMPLE]))
    return run


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data root; slices in this process share the resident base, which costs nothing but time."""
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    resident = Resident()
    monkeypatch.setattr(worker, "Resident", lambda: resident)
    # what a look sees follows from the pictures, without a face in them
    monkeypatch.setattr(
        "pipelines.evaluation.validation.watch", lambda album, row=None: Watch("brightness", WATCHED, brightness)
    )
    return tmp_path


def brightness(frames: np.ndarray) -> Look:
    value = float(frames.mean()) / 255
    return Look(value, value, None, 0.0)


def a_run(taken_in: Run, folder: Path) -> Run:
    return Run(shutil.copytree(taken_in.folder, folder))


def compare_spec() -> JobSpec:
    """LoRA with chosen strength, DreamBooth with prior preservation, and pictures with a face made elsewhere."""
    images = {"elsewhere": tuple(str(path) for path in SAMPLE[5:7])}
    return JobSpec(
        "compare", str(tiny_folder("portrait")), "woman", ("lora", "dreambooth"), "draft", samplings=PLAN,
        settings=SETTINGS, images=images,
    )  # fmt: skip


def in_slices(run: Run, spec: JobSpec, *, over: Callable[[], bool] = lambda: True, at_most: int) -> list[list[Event]]:
    """What each slice told. Every slice brings something."""
    enqueue(run, spec, owner="anna", serve=False)
    told: list[list[Event]] = []
    while status(run).waits:
        assert len(told) < at_most, "it does not end"
        before, first = read_status(run).kept, len(jobs.events(run))
        worker.work_slice(run, over=over)
        told.append(jobs.events(run, first))
        assert read_status(run).kept > before or status(run).state == "done", status(run)
    assert status(run).state == "done" and Ledger(run.folder.parent).unfinished() == []
    return told


def outcome(run: Run) -> dict[str, object]:
    """Everything a comparison gives, but for times."""
    learned = {name: load_subject(run.method(name)) for name in ("lora", "dreambooth")}
    looks = {name: read_json(run.method(name) / "watch.json") for name in learned}
    for seen in looks.values():
        for look in seen["looks"]:
            del look["seconds"]
    report = read_json(run.report)["methods"]
    for row in report.values():
        for figure in ("train_s", "peak_mem_mb"):
            row.pop(figure)
    return {
        "learned": {name: (card.sha256, card.steps, card.complete) for name, card in learned.items()},
        "looks": looks,
        "strengths": read_json(run.method("lora") / "strengths.json"),
        "pictures": {run.relative(path): path.read_bytes() for path in sorted(run.folder.glob("renders/*/*.png"))},
        "scores": read_lines(run.scores),
        "marks": read_json(run.marks),
        "closer": read_json(run.folder / "closer.json"),
        "report": report,
    }


def test_a_comparison_in_the_smallest_slices_is_equal_to_one_in_one_go(root, taken_in):
    spec, whole, sliced = compare_spec(), a_run(taken_in, root / "whole"), a_run(taken_in, root / "sliced")
    assert list(perform(whole, spec))[-1].kind == "done"
    units = Counter(
        steps=2 * STEPS,
        looks=2 * 2,  # at step 2 and at the last
        strengths=len(STRENGTHS),
        class_images=PRIOR // 2,  # in batches of two
        artefacts=2,
        pictures=3 * len(PLAN),
        scores=3 * len(PLAN) + 2,
        closer=3 * len(PLAN) + 2,
    )
    told = in_slices(sliced, spec, at_most=units.total() + 1)
    assert read_status(sliced).kept == units.total(), "nothing is done twice"
    assert len(told) == units.total() + 1, "one piece of work each, and the report"
    for kind in ("step", "watch"):
        assert max(sum(event.kind == kind for event in each) for each in told) == 1

    one, other = outcome(whole), outcome(sliced)
    for name in one:
        assert one[name] == other[name], name
    assert any(line["similarity"] is not None for line in read_lines(sliced.scores))
    left = [path.name for name in ("lora", "dreambooth") for path in sliced.method(name).iterdir()]
    assert not [name for name in left if name.startswith(("checkpoint", "class_images", "."))]


def counted(monkeypatch: pytest.MonkeyPatch, done: Counter[str]) -> None:
    """Count everything that takes long. What proves an artefact belongs to saving it: one piece of work."""

    def count(owner: object, name: str, what: str, within: str = "") -> None:
        original = getattr(owner, name)

        def counting(*args, **keywords):
            done[what] += 1
            return original(*args, **keywords)

        monkeypatch.setattr(owner, name, counting)

    count(Batches, "loss", "step")
    count(references, "score_renders", "score")
    count(facts, "facts_of", "closer look")
    count(stage, "finish", "finished picture")
    denoise = sampler.Family.predict

    def denoising(self, unet, *args):
        done["denoising"] += not proving
        return denoise(self, unet, *args)

    proving: list[bool] = []
    prove = previews.verify

    def verify(*args):
        done["artefact"] += 1
        proving.append(True)
        try:
            return prove(*args)
        finally:
            proving.clear()

    monkeypatch.setattr(sampler.Family, "predict", denoising)
    monkeypatch.setattr(previews, "verify", verify)
    objective = sampler.Family.objective

    def judged(*args, **keywords):  # a step's own, or a validation loss: no picture is drawn
        proving.append(True)
        try:
            return objective(*args, **keywords)
        finally:
            proving.clear()

    monkeypatch.setattr(sampler.Family, "objective", judged)


def test_between_two_looks_at_the_time_at_most_one_piece_of_work_is_done(root, taken_in, monkeypatch):
    done: Counter[str] = Counter()
    counted(monkeypatch, done)
    seen, total, longest = Counter(), Counter(), Counter()

    def over() -> bool:
        nonlocal seen
        since = done - seen
        total.update(since)
        for what, often in since.items():
            longest[what] = max(longest[what], often)
        longest["together"] = max(longest["together"], since.total())
        seen = Counter(done)
        return False

    run, judges = a_run(taken_in, root / "run"), 2
    in_slices(run, compare_spec(), over=over, at_most=1)
    order = Finish(tuple(run.relative(path) for path in sorted(run.renders("lora").glob("*.png"))))
    in_slices(run.drawing, JobSpec("finish", methods=("none",), finish=order), over=over, at_most=1)
    over()
    assert total["step"] == 2 * STEPS and total["score"] == judges * (3 * len(PLAN) + 2)
    assert total["finished picture"] == 2 and total["closer look"] == 3 * len(PLAN) + 2 and total["denoising"] > 100
    # a picture is looked at by one judge after the other; a look at a checkpoint follows its step
    assert longest == Counter({what: 1 for what in total} | {"score": judges, "together": judges})


def test_pictures_are_finished_one_a_slice_and_never_twice(root, taken_in, monkeypatch):
    finished: list[int] = []
    finish = stage.finish
    monkeypatch.setattr(stage, "finish", lambda *args, **keys: [finished.append(1), finish(*args, **keys)][1])
    run = a_run(taken_in, root / "run")
    names = []
    for number, path in enumerate(SAMPLE[:3]):
        names.append(f"renders/none/seed{number}.png")
        run.renders("none").mkdir(parents=True, exist_ok=True)
        Image.open(path).save(run.folder / names[-1])
    spec = JobSpec("finish", methods=("none",), finish=Finish(tuple(names)))
    told = in_slices(run.drawing, spec, at_most=4)
    assert len(finished) == 3 and len(told) == 3
    assert [sum(event.kind == "finished" for event in each) for each in told] == [1, 2, 3], "each tells all so far"
    assert all(stage.record_of(run, name) is not None for name in names)
    assert (run.folder / "finished" / stage.ARCHIVE).is_file()
    in_slices(run.drawing, spec, at_most=4)
    assert len(finished) == 6, "the same order, once it came to its end, is a new one"
