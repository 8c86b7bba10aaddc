"""The parser of the command line: all commands, their arguments, and the functions that they call.

In: nothing. Out: `parser()`, whose result has the command's function as `run`. Light: heavy modules are imported where
they are needed, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pipelines.cli import generate as drawing
from pipelines.cli import score as looking
from pipelines.cli import train as teaching
from pipelines.cli.arguments import DREAMBOOTH_LORA, count, names, real, setting, whole
from pipelines.cli.output import WRONG_USE
from pipelines.core.records import ALL_METHODS, ATTENTIONS, CLASS_WORDS, COLUMNS, METHODS, QUALITIES, REASONS, TRAINABLE

Command = Callable[..., argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one sentence that names `--help`."""

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

    _teaching(command)
    _drawing(command)
    _looking(command)
    _loras(command)
    _finishing(command)
    _the_rest(command)
    return top


def _teaching(command: Command) -> None:
    both: list[argparse.ArgumentParser] = []
    both.append(
        command("compare", "Do the whole job: learn, draw, score, and write RUN/report.json.", teaching.compare)
    )
    both.append(command("train", "Learn a face with one or several methods.", teaching.train))
    for made in both:
        made.add_argument("photos", metavar="PHOTO_DIR", type=Path, help="folder with 5 to 15 photos of one person")
        made.add_argument("--class-word", choices=CLASS_WORDS, default="person", help="what the person is (person)")
        made.add_argument(
            "--methods",
            type=names(ALL_METHODS),
            metavar="NAMES",
            help=f"comma-separated, of {', '.join(ALL_METHODS)}\n(default: all that"
            f" the base offers but {', '.join(sorted(set(TRAINABLE) - set(METHODS)))}, which is made of others;"
            "\ntrain leaves out zero_shot too, which trains nothing)",
        )
        _base_arguments(made)
        made.add_argument("--quality", choices=QUALITIES, default="good", help="how long to train (good)")
        made.add_argument("--seed", type=whole, default=0, help="determines the split, the training and the noise (0)")
        made.add_argument("--out", metavar="RUN", type=Path, help="folder of the run; an existing run is continued")
        made.add_argument(
            "--keep",
            metavar="NAME",
            action="append",
            default=[],
            help="use this photo although the check would leave it out (its file name; repeatable)",
        )
        made.add_argument(
            "--processes", type=count, default=1, help="that teach together through accelerate launch, a GPU each (1)"
        )
        made.add_argument(
            "--set",
            metavar="METHOD.NAME=VALUE",
            action="append",
            default=[],
            type=setting,
            help="change one setting of a recipe, e.g. lora.rank=32 or lora.dora=true (may be repeated)",
        )
    compare = both[0]
    compare.add_argument("--renders", type=count, default=8, help="pictures per method (8)")
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
    compare.add_argument(
        "--plan", action="store_true", help="of a study: say which cells are left and for how long, and start nothing"
    )
    compare.add_argument("--jobs", type=count, default=1, help="cells of a study that run at once (1)")
    compare.add_argument("--engine", choices=("processes", "ray"), default="processes", help="where cells run")
    compare.add_argument("--address", help="of a running Ray cluster (default: one on this machine)")
    _judge_arguments(compare)

    again = command("replay", "Repeat a run from its manifest and say what differs.", teaching.replay)
    again.add_argument("manifest", metavar="RUN/manifest.json", type=Path, help="of a finished comparison")
    again.add_argument("--out", metavar="RUN", type=Path, help="folder of the new run (beside the old: RUN-again)")
    again.add_argument(
        "--face-models", "--judge-root", metavar="FOLDER", type=Path, help="holds models/<pack>/*.onnx (ArcFace packs)"
    )


def _drawing(command: Command) -> None:
    generate = command("generate", "Draw pictures with what a run has learned, and score them.", drawing.generate)
    generate.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    generate.add_argument("--prompt", action="append", default=[], help="what to draw; holds {subject} (repeatable)")
    generate.add_argument("--style", action="append", default=[], help="a style of presets/styles (repeatable)")
    generate.add_argument(
        "--methods",
        type=names(COLUMNS, imported=True),
        metavar="NAMES",
        help=f"comma-separated columns, of {', '.join(COLUMNS)}\nand imported-NAME; none is the untrained base "
        "(all that are trained\nor imported)",
    )
    generate.add_argument("--number", type=count, default=1, help="pictures per prompt and method (1)")
    generate.add_argument("--seed", type=whole, default=0, help="seed of the first picture; the next have the next (0)")
    generate.add_argument("--steps", type=count, help="sampling steps (the style's, else 20)")
    generate.add_argument(
        "--guidance", type=real, help="how closely to follow the prompt (the style's, else the base's)"
    )
    generate.add_argument("--negative", default=None, help="what not to draw")
    generate.add_argument("--scheduler", default="default", help="name of a sampler (default: the base's own)")
    generate.add_argument(
        "--draft", action="store_true", help="in 4 steps with the base's LCM-LoRA, where that is on this machine"
    )
    generate.add_argument("--strength", type=real, default=1.0, help="of LoRA and of zero_shot (1)")
    generate.add_argument("--source", metavar="RENDER", help="vary this picture of the run: renders/COLUMN/NAME.png")
    generate.add_argument("--change", type=real, help="how much of it, above 0 up to 1 (with --source 0.5)")
    generate.add_argument("--width", type=whole, help="pixels (the base's own)")
    generate.add_argument("--height", type=whole, help="pixels (the base's own)")
    generate.add_argument("--device", help="cpu, cuda or mps (default: the best here)")
    _judge_arguments(generate)


def _looking(command: Command) -> None:
    check = command(
        "check",
        "What is good about some photos of one person, what is not, and what to add.",
        looking.check,
        epilog="reason codes\n"
        + "\n".join(f"  {code:<18} {text}" for code, text in REASONS.items())
        + "\n\nverdicts: leave_out (the first six codes), usable (the others), good (none)",
    )
    check.add_argument("photos", metavar="PHOTO_OR_DIR", nargs="+", type=Path, help="photos, folders or ZIPs of photos")
    check.add_argument("--base", help="whose smallest face counts (this machine's default)")

    score = command("score", "How much do pictures look like the person in some photos?", looking.score)
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


def _loras(command: Command) -> None:
    extract = command(
        "extract", "Turn what DreamBooth learned into a LoRA, and say how much of it that misses.", drawing.extract
    )
    extract.add_argument("folder", metavar="RUN", type=Path, help="folder of a run in which DreamBooth was trained")
    size = extract.add_mutually_exclusive_group()
    size.add_argument("--rank", type=whole, help="of every layer (32)")
    size.add_argument("--error", type=real, help="allowed of each layer's change, e.g. 0.05; the rank follows")
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
        drawing.import_lora,
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


def _finishing(command: Command) -> None:
    finish = command("finish", "Refine one picture, cut it to a size, and mark it as drawn by an AI.", drawing.finish)
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
        "--face",
        metavar="N",
        type=whole,
        help="of several faces the one that is meant, 1 at the left; with --run the\n"
        "one that is nearest to its photos is found",
    )
    finish.add_argument("--overwrite", action="store_true", help="let --out be IMAGE itself")
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
    finish.add_argument("--px", type=whole, help="of its longer side (the size's own)")
    finish.add_argument("--max-kb", type=real, default=200, help="of the file at most, marks included (200)")
    finish.add_argument("--upscaler", default="", help="name, or path of a .safetensors file (the embedded one)")
    finish.add_argument("--restorer", default="", help="a face restorer's name or path, for the step restore")
    _judge_arguments(finish)


def _the_rest(command: Command) -> None:
    verify = command(
        "verify",
        "Read the marks that say a picture was drawn by an AI.",
        looking.verify,
        epilog="exit code: 0 a mark or a hint says so, 1 none does, 2 the file is no picture that can be read.\n"
        "No mark does not show that a picture is a photo.",
    )
    verify.add_argument("image", metavar="FILE", type=Path, help="JPEG, PNG, WebP, AVIF or another picture")

    forget = command("forget", "Remove a run with everything in it; prints a receipt.", teaching.forget)
    forget.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")

    worker = command("worker", "Do the job that lies in a run's folder (started by the app).", teaching.worker)
    worker.add_argument("folder", metavar="RUN", type=Path)
    worker.add_argument("--line", action="store_true", help="the folder contains runs: do the jobs in their queue")
    worker.add_argument("--device", default="")


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
