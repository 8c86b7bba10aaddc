"""How much longer does a training take while other programs keep the cores busy?

    python benchmarks/busy_machine.py [--busy 0,1,2] [--spin 1000,300000] [--steps 40] [--limit 240]

In: nothing (it uses the sample person and the embedded base). Out: a table: seconds for `--steps` steps of textual
inversion beside 0, 1, 2 programs that use a core all the time, for each spin count of PyTorch's threads
(GOMP_SPINCOUNT: how long a thread waits in a loop; `pipelines/__init__.py` sets 1000, the library's default is 300000).
If the limit ends first, the time is estimated from the steps that were done. Nothing else should run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import psutil
from visits import conditions

from pipelines.core.files import read_lines

METHOD = "textual_inversion"
NEVER_RESTS = "while True: pass"


def trained_s(spin: int, busy: int, steps: int, limit_s: float) -> tuple[int, float]:
    """(steps done, seconds since the first step began) of one training beside `busy` other programs."""
    settings = (f"steps={steps}", "batch=8", "watch_every=0")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "pipelines", "train", str(ROOT / "presets/sample_person"), "--class-word", "woman",
            "--methods", METHOD, "--base", "portrait-128", "--seed", "0", "--out", str(run),
        ]  # fmt: skip
        for each in settings:
            command += ["--set", f"{METHOD}.{each}"]
        started: list[psutil.Process] = []
        try:
            started += [psutil.Popen([sys.executable, "-c", NEVER_RESTS]) for _ in range(busy)]
            with (Path(folder) / "log.txt").open("wb") as log:
                environment = os.environ | {"GOMP_SPINCOUNT": str(spin)}
                training = psutil.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            started.append(training)
            with contextlib.suppress(psutil.TimeoutExpired):
                if training.wait(limit_s):
                    raise SystemExit(f"The training failed:\n{(Path(folder) / 'log.txt').read_text()[-2000:]}")
            with contextlib.suppress(psutil.NoSuchProcess):
                started += training.children(recursive=True)
        finally:
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(started, timeout=10)
        events = read_lines(run / "events.jsonl")
        told = [(event["step"], event["seconds"]) for event in events if event["kind"] == "step"]
        return told[-1] if told else (0, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", default="0,1,2", help="how many programs that never rest (0,1,2)")
    parser.add_argument("--spin", default="1000,300000", help="turns of waiting (1000,300000)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a training is stopped (240)")
    options = parser.parse_args()
    for key, value in conditions().items():
        print(f"{key}: {value}")
    print(
        "\n| turns of waiting | other programs | steps done | seconds for all | times as long |\n|---|---|---|---|---|"
    )
    for spin in map(int, options.spin.split(",")):
        alone = None
        for busy in map(int, options.busy.split(",")):
            done, seconds = trained_s(spin, busy, options.steps, options.limit)
            if not done:
                print(f"| {spin} | {busy} | none within {options.limit:.0f} s | | |", flush=True)
                continue
            whole = seconds / done * options.steps
            alone = whole if not busy else alone
            times = f"{whole / alone:.1f}" if alone else ""
            print(f"| {spin} | {busy} | {done} | {whole:.1f} | {times} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
