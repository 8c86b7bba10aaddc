"""The command line: `python -m pipelines check|train|generate|finish|score|compare|import|extract|verify|forget`.

In: arguments. Out: what was asked for in files, a summary (or with `--json` JSON and nothing else) on stdout, progress
and problems on stderr. Exit code 0 when the work was done, whatever the verdict; 2 for wrong use; 1 when it failed
(`verify` says itself what its codes mean).
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`.

Running a command counts as consent to learn the face in the photos, and is recorded in the run.
Light: everything heavy is imported where it is needed, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.core.schema import (
    ALL_METHODS,
    ATTENTIONS,
    CLASS_WORDS,
    COLUMNS,
    COMPOSED,
    LOW_CEILING,
    QUALITIES,
    REASONS,
    Event,
    Sampling,
    UserError,
    is_imported,
)

if TYPE_CHECKING:
    from pipelines.core.workspace import Run
    from pipelines.evaluation.lookalike import Opinion
    from pipelines.faces.faces import Judge
    from pipelines.finishing.refine import Outcome
    from pipelines.runs.jobspec import JobSpec

DREAMBOOTH_LORA = "likeness_dreambooth_lora.safetensors"
DONE, FAILED, WRONG_USE = 0, 1, 2
CONSENT = "By running this command the user states that the person shown agrees to have their face learned."


class WrongUse(UserError):
    """Arguments that make no sense: exit code 2."""


class _Parser(argparse.ArgumentParser):
    """argparse, except that an error is one sentence with the way to help."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="python -m pipelines",
        description="Teach a diffusion model one face three ways, and measure which one looks most like the person.",
        epilog="Running a command counts as consent to learn the face in the photos, and is recorded in the run.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], int], *, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawTextHelpFormatter
        )
        made.set_defaults(run=run)
        if name != "worker":
            made.add_argument("--json", action="store_true", help="print JSON, and only JSON, on stdout")
        return made

    both: list[argparse.ArgumentParser] = []
    both.append(command("compare", "Do the whole job: learn, draw, score, and write RUN/report.json.", _compare))
    both.append(command("train", "Learn a face with one or several methods.", _train))
    for made in both:
        made.add_argument("photos", metavar="PHOTO_DIR", type=Path, help="folder with 5 to 15 photos of one person")
        made.add_argument("--class-word", choices=CLASS_WORDS, default="person", help="what the person is (person)")
        made.add_argument(
            "--methods",
            type=_names(ALL_METHODS),
            metavar="NAMES",
            help=f"comma-separated, of {', '.join(ALL_METHODS)}\n(default: all that"
            f" the base offers but {', '.join(COMPOSED)}, which is made of others)",
        )
        _base_arguments(made)
        made.add_argument("--quality", choices=QUALITIES, default="good", help="how long to train (good)")
        made.add_argument("--seed", type=_whole, default=0, help="determines the split, the training and the noise (0)")
        made.add_argument("--out", metavar="RUN", type=Path, help="folder of the run; an existing run is continued")
        made.add_argument(
            "--keep",
            metavar="NAME",
            action="append",
            default=[],
            help="use this photo although the check would leave it out (its file name; repeatable)",
        )
        made.add_argument(
            "--processes", type=_whole, default=1, help="that teach together through accelerate launch, a GPU each (1)"
        )
        made.add_argument(
            "--set",
            metavar="METHOD.NAME=VALUE",
            action="append",
            default=[],
            type=_setting,
            help="change one setting of a recipe, e.g. lora.rank=32 or lora.dora=true (may be repeated)",
        )
    compare = both[0]
    compare.add_argument("--renders", type=_whole, default=8, help="pictures per method (8)")
    compare.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="draw this instead of plain portraits; holds {subject} (repeatable)",
    )
    compare.add_argument(
        "--images",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="judge a folder of pictures made elsewhere as one more column (repeatable)",
    )
    compare.add_argument(
        "--matrix",
        metavar="FILE",
        type=Path,
        help="a study: PHOTO_DIR may then hold one folder per person (and people.csv);\nsee presets/studies",
    )
    compare.add_argument(
        "--people",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        metavar="NAMES",
        help="of a study: only these (comma-separated; default: the matrix file's, else all)",
    )
    compare.add_argument("--jobs", type=_whole, default=1, help="cells of a study that run at once (1)")
    compare.add_argument("--engine", choices=("processes", "ray"), default="processes", help="where cells run")
    compare.add_argument("--address", help="of a running Ray cluster (default: one on this machine)")
    _judge_arguments(compare)

    again = command("replay", "Repeat a run from its manifest and say what differs.", _replay)
    again.add_argument("manifest", metavar="RUN/manifest.json", type=Path, help="of a finished comparison")
    again.add_argument("--out", metavar="RUN", type=Path, help="folder of the new run (beside the old: RUN-again)")
    again.add_argument(
        "--face-models", "--judge-root", metavar="FOLDER", type=Path, help="holds models/<pack>/*.onnx (ArcFace packs)"
    )

    generate = command("generate", "Draw pictures with what a run has learned, and score them.", _generate)
    generate.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    generate.add_argument("--prompt", action="append", default=[], help="what to draw; holds {subject} (repeatable)")
    generate.add_argument("--style", action="append", default=[], help="a style of presets/styles (repeatable)")
    generate.add_argument(
        "--methods",
        type=_names(COLUMNS, imported=True),
        metavar="NAMES",
        help=f"comma-separated columns, of {', '.join(COLUMNS)}\nand imported-NAME; none is the untrained base "
        "(all that are trained\nor imported)",
    )
    generate.add_argument("--number", type=_whole, default=1, help="pictures per prompt and method (1)")
    generate.add_argument(
        "--seed", type=_whole, default=0, help="seed of the first picture; the next have the next (0)"
    )
    generate.add_argument("--steps", type=_whole, help="sampling steps (the style's, else 20)")
    generate.add_argument(
        "--guidance", type=_real, help="how closely to follow the prompt (the style's, else the base's)"
    )
    generate.add_argument("--negative", default=None, help="what not to draw")
    generate.add_argument("--scheduler", default="default", help="name of a sampler (default: the base's own)")
    generate.add_argument(
        "--draft", action="store_true", help="in 4 steps with the base's LCM-LoRA, where that is on this machine"
    )
    generate.add_argument("--strength", type=_real, default=1.0, help="of LoRA (1)")
    generate.add_argument("--source", metavar="RENDER", help="vary this picture of the run: renders/COLUMN/NAME.png")
    generate.add_argument("--change", type=_real, help="how much of it, above 0 up to 1 (with --source 0.5)")
    generate.add_argument("--width", type=_whole, help="pixels (the base's own)")
    generate.add_argument("--height", type=_whole, help="pixels (the base's own)")
    generate.add_argument("--device", help="cpu, cuda or mps (default: the best here)")
    _judge_arguments(generate)

    check = command(
        "check",
        "What is good about some photos of one person, what is not, and what to add.",
        _check,
        epilog="reason codes\n"
        + "\n".join(f"  {code:<18} {text}" for code, text in REASONS.items())
        + "\n\nverdicts: leave_out (the first six codes), usable (the others), good (none)",
    )
    check.add_argument("photos", metavar="PHOTO_OR_DIR", nargs="+", type=Path, help="photos, folders or ZIPs of photos")
    check.add_argument("--base", help="whose smallest face counts (this machine's default)")

    score = command("score", "How much do pictures look like the person in some photos?", _score)
    score.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="pictures to judge")
    whom = score.add_mutually_exclusive_group(required=True)
    whom.add_argument("--against", metavar="PHOTO", nargs="+", type=Path, help="photos of the person")
    whom.add_argument(
        "--run",
        dest="of_run",
        metavar="RUN",
        type=Path,
        help="a run: every face in the pictures is compared with its held-out photos,\n"
        "the sample person and the untrained base's pictures",
    )
    score.add_argument(
        "--judge",
        metavar="NAME",
        help="buffalo_l, antelopev2, buffalo_sc, arcface-mini or dlib (default: the best\nthat is here); "
        "dlib always gives a second opinion",
    )
    _judge_arguments(score)

    extract = command(
        "extract", "Turn what DreamBooth learned into a LoRA, and say how much of it that misses.", _extract
    )
    extract.add_argument("folder", metavar="RUN", type=Path, help="folder of a run in which DreamBooth was trained")
    size = extract.add_mutually_exclusive_group()
    size.add_argument("--rank", type=_whole, help="of every layer (32)")
    size.add_argument("--error", type=_real, help="allowed of each layer's change, e.g. 0.05; the rank follows")
    extract.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"kohya's names; FILE_diffusers.safetensors lies beside it\n(RUN/methods/dreambooth/{DREAMBOOTH_LORA})",
    )
    extract.add_argument("--device", help="cpu, cuda or mps (default: the best here)")

    imports = command(
        "import",
        "Compare with a LoRA or embedding that was trained elsewhere.",
        _import,
        epilog=f"only .safetensors; rank up to {512}, LoRA up to 1 GB (LIKENESS_IMPORT_MB), embedding up to 20 MB",
    )
    imports.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    imports.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a .safetensors file")
    imports.add_argument("--name", help="of its column: small letters, digits, dashes (from the file's name)")
    imports.add_argument(
        "--trigger", default="", metavar="WORDS", help="what calls the person (its metadata's, else man, woman, ...)"
    )
    imports.add_argument(
        "--no-draw", action="store_true", help="don't draw the run's prompts and seeds with it at once"
    )
    imports.add_argument("--remove", metavar="NAME", help="take an imported column out again")
    _judge_arguments(imports)
    finish = command("finish", "Refine one picture, cut it to a size, and mark it as drawn by an AI.", _finish)
    finish.add_argument("image", metavar="IMAGE", type=Path, help="a render, or any portrait")
    finish.add_argument("--out", metavar="FILE", type=Path, required=True, help=".jpg, .png, .webp or .avif")
    finish.add_argument(
        "--run",
        dest="of_run",
        metavar="RUN",
        type=Path,
        help="whose held-out photos say whom it has to stay like\n(default: the picture itself)",
    )
    finish.add_argument(
        "--steps",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none")),
        metavar="NAMES",
        help="comma-separated, of exposure, denoise, enlarge, restore, sharpen; or none\n(exposure,enlarge,sharpen)",
    )
    finish.add_argument(
        "--background", default="", help="blur, studio, white, light grey, charcoal, navy, teal or sand"
    )
    finish.add_argument("--size", default="linkedin", help="of presets/sizes, by its name or its beginning (linkedin)")
    finish.add_argument("--px", type=_whole, help="of its longer side (the size's own)")
    finish.add_argument("--max-kb", type=_real, default=200, help="of the file at most, marks included (200)")
    finish.add_argument("--upscaler", default="", help="name, or path of a .safetensors file (the embedded one)")
    finish.add_argument("--restorer", default="", help="a face restorer's name or path, for the step restore")
    _judge_arguments(finish)

    verify = command(
        "verify",
        "Read the marks that say a picture was drawn by an AI.",
        _verify,
        epilog="exit code: 0 a mark says so, 1 none does, 2 the file is no picture that can be read.\n"
        "No mark does not show that a picture is a photo.",
    )
    verify.add_argument("image", metavar="FILE", type=Path, help="JPEG, PNG, WebP, AVIF or another picture")

    forget = command("forget", "Remove a run with everything in it; prints a receipt.", _forget)
    forget.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")

    worker = command("worker", "Do the job that lies in a run's folder (started by the app).", _worker)
    worker.add_argument("folder", metavar="RUN", type=Path)
    worker.add_argument("--line", action="store_true", help="the folder holds runs: do the jobs that wait in its line")
    worker.add_argument("--device", default="")
    return top


def _base_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--base",
        help="portrait-128, sd15, sdxl, z-image, or the path of a\ndiffusers folder or .safetensors checkpoint",
    )
    made.add_argument("--device", help="cpu, cuda or mps (default: the best here)")
    made.add_argument(
        "--attention", choices=ATTENTIONS, default="sdpa", help="xformers needs requirements-gpu.txt (sdpa)"
    )


def _judge_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--face-models",
        "--judge-root",
        metavar="FOLDER",
        type=Path,
        help="holds models/<pack>/*.onnx (ArcFace packs)",
    )
    if made.prog.split()[-1] not in ("score", "finish"):
        made.add_argument(
            "--download-judge",
            action="store_true",
            help="agree to download the ArcFace pack buffalo_l if there is none\n(280 MB, for research only)",
        )


def _names(known: Sequence[str], *, imported: bool = False) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        for name in names:
            if name not in known and not (imported and is_imported(name)):
                raise argparse.ArgumentTypeError(f"there is no method {name}; choose of {', '.join(known)}")
        if not names:
            raise argparse.ArgumentTypeError(f"no method was named; choose of {', '.join(known)}")
        return names

    return parse


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
    if not 0 <= value <= 2**53:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^53")
    return value


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None
    if not 0 <= value <= 1000:  # NaN fails this as well
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1000")
    return value


def _setting(text: str) -> tuple[str, str, Any]:
    where, equals, value = text.partition("=")
    method, dot, name = where.partition(".")
    if not equals or not dot:
        raise argparse.ArgumentTypeError(f"{text} does not read METHOD.NAME=VALUE")
    try:
        return method, name, json.loads(value)
    except ValueError:
        return method, name, value


# ------------------------------------------------------------------------------------------------- commands


def _compare(asked: argparse.Namespace) -> int:
    from pipelines.bases.registry import find_base
    from pipelines.core import workspace
    from pipelines.runs import jobspec

    if asked.matrix is not None:
        return _study(asked)
    run, spec = _prepare(asked, kind="compare")
    if asked.prompt:
        samplings = jobspec.samplings_of(find_base(spec.base), asked.prompt, renders=asked.renders, seed=asked.seed)
        spec = _replaced(spec, samplings=samplings)
    if asked.images:
        spec = _replaced(spec, images=_made_elsewhere(asked.images))
        spec.check()
    _do(run, spec)
    report = workspace.read_json(run.report)
    if asked.json:
        _print_json(report)
    else:
        _print_table(report)
        print(f"{run.page}")
    return DONE


def _replay(asked: argparse.Namespace) -> int:
    from pipelines.core import workspace
    from pipelines.runs import replay

    _face_models(asked)
    old = asked.manifest.resolve()
    out = asked.out or old.parent.with_name(f"{old.parent.name}-again")
    run, spec = replay.prepare(old, out)
    _do(run, spec)
    found = replay.differences(workspace.read_json(old), workspace.read_json(run.manifest))
    if asked.json:
        _print_json({"run": str(run.folder), **found})
        return DONE
    different = found["different"]
    if found["identical"]:
        print(f"Identical to the bit: {found['artefacts']} artefacts, {found['pictures']} pictures.")
    else:
        print(
            f"Different: {len(different['artefacts'])} of {found['artefacts']} artefacts, "
            f"{len(different['pictures'])} of {found['pictures']} pictures."
        )
    for name in different["conditions"]:
        print(f"Not the same as then: {name}.")
    for name, (before, after) in different["scores"].items():
        print(f"{name}: {_figure(before)} then, {_figure(after)} now.")
    print(run.folder)
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
    from pipelines.core.runtime import machine
    from pipelines.reports import study_report
    from pipelines.runs import study

    if not asked.photos.is_dir():
        raise WrongUse(f"There is no folder {asked.photos}. Check the path.")
    if asked.out is None:
        raise WrongUse("A study needs --out FOLDER: it is continued from there.")
    if asked.jobs < 1:
        raise WrongUse("--jobs is a number from 1.")
    _face_models(asked)
    matrix = study.read_matrix(asked.matrix)
    people = study.read_people(asked.photos, asked.people or matrix.people)
    if asked.engine == "ray":
        engine = study.RayEngine(asked.address)
        try:
            doing = study.Study(matrix, people, asked.out, _say, engine=engine)
            finished = doing.run(at_once=max(asked.jobs, engine.at_once))
        finally:
            engine.close()
    else:
        doing = study.Study(matrix, people, asked.out, _say)
        finished = doing.run(at_once=asked.jobs)
    if not finished:
        raise UserError("No cell was finished. " + " ".join(doing.failed.values()))
    command = f"python -m pipelines compare {asked.photos.name} --matrix {asked.matrix.name} --jobs {asked.jobs}"
    command += f" --people {','.join(asked.people)}" if asked.people else ""
    saved = study_report.write(finished, asked.out, command=command, machine=machine(), failed=doing.failed)
    if asked.json:
        _print_json(saved)
    else:
        for budget, found in saved["budgets"].items():
            for judge in found["judges"]:
                print(f"{budget}, {judge}, {len(found['people'])} people")
                print(study_report.to_markdown(found, judge), end="\n\n")
        print(asked.out / "report.html")
    if doing.failed:
        raise UserError(f"{len(doing.failed)} cells failed; the same command tries them again.")
    return DONE


def _train(asked: argparse.Namespace) -> int:
    from pipelines.core import workspace

    run, spec = _prepare(asked, kind="train")
    _do(run, spec)
    cards = {name: workspace.read_json(run.method(name) / "subject.json") for name in spec.methods}
    kept = ("steps", "train_s", "peak_mem_mb", "artifact_bytes", "trainable_params", "artifact", "phrase", "complete")
    trained = {name: {key: card[key] for key in kept} for name, card in cards.items() if card is not None}
    if asked.json:
        _print_json({"run": str(run.folder), "base": spec.base, "methods": trained})
    else:
        for name, card in trained.items():
            print(f"{name}: {card['steps']} steps in {card['train_s']:.0f} s, {card['artifact_bytes'] / 1e6:.2f} MB")
        print(run.folder)
    return DONE


def _generate(asked: argparse.Namespace) -> int:
    from pipelines.core import workspace
    from pipelines.runs import jobs
    from pipelines.runs.jobspec import JobSpec

    _face_models(asked)
    run = _run_of(asked.folder)
    every = (*ALL_METHODS, *workspace.imported(run))
    cards = {name: card for name in every if (card := workspace.read_json(run.method(name) / "subject.json"))}
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
        samplings=_samplings(asked, before.base),
        device=asked.device,
        download_judge=asked.download_judge,
    )
    first = _do(run, spec)
    made = [event for event in jobs.events(run, first) if event.kind == "render" and event.path]
    scores: dict[str, dict[str, float | None]] = {}
    for event in jobs.events(run, first):
        if event.kind == "score" and event.path:
            scores.setdefault(event.path, {})[str(event.data["judge"])] = event.data["similarity"]
    found = [
        {"file": e.path, "method": e.method, "seed": e.data["seed"], "prompt": e.data["prompt"],
         "similarity": scores.get(str(e.path), {})}
        for e in made
    ]  # fmt: skip
    if asked.json:
        _print_json({"run": str(run.folder), "renders": found})
    else:
        for one in found:
            said = ", ".join(f"{judge} {_figure(value)}" for judge, value in one["similarity"].items())
            print(f"{one['file']}  {said}")
    return DONE


def _extract(asked: argparse.Namespace) -> int:
    from pipelines.bases.family import load_family
    from pipelines.bases.registry import find_base
    from pipelines.core.runtime import pick_device
    from pipelines.methods import extract
    from pipelines.training.loop import load_subject

    run = _run_of(asked.folder)
    folder = run.method("dreambooth")
    subject = load_subject(folder)
    out = asked.out or folder / DREAMBOOTH_LORA
    if out.suffix != ".safetensors":
        raise WrongUse(f"{out.name} does not end in .safetensors. Name the file so.")
    rank = 32 if asked.rank is None and asked.error is None else asked.rank
    family = load_family(find_base(subject.base), pick_device(asked.device))

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rlayer {done} of {total}", end="" if done < total else "\n", file=sys.stderr)

    found = extract.extract(family, folder, subject, rank=rank, error=asked.error, progress=told)
    files = extract.write(found, out, family, subject.phrase)
    whole = sum(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))
    if asked.json:
        _print_json(
            {"files": [str(file) for file in files], "error": found.error, "left_out": found.left_out,
             "ranks": found.ranks, "layer_errors": found.errors, "bytes": files[0].stat().st_size}
        )  # fmt: skip
        return DONE
    low, high = found.ranks
    print(
        f"{len(found.layers)} layers, rank {low if low == high else f'{low} to {high}'}, "
        f"{files[0].stat().st_size / 1e6:.2f} MB of {whole / 1e6:.2f} MB."
    )
    print(f"Misses {found.error:.1%} of the change of these layers; {found.left_out:.1%} lies in biases and norms.")
    for file in files:
        print(file)
    return DONE


def _import(asked: argparse.Namespace) -> int:
    from pipelines.bases.registry import find_base
    from pipelines.core import workspace
    from pipelines.core.schema import IMPORTED
    from pipelines.methods import imports
    from pipelines.runs import jobs

    _face_models(asked)
    run = _run_of(asked.folder)
    if (asked.file is None) == (asked.remove is None):
        raise WrongUse("Name a file to import, or a column to take out with --remove NAME.")
    if any(jobs.status(slot).busy for slot in (run, run.drawing)):
        raise UserError("This run is still being worked on. Stop it first, or wait.")
    if asked.remove is not None:
        imports.remove(run, IMPORTED + asked.remove.removeprefix(IMPORTED))
        if asked.json:
            _print_json({"run": str(run.folder), "removed": asked.remove})
        else:
            print(f"Removed {asked.remove} with its pictures and scores.")
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
        _do(run, plan)
    report = (workspace.read_json(run.report) or {}) if plan is not None else {}
    if asked.json:
        _print_json({"run": str(run.folder), "column": column, "phrase": card.phrase, "kind": card.method,
                     "numbers": card.trainable_params, "figures": report.get("methods", {}).get(column)})  # fmt: skip
    elif column in report.get("methods", {}):
        _print_table(report)
        print(run.page)
    else:
        print(f"{column}: {card.method}, {card.trainable_params:,} numbers; it is called by: {card.phrase}")
        print(f"Draw with it: python -m pipelines generate {run.folder} --methods none,{column} --prompt ...")
    return DONE


def _same_pictures(run: Run, spec: JobSpec, column: str) -> JobSpec | None:
    """A job that draws and scores the run's prompts and seeds with a new column; None where nothing was drawn yet."""
    from pipelines.core import workspace

    if spec.kind == "compare":
        return spec  # everything else is there already
    saved = (workspace.read_json(run.manifest) or {}).get("samplings", ())
    plain = tuple(Sampling(**each) for each in saved if not each.get("source"))
    return _replaced(spec, kind="generate", methods=(column,), samplings=plain) if plain else None


def _samplings(asked: argparse.Namespace, base: str) -> tuple[Sampling, ...]:
    from pipelines.bases.registry import find_base
    from pipelines.core import presets

    row = find_base(base)
    known = presets.styles()
    looks = [Sampling(prompt, guidance=row.guidance) for prompt in asked.prompt]
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
    return tuple(_replaced(look, seed=asked.seed + n, **chosen) for look in looks for n in range(max(1, asked.number)))


def _check(asked: argparse.Namespace) -> int:
    from pipelines.bases.registry import default_base, find_base
    from pipelines.photos.gather import photo_files, unpack
    from pipelines.photos.intake import check

    try:
        row = find_base(asked.base or default_base())
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    files: list[Path] = []
    for path in asked.photos:
        if not path.exists():
            raise WrongUse(f"There is nothing at {path}. Check the path.")
    bar = Bar()
    with tempfile.TemporaryDirectory(prefix="likeness-") as unpacked:
        for number, path in enumerate(asked.photos):
            if path.is_dir():
                files += photo_files(path)
            elif path.suffix.lower() == ".zip":
                files += unpack(path, Path(unpacked) / str(number))
            else:
                files.append(path)
        found, report = check(
            files,
            min_eye_distance_px=row.min_eye_distance_px,
            progress=lambda done, total, _: bar.show("looking", done, total),
        )
    bar.close()
    if asked.json:
        each = {
            one.name: {"verdict": one.verdict, "reasons": one.reasons, "text": one.text, "similarity": one.similarity}
            for one in found
        }
        _print_json({"photos": each, "set": asdict(report)})
        return DONE
    for one in found:
        print(f"{one.name}: {one.verdict.replace('_', ' ')}{f' - {one.text}' if one.text else ''}")
    agree = f" They agree with each other at {report.ceiling:.2f}." if report.ceiling is not None else ""
    print(f"{report.good} good, {report.usable} usable, {report.left_out} to leave out.{agree}")
    if report.ceiling_low:
        print(LOW_CEILING)
    if report.next_photo:
        print(f"The most useful photo to add: {report.next_photo}.")
    return DONE


def _score(asked: argparse.Namespace) -> int:
    _face_models(asked)
    for path in [*asked.images, *(asked.against or ())]:
        if not path.is_file():
            raise WrongUse(f"There is no file {path}. Check the path.")
    from pipelines.evaluation import scoring
    from pipelines.faces import faces

    if asked.judge:
        judges = [faces.judge(name) for name in dict.fromkeys((asked.judge, faces.DlibJudge.name))]
    else:
        judges = faces.available_judges(on_problem=_say)
    if asked.of_run:
        return _who(asked, judges)
    images: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in _short_names(asked.images)}
    references: list[scoring.Reference] = []
    problems: list[str] = []
    for judge in judges:
        try:
            references.append(scoring.reference(judge, asked.against))
            problems += references[-1].notes
        except UserError as problem:
            problems.append(str(problem))
    if not references:
        raise UserError(" ".join(problems))
    for sentence in problems:
        _say(sentence)
    total = len(asked.images) * len(references)
    bar = Bar()
    for index, (path, name) in enumerate(zip(asked.images, images, strict=True)):
        for number, reference in enumerate(references):
            score = scoring.score_renders([path], reference)[0]
            images[name][score.judge] = {
                "similarity": score.similarity,
                "verdict": score.verdict or score.reason,  # an unreadable picture has no verdict
                "in_words": scoring.in_words(score),
                "note": score.note,
            }
            bar.show("scoring", index * len(references) + number + 1, total)
    bar.close()
    if asked.json:
        _print_json({"images": images})
    else:
        for name, found in images.items():
            print(f"{name}:")
            for who, one in found.items():
                words = f" ({one['in_words']})" if one["similarity"] is not None else ""
                print(f"  {who}: {one['verdict']}{words}.{' ' + one['note'] if one['note'] else ''}")
    return DONE


def _who(asked: argparse.Namespace, judges: Sequence[Judge]) -> int:
    """Every face of each picture against the person of a run."""
    from pipelines.core import presets, workspace
    from pipelines.evaluation import lookalike
    from pipelines.photos.decode import decode

    run = _run_of(asked.of_run)
    photos = workspace.load_photo_set(run)
    if photos is None:
        raise UserError(f"The run {run.folder.name} holds no photos to compare with.")
    own = {photo.name for photo in photos.photos}
    sample = [path for path in sorted((presets.PRESETS / "sample_person").glob("*.png")) if path.name not in own]
    knowing, notes = lookalike.known(judges, photos, sample=sample, base=sorted(run.pictures("none")))
    for sentence in notes:
        _say(sentence)
    images: dict[str, Any] = {}
    for path, name in zip(asked.images, _short_names(asked.images), strict=True):
        answer = lookalike.look_at_any(decode(path), knowing)
        images[name] = {
            "faces": [
                {"box": face.box, "judges": {one.score.judge: _opinion(one) for one in face.opinions}}
                for face in answer.faces
            ]
        }
        if not asked.json:
            print(f"{name}: {'' if answer.faces else 'no face found.'}")
            for number, face in enumerate(answer.faces, start=1):
                for one in face.opinions:
                    words = f" ({one.score.words})" if one.score.words else ""
                    note = f" {one.score.note}" if one.score.note else ""
                    print(f"  face {number}, {one.score.judge}: {one.sentence}{words}{note}")
    if asked.json:
        _print_json({"images": images})
    return DONE


def _opinion(one: Opinion) -> dict[str, Any]:
    return {
        "similarity": one.score.similarity,
        "verdict": one.score.verdict,
        "looks_like": one.verdict,
        "in_words": one.score.words,
        "note": one.score.note,
        "reason": one.score.reason,
        "is_held_out": one.is_held_out,
        "nearest": {each.who: each.similarity for each in one.nearest},
    }


def _finish(asked: argparse.Namespace) -> int:
    from pipelines.core import inscription, workspace
    from pipelines.core.schema import Finish
    from pipelines.faces import faces
    from pipelines.finishing import mark, refine, stage
    from pipelines.photos.decode import decode

    _face_models(asked)
    if not asked.image.is_file():
        raise WrongUse(f"There is no file {asked.image}. Check the path.")
    kinds = [name for name, ends in mark.FORMATS.items() if asked.out.suffix.lower() in ends]
    if not kinds:
        raise WrongUse(f"{asked.out.name} names no format. End it in .jpg, .png, .webp or .avif.")
    run = _run_of(asked.of_run) if asked.of_run else None
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
    judges = faces.available_judges(on_problem=_say)
    baseline = stage.baseline_of(run, image, judges) if run else refine.baseline_itself(judges, image)
    bar = Bar()
    drawn = inscription.read(asked.image)
    base = drawn.base if drawn else ""
    made = stage.finish(image, order, baseline=baseline, size=size, base=base, on_step=lambda one: bar.line(_told(one)))
    workspace.write_bytes(asked.out, made.delivered.data)
    if asked.json:
        _print_json({"file": str(asked.out), **stage.told(made)})
        return DONE
    for sentence in made.notes:
        _say(sentence)
    one = made.delivered
    print(f"{asked.out}: {one.width_px} x {one.height_px} px, {one.kb:.0f} kB {one.format_name}")
    for judge, found in stage.told(made)["similarity"].items():
        print(f"{judge}: {_figure(found['raw'])} raw, {_figure(found['delivered'])} as delivered, to {baseline.of}")
    return DONE


def _told(one: Outcome) -> str:
    return f"{one.step.name}: {one.state}. {one.sentence}"


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names; where two are the same, the paths as they were given."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _verify(asked: argparse.Namespace) -> int:
    if not asked.image.is_file():
        raise WrongUse(f"There is no file {asked.image}. Check the path.")
    from pipelines.finishing.mark import verify

    try:
        found = verify(asked.image)
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    if asked.json:
        marks = {mark.name: {k: v for k, v in asdict(mark).items() if k != "name"} for mark in found.marks}
        _print_json({"found": found.found, "tampered": found.tampered, "sentence": found.sentence, "marks": marks})
    else:
        print(found.sentence)
        for mark in found.marks:
            print(f"  {mark.sentence}")
    return DONE if found.found else FAILED


def _forget(asked: argparse.Namespace) -> int:
    from pipelines.core import workspace

    receipt = workspace.forget(_run_of(asked.folder))
    if asked.json:
        _print_json(receipt)
    else:
        print(
            f"Removed run {receipt['run']}: {receipt['files']} files, {receipt['bytes']:,} bytes. "
            f"Checked: {receipt['verified']}."
        )
        print(receipt["note"])
        for name in receipt["copies_elsewhere"]:
            print(f"{name} has the same bytes under another name outside the run; delete that copy by hand.")
    return DONE


def _worker(asked: argparse.Namespace) -> int:
    from pipelines.core import workspace
    from pipelines.runs import worker

    if asked.line:
        return worker.serve(asked.folder.resolve(), device=asked.device)
    return worker.work(workspace.open_run(asked.folder))


# ------------------------------------------------------------------------------------------------- their parts


def _prepare(asked: argparse.Namespace, *, kind: str) -> tuple[Run, JobSpec]:
    """The run and what is to be done in it. Everything that can be wrong about the arguments is found here."""
    from pipelines.bases.registry import default_base, find_base
    from pipelines.core import workspace
    from pipelines.photos.gather import photo_files
    from pipelines.runs.jobspec import JobSpec

    _face_models(asked)
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
            methods=asked.methods or row.usual,
            quality=asked.quality,
            seed=asked.seed,
            keep=tuple(asked.keep),
            renders=getattr(asked, "renders", 8),
            settings=settings,
            device=asked.device,
            processes=asked.processes,
            attention=asked.attention,
            download_judge=getattr(asked, "download_judge", False),
        )
        spec.check()
        if asked.out is not None and asked.out.exists() and not workspace.is_run(asked.out):
            workspace.run_at(asked.out)  # says what is wrong with it
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    files = photo_files(asked.photos)
    run = workspace.run_at(asked.out) if asked.out is not None else workspace.new_run()
    if not run.consent.exists():
        workspace.record_consent(run, means=f"command line: {kind}", statement=CONSENT)
    return run, _replaced(spec, photos=tuple(str(path.resolve()) for path in files))


def _replaced(record: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(record, **changes)


def _run_of(folder: Path) -> Run:
    from pipelines.core import workspace

    try:
        if folder.is_symlink():
            raise UserError(f"{folder.name} is a link. Give the run's own folder.")
        return workspace.open_run(folder)
    except UserError as problem:
        raise WrongUse(str(problem)) from problem


def _face_models(asked: argparse.Namespace) -> None:
    """Hand the folder of ArcFace packs on to this process and its worker."""
    folder = getattr(asked, "face_models", None)
    if folder is not None:
        if not folder.is_dir():
            raise WrongUse(f"{folder} is not a folder. Name the folder that holds models/<pack>/*.onnx.")
        os.environ["LIKENESS_FACE_MODELS"] = str(folder.resolve())


def _do(run: Run, spec: JobSpec) -> int:
    """Start the worker and show what it does until it ends; returns where its events begin. Ctrl-C stops it."""
    from pipelines.runs import jobs

    jobs.start(run, spec)
    first = jobs.status(run).first_event
    bar = Bar()
    events = jobs.follow(run)
    stopping = False
    while True:
        try:
            event = next(events, None)
            if event is None:
                break
            bar.event(event)
        except KeyboardInterrupt:
            if stopping:
                raise
            stopping = True
            bar.close()
            _say("Stopping: what was learned is kept. Press Ctrl-C again to leave at once.")
            jobs.stop(run)
            events = jobs.follow(run)
    bar.close()
    status = jobs.status(run)
    if status.state == "done":
        return first
    again = f" The run is in {run.folder}; the same command continues it." if status.state != "failed" else ""
    raise UserError(f"{status.reason or 'The work did not finish.'}{again}")


class Bar:
    """Progress on stderr: one line that is redrawn on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = ""
        self._said_at = 0.0
        self._steps: dict[str, tuple[int, int]] = {}
        self._left: dict[str, float] = {}

    def event(self, event: Event) -> None:
        if event.kind == "step" and event.method:
            self._steps[event.method] = (event.step, event.steps)
            self._left[event.method] = event.seconds_left or 0.0
            done = sum(step for step, _ in self._steps.values())
            total = sum(steps for _, steps in self._steps.values())
            parts = ", ".join(f"{name} {step}/{steps}" for name, (step, steps) in self._steps.items())
            self.show(f"learning: {parts}, {sum(self._left.values()):.0f} s left", done, total)
        elif event.kind == "render":
            self.show("drawing", event.step, event.steps)
        elif event.kind == "score":
            self.show("scoring", event.step, event.steps)
        elif event.text and self._is_news(event):
            self.line(event.text)

    @staticmethod
    def _is_news(event: Event) -> bool:
        if event.kind == "failed":
            return event.method is not None  # the whole job's failure is said at the end
        return event.kind in ("phase", "note", "refused") and event.data.get("stage") != "photos"

    def show(self, text: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        line = f"[{'#' * round(24 * share):<24}] {share:4.0%} {text}"
        if self._live:
            print(f"\r\x1b[2K{line[:150]}", end="", file=sys.stderr, flush=True)
            self._shown = line
        elif time.monotonic() - self._said_at > 10:
            print(line, file=sys.stderr, flush=True)
            self._said_at = time.monotonic()

    def line(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown:
            print(file=sys.stderr, flush=True)
            self._shown = ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False), flush=True)


def _print_table(report: dict[str, Any]) -> None:
    judges = list(report["judges"])
    print(f"{'method':<18} {'seconds':>8} {'MB':>8} {'faces':>8}  " + "  ".join(f"{name:>22}" for name in judges))
    for name, row in report["methods"].items():
        faces = "–" if row["renders"] is None else f"{row['faces_found'] or 0} of {row['renders']}"
        size = None if row["artifact_bytes"] is None else row["artifact_bytes"] / 1e6
        said = []
        for judge in judges:
            one = row["identity"][judge]
            said.append(f"{_figure(one['mean'])} (normalised {_figure(one['normalised'])})")
        print(
            f"{name:<18} {_figure(row['train_s']):>8} {_figure(size):>8} {faces:>8}  "
            + "  ".join(f"{s:>22}" for s in said)
        )
    for judge, mark in report["judges"].items():
        print(
            f"{judge}: real photos of this person reach {_figure(mark['ceiling'])}, different people stay below "
            f"{_figure(mark['impostor'])}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every problem ends as one sentence on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    asked = parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except UserError as problem:
        _say(str(problem))
        if getattr(asked, "json", False):
            _print_json({"error": str(problem)})
        return WRONG_USE if isinstance(problem, WrongUse) else FAILED
    except KeyboardInterrupt:
        _say("Left. The work so far is kept.")
        return FAILED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        from pipelines.runs.worker import OURS, explain

        sentence = explain(error)
        if sentence == OURS:
            sentence = f"This is our fault, not yours: {type(error).__name__}: {error}. Please report it."
        _say(sentence)
        if getattr(asked, "json", False):
            _print_json({"error": sentence})
        if os.environ.get("LIKENESS_DEBUG"):
            raise
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
