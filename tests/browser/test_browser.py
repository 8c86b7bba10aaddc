"""A whole visit in headless Chromium: upload, train, generate, score, delete - on a tiny base that draws noise.

Run with `pytest -m browser`; `tests/install_chromium.sh` brings the browser. Skipped with the reason where there is no
Chromium, or no photos with faces.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ui.words.words import preferred, translate

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "people" / "p03"  # a man, photographed in the wild
SAMPLE = ROOT / "presets" / "sample_person"
LENGTH = {"steps": 6}  # of a training; enough to see a curve; the base is random anyway
PATIENCE_MS = 240_000  # a busy machine
STARTED: list[Any] = []  # specs of trainings


def photos() -> list[str]:
    """Seven of somebody real where there are some, else of the sample person."""
    for folder in (REAL, SAMPLE):
        found = sorted(str(p) for p in (*folder.glob("*.png"), *folder.glob("*.jpg")))
        if len(found) >= 7:
            return found[:7]
    pytest.skip("neither ../shared/data/people nor presets/sample_person holds photos with faces")


def class_word() -> str:
    """Of whom `photos` shows."""
    return "man" if Path(photos()[0]).parent == REAL else (SAMPLE / "person.txt").read_text().strip()


def more_photos() -> list[str]:
    """Ten, of which the first eight are enough for a validation photo."""
    found = sorted(str(p) for p in SAMPLE.glob("*.png"))[:10]
    if len(found) < 10:
        pytest.skip("presets/sample_person holds too few photos")
    return found


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with playwright.sync_playwright() as driver:
        path = found or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("there is no Chromium on this machine")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app on a free port, with a tiny base and trainings of a few steps."""
    from tests.live import live_app
    from tests.tiny import make_tiny_sd

    base = make_tiny_sd(tmp_path_factory.mktemp("bases") / "tiny", "portrait")

    def short(spec):
        quick = LENGTH | {"preview_every_s": 0.5, "batch": 2}
        kept = {name: {"start_from": spec.settings.get(name, {}).get("start_from", "")} for name in spec.methods}
        spec = replace(spec, settings={name: quick | kept[name] for name in spec.methods})
        STARTED.append(spec)
        return spec

    with live_app(tmp_path_factory, teach=short, LIKENESS_BASE=base) as (found, _):
        yield found


class Visit:
    """A page that remembers every foreign host it was sent to, and every error of its console."""

    def __init__(
        self, browser, address: str, width: int = 1280, locale: str = "en-US", view: str = "research", **more: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale, **more)
        self.context.set_default_timeout(PATIENCE_MS)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.address = f"{address}/?view={view}" if view else address
        self.language = preferred(locale)
        self.page = self.open()

    def open(self):
        page = self.context.new_page()
        page.on("request", self._request)
        page.on("console", lambda m: self._error(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self._error(f"{e.name} {e}"))
        page.goto(self.address)
        page.wait_for_selector("#lk-steps li")
        return page

    def _error(self, text: str) -> None:
        # a reload aborts the poll that is under way; Gradio's client reports that, and it is none of ours. A LinePlot
        # that goes while Gradio draws it reads the width of its missing frame: a fault of Gradio, not mended here
        if "AbortError" not in text and "(reading 'offsetWidth')" not in text:
            self.errors.append(text)

    def _request(self, request) -> None:
        host = urlsplit(request.url).hostname
        if host not in ("127.0.0.1", None) and not request.url.startswith(("data:", "blob:")):
            self.foreign.append(request.url)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait(self, selector: str, says: str, page=None) -> None:
        (page or self.page).wait_for_function(
            "([selector, says]) => document.querySelector(selector)?.innerText.includes(says)", arg=[selector, says]
        )

    def fits(self) -> None:
        """Nothing is wider than the screen."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def wait_for_picture(self, selector: str) -> None:
        """Until the first such picture is loaded, at the base's size."""
        self.page.wait_for_function("s => document.querySelector(s)?.naturalWidth === 128", arg=selector)

    def add_photos(self, files: list[str], *, consent: bool = True) -> None:
        """Until they are looked at, and the next step is open."""
        self.page.locator("#lk-drop input[type=file]").set_input_files(files)
        used = translate("{count} photos are used: {parts}.", self.language)
        self.wait("#lk-upload-status", used.partition("{count}")[2].partition("{parts}")[0].strip())
        if consent:
            self.page.locator("#lk-consent input").check()
            self.wait("#lk-steps", translate("Ready", self.language))

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_whole_visit(chromium, address, tmp_path, width):
    sent = photos()
    visit = Visit(chromium, address, width)
    page = visit.page

    # Upload: bad files are named, three photos are too few, and the reason stands at the next step
    bad = tmp_path / "notes.jpg"
    bad.write_text("not a photo")
    assert page.get_by_role("tab", name="Train").is_enabled()
    page.locator("#lk-drop input[type=file]").set_input_files([*sent[:3], str(bad)])
    visit.wait("#lk-upload-status", "Add 2 more photos")
    assert "Add 2 more photos" in visit.text("#lk-steps") and "not a photo" in visit.text("#lk-cards")
    page.locator("#lk-cards [data-photo^='refused'][data-action='remove']").click()
    page.wait_for_function("!document.querySelector('#lk-cards').innerText.includes('refused')")
    page.locator("#lk-drop input[type=file]").set_input_files(sent[3:])
    visit.wait("#lk-upload-status", "photos are used")
    visit.wait("#lk-steps", "consent")
    page.locator("#lk-class-word").get_by_label(class_word(), exact=True).check()
    page.locator("#lk-consent input").check()
    visit.wait("#lk-steps", "Ready")
    visit.fits()

    # Train: three lanes; a reload and a second tab find the job again
    visit.tab("Train")
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "safe to close this tab")
    page.reload()
    page.wait_for_selector("#lk-steps li")
    second = visit.open()
    second.close()
    visit.wait("#lk-steps", "Textual inversion, DreamBooth, LoRA")
    visit.tab("Train")
    for method in ("textual_inversion", "dreambooth", "lora"):
        visit.wait(f"#lk-lane-{method}", "step 6 / 6")
        visit.wait_for_picture(f"#lk-lane-{method} img")
    assert page.locator("#lk-loss-lora svg, #lk-loss-lora canvas").count() >= 1
    assert STARTED[-1].class_word == class_word()
    visit.fits()

    # Generate: unknown words are named, NaN never arrives, columns are drawn on the same seeds and scored
    visit.tab("Generate")
    page.locator("#lk-prompt textarea").press_sequentially(" spaceship")
    visit.wait("#lk-unknown", "does not know: spaceship")
    page.locator("#lk-style [role=radio]", has_text="Teal studio").click()
    page.wait_for_function("document.querySelector('#lk-prompt textarea').value.includes('teal')")
    page.locator("#lk-number input[type=number]").fill("2")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-keep-seed input").check()
    page.locator("#lk-generate").click()
    page.wait_for_function("document.querySelectorAll('#lk-grid img').length === 8")
    visit.wait("#lk-steps", "8 pictures scored")
    assert visit.text("#lk-grid").count("seed 0") == 4 and visit.text("#lk-grid").count("seed 1") == 4
    visit.wait_for_picture("#lk-grid img")
    visit.fits()

    # Score: the judge and its licence, four marks, a row per column, a download
    visit.tab("Score")
    visit.wait("#lk-spoke", "Licence")
    for mark in ("Different people", "Untrained base", "Best this base can draw", "This person's own photos"):
        assert mark in visit.text("#lk-strip")
    assert page.locator("#lk-table tbody tr").count() == 4
    visit.fits()
    page.locator("#lk-package").click()
    with page.expect_download() as download:
        page.locator("#lk-downloads a").first.click()
    assert download.value.suggested_filename == "likeness.zip"

    # Delete: confirmed, with a receipt; a reload finds nothing
    visit.tab("Upload")
    page.locator("#lk-delete").click()
    page.locator("#lk-delete-yes").click()
    visit.wait("#lk-receipt", "Deleted")
    page.reload()
    page.wait_for_selector("#lk-steps li")
    visit.wait("#lk-steps", "Start here")
    assert visit.foreign == [] and visit.errors == []


def test_stop_keeps_what_was_learned(chromium, address, monkeypatch):
    monkeypatch.setitem(LENGTH, "steps", 100_000)
    visit = Visit(chromium, address)
    page = visit.page
    visit.add_photos(photos())
    visit.tab("Train")
    page.locator("#lk-methods label", has_text="DreamBooth").click()
    page.locator("#lk-train").click()
    visit.wait("#lk-lane-textual_inversion", "training")
    visit.wait("#lk-lane-lora", "training")
    page.locator("#lk-leave-lora").click()  # one goes, the other goes on
    visit.wait("#lk-lane-lora", "stopped")
    visit.wait("#lk-lane-textual_inversion", "training")
    assert page.locator("#lk-stop").is_visible() and not page.locator("#lk-leave-textual_inversion").is_visible()
    page.locator("#lk-stop").click()
    visit.wait("#lk-train", "Continue training")
    visit.wait("#lk-train-status", "kept")
    visit.wait("#lk-lane-textual_inversion", "stopped")
    assert not page.locator("#lk-stop").is_visible() and not page.locator("#lk-lane-dreambooth").is_visible()
    assert visit.errors == []


def test_more_photos_later_go_on_from_what_was_learned(chromium, address):
    sent = more_photos()
    visit = Visit(chromium, address)
    page = visit.page
    visit.add_photos(sent[:8])
    visit.tab("Train")
    for method in ("Textual inversion", "DreamBooth"):
        page.locator("#lk-methods label", has_text=method).click()
    visit.wait("#lk-estimate", "Takes")
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "Trained.")
    assert not page.locator("#lk-go-on").is_visible()
    visit.tab("Upload")
    page.locator("#lk-drop input[type=file]").set_input_files(sent[8:])
    page.wait_for_function("document.querySelectorAll('#lk-cards .lk-card').length === 10")
    visit.tab("Train")
    visit.wait("#lk-train-status", "go on learning from where it was")
    assert page.locator("#lk-go-on input").is_checked()
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "Trained.")
    assert STARTED[-1].settings["lora"]["start_from"] and visit.errors == []


def test_somebody_elses_browser_sees_nothing(chromium, address):
    sent = photos()
    mine = Visit(chromium, address)
    mine.page.locator("#lk-drop input[type=file]").set_input_files(sent[:1])
    mine.wait("#lk-upload-status", "Add 4 more photos")
    link = mine.page.locator("#lk-cards img").first.evaluate("image => image.src")
    yours = Visit(chromium, address)
    assert "Start here" in yours.text("#lk-steps") and yours.page.locator("#lk-cards img").count() == 0
    forged = link.replace("/media/", "/media/9")
    assert yours.context.request.get(forged).status == 403
    assert yours.context.request.get(link).status == 403, "a link that was copied or logged"
    assert mine.context.request.get(link).status == 200
    stored = mine.page.evaluate("JSON.stringify(localStorage)")
    assert Path(sent[0]).name not in stored, "the browser keeps no photo and no name"


@pytest.mark.parametrize("width", [390, 1280])
def test_no_tab_is_wider_than_the_screen(chromium, address, width):
    visit = Visit(chromium, address, width)
    time.sleep(1)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.errors == [] and visit.foreign == []
