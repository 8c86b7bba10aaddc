"""A whole visit on the real base in headless Chromium: upload, train, generate, score, on a desktop and on a phone.

    python benchmarks/journey.py [PHOTOS] [--class-word woman] --out SHOTS

In: photos of one person (default: the sample person). Out: a folder of screenshots, and a line per check. During the
training the page is reloaded, opened a second time, the browser closed and opened again, and the server killed and
started again; buttons are pressed twice. Exit code 1 when a check fails: only one job when a button is pressed twice,
the work found again each time, no error in the console, no request to another host. Needs Chromium and
`pip install playwright`. Keep screenshots of real people out of the repository.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from visits import SAMPLE, App

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE_MS = 420_000


class Journey:
    def __init__(self, driver: Any, app: App, photos: list[Path], out: Path, class_word: str) -> None:
        self.driver, self.app, self.photos, self.out, self.class_word = driver, app, photos, out, class_word
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.failed: list[str] = []
        self.down = False  # while the server is down, errors in the console are not the page's fault

    def context(self, folder: Path, size: str, scheme: str = "light") -> Any:
        """A browser with its own profile, stored in `folder`."""
        width, height = SIZES[size]
        context = self.driver.chromium.launch_persistent_context(
            str(folder), executable_path=shutil.which("chromium"), args=["--no-sandbox"], color_scheme=scheme,
            viewport={"width": width, "height": height}, locale="en-US",
        )  # fmt: skip
        context.set_default_timeout(PATIENCE_MS)
        return context

    def open(self, context: Any) -> Any:
        page = self.page = context.new_page()
        page.on("console", lambda said: self._error(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._error(f"{error.name} {error}"))
        page.on("request", self._request)
        page.goto(self.app.address)
        page.wait_for_selector("#lk-steps li")
        return page

    def _error(self, text: str) -> None:
        if not self.down and "AbortError" not in text:  # a reload aborts a running poll
            self.errors.append(text)

    def _request(self, request: Any) -> None:
        host = urlsplit(request.url).hostname
        if host not in ("127.0.0.1", None) and not request.url.startswith(("data:", "blob:")):
            self.foreign.append(request.url)

    def check(self, what: str, holds: bool) -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
        if not holds:
            self.failed.append(what)

    def shot(self, page: Any, name: str) -> None:
        page.wait_for_timeout(700)
        page.screenshot(path=str(self.out / f"{name}.png"), full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        self.check(f"{name}: no side-scrolling", wide <= 0)

    @staticmethod
    def tab(page: Any, name: str) -> None:
        page.get_by_role("tab", name=name, exact=True).first.click()

    @staticmethod
    def says(page: Any, where: str, text: str) -> None:
        page.wait_for_function(
            "([where, text]) => (document.querySelector(where)?.innerText || '').includes(text)", arg=[where, text]
        )

    def go(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            profile = Path(name)
            context = self.context(profile / "a", "desktop")
            page = self.open(context)
            self.shot(page, "desktop-1-start")
            page.locator("#lk-drop input[type=file]").set_input_files([str(photo) for photo in self.photos])
            self.says(page, "#lk-upload-status", "photos are used")
            page.locator("#lk-class-word label", has_text=re.compile(rf"^\s*{self.class_word}\s*$")).click()
            page.locator("#lk-consent input").check()
            self.says(page, "#lk-steps", "Ready")
            self.shot(page, "desktop-2-upload")

            self.tab(page, "Train")
            self.says(page, "#lk-estimate", "Takes about")
            self.shot(page, "desktop-3-train")
            page.locator("#lk-train").dblclick()
            self.says(page, "#lk-lane-lora", "step")
            page.wait_for_function("() => /step [1-9]/.test(document.querySelector('#lk-lane-lora').innerText)")
            self.check("a double click starts one job", self._jobs() == 1)
            page.reload()
            self.tab(page, "Train")
            self.says(page, "#lk-lane-lora", "step")
            self.check("a reload finds the training again", page.locator("#lk-stop").is_visible())
            second = self.open(context)
            self.tab(second, "Train")
            self.says(second, "#lk-lane-lora", "step")
            self.check("a second tab sees it too", second.locator("#lk-stop").is_visible())
            second.close()
            context.close()
            context = self.context(profile / "a", "desktop")
            page = self.open(context)
            self.tab(page, "Train")
            self.says(page, "#lk-lane-lora", "step")
            self.check("a browser that was closed finds it too", page.locator("#lk-stop").is_visible())

            before = self._step()
            self.down = True
            assert self.app.process is not None
            self.app.process.send_signal(signal.SIGKILL)
            self.app.process.wait()
            time.sleep(3)
            self.app.start()
            page.wait_for_timeout(8000)  # the page notices it, waits and reloads itself
            page.goto(self.app.address)
            self.down = False
            self.tab(page, "Train")
            self.says(page, "#lk-train", "Continue training")
            self.shot(page, "desktop-4-interrupted")
            page.locator("#lk-train").click()
            self.says(page, "#lk-lane-lora", "step")
            page.wait_for_function(
                "was => +(document.querySelector('#lk-lane-lora').innerText.match(/step (\\d+)/) || [0, 0])[1] > was",
                arg=before,
            )
            self.check("after the server was killed the training goes on where it was", True)
            page.wait_for_timeout(20_000)
            self.shot(page, "desktop-5-learning")

            self.tab(page, "Train")
            self.says(page, "#lk-train-status", "Trained.")
            self.shot(page, "desktop-6-trained")
            self.tab(page, "Generate")
            page.wait_for_function("() => !document.querySelector('#lk-generate').disabled")
            page.locator("#lk-number input[type=number]").first.fill("4")
            page.locator("#lk-generate").dblclick()
            page.wait_for_function("() => document.querySelectorAll('#lk-grid img').length >= 16")
            page.wait_for_function("() => !document.querySelector('#lk-generate').disabled")
            self.shot(page, "desktop-7-generate")
            self.tab(page, "Score")
            self.says(page, "#lk-table", "LoRA")
            self.shot(page, "desktop-8-score")

            self.tab(page, "Train")
            page.locator("#lk-quality label", has_text="good").click()
            page.locator("#lk-train").click()
            page.wait_for_function("() => /step [1-9]/.test(document.querySelector('#lk-lane-lora').innerText)")
            self.tab(page, "Generate")
            page.locator("#lk-number input[type=number]").first.fill("1")
            page.locator("#lk-generate").click()
            page.wait_for_selector("#lk-generate-stop", state="visible")
            page.wait_for_selector("#lk-generate-stop", state="hidden")
            self.check("pictures are drawn while a training goes on", self._learning() and self._drawn())
            self.tab(page, "Train")
            page.locator("#lk-stop").click()
            self.says(page, "#lk-train", "Continue training")
            storage = page.evaluate("localStorage.getItem('likeness-run')")
            context.close()

            for size, scheme in (("phone", "light"), ("phone", "dark"), ("desktop", "dark")):
                context = self.context(profile / f"{size}-{scheme}", size, scheme)
                page = self.open(context)
                page.evaluate("value => localStorage.setItem('likeness-run', value)", storage)
                page.reload()
                page.wait_for_selector("#lk-cards img")
                for number, name in enumerate(("Upload", "Train", "Generate", "Score"), start=1):
                    self.tab(page, name)
                    page.wait_for_timeout(1500)
                    self.shot(page, f"{size}-{scheme}-{number}-{name.lower()}")
                context.close()
        self.check("no error in the console", not self.errors)
        self.check("no request to another host", not self.foreign)
        for line in (*self.errors[:5], *self.foreign[:5]):
            print("    ", line[:300])

    def _runs(self) -> list[Any]:
        from pipelines.core.run import all_runs

        return all_runs(self.app.runs)

    def _jobs(self) -> int:
        from pipelines.runs import jobs

        return sum(event.kind == "start" for run in self._runs() for event in jobs.events(run)) // 3

    def _step(self) -> int:
        from pipelines.runs import jobs

        told = [event for run in self._runs() for event in jobs.events(run)]
        return max((event.step for event in told if event.kind == "step" and event.method == "lora"), default=0)

    def _learning(self) -> bool:
        from pipelines.runs import jobs

        return any(jobs.status(run).busy for run in self._runs())

    def _drawn(self) -> bool:
        from pipelines.runs import jobs

        return all(jobs.status(run.drawing).state == "done" for run in self._runs())


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("photos", nargs="?", type=Path, default=SAMPLE)
    ask.add_argument("--class-word", default="woman")
    ask.add_argument("--out", type=Path, required=True)
    asked = ask.parse_args()
    from playwright.sync_api import sync_playwright

    photos = sorted(each for each in asked.photos.iterdir() if each.suffix.lower() in (".png", ".jpg", ".jpeg"))[:10]
    with tempfile.TemporaryDirectory() as home, sync_playwright() as driver:
        app = App(Path(home))
        began = time.monotonic()
        try:
            app.start()
            journey = Journey(driver, app, photos, asked.out, asked.class_word)
            try:
                journey.go()
            except Exception:
                journey.page.screenshot(path=str(asked.out / "failure.png"))
                raise
        finally:
            app.end()
        print(f"{time.monotonic() - began:.0f} s, {len(journey.failed)} of the checks failed")
        return 1 if journey.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
