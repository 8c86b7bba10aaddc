"""Our training beside diffusers' example scripts, with the same base, photos, resolution, batch and number of steps.

    python benchmarks/versus_diffusers.py --scripts DIFFUSERS/examples [--methods lora] [--steps 60] [--json F]
    python benchmarks/versus_diffusers.py --scripts DIFFUSERS/examples --people PEOPLE_DIR [--only p01,p04]
    python benchmarks/versus_diffusers.py --scripts DIFFUSERS/examples --folds 5

In: the examples/ folder of a diffusers checkout (tag v0.40.0 is the newest that works with diffusers 0.42; nothing of
it is copied) and, optionally, a folder of photos; without one the sample person's pictures are enlarged to 12
megapixels. Out: a table and JSON. Every row is a process of its own, started like by a person, one after another;
nothing else should run. --people (a folder per person and `people.csv`: person, class_word) does the same for each
person's photos, and the table has only identity; --folds does it for one person, with other held-out photos in each
fold, because the two of a single split are too few. `benchmarks/README.md` explains each figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SPIN = os.environ.get("GOMP_SPINCOUNT")  # before our code sets it: the scripts run with the user's value

from pipelines.core.records import METHODS

SCRIPTS = {
    "textual_inversion": "textual_inversion/textual_inversion.py",
    "dreambooth": "dreambooth/train_dreambooth.py",
    "lora": "dreambooth/train_dreambooth_lora.py",
}
PLACEHOLDER = "<learned>"
PHOTO_SIDE_PX, PHOTO_WIDTH_PX = 3000, 4000
GRAIN = 4.0  # noise in grey levels: with it an enlarged picture has as many bytes and decoding time as a phone's
TO_ARTEFACT_BAR, UPDATE_BAR = 3.0, 1.5
OURS, DEFAULTS, CAREFUL = "likeness", "script, its defaults", "script, everything done for it"
UNTRAINED = "untrained base, its class word"


@dataclass
class Row:
    """One training, measured from outside. Seconds are wall-clock; `cpu` ones are processor seconds of all threads."""

    method: str
    who: str
    steps: int
    batch: int
    to_artefact_s: float
    update_s: float  # mean time from one optimizer update to the next
    update_median_s: float
    update_cpu_s: float
    images_per_s: float
    total_cpu_s: float
    peak_mb: float
    artefact_bytes: int
    identity: float | None = None  # mean similarity of the pictures to the held-out photos; no face counts 0
    faces: str = ""  # in how many pictures the judge found a face
    phrase: str = field(default="", repr=False)
    folder: str = field(default="", repr=False)
    subject: str = ""  # the person, or the fold


# -- photos --------------------------------------------------------------------------------------------------------


def phone_photos(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Square pictures as 4000 x 3000 JPEGs: enlarged to 3000 x 3000 in the middle, edges repeated, with noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    out, edge = [], (PHOTO_WIDTH_PX - PHOTO_SIDE_PX) // 2
    for index, path in enumerate(pictures):
        with Image.open(path) as opened:
            large = opened.convert("RGB").resize((PHOTO_SIDE_PX, PHOTO_SIDE_PX), Image.Resampling.BICUBIC)
        pixels = np.pad(np.asarray(large), ((0, 0), (edge, edge), (0, 0)), mode="edge")
        grain = np.random.default_rng(index).normal(0, GRAIN, pixels.shape).astype(np.float32)
        grainy = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        out.append(folder / f"IMG_{index:04d}.jpg")
        Image.fromarray(grainy).save(out[-1], quality=94)
    return out


def shrunk(photos: Sequence[Path], folder: Path, size_px: int) -> None:
    """The preparation of photos that helps a script: crop to the middle, shrink, save as PNG."""
    from PIL import Image, ImageOps

    folder.mkdir(parents=True)
    for path in photos:
        with Image.open(path) as opened:
            small = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (size_px, size_px))
        small.save(folder / f"{path.stem}.png")


# -- running -------------------------------------------------------------------------------------------------------


def stand_ins(folder: Path) -> list[str]:
    """Write into `folder` replacements of modules that the scripts import and this machine does not have; returns
    sentences that say which and why.
    """
    import importlib.util

    folder.mkdir()
    if importlib.util.find_spec("torchvision") is not None:
        return []
    (folder / "torchvision").mkdir()
    (folder / "torchvision/__init__.py").write_text("")
    shutil.copy(ROOT / "benchmarks/versus/transforms.py", folder / "torchvision")
    return [
        "torchvision is not installed: the scripts get a stand-in of torchvision.transforms, written with Pillow to a "
        "temporary folder (benchmarks/versus/transforms.py)"
    ]


@dataclass(frozen=True)
class Process:
    """The measurements of one command."""

    started: float  # time.time()
    ended: float
    updates: list[dict[str, float]]  # after each update, in the process that trained: t, cpu, rss_mb
    total_cpu_s: float
    peak_mb: float


def run(command: Sequence[str], *, cwd: Path, stand_ins: Path | None = None) -> Process:
    """Run a command in `cwd`, measured by `benchmarks/versus/sitecustomize.py`. Raises SystemExit when it fails."""
    timings, log = cwd / "timings", cwd / "log.txt"
    timings.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks/versus"), str(ROOT)]),
        "LIKENESS_TIMINGS": str(timings),
        "LIKENESS_STAND_INS": "" if stand_ins is None or not any(stand_ins.iterdir()) else str(stand_ins),
        "LIKENESS_HOME": str(cwd / "home"),
        "HF_HUB_OFFLINE": "1",
        "TQDM_MININTERVAL": "5",
    }
    if stand_ins is not None and SPIN is None:
        environment.pop("GOMP_SPINCOUNT", None)
    started = time.time()
    with log.open("wb") as out:
        done = subprocess.run(command, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False)
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{log.read_text(errors='replace')[-3000:]}")
    processes = [[json.loads(line) for line in file.read_text().splitlines()] for file in timings.glob("*.jsonl")]
    processes = [lines for lines in processes if lines]
    updates = max(([line for line in lines if "end" not in line] for lines in processes), key=len, default=[])
    if len(updates) < 3:
        raise SystemExit(f"{' '.join(command[:3])} made {len(updates)} updates; at least 3 are needed to time them")
    return Process(
        started,
        ended,
        updates,
        sum(lines[-1]["cpu"] for lines in processes),
        max(lines[-1]["rss_mb"] for lines in processes),
    )


def row_of(method: str, who: str, process: Process, *, batch: int, ready: float, files: Sequence[Path]) -> Row:
    """The figures of one process. `ready`: the time at which the artefact was complete, in time.time() seconds."""
    updates = process.updates
    gaps = [b["t"] - a["t"] for a, b in zip(updates, updates[1:])]
    mean = (updates[-1]["t"] - updates[0]["t"]) / len(gaps)
    return Row(
        method=method,
        who=who,
        steps=len(updates),
        batch=batch,
        to_artefact_s=round(ready - process.started, 2),
        update_s=round(mean, 4),
        update_median_s=round(statistics.median(gaps), 4),
        update_cpu_s=round((updates[-1]["cpu"] - updates[0]["cpu"]) / len(gaps), 4),
        images_per_s=round(batch / mean, 2),
        total_cpu_s=round(process.total_cpu_s, 1),
        peak_mb=round(process.peak_mb),
        artefact_bytes=sum(file.stat().st_size for file in files),
    )


@dataclass(frozen=True)
class Asked:
    """The settings of all sides."""

    base: str  # for our command
    folder: Path  # the same base, for the scripts
    resolution_px: int
    class_word: str
    identifier: str
    steps: int
    batch: int
    quality: str
    scripts: Path
    photos: Path
    work: Path
    stand_ins: Path


def ours(asked: Asked, method: str) -> Row:
    """`python -m pipelines train`: from photos to a verified artefact."""
    folder = asked.work / f"{method}-ours"
    folder.mkdir()
    command = [
        sys.executable, "-m", "pipelines", "train", str(asked.photos), "--methods", method, "--base", asked.base,
        "--class-word", asked.class_word, "--quality", asked.quality, "--seed", "0", "--out", str(folder / "run"),
        "--set", f"{method}.steps={asked.steps}", "--set", f"{method}.batch={asked.batch}",
        "--set", f"{method}.watch_every=0",
    ]  # fmt: skip
    process = run(command, cwd=folder)
    learned = folder / "run/methods" / method
    card = json.loads((learned / "subject.json").read_text())
    files = [learned / name for name in card["learned"]]
    row = row_of(method, OURS, process, batch=asked.batch, ready=process.ended, files=files)
    row.phrase, row.folder = card["phrase"], str(learned)
    return row


def script(asked: Asked, method: str, *, careful: bool) -> Row:
    """diffusers' script with its defaults, or (`careful`) with the best flags and prepared photos."""
    from pipelines.bases.registry import find_base
    from pipelines.core import presets
    from pipelines.core.device import pick_device

    folder = asked.work / f"{method}-{'careful' if careful else 'defaults'}"
    folder.mkdir()
    out, photos = folder / "out", asked.photos
    if careful:
        photos = folder / "photos"
        shrunk(sorted(asked.photos.iterdir()), photos, asked.resolution_px)
    recipe = presets.recipe(find_base(asked.base), method, asked.quality, class_word=asked.class_word)
    vectors = recipe.vectors if careful else 1
    phrase = f"{asked.identifier} {asked.class_word}"
    command = [
        sys.executable, str(asked.scripts / SCRIPTS[method]), "--pretrained_model_name_or_path", str(asked.folder),
        "--resolution", str(asked.resolution_px), "--train_batch_size", str(asked.batch),
        "--max_train_steps", str(asked.steps), "--seed", "0", "--output_dir", str(out), "--center_crop",
    ]  # fmt: skip
    if method == "textual_inversion":
        command += ["--train_data_dir", str(photos), "--placeholder_token", PLACEHOLDER]
        command += ["--initializer_token", asked.class_word, "--num_vectors", str(vectors)]
        phrase = " ".join([PLACEHOLDER, *(f"{PLACEHOLDER}_{index}" for index in range(1, vectors))])
    else:
        command += ["--instance_data_dir", str(photos), "--instance_prompt", f"portrait of {phrase}"]
    if careful:
        precision = {"bfloat16": "bf16", "float16": "fp16"}.get(pick_device().dtype, "no")
        command += ["--learning_rate", str(recipe.learning_rate), "--mixed_precision", precision]
        if method != "textual_inversion":
            command += ["--pre_compute_text_embeddings"]
        if method == "lora":
            command += ["--rank", str(recipe.rank)]
    process = run(command, cwd=folder, stand_ins=asked.stand_ins)
    names = {
        "textual_inversion": ("learned_embeds.safetensors",),
        "lora": ("pytorch_lora_weights.safetensors",),
        "dreambooth": ("model_index.json", "unet/*.safetensors", "unet/config.json"),
    }
    files = [file for name in names[method] for file in out.glob(name)]
    whole = [file for file in out.rglob("*") if file.is_file()] if method == "dreambooth" else files
    ready = max(file.stat().st_mtime for file in whole)
    row = row_of(method, CAREFUL if careful else DEFAULTS, process, batch=asked.batch, ready=ready, files=whole)
    row.phrase, row.folder = phrase, str(out)
    return row


# -- likeness ------------------------------------------------------------------------------------------------------


def judge_rows(rows: Sequence[Row], asked: Asked, judged_by: Sequence[Path], pictures: int, judge_name: str) -> str:
    """Fill in identities: the stock pipeline loads every artefact from its files and draws the same prompts with the
    same seeds and sampler. Returns the judge's name."""
    import numpy as np

    from pipelines.core import presets
    from pipelines.evaluation import references
    from pipelines.faces.judges import available_judges, judge_named

    judge = judge_named(judge_name) if judge_name else available_judges()[0]
    reference = references.reference(judge, list(judged_by))
    prompts = [each.prompt for each in presets.prompts("portrait-128") if "{subject}" in each.prompt]
    asked_for = [(prompts[index % len(prompts)], 1000 + index) for index in range(pictures)]
    for row in rows:
        pipeline = stock_pipeline(asked.folder, row)
        drawn = []
        for start in range(0, pictures, 8):
            part = asked_for[start : start + 8]
            drawn += draw(pipeline, [(prompt.replace("{subject}", row.phrase), seed) for prompt, seed in part])
        scores = [references.score_of(judge.look(np.asarray(image)), "", reference).similarity for image in drawn]
        row.identity = round(float(np.mean([score or 0.0 for score in scores])), 4)
        row.faces = f"{sum(score is not None for score in scores)}/{pictures}"
    return judge.name


def stock_pipeline(base: Path, row: Row) -> Any:
    """diffusers' pipeline with a row's artefact, loaded as in diffusers' documentation."""
    import diffusers
    import torch

    from pipelines.core.device import quiet

    loader = diffusers.StableDiffusionPipeline.from_pretrained
    with quiet():
        pipeline: Any = loader(row.folder if row.method == "dreambooth" else base, dtype=torch.float32)
        if row.method == "lora":
            pipeline.load_lora_weights(row.folder, weight_name="pytorch_lora_weights.safetensors")
        elif row.method == "textual_inversion":
            pipeline.load_textual_inversion(row.folder, weight_name="learned_embeds.safetensors")
        pipeline.tokenizer.model_max_length = min(pipeline.tokenizer.model_max_length, 32)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, asked_for: Sequence[tuple[str, int]]) -> list[Any]:
    """PIL pictures, 20 DDIM steps, guidance 3."""
    import torch

    return list(
        pipeline(
            [prompt for prompt, _ in asked_for],
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for _, seed in asked_for],
        ).images
    )


# -- the verdict ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One requirement, and whether it holds."""

    method: str
    what: str
    figure: float
    wanted: float
    met: bool


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Ours against the script with its defaults; only for measured figures."""
    out = []
    known = {(row.method, row.who): row for row in rows}
    for method in dict.fromkeys(row.method for row in rows):
        mine, theirs = known.get((method, OURS)), known.get((method, DEFAULTS))
        if mine is None or theirs is None:
            continue
        whole, step = theirs.to_artefact_s / mine.to_artefact_s, theirs.update_s / mine.update_s
        out.append(
            Bar(method, "times faster to the artefact", round(whole, 2), TO_ARTEFACT_BAR, whole >= TO_ARTEFACT_BAR)
        )
        out.append(Bar(method, "times faster between updates", round(step, 2), UPDATE_BAR, step >= UPDATE_BAR))
        if mine.identity is not None and theirs.identity is not None:
            gained = mine.identity - theirs.identity
            out.append(Bar(method, "more identity", round(gained, 4), 0.0, gained >= 0))
    return out


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; in brackets the ratio to ours."""
    mine = {row.method: row for row in rows if row.who == OURS}
    lines = [
        "| method | who | to artefact | between updates | CPU time | images/s | peak memory | artefact | identity |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def beside(row: Row, name: str, text: str) -> str:
        own = mine.get(row.method)
        if own is None or own is row or not getattr(own, name):
            return text
        return f"{text} ({getattr(row, name) / getattr(own, name):.2g}x)"

    for row in rows:
        cells = [
            row.method.replace("_", " "),
            row.who,
            beside(row, "to_artefact_s", f"{row.to_artefact_s:.1f} s"),
            beside(row, "update_s", f"{row.update_s:.3f} s"),
            beside(row, "update_cpu_s", f"{row.update_cpu_s:.3f} s"),
            beside(row, "images_per_s", f"{row.images_per_s:.1f}"),
            beside(row, "peak_mb", f"{row.peak_mb:.0f} MB"),
            beside(row, "artefact_bytes", f"{row.artefact_bytes / 1e6:.2f} MB"),
            "-" if row.identity is None else f"{beside(row, 'identity', f'{row.identity:.3f}')}, {row.faces} faces",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def identities(rows: Sequence[Row], method: str, who: str) -> dict[str, float]:
    """{person or fold: identity}."""
    return {row.subject: row.identity or 0.0 for row in rows if (row.method, row.who) == (method, who)}


def identity_bars(rows: Sequence[Row], over: str) -> list[Bar]:
    """Ours against the script with its defaults, mean over people or folds (`over` says which)."""
    out = []
    for method in dict.fromkeys(row.method for row in rows if row.who == OURS):
        mine, theirs = identities(rows, method, OURS), identities(rows, method, DEFAULTS)
        gained = statistics.mean(mine[each] - theirs[each] for each in mine)
        out.append(Bar(method, f"more identity over {over}", round(gained, 4), 0.0, gained >= 0))
    return out


def identity_table(rows: Sequence[Row], over: str) -> str:
    """A Markdown table: means over people or folds, and ours minus each, with the 95% interval of a bootstrap."""
    from pipelines.evaluation.statistics import paired_bootstrap

    lines = ["| method | who | identity | ours is higher by | for |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(row.method for row in rows if row.who == OURS):
        mine = identities(rows, method, OURS)
        for who in (OURS, DEFAULTS, CAREFUL, UNTRAINED):
            other = identities(rows, "none" if who == UNTRAINED else method, who)
            if not other:
                continue
            cells = [method.replace("_", " "), who, f"{statistics.mean(other.values()):.3f}", "", ""]
            if who != OURS:
                pairs = [(mine[each], other[each]) for each in mine]
                drawn = paired_bootstrap([[a] for a, _ in pairs], [[b] for _, b in pairs])
                cells[3] = f"{drawn.difference:.3f} ({drawn.low:.3f} to {drawn.high:.3f})"
                cells[4] = f"{sum(a > b for a, b in pairs)} of {len(pairs)} {over}"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, required=True, help="examples/ of a diffusers checkout")
    parser.add_argument("--photos", type=Path, help="8 to 15 photos of one person (default: the sample person, 12 MP)")
    parser.add_argument("--people", type=Path, help="a folder of people with people.csv instead: identity over them")
    parser.add_argument("--only", default="", help="of --people, these: p01,p04 (all)")
    parser.add_argument("--folds", type=int, default=0, help="one person so many times, judged by other photos")
    parser.add_argument("--class-word", default="woman", help="what the person is (woman, as the sample person)")
    parser.add_argument("--judged-by", type=int, default=2, help="photos that nobody trains on: the last ones (2)")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=60, help="optimizer updates (60)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base", default="portrait-128", help="a base on this machine: a name or a diffusers folder")
    parser.add_argument("--quality", default="good", help="whose recipe is ours (good); its steps are --steps")
    parser.add_argument("--no-careful", action="store_true", help="leave out the rows without a bar")
    parser.add_argument("--pictures", type=int, default=16, help="per artefact, to judge identity by; 0: don't (16)")
    parser.add_argument("--judge", default="", help="whose identity (the best that is here)")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--work", type=Path, help="keep what is made in this folder, which must not exist")
    options = parser.parse_args()
    methods = options.methods.split(",")
    if (options.people or options.folds) and not options.pictures:
        parser.error("--people and --folds compare identity, which --pictures 0 leaves out")
    if options.people and options.folds:
        parser.error("--folds is for one person, --people for several")
    if options.folds < 0:
        parser.error("--folds is a number of times")
    for name in methods:
        if name not in METHODS:
            parser.error(f"--methods are of {', '.join(METHODS)}, not {name}")
        if not (options.scripts / SCRIPTS[name]).is_file():
            parser.error(
                f"{options.scripts} has no {SCRIPTS[name]}. Give the examples/ folder of a diffusers checkout."
            )

    from benchmarks.compare_draft import conditions
    from pipelines.bases.registry import find_base

    row = find_base(options.base)
    if row.folder is None:
        parser.error(f"{row.title} is not a folder on this machine. Give the path of one.")
    asked = Asked(
        row.name, row.folder.resolve(), row.resolution_px, options.class_word, row.identifier, options.steps,
        options.batch, options.quality, options.scripts.resolve(), Path(), Path(), Path(),
    )  # fmt: skip
    found = conditions()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary) / "work").resolve()
        work.mkdir(parents=True)
        said = stand_ins(work / "stand_ins")
        for line in [f"{key}: {value}" for key, value in found.items()] + said:
            print(line, flush=True)
        asked = replace(asked, stand_ins=work / "stand_ins")
        if options.people:
            words = {r["person"]: r["class_word"] for r in csv.DictReader((options.people / "people.csv").open())}
            for person in options.only.split(",") if options.only else words:
                one = replace(asked, work=work / person, class_word=words[person])
                rows += measure(one, methods, options, options.people / person, said, subject=person)
        elif options.folds:
            for fold in range(options.folds):
                one = replace(asked, work=work / str(fold))
                rows += measure(one, methods, options, options.photos, said, subject=str(fold), fold=fold)
        else:
            rows = measure(replace(asked, work=work / "all"), methods, options, options.photos, said)
    over = "people" if options.people else "folds" if options.folds else ""
    verdict = identity_bars(rows, over) if over else bars(rows)
    print("\n" + (identity_table(rows, over) if over else table(rows)) + "\n")
    for bar in verdict:
        print(f"{'met   ' if bar.met else 'MISSED'} {bar.method}: {bar.figure:g} {bar.what} (bar: {bar.wanted:g})")
    if options.json:
        saved = {
            "conditions": found,
            "notes": said,
            "rows": [{k: v for k, v in asdict(row).items() if k != "folder"} for row in rows],
            "bars": [asdict(bar) for bar in verdict],
        }
        options.json.write_text(json.dumps(saved, indent=1) + "\n")
    return 0 if all(bar.met for bar in verdict) else 1


def measure(
    asked: Asked,
    methods: Sequence[str],
    options: argparse.Namespace,
    source: Path | None,
    said: list[str],
    *,
    subject: str = "",
    fold: int = 0,
) -> list[Row]:
    """All rows of one person or fold; remarks for the reader are appended to `said`. Artefacts are kept only without
    `subject`, because a script's DreamBooth is a whole pipeline."""
    notes = []
    if source is None:
        pictures = sorted((ROOT / "presets/sample_person").glob("*.png"))
        photos = phone_photos(pictures, asked.work / "photos")
        notes.append(
            f"photos: the sample person's {len(pictures)} pictures, enlarged to 4000 x 3000 with grain "
            f"({sum(file.stat().st_size for file in photos) / len(photos) / 1e6:.1f} MB each)"
        )
    else:
        photos = [Path(shutil.copy(file, _made(asked.work / "photos"))) for file in sorted(source.iterdir())]
    turned = fold * options.judged_by
    if turned + options.judged_by > len(photos):
        raise SystemExit(f"{len(photos)} photos are enough for {len(photos) // options.judged_by} folds, not for more.")
    photos = photos[turned:] + photos[:turned]
    judged_by = [Path(shutil.move(file, _made(asked.work / "judged_by"))) for file in photos[-options.judged_by :]]
    asked = replace(asked, photos=asked.work / "photos")
    notes.append(
        f"both sides get {len(photos) - len(judged_by)} photos; {len(judged_by)} more judge. Ours keeps some of "
        "its own back (validation, held out) and learns from the others; the scripts learn from all"
    )
    rows: list[Row] = []
    for name in methods:
        for side in (OURS, DEFAULTS) if options.no_careful else (OURS, DEFAULTS, CAREFUL):
            rows.append(ours(asked, name) if side == OURS else script(asked, name, careful=side == CAREFUL))
            print(f"{name}, {side}: {rows[-1].to_artefact_s:.1f} s", flush=True)
    if subject:
        rows.append(Row("none", UNTRAINED, *[0] * 10, phrase=asked.class_word))
    if options.pictures:
        judge = judge_rows(rows, asked, judged_by, options.pictures, options.judge)
        notes.append(f"identity: {judge}, {options.pictures} pictures per artefact, drawn by the stock pipeline")
    for line in notes:
        print(line, flush=True)
    said += [line for line in notes if line not in said]
    if subject:
        for row in rows:
            row.subject = subject
        shutil.rmtree(asked.work)
    return rows


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
