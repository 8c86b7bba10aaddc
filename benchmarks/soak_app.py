"""Does the server's memory stay constant? Visitors come, upload, train, draw, delete and close the page, all the time.

In: nothing (it uses the sample person and a tiny random base, so that trainings are short). Out: a table and JSON:
memory, threads, descriptors and files over time, their slopes with a 95% interval, and whether each is flat; how long
the oldest run was unused; the server's log if it has a traceback.

    python benchmarks/soak_app.py --minutes 45 --visitors 3 --json soak.json

Run it by hand only. "Flat": the interval of the slope contains 0, or the growth per hour is below the limit in the
table; if the run is too short to tell, it says so and ends with exit code 1. The first third is not counted (of 45
minutes, 30 remain): in it modules are loaded, pages are forgotten after five minutes, and runs of visitors who closed
the page add up until the first of them are deleted (after six minutes here).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from scipy import stats
from visits import App, Visitor, conditions, sample_photos, table

PER_HOUR = {
    "rss_mb": 20.0,
    "threads": 2.0,
    "descriptors": 4.0,
    "files_in_runs": 10.0,
    "files_in_uploads": 10.0,
    "mb_on_disk": 20.0,
}
LUMPS = ("files_in_runs", "mb_on_disk")
BLOCK_S = 150.0
KEEP_MIN, LATE_MIN = 6.0, 2.0  # runs of visitors who left; the janitor checks every minute
METHODS = ("textual_inversion", "dreambooth", "lora")


def stay(visitor: Visitor, until: float, *, longest_s: float = 240.0) -> None:
    """Poll the page once a second until its job has ended."""
    leave = min(until, time.monotonic() + longest_s)
    stop = visitor.event("#lk-stop", "click")["id"]
    while time.monotonic() < leave:
        visitor.poll()
        time.sleep(1.0)
        told = visitor.call(visitor.event("", "load")["id"], [visitor.capability]).text
        if "safe to close" not in told:
            return
    visitor.call(stop, [visitor.capability])


def visit(app: App, base: str, chance: random.Random, count: dict[str, int], until: float) -> None:
    """One complete visit; some visitors close the page in the middle of it."""
    visitor = Visitor(app.address).open()
    try:
        steps: list[tuple[str, Any]] = [
            ("upload", lambda: visitor.add_photos(chance.sample(sample_photos(15), 6))),
            ("consent", lambda: visitor.consent(base)),
            ("train", lambda: visitor.train([chance.choice(METHODS)])),
            ("wait", lambda: stay(visitor, until)),
            ("draw", lambda: draw(visitor)),
            ("wait", lambda: stay(visitor, until)),
        ]
        for name, step in steps:
            if time.monotonic() > until or chance.random() < 0.08:
                count["left"] = count.get("left", 0) + 1
                break
            done = step()
            good = done is None or done["success"]
            key = name if good else f"{name} refused: {str((done.get('output') or {}).get('error'))[:60]}"
            count[key] = count.get(key, 0) + 1
            if not good:
                break
        if visitor.capability and chance.random() < 0.9:  # others leave, and their runs are deleted later
            done = visitor.delete()
            count["delete" if done["success"] else "delete refused"] = count.get("delete", 0) + 1
    finally:
        visitor.close()


def draw(visitor: Visitor) -> dict[str, Any]:
    event = visitor.event("#lk-generate", "click")
    shown = {each["id"]: each["props"] for each in visitor.config["components"]}
    values: list[Any] = []
    for name in event["inputs"]:
        props = shown[name]
        known = {"lk-columns": ["none"], "lk-prompt": "portrait of {subject}, grey background"}
        values.append(known.get(props.get("elem_id"), props.get("value")))
    values[0] = visitor.capability
    answer = visitor.join(event["id"], values)
    return visitor.stream()[-1] if answer.status_code == 200 else {"success": False, "output": {"error": answer.text}}


def slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """(growth per hour, half of its 95% interval) by least squares over the means of blocks.

    Neighbouring samples are correlated: a file exists for twelve of them. With single samples the interval would be
    several times too narrow; means of longer blocks are nearly independent. (Runs of visitors who left exist longer;
    whether each is deleted in time is checked separately.)
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for x, y in samples:
        blocks.setdefault(int((x - samples[0][0]) // BLOCK_S), []).append((x, y))
    means = [[sum(each) / len(each) for each in zip(*block)] for block in blocks.values()]
    if len(means) < 3:
        return math.nan, math.nan
    line = stats.linregress(*zip(*means))
    return 3600 * float(line.slope), 3600 * float(stats.t.ppf(0.975, len(means) - 2) * line.stderr)


def verdict(growth: float, half: float, allowed: float, level: float) -> str:
    """Whether a slope is flat: "yes", "no", or "can't say" if its interval is wider than the level itself."""
    if math.isnan(half) or half > level:
        return "can't say"
    return "yes" if growth - half <= 0 or growth + half < allowed else "no"


def settled(app: App) -> dict[str, float]:
    """What is left after all visitors have gone and their runs should be deleted."""
    deadline = time.monotonic() + 60 * (KEEP_MIN + LATE_MIN + 1)
    while time.monotonic() < deadline and app.size()["runs"]:
        time.sleep(5)
    now = app.size()
    return {name: now[name] for name in ("runs", "files_in_runs", "files_in_uploads", "mb_on_disk")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--visitors", type=int, default=3)
    parser.add_argument("--every", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    found: dict[str, Any] = {"conditions": conditions(), "minutes": options.minutes, "visitors": options.visitors}
    counts: dict[str, int] = {}
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        from tests.tiny import make_tiny_sd

        base = str(make_tiny_sd(Path(name) / "tiny", "portrait"))
        app = App(
            Path(name) / "app",
            LIKENESS_BASE=base,
            OMP_NUM_THREADS="1",
            LIKENESS_UPLOAD_MB_PER_HOUR="0",
            LIKENESS_KEEP_HOURS=str(KEEP_MIN / 60),
        )
        app.start()
        began = time.monotonic()
        until = began + 60 * options.minutes

        def one(number: int) -> None:
            chance = random.Random(number)
            offered = Visitor(app.address).open()
            ids = (c["props"] for c in offered.config["components"])
            default = next(props["value"] for props in ids if props.get("elem_id") == "lk-base")
            offered.close()
            while time.monotonic() < until:
                try:
                    visit(app, default, chance, counts, until)
                except Exception as error:
                    key = f"broken: {type(error).__name__} {str(error)[:80]}"
                    counts[key] = counts.get(key, 0) + 1

        people = [threading.Thread(target=one, args=(number,)) for number in range(options.visitors)]
        for person in people:
            person.start()
        while time.monotonic() < until:
            samples.append({"s": round(time.monotonic() - began, 1), **app.size()})
            print(json.dumps(samples[-1]), flush=True)
            time.sleep(options.every)
        for person in people:
            person.join()
        found["left_in_the_end"] = settled(app)
        log = app.log.read_text(errors="replace")
        found["tracebacks_in_the_log"] = log.count("Traceback")
        found["log"] = log[-200_000:]
        app.end()
    kept = [each for each in samples if each["s"] > samples[-1]["s"] / 3]
    found["slopes"] = {}
    for what, allowed in PER_HOUR.items():
        growth, half = slope([(each["s"], each[what]) for each in kept])
        found["slopes"][what] = {
            "first": kept[0][what], "last": kept[-1][what], "per_hour": round(growth, 1), "plus_minus": round(half, 1),
            "flat": verdict(growth, half, allowed, sum(each[what] for each in kept) / len(kept)),
        }  # fmt: skip
    found["visits"], found["samples"] = counts, samples
    oldest = max(each["oldest_run_min"] for each in samples)
    found["oldest_run_min"] = {"longest": oldest, "allowed": KEEP_MIN + LATE_MIN, "holds": oldest < KEEP_MIN + LATE_MIN}
    head = ["what", "after the first third", "at the end", "per hour", "±", "flat"]
    print(table(head, [[what, *figures.values()] for what, figures in found["slopes"].items()]))
    told = ("oldest_run_min", "left_in_the_end", "visits", "tracebacks_in_the_log", "conditions")
    print(json.dumps({key: found[key] for key in told}, indent=1))
    if found["tracebacks_in_the_log"]:
        print(found["log"][-20_000:])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    # a run is sixty files at once, so the disk is checked by the age of the oldest run and by what is left at the end
    good = all(each["flat"] == "yes" for what, each in found["slopes"].items() if what not in LUMPS)
    good = good and found["oldest_run_min"]["holds"] and not found["left_in_the_end"]["runs"]
    return 0 if good and not found["tracebacks_in_the_log"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
