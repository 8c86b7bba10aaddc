"""The app as a process of its own, and visitors that send the requests of a page, without a browser.

In: environment variables for the app. Out: `App` (address, process, log) and `Visitor` (open, upload, press, poll).
Used by the reliability measurements beside this file and by tests/ui/test_abuse.py.
Try it: `with App(home) as app: Visitor(app.address).open()`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "presets" / "sample_person"
API = "/gradio_api"
FILE = {"_type": "gradio.FileData"}


def sample_photos(count: int = 8) -> list[Path]:
    return sorted(SAMPLE.glob("*.png"))[:count]


class App:
    """`python app.py` (or another `script` that serves it) on a free port, with its runs and uploads in `home`."""

    def __init__(self, home: Path, *, script: tuple[str, ...] = ("app.py",), **environment: str) -> None:
        self.home = home
        self.runs, self.uploads = home / "runs", home / "uploads"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.log = home / "app.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._script = script
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT), "LIKENESS_HOME": str(self.runs), "GRADIO_TEMP_DIR": str(self.uploads),
            "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", **environment,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, timeout_s: float = 300.0) -> float:
        """Start it and wait for its page. Returns the seconds this took."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._script], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        while time.monotonic() - began < timeout_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the app ended at once:\n{self.log.read_text()[-2000:]}")
            try:
                if httpx.get(self.address + f"{API}/app_id", timeout=5).status_code == 200:
                    return time.monotonic() - began
            except httpx.HTTPError:
                time.sleep(0.05)
        self.end()
        raise RuntimeError("the app did not answer")

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)
            psutil.wait_procs(workers, timeout=60)  # they first save what was learned

    def size(self) -> dict[str, float]:
        """Memory, threads and descriptors of the server process, and its files on disk."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        return {
            "rss_mb": round(server.memory_info().rss / 2**20, 1),
            "threads": server.num_threads(),
            "descriptors": server.num_fds(),
            "runs": sum(1 for _ in self.runs.glob("[0-9a-f]" * 32)),
            "files_in_runs": sum(len(names) for _, _, names in os.walk(self.runs)),
            "files_in_uploads": sum(len(names) for _, _, names in os.walk(self.uploads)),
            "mb_on_disk": round(sum(map(_bytes_below, (self.runs, self.uploads))) / 2**20, 2),
            "oldest_run_min": round(max(map(_idle_s, self.runs.glob("[0-9a-f]*")), default=0.0) / 60, 1),
        }

    def __enter__(self) -> App:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # just deleted
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _idle_s(run: Path) -> float:
    """Seconds since the last write in a run; 0 if it is being deleted."""
    newest = 0.0
    for parent, _, names in os.walk(run):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, os.lstat(os.path.join(parent, name)).st_mtime)
    return time.time() - newest if newest else 0.0


class Visitor:
    """One browser with one open page. `comes_from` is its own address: any of 127.0.0.0/8 on Linux."""

    def __init__(self, address: str, *, timeout_s: float = 60.0, comes_from: str = "127.0.0.1") -> None:
        way = httpx.HTTPTransport(local_address=comes_from)
        self.client = httpx.Client(base_url=address, timeout=timeout_s, transport=way)
        self.page = secrets.token_hex(6)
        self.capability: str | None = None
        self.config: dict[str, Any] = {}
        self.values: dict[int, Any] = {}  # component id -> the last value that the server sent for it
        self.media: set[str] = set()

    def open(self) -> Visitor:
        """Fetch the page and its configuration, as a browser does (the scripts are left out: see `assets`)."""
        html = self.client.get("/").text
        self.assets = sorted(set(re.findall(r'(?:src|href)="(?:\./)?(assets/[^"]+)"', html)))
        self.config = self.client.get("/config").json()
        self.values = {each["id"]: each["props"].get("value") for each in self.config["components"]}
        self.load()
        return self

    def close(self) -> None:
        self.client.close()

    def event(self, target: str, kind: str) -> dict[str, Any]:
        """The event of the element with this id; "" for one without, such as the page itself or its timer."""
        ids = {each["id"] for each in self.config["components"] if each["props"].get("elem_id") == target.lstrip("#")}
        for found in self.config["dependencies"]:
            if any((each[0] in ids if target else True) and each[1] == kind for each in found["targets"]):
                return dict(found)
        raise LookupError(f"no {kind} of {target}")

    def call(self, fn_index: int, data: list[Any], **more: Any) -> httpx.Response:
        """Send an event that is not queued."""
        body = {"data": data, "event_data": None, "fn_index": fn_index, "session_hash": self.page, **more}
        return self.client.post(f"{API}/run/predict", json=body)

    def load(self) -> httpx.Response:
        event = self.event("", "load")
        answer = self.learn(self.call(event["id"], [self.capability]))
        told = answer.json().get("data") or []
        self.values |= {
            name: update["value"]
            for name, update in zip(event["outputs"], told)
            if isinstance(update, dict) and "value" in update
        }
        return answer

    def poll(self) -> httpx.Response:
        """The request that the page's timer sends once a second."""
        return self.learn(self.call(self.event("", "tick")["id"], [self.capability, None]))

    def learn(self, answer: httpx.Response) -> httpx.Response:
        self.media |= set(re.findall(r"media/\d+/[\w-]+/[^\s\"'<>\\?]+", answer.text))
        return answer

    def join(self, fn_index: int, data: list[Any], **more: Any) -> httpx.Response:
        body = {"data": data, "event_data": None, "fn_index": fn_index, "session_hash": self.page, **more}
        return self.client.post(f"{API}/queue/join", json=body)

    def stream(self) -> list[dict[str, Any]]:
        """The messages to the page until the running event has ended."""
        told = []
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": self.page}) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {answer.read().decode()[:300]}")
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                told.append(json.loads(line[5:]))
                self.media |= set(re.findall(r"media/\d+/[\w-]+/[^\s\"'<>\\?]+", line))
                if found := re.search(r'"([A-Za-z0-9_-]{43})"', line):
                    self.capability = found[1]
                if told[-1]["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                    return told
        return told

    def press(self, target: str, kind: str, data: list[Any], **more: Any) -> dict[str, Any]:
        """Send a queued event; returns its result {"success": ..., "output": {...}}. Raises RuntimeError if refused."""
        answer = self.join(self.event(target, kind)["id"], data, **more)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.text[:300]}")
        return self.stream()[-1]

    def send(self, photos: list[Path]) -> list[dict[str, Any]]:
        """Upload photos; returns their descriptions for an event's data."""
        files = [("files", (photo.name, photo.read_bytes(), "image/png")) for photo in photos]
        answer = self.client.post(f"{API}/upload", files=files)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.text[:300]}")
        return [
            {"path": path, "orig_name": photo.name, "meta": FILE} for path, photo in zip(answer.json(), photos)
        ]  # fmt: skip

    def add_photos(self, photos: list[Path]) -> dict[str, Any]:
        return self.press("#lk-drop", "upload", self.adding(self.send(photos)))

    def adding(self, files: Any) -> list[Any]:
        """The data that the page sends with these uploads, with the values of its fields."""
        chosen = self.event("#lk-drop", "upload")["inputs"][2:]
        return [self.capability, files, *(self.values.get(each) for each in chosen)]

    def consent(self, base: str, class_word: str = "person") -> dict[str, Any]:
        return self.press("#lk-consent", "input", [self.capability, class_word, base, True])

    def train(self, methods: list[str], quality: str = "draft") -> dict[str, Any]:
        """Start a training with the recipe's settings, which are the page's default values."""
        event = self.event("#lk-train", "click")
        names = {each["id"]: each["props"].get("elem_id") for each in self.config["components"]}
        known = {"lk-quality": quality, "lk-methods": methods, "lk-go-on": True}
        values = [known.get(names[each], self.values.get(each)) for each in event["inputs"]]
        return self.press("#lk-train", "click", [self.capability, *values[1:]])

    def delete(self) -> dict[str, Any]:
        done = self.press("#lk-delete-yes", "click", [self.capability])
        self.capability = None
        return done


def conditions() -> dict[str, Any]:
    """The machine of the measurement, and its other load."""
    import datetime
    import platform

    from pipelines.core.device import machine

    return {
        "machine": machine(), "cores": os.cpu_count(), "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and max of seconds, in milliseconds."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95)]
    return {"n": len(ordered), "p50_ms": round(1e3 * at[0], 1), "p95_ms": round(1e3 * at[1], 1),
            "max_ms": round(1e3 * ordered[-1], 1)}  # fmt: skip
