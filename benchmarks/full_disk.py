"""What happens when the disk is full? At upload, checkpoint, preview and report, on a file system of a few megabytes.

In: nothing (needs root to mount a tmpfs; without it ends with code 77). Out: a table and JSON. It checks that a
sentence says what to do, that no older file is damaged, and that the same run continues when there is space again.

    sudo python benchmarks/full_disk.py --json full.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from kill_worker import last_step, take_in, torn
from visits import App, Visitor, conditions, sample_photos, table

from pipelines.core import files
from pipelines.core.records import Sampling, UserError
from pipelines.core.run import Run
from pipelines.runs import jobs, worker
from pipelines.runs.compare import perform
from pipelines.runs.jobspec import JobSpec

SKIPPED = 77
SMALL, LARGE = "2m", "400m"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def grow(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Fill the disk with a file, but leave `leave_bytes` free."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        left = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, max(1, left.f_bavail * left.f_frsize - leave_bytes))
    return ballast


def sentence(text: str | None) -> bool:
    """Whether a text is a sentence for people that says what to do."""
    return bool(text) and "full" in str(text) and "Free some space" in str(text) and "Traceback" not in str(text)


@contextlib.contextmanager
def visited(home: Path, base: str) -> Iterator[tuple[App, Visitor]]:
    """Context with the app and a visitor who has its page open."""
    app = App(home, LIKENESS_BASE=base)
    app.start()
    try:
        yield app, Visitor(app.address).open()
    finally:
        app.end()


@contextlib.contextmanager
def run_on_a_small_disk(home: Path, base: str) -> Iterator[tuple[Path, Run]]:
    """Context with a run with photos; its jobs write to a small file system."""
    with small_disk(home / "runs", LARGE) as disk:
        os.environ["LIKENESS_HOME"] = str(disk)
        yield disk, take_in(disk / "run", base)


def taught(base: str, settings: dict[str, Any]) -> JobSpec:
    return JobSpec("train", base, "person", ("lora",), "draft", settings={"lora": settings})


def upload(home: Path, base: str) -> dict[str, Any]:
    """The folder of uploads is full while a visitor sends photos."""
    with small_disk(home / "uploads", SMALL) as uploads, visited(home, base) as (app, visitor):
        photos = sample_photos(6)
        files = [("files", (photo.name, photo.read_bytes(), "image/png")) for photo in photos]
        fill(uploads)
        refused = visitor.client.post("/gradio_api/upload", files=files)
        left = [file.name for file in uploads.rglob("*") if file.is_file() and file.name != "ballast"]
        alive = visitor.poll().status_code == 200
        (uploads / "ballast").unlink(missing_ok=True)
        grow(uploads, LARGE)
        done = visitor.add_photos(photos)
        quiet = "Traceback" not in app.log.read_text()
    return {
        "where": "upload", "said": f"{refused.status_code} {refused.text}", "sentence": sentence(refused.text),
        "kept": alive and not left and quiet, "recovers": bool(done["success"]),
    }  # fmt: skip


def upload_into_a_full_run(home: Path, base: str) -> dict[str, Any]:
    """The upload succeeds, but there is no space for the run."""
    with small_disk(home / "runs", LARGE) as runs, visited(home, base) as (_, visitor):
        first = visitor.add_photos(sample_photos(5))
        ballast = fill(runs, 1_000_000)
        told = visitor.add_photos(sample_photos(7)[5:])
        said = str((told.get("output") or {}).get("error"))
        shown = visitor.poll().status_code == 200
        ballast.unlink()
        again = visitor.add_photos(sample_photos(7)[5:])
    return {
        "where": "photos of a run", "said": said, "sentence": sentence(said), "kept": bool(first["success"]) and shown,
        "recovers": bool(again["success"]),
    }  # fmt: skip


def checkpoint(home: Path, base: str, *, preview: bool, leave_bytes: int) -> dict[str, Any]:
    """The disk becomes full while training writes a checkpoint or a preview."""
    with run_on_a_small_disk(home, base) as (disk, run):
        settings: dict[str, Any] = {"steps": 40_000, "batch": 2, "checkpoint_every": 100_000 if preview else 5}
        settings["preview_every_s"] = 0.2 if preview else 0.0
        jobs.start(run, taught(base, settings))
        jobs.hold(run, lambda each: not each.busy or last_step(run) >= 12, timeout_s=300)
        saved = run.method("lora") / "checkpoint.safetensors"
        if preview:
            jobs.hold(run, lambda each: not each.busy or any(run.method("lora").glob("preview*.png")), timeout_s=120)
        ballast = fill(disk, leave_bytes)
        found = jobs.hold(run, lambda each: not each.busy, timeout_s=120)
        if found.busy:
            jobs.stop(run, patience_s=2)
            found = jobs.hold(run, lambda each: not each.busy, timeout_s=120)
        intact = not torn(run) and (preview or saved.is_file())
        ballast.unlink()
        settings = {"steps": last_step(run) + 10 if not preview else 30, "batch": 2, "checkpoint_every": 5}
        before = last_step(run)
        jobs.start(run, taught(base, settings))
        list(jobs.follow(run))
        ended = jobs.status(run)
        if ended.state != "done":
            print(ended, file=sys.stderr)
    return {
        "where": f"{'preview' if preview else 'checkpoint'}, {leave_bytes / 1e3:g} kB left",
        "said": f"{found.state}: {found.reason}",
        "sentence": found.state in ("failed", "interrupted") and sentence(found.reason),
        "kept": intact, "at_step": before,
        "recovers": ended.state == "done",
    }  # fmt: skip


def report(home: Path, base: str) -> dict[str, Any]:
    """The disk is full when pictures and their report are written."""
    with run_on_a_small_disk(home, base) as (disk, run):
        list(perform(run, taught(base, {"steps": 4, "batch": 2})))
        asked = (Sampling("portrait of {subject}, grey background", steps=2, seed=1),)
        spec = JobSpec("generate", base, "person", ("none", "lora"), "draft", samplings=asked)
        said = None
        real = files.require_space  # switched off, because here the disk becomes full only after this check
        files.require_space = lambda *a, **k: None
        try:
            for event in perform(run, spec):
                if event.kind == "render":
                    fill(disk)
        except (UserError, OSError) as error:
            said = worker.explain(error)
        finally:
            files.require_space = real
        intact = not torn(run) and not run.manifest.exists()
        (disk / "ballast").unlink(missing_ok=True)
        list(perform(run, spec))
        whole = run.report.is_file() and not torn(run)
    return {"where": "report", "said": said, "sentence": sentence(said), "kept": intact, "recovers": whole}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="one of: upload, run, checkpoint, nothing left, preview, report")
    parser.add_argument("--json", type=Path, help="write the outcome here as well")
    options = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0:
        print("Skipped: mounting a small tmpfs needs root on Linux.")
        return SKIPPED
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        with small_disk(folder / "try", SMALL):
            pass
        from tests.tiny import make_tiny_sd

        base = str(make_tiny_sd(folder / "tiny", "portrait"))
        tried = {
            "upload": lambda: upload(folder / "a", base),
            "run": lambda: upload_into_a_full_run(folder / "b", base),
            "checkpoint": lambda: checkpoint(folder / "c", base, preview=False, leave_bytes=40_000),
            "nothing left": lambda: checkpoint(folder / "n", base, preview=False, leave_bytes=0),
            "preview": lambda: checkpoint(folder / "d", base, preview=True, leave_bytes=24_000),
            "report": lambda: report(folder / "e", base),
        }
        found: dict[str, Any] = {"conditions": conditions(), "tried": []}
        for name, go in tried.items():
            if options.only not in (None, name):
                continue
            began = time.monotonic()
            row = go()
            row["ok"] = bool(row["sentence"] and row["kept"] and row["recovers"])
            row["seconds"] = round(time.monotonic() - began, 1)
            found["tried"].append(row)
            print(json.dumps(row), flush=True)
    rows = found["tried"]
    head = ["where", "sentence", "kept", "recovers", "said"]
    print(table(head, [[row[key] for key in head] for row in rows]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
