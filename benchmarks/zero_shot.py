"""How much does a face look like the person when nothing is trained, and how soon is the first portrait there?

    LIKENESS_FACE_MODELS=ROOT python benchmarks/zero_shot.py PEOPLE_DIR [--people p01,p04] [--strengths 1,1.5] [--train]

In: a folder with `people.csv` (person, class_word) and one folder of photos per person. Out: averages over people on
standard output and in --out: similarity to photos that were held out, by every judge, and seconds. `--train`: textual
inversion that starts from the same words as well, and their difference by a paired bootstrap over people. No picture
and no embedding is kept. Seconds of processor time do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.bases.loading import load_family
from pipelines.bases.registry import find_base
from pipelines.core import presets
from pipelines.core.device import machine, pick_device
from pipelines.core.records import PhotoSet, Sampling, UserError
from pipelines.evaluation.references import reference
from pipelines.evaluation.statistics import paired_bootstrap
from pipelines.faces.judges import available_judges
from pipelines.generation.generator import Generator
from pipelines.photos.album import Album, weight_of
from pipelines.photos.intake import intake
from pipelines.runs.jobspec import default_samplings
from pipelines.runs.study import Person, read_people
from pipelines.training.encode import encode
from pipelines.training.loop import train
from pipelines.training.teach import training_data


@dataclass
class Measured:
    """One way of making portraits: similarities (people, pictures) by judge, and (wall, processor) seconds by step."""

    similarity: dict[str, list[list[float]]] = field(default_factory=dict)
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def timed(self, step: str, work: Callable[[], list]) -> list:
        wall, processor = time.perf_counter(), time.process_time()
        done = work()
        spent = time.perf_counter() - wall, time.process_time() - processor
        self.seconds.setdefault(step, []).append(spent)
        return done

    def mean_s(self, step: str, which: int) -> float:
        return float(np.mean([each[which] for each in self.seconds[step]]))


class Bench:
    def __init__(self, base: str, renders: int, judges: list) -> None:
        self.row, self.judges = find_base(base), judges
        self.family = load_family(self.row, pick_device("cpu"))
        self.looks = default_samplings(self.row, renders=renders)
        self.found: dict[str, Measured] = {}

    def person(self, person: Person, folder: Path, *, strengths: list[float], trained: bool) -> None:
        photos = intake(person.photos, folder / "photos", min_eye_distance_px=self.row.min_eye_distance_px)
        one = replace(photos, train=(max(photos.train, key=weight_of),))
        drawing = Generator(self.row, family=self.family)
        album = Album(photos)
        references = [reference(judge, photos.held_out, album) for judge in self.judges]
        recipe = presets.recipe(self.row, "zero_shot", "good", class_word=person.class_word)

        def draw(name: str, subject: Path | None, strength: float = 1.0) -> None:
            measured = self.found.setdefault(name, Measured())
            looks = [replace(each, strength=strength) for each in self.looks]
            made = measured.timed(
                "pictures", lambda: list(drawing.render(looks, subject, class_word=person.class_word))
            )
            for known in references:
                seen = [known.judge.look(np.asarray(image)).vector for _, image in made]
                alike = [0.0 if vector is None else known.similarity(vector) for vector in seen]
                measured.similarity.setdefault(known.judge.name, []).append(alike)

        draw("untrained base", None)
        for name, part in (("all training photos", photos), ("one photo", one)):
            measured = self.found.setdefault(name, Measured())
            out = folder / name.replace(" ", "-")

            def first(part: PhotoSet = part, out: Path = out, measured: Measured = measured) -> None:
                measured.timed("encoding", lambda: list(encode(recipe, Album(part), out, self.family)))
                list(drawing.render(self.looks[:1], out, class_word=person.class_word))

            measured.timed("first portrait", lambda work=first: [work()])
            draw(name, out)
        for strength in strengths:
            draw(f"all, strength {strength:g}", folder / "all-training-photos", strength)
        if trained:
            learned = presets.recipe(self.row, "textual_inversion", "good", class_word=person.class_word)
            learned = learned.replaced(preview_every_s=0.0)
            data = training_data(album, {learned.method: learned}, self.row)
            measured = self.found.setdefault(TRAINED, Measured())
            measured.timed("training", lambda: list(train(learned, data, folder / "words", family=self.family)))
            draw(TRAINED, folder / "words")


TRAINED = "textual inversion from there"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", default="", help="comma-separated; default: all")
    parser.add_argument("--base", default="portrait-128")
    parser.add_argument("--renders", type=int, default=4, help="pictures of each (4)")
    parser.add_argument("--strengths", default="", help="of the identity dial, besides 1; comma-separated")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / ".build" / "zero_shot.json")
    options = parser.parse_args()
    strengths = [float(each) for each in options.strengths.split(",") if each]
    bench = Bench(options.base, options.renders, available_judges())
    list(Generator(bench.row, family=bench.family).render([Sampling("man", steps=2)], None, class_word="man"))  # warm
    done: list[str] = []
    for person in read_people(options.folder, [each for each in options.people.split(",") if each]):
        try:
            with tempfile.TemporaryDirectory() as folder:
                bench.person(person, Path(folder), strengths=strengths, trained=options.train)
        except UserError as problem:
            print(f"{person.name}: {problem}", file=sys.stderr)
            continue
        done.append(person.name)
        tell(bench, done, options)
    return 0 if done else 1


def tell(bench: Bench, done: list[str], options: argparse.Namespace) -> None:
    judges = [judge.name for judge in bench.judges]
    load = ", ".join(f"{each:.0f}" for each in os.getloadavg())
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"\n{len(done)} people ({', '.join(done)}), {options.renders} pictures each, {bench.row.name}")
    print(f"{machine()}, {threads} thread(s), {date.today().isoformat()}, load {load}\n")
    print(f"| portraits from | {' | '.join(judges)} | first portrait, s | of processor time | a picture | training |")
    print("|---" * (5 + len(judges)) + "|")
    for name, measured in bench.found.items():
        alike = [f"{np.mean(measured.similarity[judge]):.3f}" for judge in judges]
        first = [f"{measured.mean_s('first portrait', k):.1f}" if "first portrait" in measured.seconds else "–"
                 for k in (0, 1)]  # fmt: skip
        each = measured.mean_s("pictures", 1) / options.renders
        learned = f"{measured.mean_s('training', 1):.0f}" if "training" in measured.seconds else "–"
        print(f"| {name} | {' | '.join(alike)} | {' | '.join(first)} | {each:.2f} | {learned} |")
    if TRAINED in bench.found:
        for judge in judges:
            pair = (bench.found[name].similarity[judge] for name in (TRAINED, "all training photos"))
            gain = paired_bootstrap(*pair)
            print(f"{judge}: {TRAINED} {gain.difference:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), p = {gain.p:.4f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: {"similarity": one.similarity, "seconds": one.seconds} for name, one in bench.found.items()}
    options.out.write_text(json.dumps({"people": done, "found": kept}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
