"""The commands that train: compare (also a study), train and replay; and forget and worker, for whole runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import check_out, check_run, run_of, subject_prompts, use_face_models
from pipelines.cli.output import DONE, WrongUse, figure, print_json, print_table, say, show
from pipelines.cli.progress import work
from pipelines.core.records import UserError

if TYPE_CHECKING:
    from pipelines.core.run import Run
    from pipelines.runs.jobspec import JobSpec
    from pipelines.runs.study import Cell, Study


CONSENT = "By running this command the user states that the person shown agrees to have their face learned."


def compare(asked: argparse.Namespace) -> int:
    from pipelines.core.files import read_json

    if asked.matrix is not None:
        return _study(asked)
    if asked.plan:
        raise WrongUse("--plan is of a study. Add --matrix FILE.")
    run, spec = _prepare(asked, kind="compare")
    work(run, spec)
    report = read_json(run.report)
    if asked.json:
        print_json(report)
    else:
        print_table(report)
        show(f"{run.page}")
    return DONE


def _made_elsewhere(asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    from pipelines.photos.gather import photo_files

    found: dict[str, tuple[str, ...]] = {}
    for each in asked:
        name, equals, folder = each.partition("=")
        if not equals or not Path(folder).is_dir():
            raise WrongUse(f"--images {each} does not read NAME=DIR with an existing folder.")
        found[name] = tuple(str(path.resolve()) for path in photo_files(Path(folder)))
    return found


def _study(asked: argparse.Namespace) -> int:
    from pipelines.core.device import machine
    from pipelines.reports.study import to_markdown, write_study
    from pipelines.runs import study

    if not asked.photos.is_dir():
        raise WrongUse(f"There is no folder {asked.photos}. Check the path.")
    if asked.out is None:
        raise WrongUse("A study needs --out FOLDER: it is continued from there.")
    if asked.jobs < 1:
        raise WrongUse("--jobs is a number from 1.")
    if not asked.plan:
        check_out(asked.out / "report.html")
    use_face_models(asked)
    matrix = study.read_matrix(asked.matrix)
    people = study.read_people(asked.photos, asked.people or matrix.people)
    if asked.plan:
        return _plan(study.Study(matrix, people, asked.out, say), asked)
    if asked.engine == "ray":
        engine = study.RayEngine(asked.address)
        try:
            doing = study.Study(matrix, people, asked.out, say, engine=engine)
            finished = doing.run(at_once=max(asked.jobs, engine.at_once))
        finally:
            engine.close()
    else:
        doing = study.Study(matrix, people, asked.out, say)
        finished = doing.run(at_once=asked.jobs)
    if not finished:
        raise UserError("No cell was finished. " + " ".join(doing.failed.values()))
    command = f"python -m pipelines compare {asked.photos.name} --matrix {asked.matrix.name} --jobs {asked.jobs}"
    command += f" --people {','.join(asked.people)}" if asked.people else ""
    saved = write_study(
        [cell.finished for cell in finished], asked.out, command=command, machine=machine(), failed=doing.failed
    )
    if asked.json:
        print_json(saved)
    else:
        for budget, found in saved["budgets"].items():
            for judge in found["judges"]:
                show(f"{budget}, {judge}, {len(found['people'])} people")
                show(to_markdown(found, judge) + "\n")
        show(asked.out / "report.html")
    if doing.failed:
        raise UserError(f"{len(doing.failed)} cells failed; the same command tries them again.")
    return DONE


@dataclass(frozen=True)
class _Left:
    """What a study has left to do of one condition."""

    condition: str
    cells: int
    done: int
    hours: float | None  # of one process; None: nothing was measured
    basis: str


def _plan(doing: Study, asked: argparse.Namespace) -> int:
    every = doing.planned(at_once=asked.jobs)
    rows = [
        _left([cell for cell in every if cell.condition == name])
        for name in dict.fromkeys(cell.condition for cell in every)
    ]
    known = [row.hours for row in rows if row.hours is not None]
    total = round(sum(known) / asked.jobs, 2) if len(known) == len(rows) else None
    if asked.json:
        print_json({"people": len(doing.people), "conditions": [asdict(row) for row in rows], "hours": total})
        return DONE
    show(f"{len(every)} cells of {len(doing.people)} people, {sum(row.done for row in rows)} of them done")
    for row in rows:
        hours = "time unknown" if row.hours is None else f"{row.hours:.1f} hours left of one process"
        show(f"{row.condition}: {row.cells} cells, {row.done} done, {hours}: {row.basis}")
    if total is not None:
        show(f"About {total:.1f} hours with {asked.jobs} at once")
    return DONE


def _left(cells: Sequence[Cell]) -> _Left:
    """Of one condition: as long as its finished cells took, else what training is reckoned to take."""
    from pipelines.core.files import read_json
    from pipelines.core.run import Run

    took = [float(read_json(Run(cell.folder).report)["wall_s"]) for cell in cells if cell.is_done]
    seconds, basis = (sum(took) / len(took), "as finished cells took") if took else _training(cells[0])
    hours = None if seconds is None else round(seconds * (len(cells) - len(took)) / 3600, 2)
    return _Left(cells[0].condition, len(cells), len(took), hours, basis)


def _training(cell: Cell) -> tuple[float | None, str]:
    """(seconds, what they rest on) of a cell's training; drawing and judging come on top."""
    from pipelines.bases.registry import find_base
    from pipelines.core import presets
    from pipelines.core.records import is_instant
    from pipelines.training.estimates import estimate

    row, spec = find_base(cell.spec.base), cell.spec
    taught = [name for name in spec.methods if not is_instant(name)]
    if cell.budget.seconds is not None:
        return cell.budget.seconds * len(taught), "training alone, as the budget says"
    recipes = {
        name: presets.recipe(row, name, spec.quality, class_word=spec.class_word).replaced(**spec.settings[name])
        for name in taught
    }
    found = estimate(row, recipes, {})
    return found.seconds, f"training alone, without early stops, at this machine's speed now; {found.basis}"


def train(asked: argparse.Namespace) -> int:
    from pipelines.core.files import read_json

    run, spec = _prepare(asked, kind="train")
    work(run, spec)
    cards = {name: read_json(run.method(name) / "subject.json") for name in spec.methods}
    kept = ("steps", "train_s", "peak_mem_mb", "artifact_bytes", "trainable_params", "artifact", "phrase", "complete")
    trained = {name: {key: card[key] for key in kept} for name, card in cards.items() if card is not None}
    if asked.json:
        print_json({"run": str(run.folder), "base": spec.base, "methods": trained})
    else:
        for name, card in trained.items():
            show(f"{name}: {card['steps']} steps in {card['train_s']:.0f} s, {card['artifact_bytes'] / 1e6:.2f} MB")
        show(run.folder)
    return DONE


def replay(asked: argparse.Namespace) -> int:
    from pipelines.core.files import read_json
    from pipelines.runs import replay

    use_face_models(asked)
    old = asked.manifest.resolve()
    out = asked.out or old.parent.with_name(f"{old.parent.name}-again")
    check_run(out)
    run, spec = replay.prepare(old, out)
    work(run, spec)
    found = replay.differences(read_json(old), read_json(run.manifest))
    if asked.json:
        print_json({"run": str(run.folder), **found})
        return DONE
    different = found["different"]
    if found["identical"]:
        show(f"Identical to the bit: {found['artefacts']} artefacts, {found['pictures']} pictures.")
    else:
        show(
            f"Different: {len(different['artefacts'])} of {found['artefacts']} artefacts, "
            f"{len(different['pictures'])} of {found['pictures']} pictures."
        )
    for name in different["conditions"]:
        show(f"Not the same as then: {name}.")
    for name, (before, after) in different["scores"].items():
        show(f"{name}: {figure(before)} then, {figure(after)} now.")
    show(run.folder)
    return DONE


def forget(asked: argparse.Namespace) -> int:
    from pipelines.core.run import forget

    run = run_of(asked.folder)
    check_run(run.folder)
    receipt = forget(run)
    if asked.json:
        print_json(receipt)
    else:
        show(
            f"Removed run {receipt['run']}: {receipt['files']} files, {receipt['bytes']:,} bytes. "
            f"Checked: {receipt['verified']}."
        )
        show(receipt["note"])
        for name in receipt["copies_elsewhere"]:
            show(f"{name} has the same bytes under another name outside the run; delete that copy by hand.")
    return DONE


def worker(asked: argparse.Namespace) -> int:
    from pipelines.core.run import open_run
    from pipelines.runs import worker

    if asked.line:
        return worker.serve(asked.folder.resolve(), device=asked.device)
    return worker.work(open_run(asked.folder))


def _prepare(asked: argparse.Namespace, *, kind: str) -> tuple[Run, JobSpec]:
    """The run and its job. All errors in the arguments are found here."""
    from pipelines.bases.registry import default_base, find_base
    from pipelines.core.run import data_root, is_run, new_run, record_consent, run_at
    from pipelines.photos.gather import gather
    from pipelines.runs.jobspec import JobSpec, samplings_of

    use_face_models(asked)
    if not asked.photos.is_dir():
        raise WrongUse(f"{asked.photos} is not a folder. Name the folder that holds the photos.")
    settings: dict[str, dict[str, Any]] = {}
    for method, name, value in asked.set:
        settings.setdefault(method, {})[name] = value
    try:
        row = find_base(asked.base or default_base())
        spec = JobSpec(
            kind=kind,
            base=row.name,
            class_word=asked.class_word,
            methods=asked.methods or (row.compared if kind == "compare" else row.usual),
            quality=asked.quality,
            seed=asked.seed,
            keep=tuple(asked.keep),
            renders=getattr(asked, "renders", 8),
            settings=settings,
            device=asked.device,
            processes=asked.processes,
            attention=asked.attention,
            download_judge=getattr(asked, "download_judge", False),
            images=_made_elsewhere(getattr(asked, "images", ())),
        )
        if prompts := subject_prompts(getattr(asked, "prompt", ())):
            spec = replace(spec, samplings=samplings_of(row, prompts, renders=asked.renders, seed=asked.seed))
        spec.check()
        check_run(data_root() / "run" if asked.out is None else asked.out)
        if asked.out is not None and asked.out.exists() and not is_run(asked.out):
            run_at(asked.out)  # raises the error that says what is wrong
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    there = gather(asked.photos)
    for sentence in there.told:
        say(sentence)
    run = run_at(asked.out) if asked.out is not None else new_run()
    if not run.consent.exists():
        record_consent(run, means=f"command line: {kind}", statement=CONSENT)
    return run, replace(spec, photos=tuple(str(path.resolve()) for path in there.photos))
