"""How quick is the page while thirty people have it open and one of them trains?

In: nothing (it uses the embedded base and the sample person). Out: a table and JSON: p50, p95 and maximum time of every
kind of request, delays of the server's event loop measured inside and outside the server, first paint in Chromium, and
memory and open files of the server process.

    python benchmarks/load_app.py --visitors 30 --seconds 60 --json load.json

A visitor opens the page (GET /, /config, the scripts it names, the load event) and then sends the timer's event once a
second, as the page does. One visitor uploads the sample person and trains all three methods at draft quality meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from visits import API, App, Visitor, conditions, quantiles, sample_photos, table

LAG_EVERY_S = 0.02
PROBE_EVERY_S = 0.05
PASS = {"ui_p95_ms": 1000, "poll_p50_ms": 200, "stall_ms": 250, "first_paint_ms": 2000}


# ------------------------------------------------------------------------------------------------- in the server


class LagProbe:
    """ASGI middleware that measures the delay of its event loop and serves it at `/-/lag`; only in this benchmark."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.late_s: list[tuple[float, float]] = []  # (time, delay)
        self._task: asyncio.Task[None] | None = None

    async def _measure(self) -> None:
        while True:
            due = time.monotonic() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.late_s.append((time.time(), max(0.0, time.monotonic() - due)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._measure())
        if scope["type"] == "http" and scope["path"] == "/-/lag":
            body = json.dumps(self.late_s).encode()
            self.late_s = []
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
        else:
            await self.app(scope, receive, send)


def serve() -> None:
    """Serve the app as `app.py` does, with the probe as middleware."""
    from starlette.middleware import Middleware

    import app

    app.prepare_environment()
    demo, launch = app.build()
    launch["app_kwargs"]["middleware"].insert(0, Middleware(LagProbe))
    demo.launch(**launch)


# ------------------------------------------------------------------------------------------------- outside


class Clock:
    """The seconds of all requests by kind, and errors."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.wrong: dict[str, int] = {}
        self._lock = threading.Lock()

    def time(self, kind: str, request: Any) -> Any:
        began = time.perf_counter()
        try:
            answer = request()
            bad = None if answer.status_code < 400 else str(answer.status_code)
        except Exception as error:  # a visitor whose request failed keeps visiting
            answer, bad = None, type(error).__name__
        took = time.perf_counter() - began
        with self._lock:
            self.seconds.setdefault(kind, []).append(took)
            if bad:
                self.wrong[f"{kind}: {bad}"] = self.wrong.get(f"{kind}: {bad}", 0) + 1
        return answer


def browse(address: str, clock: Clock, until: float, chance: random.Random) -> None:
    """One visitor: opens the page, polls for ten to thirty seconds, opens it again."""
    while time.monotonic() < until:
        visitor = Visitor(address)
        page = clock.time("GET /", lambda v=visitor: v.client.get("/"))
        config = clock.time("GET /config", lambda v=visitor: v.client.get("/config"))
        if page is None or config is None or config.status_code != 200:
            continue
        visitor.config = config.json()
        for asset in sorted(set(re.findall(r'(?:src|href)="(?:\./)?/?(assets/[^"]+)"', page.text))):
            clock.time("GET assets", lambda v=visitor, a=asset: v.client.get("/" + a))
        clock.time("load event", visitor.load)
        leave = min(until, time.monotonic() + chance.uniform(10, 30))
        while time.monotonic() < leave:
            due = time.monotonic() + 1.0
            clock.time("poll, idle page", visitor.poll)
            time.sleep(max(0.0, due - time.monotonic()))
        visitor.close()


def knock(address: str, clock: Clock, until: float) -> None:
    """Request a route that does nothing, every 50 ms: its time is the delay of the event loop."""
    with Visitor(address).client as client:
        while time.monotonic() < until:
            due = time.monotonic() + PROBE_EVERY_S
            clock.time("GET app_id", lambda: client.get(f"{API}/app_id"))
            time.sleep(max(0.0, due - time.monotonic()))


def first_paint_ms(address: str, times: int = 3) -> float | None:
    """Median first contentful paint in a new browser profile; None without Playwright or Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    painted = []
    with sync_playwright() as driver:
        if not Path(found or driver.chromium.executable_path).exists():
            return None
        for _ in range(times):
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("#lk-steps li")
            painted.append(
                page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
            )
            browser.close()
    return round(statistics.median(painted), 1) if None not in painted else None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"conditions": conditions(), "visitors": options.visitors, "seconds": options.seconds}
    clock = Clock()
    with tempfile.TemporaryDirectory() as home:
        app = App(Path(home), script=(str(Path(__file__).resolve()), "--serve"))
        found["start_s"] = round(app.start(), 2)
        try:
            found["first_paint_ms"] = first_paint_ms(app.address)
            found["idle"] = app.size()
            person = Visitor(app.address).open()
            began = time.monotonic()
            outcome = person.add_photos(sample_photos(options.photos))
            found["upload_and_check_s"] = round(time.monotonic() - began, 2)
            base = next(
                c["props"]["value"] for c in person.config["components"] if c["props"].get("elem_id") == "lk-base"
            )
            outcome = person.consent(base) if outcome["success"] else outcome
            if outcome["success"] and not options.no_training:
                outcome = person.train(["textual_inversion", "dreambooth", "lora"])
            if not outcome["success"]:
                raise SystemExit(f"the training did not start: {outcome['output']}")
            trained_from = person.poll().status_code
            assert trained_from == 200
            person.client.get("/-/lag")
            until = time.monotonic() + options.seconds
            visitors = [
                threading.Thread(target=browse, args=(app.address, clock, until, random.Random(number)))
                for number in range(options.visitors)
            ]
            others = [threading.Thread(target=knock, args=(app.address, clock, until))]
            for thread in (*others, *visitors):
                thread.start()
                time.sleep(0.05)
            if options.profile:
                os.system(f"{options.profile} record -d 20 -o {options.profile_out} -f raw -p {app.process.pid}")  # noqa: S605
            while time.monotonic() < until:
                due = time.monotonic() + 1.0
                clock.time("poll, training page", person.poll)
                for link in sorted(person.media)[-2:]:
                    clock.time("GET picture", lambda a=link: person.client.get("/" + a))
                time.sleep(max(0.0, due - time.monotonic()))
            for thread in (*others, *visitors):
                thread.join()
            late = sorted(lag for _, lag in person.client.get("/-/lag").json())
            found["under_load"] = app.size()
        finally:
            app.end()
    found["requests"] = {kind: quantiles(values) for kind, values in sorted(clock.seconds.items())}
    found["refused_or_failed"] = clock.wrong
    found["loop_lag"] = quantiles(late) | {"over_250_ms": sum(lag > 0.25 for lag in late)}
    polls = [each for kind, values in clock.seconds.items() if kind.startswith("poll") for each in values]
    pages = [each for kind, values in clock.seconds.items() if kind != "GET app_id" for each in values]
    found["lines"] = {
        "UI p95 < 1 s": quantiles(pages)["p95_ms"] < PASS["ui_p95_ms"],
        "polls < 200 ms (median)": quantiles(polls)["p50_ms"] < PASS["poll_p50_ms"],
        "no stall > 250 ms": late[-1] * 1e3 <= PASS["stall_ms"],
        "first paint < 2 s (idle)": None if (p := found["first_paint_ms"]) is None else p < PASS["first_paint_ms"],
        "nothing refused": not clock.wrong,
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visitors", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--no-training", action="store_true", help="only visitors: what the page itself costs")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--profile", help="path of py-spy: sample the server for 20 s")
    parser.add_argument("--profile-out", default="load.folded")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    found = measure(options)
    head = ["request", "n", "p50 ms", "p95 ms", "max ms"]
    rows = [[kind, *figures.values()] for kind, figures in found["requests"].items()]
    print(table(head, [*rows, ["event loop late by", *list(found["loop_lag"].values())[:4]]]))
    print(json.dumps({key: value for key, value in found.items() if key != "requests"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(line is not False for line in found["lines"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
