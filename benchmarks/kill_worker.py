"""Does a training survive kill -9? Kills the worker, or the server that started it, at a random step, twenty times.

In: nothing (it uses the sample person and a tiny random base; `--base portrait-128` for the embedded one). Out: a table
and JSON. Every round: start a training, kill it, check its files, continue to the end, compare with a run that was not
killed.

    python benchmarks/kill_worker.py --rounds 20 --json kill.json

Exit code 1 unless the state is "interrupted", no file is half-written, no process is left, at most one checkpoint
interval is lost, and the artefact is equal to the bit to the one of the run that was not killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, so that results can be equal to the bit

from visits import conditions, sample_photos, table

from pipelines.core.files import read_json, write_json
from pipelines.core.run import Run, forget, run_at, save_photo_set
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec

EVERY = 5  # steps between checkpoints
# The app's part: recover the runs folder, start workers for its jobs, and put jobs in the queue.
SERVER = """
import sys
from pathlib import Path
from pipelines.runs import jobs
from pipelines.core.run import open_run
root = Path(sys.argv[1])
jobs.recover(root)
jobs.watch(root)
print("ready", flush=True)
for line in sys.stdin:
    jobs.enqueue(open_run(Path(line.strip())), owner="visitor")
    print("accepted", flush=True)
"""


class Server:
    """A process that acts as the app."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(root)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._said("ready")

    def enqueue(self, run: Run) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run.folder}\n")
        self.process.stdin.flush()
        self._said("accepted")

    def _said(self, word: str) -> None:
        assert self.process.stdout is not None
        told = self.process.stdout.readline().strip()
        assert told == word, told

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def take_in(folder: Path, base: str) -> Run:
    """A run with the sample person's photos."""
    from pipelines.bases.registry import find_base
    from pipelines.photos import intake

    run = run_at(folder)
    found = intake.intake(sample_photos(), run.photos, min_eye_distance_px=find_base(base).min_eye_distance_px)
    save_photo_set(run, found)
    return run


def torn(run: Run) -> list[str]:
    """Half-written files. An incomplete last line is not counted: it is cut off at the next start."""
    from PIL import Image
    from safetensors import safe_open

    bad = []
    for file in run.folder.rglob("*"):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".jsonl":
                [json.loads(line) for line in file.read_text().split("\n")[:-1]]
            elif file.suffix == ".safetensors" and not file.name.startswith("."):
                with safe_open(str(file), "pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - not a dict
                        tensors.get_tensor(name)
            elif file.suffix == ".png" and not file.name.startswith("."):
                with Image.open(file) as image:
                    image.load()
        except Exception as error:
            bad.append(f"{file.relative_to(run.folder)}: {type(error).__name__}")
    return bad


def last_step(run: Run) -> int:
    told = jobs.events(run, jobs.status(run).first_event)
    return max((event.step for event in told if event.kind == "step"), default=0)


def artefact(run: Run, method: str) -> str:
    from pipelines.training.subjects import load_subject

    subject = load_subject(run.method(method))
    assert subject.complete, "the training said that it was done"
    return str(subject.sha256)


def gone(pid: int, timeout_s: float = 30.0) -> bool:
    """Whether the process ended. A zombie process counts as ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def one_round(number: int, folder: Path, base: str, method: str, spec: JobSpec, expected: str, chance: random.Random):
    victim = "server" if number % 2 else "worker"
    run = take_in(folder / f"run{number}", base)
    write_json(run.spec, spec)
    server = Server(folder)
    server.enqueue(run)
    steps = int(spec.settings[method]["steps"] or 0)
    # At any time: while it loads (step 0), between two steps, during a checkpoint, while the artefact is saved and
    # verified (the last step, which is long). If the training has ended before the kill, nothing can be lost.
    at = chance.choice([0, *range(1, steps + 1), steps, steps, steps])
    jobs.hold(run, lambda found: not found.busy or last_step(run) >= at, timeout_s=300)
    time.sleep(chance.uniform(0, 0.2))
    jobs.hold(run, lambda found: found.state != "queued", timeout_s=60)
    pid = int(read_json(run.worker)["pid"])
    killed_at = time.monotonic()
    if victim == "worker":
        os.kill(pid, signal.SIGKILL)
    else:
        server.kill()
    found = jobs.hold(run, lambda each: not each.busy, timeout_s=60)
    noticed_s = time.monotonic() - killed_at
    no_orphan = gone(pid)
    reached, damage = last_step(run), torn(run)
    restart = time.monotonic()
    if victim == "server":
        server = Server(folder)
    if found.state != "done":
        server.enqueue(run)
    jobs.hold(run, lambda each: not each.busy or any(
        event.kind == "step" for event in jobs.events(run, each.first_event)), timeout_s=300)  # fmt: skip
    ready_s = time.monotonic() - restart
    list(jobs.follow(run))
    told = jobs.events(run, jobs.status(run).first_event)
    resumed = steps if found.state == "done" else next((e.step for e in told if e.kind == "start"), steps)
    ended = jobs.status(run)
    same = ended.state == "done" and artefact(run, method) == expected
    left = [file.name for file in run.folder.rglob("*.part")]
    row = {
        "round": number, "killed": victim, "at_step": reached, "state": found.state, "noticed_s": round(noticed_s, 2),
        "torn": damage, "no_orphan": no_orphan, "resumed_at": resumed, "lost_steps": max(0, reached - resumed),
        "learning_again_s": round(ready_s, 2), "end": ended.state, "equal_to_the_bit": same,
        "left_half_written": left,
    }  # fmt: skip
    row["ok"] = (
        found.state in ("interrupted", "done") and not damage and no_orphan and row["lost_steps"] <= EVERY and same
        and not torn(run) and not left
    )  # fmt: skip
    server.kill()
    forget(run.folder)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--base", help="a base of the registry or a folder; without it a tiny random one")
    parser.add_argument("--method", default="lora", choices=("lora", "dreambooth", "textual_inversion"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    found: dict[str, Any] = {"conditions": conditions(), "rounds": []}
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LIKENESS_HOME"] = str(folder)
        base = options.base
        if base is None:
            from tests.tiny import make_tiny_sd

            base = str(make_tiny_sd(folder / "tiny", "portrait"))
        settings = {options.method: {"steps": options.steps, "batch": 2, "checkpoint_every": EVERY}}
        spec = JobSpec("train", base, "person", (options.method,), "draft", settings=settings)
        whole = take_in(folder / "whole", base)
        jobs.start(whole, spec)
        list(jobs.follow(whole))
        if jobs.status(whole).state != "done":
            raise SystemExit(f"the uninterrupted run did not finish: {jobs.status(whole).reason}")
        expected = artefact(whole, options.method)
        for number in range(options.rounds):
            row = one_round(number, folder, base, options.method, spec, expected, chance)
            found["rounds"].append(row)
            print(json.dumps(row), flush=True)
    rows = found["rounds"]
    head = ["round", "killed", "at_step", "state", "resumed_at", "lost_steps", "learning_again_s", "equal_to_the_bit"]
    print(table(head, [[row[name] for name in head] for row in rows]))
    found["base"], found["checkpoint_every"] = options.base or "tiny random base", EVERY
    found["passed"] = sum(row["ok"] for row in rows)
    found["most_steps_lost"] = max(row["lost_steps"] for row in rows)
    found["slowest_restart_s"] = max(row["learning_again_s"] for row in rows)
    print(json.dumps({key: value for key, value in found.items() if key != "rounds"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["passed"] == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
