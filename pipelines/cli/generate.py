"""The commands that use what a run has learned: generate, import, extract, finish."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import (
    DREAMBOOTH_LORA,
    check_out,
    check_run,
    checked,
    run_of,
    subject_prompts,
    use_face_models,
)
from pipelines.cli.output import DONE, WrongUse, figure, print_json, print_table, say, show
from pipelines.cli.progress import Bar, work
from pipelines.core.records import ALL_METHODS, Event, Sampling, Score, UserError

if TYPE_CHECKING:
    from pipelines.core.run import Run
    from pipelines.finishing.refine import Outcome
    from pipelines.runs.jobspec import JobSpec


def generate(asked: argparse.Namespace) -> int:
    from pipelines.core.files import read_json
    from pipelines.core.run import imported_columns
    from pipelines.runs import jobs
    from pipelines.runs.jobspec import JobSpec

    use_face_models(asked)
    run = run_of(asked.folder)
    check_run(run.folder)
    every = (*ALL_METHODS, *imported_columns(run))
    cards = {name: card for name in every if (card := read_json(run.method(name) / "subject.json"))}
    before = jobs.load_spec(run) if run.spec.exists() else None
    if before is None:
        raise WrongUse("Nothing was trained in this run yet. Train first: python -m pipelines train --help")
    spec = JobSpec(
        kind="generate",
        base=before.base,
        class_word=before.class_word,
        methods=asked.methods or ("none", *cards),
        quality=before.quality,
        seed=before.seed,
        samplings=samplings_of(asked, before.base),
        device=asked.device,
        download_judge=asked.download_judge,
    )
    checked(spec)
    first = work(run, spec)
    made = [event for event in jobs.events(run, first) if event.kind == "render" and event.path]
    _tell_size(run, asked, made)
    scores: dict[str, dict[str, float | None]] = {}
    for event in jobs.events(run, first):
        if isinstance(event.data, Score) and event.path:
            scores.setdefault(event.path, {})[event.data.judge] = event.data.similarity
    found = [
        {"file": e.path, "method": e.method, "seed": e.data.seed, "prompt": e.data.prompt,
         "similarity": scores.get(str(e.path), {})}
        for e in made
        if isinstance(e.data, Sampling)
    ]  # fmt: skip
    if asked.json:
        print_json({"run": str(run.folder), "renders": found})
    else:
        for event in made:
            said = ", ".join(f"{judge} {figure(value)}" for judge, value in scores.get(str(event.path), {}).items())
            show(f"{event.path}  {said}")
    return DONE


def _tell_size(run: Run, asked: argparse.Namespace, made: Sequence[Event]) -> None:
    """Print a message if pictures do not have the requested size: sides are rounded to multiples for the network."""
    from PIL import Image

    if not made or not (asked.width or asked.height):
        return
    with Image.open(run.folder / str(made[0].path)) as picture:
        width, height = picture.size
    if (asked.width or width, asked.height or height) != (width, height):
        say(f"Drawn at {width} x {height} px: this base draws only some sizes, and this is the next smaller one.")


def samplings_of(asked: argparse.Namespace, base: str) -> tuple[Sampling, ...]:
    from pipelines.bases.registry import find_base
    from pipelines.core import presets

    row = find_base(base)
    known = presets.styles()
    looks = [Sampling(prompt, guidance=row.guidance) for prompt in subject_prompts(asked.prompt)]
    for name in asked.style:
        if name not in known:
            raise WrongUse(f"There is no style {name}. Choose of: {', '.join(known)}.")
        style = known[name]
        problem = presets.style_problem(style, row)
        if problem:
            raise WrongUse(f"{problem} Choose another style or base.")
        looks.append(Sampling(style.prompt, style.negative_prompt, steps=style.steps, guidance=style.guidance))
    looks = looks or [Sampling("portrait of {subject}", guidance=row.guidance)]
    changes: dict[str, Any] = {
        "negative_prompt": asked.negative,
        "steps": asked.steps,
        "guidance": asked.guidance,
        "width_px": asked.width,
        "height_px": asked.height,
    }
    chosen = {key: value for key, value in changes.items() if value is not None}
    chosen |= {"scheduler": asked.scheduler, "strength": asked.strength, "source": asked.source}
    if asked.draft:
        from pipelines.methods import drafts

        if drafts.find(row) is None:
            raise drafts.missing(row)
        usual = {"steps": drafts.STEPS, "guidance": drafts.GUIDANCE}
        scheduler = drafts.SCHEDULER if asked.scheduler == "default" else asked.scheduler
        chosen = usual | chosen | {"scheduler": scheduler, "draft": True}
    change = 0.5 if asked.source else 1.0
    chosen["change"] = change if asked.change is None else asked.change
    return tuple(replace(look, seed=asked.seed + n, **chosen) for look in looks for n in range(asked.number))


def extract(asked: argparse.Namespace) -> int:
    from pipelines.bases.loading import load_family
    from pipelines.bases.registry import find_base
    from pipelines.core.device import pick_device
    from pipelines.methods import extract
    from pipelines.training.subjects import load_subject

    run = run_of(asked.folder)
    folder = run.method("dreambooth")
    subject = load_subject(folder)
    out = asked.out or folder / DREAMBOOTH_LORA
    if out.suffix != ".safetensors":
        raise WrongUse(f"{out.name} does not end in .safetensors. Name the file so.")
    check_out(out)
    rank = 32 if asked.rank is None and asked.error is None else asked.rank
    family = load_family(find_base(subject.base), pick_device(asked.device))

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rlayer {done} of {total}", end="" if done < total else "\n", file=sys.stderr)

    found = extract.extract(family, folder, subject, rank=rank, error=asked.error, progress=told)
    files = extract.write(found, out, family, subject.phrase)
    whole = sum(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))
    if asked.json:
        print_json(
            {"files": [str(file) for file in files], "error": found.error, "left_out": found.left_out,
             "ranks": found.ranks, "layer_errors": found.errors, "bytes": files[0].stat().st_size}
        )  # fmt: skip
        return DONE
    low, high = found.ranks
    show(
        f"{len(found.layers)} layers, rank {low if low == high else f'{low} to {high}'}, "
        f"{files[0].stat().st_size / 1e6:.2f} MB of {whole / 1e6:.2f} MB."
    )
    show(f"Misses {found.error:.1%} of the change of these layers; {found.left_out:.1%} lies in biases and norms.")
    for file in files:
        show(file)
    return DONE


def import_lora(asked: argparse.Namespace) -> int:
    from pipelines.bases.registry import find_base
    from pipelines.core.files import read_json
    from pipelines.core.records import IMPORTED
    from pipelines.methods import imports
    from pipelines.runs import jobs

    use_face_models(asked)
    run = run_of(asked.folder)
    check_run(run.folder)
    if (asked.file is None) == (asked.remove is None):
        raise WrongUse("Name a file to import, or a column to take out with --remove NAME.")
    if any(jobs.status(slot).busy for slot in (run, run.drawing)):
        raise UserError("This run is still being worked on. Stop it first, or wait.")
    if asked.remove is not None:
        had_report = run.report.exists()
        imports.remove(run, IMPORTED + asked.remove.removeprefix(IMPORTED))
        again = _report_again(run) if had_report else None
        if again is not None:
            work(run, again)
        elif had_report:
            say("The report told of nothing else and is removed too.")
        if asked.json:
            print_json({"run": str(run.folder), "removed": asked.remove})
        else:
            show(f"Removed {asked.remove} with its pictures and scores.")
        return DONE
    if not run.spec.exists():
        raise WrongUse("Nothing was trained in this run yet. Train first: python -m pipelines train --help")
    spec = jobs.load_spec(run)
    if not asked.file.is_file():
        raise WrongUse(f"There is no file {asked.file}. Check the path.")
    name = asked.name or imports.slug(asked.file.stem)
    card = imports.add(
        run, asked.file, find_base(spec.base), name=name, class_word=spec.class_word, phrase=asked.trigger
    )
    column = IMPORTED + name
    plan = None if asked.no_draw else _same_pictures(run, spec, column)
    if plan is not None:
        work(run, plan)
    report = (read_json(run.report) or {}) if plan is not None else {}
    remarks = imports.remarks(run, column)
    if asked.json:
        print_json({"run": str(run.folder), "column": column, "phrase": card.phrase, "kind": card.method,
                     "remarks": remarks, "numbers": card.trainable_params,
                     "figures": report.get("methods", {}).get(column)})  # fmt: skip
        return DONE
    for remark in remarks:
        print(remark)
    if column in report.get("methods", {}):
        print_table(report)
        show(run.page)
    else:
        show(f"{column}: {card.method}, {card.trainable_params:,} numbers; it is called by: {card.phrase}")
        show(f"Draw with it: python -m pipelines generate {run.folder} --methods none,{column} --prompt ...")
    return DONE


def _report_again(run: Run) -> JobSpec | None:
    """A job that draws nothing and writes the run's report anew; None where no picture is left to report."""
    from pipelines.generation.draw import renders_of
    from pipelines.runs import jobs

    spec, left = jobs.load_spec(run), renders_of(run)
    if spec.kind == "compare":
        return spec
    if not left:
        return None
    column = left[0].method
    there = tuple(each.sampling for each in left if each.method == column)
    return replace(spec, kind="generate", methods=(column,), samplings=there)


def _same_pictures(run: Run, spec: JobSpec, column: str) -> JobSpec | None:
    """A job that draws and scores the run's prompts and seeds with a new column; None if nothing was drawn yet."""
    from pipelines.core.files import read_json

    if spec.kind == "compare":
        return spec  # the rest is done already
    saved = (read_json(run.manifest) or {}).get("samplings", ())
    plain = tuple(Sampling(**each) for each in saved if not each.get("source"))
    return replace(spec, kind="generate", methods=(column,), samplings=plain) if plain else None


def finish(asked: argparse.Namespace) -> int:
    from pipelines.core import inscription
    from pipelines.core.files import write_bytes
    from pipelines.core.records import Finish
    from pipelines.faces.judges import available_judges
    from pipelines.finishing import mark, refine, stage
    from pipelines.photos.decode import decode

    use_face_models(asked)
    if not asked.image.is_file():
        raise WrongUse(f"There is no file {asked.image}. Check the path.")
    kinds = [name for name, ends in mark.FORMATS.items() if asked.out.suffix.lower() in ends]
    if not kinds:
        raise WrongUse(f"{asked.out.name} names no format. End it in .jpg, .png, .webp or .avif.")
    check_out(asked.out, source=asked.image, overwrite=asked.overwrite)
    run = run_of(asked.of_run) if asked.of_run else None
    order = Finish(
        ("renders/picture.png",),
        refine.DEFAULT_STEPS if asked.steps is None else asked.steps,
        background=asked.background,
        upscaler=asked.upscaler,
        restorer=asked.restorer,
        size=asked.size,
        max_kb=asked.max_kb,
        format_name=kinds[0],
    )
    try:
        stage.check(order)
        size = stage.size_of(asked.size, px=asked.px)
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    image = decode(asked.image)
    judges = available_judges(on_problem=say)
    try:
        baseline = stage.baseline_of(run, image, judges, number=asked.face)
    except refine.SeveralFacesError as several:
        raise WrongUse(
            f"{several.count} faces in {asked.image.name} are prominent, and nothing says which person is meant. Give "
            f"--face 1 to {several.count}, counted from the left, or --run with the person's run."
        ) from several
    if asked.face is not None and baseline.of == refine.HELD_OUT:
        say("--face is not used: the photos of the run say who is meant.")
    bar = Bar()
    drawn = inscription.read(asked.image)
    base = drawn.base if drawn else ""
    made = stage.finish(image, order, baseline=baseline, size=size, base=base, on_step=lambda one: bar.line(_told(one)))
    write_bytes(asked.out, made.delivered.data)
    if asked.json:
        print_json({"file": str(asked.out), **stage.told(made)})
        return DONE
    for sentence in made.notes:
        say(sentence)
    one = made.delivered
    show(f"{asked.out}: {one.width_px} x {one.height_px} px, {one.kb:.0f} kB {one.format_name}")
    for judge, found in stage.told(made)["similarity"].items():
        show(f"{judge}: {figure(found['raw'])} raw, {figure(found['delivered'])} as delivered, to {baseline.of}")
    return DONE


def _told(one: Outcome) -> str:
    return f"{one.step.name}: {one.state}. {one.sentence}"
