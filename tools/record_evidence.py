"""Write measured figures of the embedded base's recipes into their files, with date, machine and command.

    python tools/record_evidence.py RUNS --quality good --command "python benchmarks/people.py PEOPLE_DIR"

RUNS/<quality>/ has one finished comparison per person, made by `benchmarks/people.py`. Intervals are 95%, by a
bootstrap over people and pictures; a picture without a face counts as 0. A quality that was not measured stays null.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.core.records import METHODS, QUALITIES
from pipelines.evaluation.facts import asked_for
from pipelines.evaluation.statistics import cluster_bootstrap


def figures(runs: list[Path], method: str) -> dict[str, Any]:
    """The figures of one method over several people's runs, by their first judge."""
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    judge = next(iter(reports[0]["judges"]))
    alike, asked = [], []
    for run in runs:
        with (run / "cells.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == method and row["counted"] == "1"]
        alike.append([float(row[judge] or 0) for row in rows])
        wanted = [row for row in rows if asked_for(row["prompt"])]
        asked.append([float(row["following"] or 0) for row in wanted])
    of_method = [report["methods"][method] for report in reports]
    normal = [value for each in of_method if (value := each["identity"][judge]["normalised"]) is not None]
    manifest = json.loads((runs[0] / "manifest.json").read_text())
    return {
        "date": max(json.loads((run / "manifest.json").read_text())["finished"] for run in runs)[:10],
        "hardware": f"{machine()}, {manifest['machine']['threads']} thread(s)",
        "minutes": round(float(np.mean([each["train_s"] for each in of_method])) / 60, 2),
        "people": len(runs),
        "pictures": sum(map(len, alike)),
        "identity": {"judge": judge, **_span(alike), "normalised": round(float(np.mean(normal)), 3)},
        "following": _span(asked),
    }


def _span(values: list[list[float]]) -> dict[str, float]:
    found = cluster_bootstrap(np.array(values)[:, None, :, None])
    return {"mean": round(found.difference, 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--quality", choices=QUALITIES, default="good")
    parser.add_argument("--family", default="portrait")
    parser.add_argument("--command", required=True, help="that made the runs, as a reader would type it")
    options = parser.parse_args()
    runs = sorted(path.parent for path in (options.runs / options.quality).glob("*/manifest.json"))
    if not runs:
        print(f"No finished comparison lies in {options.runs / options.quality}.", file=sys.stderr)
        return 2
    for method in METHODS:
        file = ROOT / "presets" / "recipes" / f"{options.family}-{method}.json"
        saved = json.loads(file.read_text())
        found = figures(runs, method) | {"command": options.command}
        saved["evidence"] = saved.get("evidence", dict.fromkeys(QUALITIES)) | {options.quality: found}
        file.write_text(json.dumps(saved, indent=2) + "\n")
        print(file.name, json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
