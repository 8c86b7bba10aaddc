"""The README's likeness table: the whole comparison on a folder of people, one run folder each, then one table.

    python benchmarks/people.py PEOPLE_DIR --quality good --out .build/people [--people p01,p02] [--aggregate-only]

In: a folder with `people.csv` (person, class_word) and one folder of photos per person. Out: averages only - a
Markdown table and paired bootstraps on standard output, `summary.json` in --out. A finished person is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.core.records import METHODS
from pipelines.evaluation.statistics import paired_bootstrap

TITLES = {
    "none": "untrained base",
    "textual_inversion": "textual inversion",
    "dreambooth": "DreamBooth",
    "lora": "LoRA",
}


def scores_of(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """judge -> method -> picture's file name -> similarity; a picture without a face is 0."""
    out: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in (run / "scores.jsonl").read_text().splitlines():
        row = json.loads(line)
        render = Path(row["render"])
        out[row["judge"]][render.parent.name][render.name] = row["similarity"] or 0.0
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", default="good", choices=("draft", "good", "best"))
    parser.add_argument("--base", default="portrait-128")
    parser.add_argument("--people", help="comma-separated; default: all in people.csv")
    parser.add_argument("--out", type=Path, default=ROOT / ".build" / "people")
    parser.add_argument("--aggregate-only", action="store_true")
    options = parser.parse_args()
    rows = {r["person"]: r["class_word"] for r in csv.DictReader((options.folder / "people.csv").open())}
    people = options.people.split(",") if options.people else list(rows)
    for person in people:
        run = options.out / options.quality / person
        if options.aggregate_only or (run / "manifest.json").is_file():
            continue
        command = [sys.executable, "-m", "pipelines", "compare", str(options.folder / person)]
        command += ["--class-word", rows[person], "--base", options.base, "--quality", options.quality]
        code = subprocess.run([*command, "--seed", "0", "--out", str(run)], cwd=ROOT, check=False).returncode
        if code:
            print(f"{person}: the comparison failed with exit code {code}.", file=sys.stderr)
    done = [p for p in people if (options.out / options.quality / p / "manifest.json").is_file()]
    if not done:
        print("No person is finished.", file=sys.stderr)
        return 1
    reports = {p: json.loads((options.out / options.quality / p / "report.json").read_text()) for p in done}
    scores = {p: scores_of(options.out / options.quality / p) for p in done}
    judges = [j for j in reports[done[0]]["judges"] if all(j in r["judges"] for r in reports.values())]
    print(f"{len(done)} people, quality {options.quality}, {options.base}, {machine()}, {date.today().isoformat()}\n")
    head = " | ".join(f"{j} mean | {j} normalised" for j in judges)
    print(f"| method | {head} | faces found | seconds | bytes | parameters |")
    print("|---" * (5 + 2 * len(judges)) + "|")
    for method in ("none", *METHODS):
        figures = [r["methods"][method] for r in reports.values() if method in r["methods"]]
        cells = []
        for judge in judges:
            identity = [f["identity"][judge] for f in figures]
            normal = [i["normalised"] for i in identity if i["normalised"] is not None]
            means = [i["mean"] for i in identity if i["mean"] is not None]
            cells += [f"{np.mean(means):.3f}" if means else "-", f"{np.mean(normal):.2f}" if normal else "-"]
        found = f"{sum(f['faces_found'] for f in figures)} / {sum(f['renders'] for f in figures)}"
        cost = ["-" if figures[0][k] is None else f"{np.mean([f[k] for f in figures]):,.0f}" for k in COSTS]
        print(f"| {TITLES[method]} | {' | '.join(cells)} | {found} | {' | '.join(cost)} |")
    for judge in judges:
        marks = [r["judges"][judge] for r in reports.values()]
        print(f"\n{judge}: mean ceiling {np.mean([m['ceiling'] for m in marks]):.3f}")
        for method in METHODS:
            names = {p: sorted(scores[p][judge]["none"]) for p in done}
            a = [[scores[p][judge][method].get(n, 0.0) for n in names[p]] for p in done]
            b = [[scores[p][judge]["none"][n] for n in names[p]] for p in done]
            all_people = paired_bootstrap(a, b)
            alone = sum(t.significant and t.difference > 0 for t in (paired_bootstrap(x, y) for x, y in zip(a, b)))
            print(
                f"  {TITLES[method]} - base: {all_people.difference:+.3f} "
                f"[{all_people.low:+.3f}, {all_people.high:+.3f}], p = {all_people.p:.4f}; "
                f"significant for {alone} of {len(done)} people alone (bootstrap over seeds)"
            )
    (options.out / options.quality / "summary.json").write_text(json.dumps(reports, indent=1) + "\n")
    return 0


COSTS = ("train_s", "artifact_bytes", "trainable_params")

if __name__ == "__main__":
    sys.exit(main())
