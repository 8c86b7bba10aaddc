"""How long and how much memory does a whole comparison take on this machine? Printed with the machine's description.

In: a folder of photos of one person. Out: wall seconds of `compare`, peak memory of its worker process, seconds per
method and per render (20 steps, guidance on), and how long `python app.py` takes until its page answers.

    python benchmarks/compare_draft.py ../shared/data/people/p03 --class-word man --photos 8

Nothing else should run meanwhile. The run is kept in a temporary folder and removed at the end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.core.files import read_json
from pipelines.core.run import Run
from pipelines.photos.gather import photo_files


def conditions() -> dict[str, Any]:
    """The machine and versions of the measurement."""
    import torch

    return {
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.date.today().isoformat(),
    }


def comparison(photos: Path, run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run `python -m pipelines compare` and read figures from its run folder."""
    command = [
        sys.executable, "-m", "pipelines", "compare", str(photos), "--class-word", options.class_word, "--quality",
        options.quality, "--base", options.base, "--out", str(run), "--json",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    wall_s = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(json.loads(done.stdout or b"{}").get("error", "compare failed"))
    report, status = json.loads(done.stdout), read_json(Run(run).status)
    return {
        "wall_s": round(wall_s, 1),
        "peak_mem_mb": status["peak_mem_mb"],
        "train_s": {name: row["train_s"] for name, row in report["methods"].items() if row["train_s"] is not None},
        "steps": {name: row["steps"] for name, row in report["methods"].items() if row["steps"] is not None},
        "renders": sum(row["renders"] or 0 for row in report["methods"].values()),
    }


def render_seconds(base: str, renders: int = 5) -> dict[str, float]:
    """Seconds per picture with 20 steps and guidance, alone and in a batch, after one picture to warm up."""
    from pipelines.bases.registry import find_base
    from pipelines.core.records import Sampling
    from pipelines.generation.generator import Generator

    row = find_base(base)
    generator = Generator(row)

    def draw(count: int, batch: int) -> float:
        asked = [
            Sampling("portrait of {subject}, grey background", steps=20, guidance=3.0, seed=n) for n in range(count)
        ]
        started = time.perf_counter()
        assert len(list(generator.render(asked, None, class_word="man", batch=batch))) == count
        return (time.perf_counter() - started) / count

    draw(1, 1)
    return {"one_at_a_time_s": round(draw(renders, 1), 3), "in_a_batch_of_8_s": round(draw(8, 8), 3)}


def page_seconds(timeout_s: float = 60.0) -> float | None:
    """Seconds from `python app.py` until its page answers; the shorter of two starts (the first fills disk caches)."""
    if not (ROOT / "app.py").is_file():
        return None
    return min(_page_once(timeout_s) for _ in range(2))


def _page_once(timeout_s: float) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "LIKENESS_HOME": home,
        }
        started = time.perf_counter()
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, **quiet)
        try:
            while time.perf_counter() - started < timeout_s:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=timeout_s) as page:
                        page.read()
                        return round(time.perf_counter() - started, 2)
                except (urllib.error.URLError, ConnectionError):
                    if app.poll() is not None:
                        raise SystemExit("app.py ended before its page answered") from None
                    time.sleep(0.05)
            raise SystemExit(f"the page did not answer within {timeout_s:.0f} s")
        finally:
            app.terminate()
            app.wait(20)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder with photos of one person")
    parser.add_argument("--photos", type=int, default=8, dest="count", help="how many of them to use (8)")
    parser.add_argument("--class-word", default="person")
    parser.add_argument("--base", default="portrait-128")
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--out", type=Path, help="keep the run in this folder (which must not exist yet)")
    options = parser.parse_args()
    found: dict[str, Any] = {"conditions": conditions()}
    print(json.dumps(found, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "photos"
        chosen.mkdir()
        for file in photo_files(options.photos)[: options.count]:
            shutil.copy(file, chosen)
        parts = {
            "compare": lambda: comparison(chosen, options.out or Path(folder) / "run", options),
            "render": lambda: render_seconds(options.base),
            "page_s": page_seconds,
        }
        for name, measure in parts.items():
            print(json.dumps({name: measure()}, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
