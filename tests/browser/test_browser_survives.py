"""A training outlives what happens to its page and its server: double clicks, a reload, a second tab, a browser that
was closed, `kill -9`. In headless Chromium, against `python app.py` in a process of its own, on a tiny base.

Run with `pytest -m browser`. Skipped with the reason where there is no Chromium, or no photos with faces.
"""

# ruff: noqa: F811 - fixtures come from test_browser

from __future__ import annotations

import sqlite3

import pytest

from benchmarks.visits import App
from pipelines.core.run import all_runs
from pipelines.runs import jobs, ledger
from tests.browser.test_browser import Visit, chromium, photos  # noqa: F401

pytestmark = pytest.mark.browser
LANES = ("textual_inversion", "lora")
LONG, SHORT = 3000, 60  # steps: surely not over before the test is done with it; enough to be killed in the middle
STEP = "+(document.querySelector('#lk-lane-{}').innerText.match(/step (\\d+)/) || [0, 0])[1]"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    from tests.tiny import make_tiny_sd

    base = make_tiny_sd(tmp_path_factory.mktemp("bases") / "tiny", "portrait")
    with App(tmp_path_factory.mktemp("app"), LIKENESS_BASE=str(base), OMP_NUM_THREADS="1") as served:
        yield served
        log = served.log.read_text()
    assert "Traceback" not in log, log[-3000:]


@pytest.fixture
def visit(app, chromium):
    """Somebody whose photos are taken in, on the Train tab, with two methods chosen. What they leave is deleted."""
    made = Visit(chromium, app.address)
    made.add_photos(photos())
    made.tab("Train")
    made.page.locator("#lk-methods label", has_text="DreamBooth").click()
    made.page.locator("#lk-train-advanced").get_by_text("Advanced").click()
    yield made
    made.page.goto(app.address)
    made.page.wait_for_selector("#lk-steps li")
    made.tab("Upload")  # a page comes back on the tab that was open
    made.page.locator("#lk-delete").click()
    made.page.locator("#lk-delete-yes").click()
    made.wait("#lk-receipt", "Deleted")
    made.context.close()
    assert made.foreign == [] and made.errors == []


def ask_for(visit: Visit, steps: int) -> None:
    for method in LANES:
        field = visit.page.locator(f"#lk-{method.replace('_', '-')}-steps input[type=number]")
        field.fill(str(steps))
        field.press("Tab")


def step(page, method: str) -> int:
    return page.evaluate(STEP.format(method))


def advances(page, *methods: str) -> None:
    """Until each of these lanes has been seen to move, on a page that shows what is going on."""
    page.get_by_role("tab", name="Train").click()
    for method in methods:
        page.wait_for_selector(f"#lk-lane-{method} section")
        page.wait_for_function(f"was => {STEP.format(method)} > was", arg=step(page, method))
    assert page.locator("#lk-stop").is_visible() and page.locator("#lk-train").is_disabled()


def accepted(app: App, kind: str) -> int:
    """How many jobs of a kind the line has ever taken, of everybody who has not deleted their data."""
    with sqlite3.connect(app.runs / ledger.FILE) as line:
        return line.execute("SELECT count(*) FROM jobs WHERE kind = ?", (kind,)).fetchone()[0]


def test_a_double_click_makes_one_job(app, visit):
    page = visit.page
    ask_for(visit, 10)
    page.locator("#lk-train").dblclick()
    visit.wait("#lk-train-status", "safe to close this tab")
    page.wait_for_timeout(1000)
    assert page.get_by_test_id("toast-body").count() == 0, "the second click is no mistake to be told about"
    visit.wait("#lk-train-status", "Trained.")
    assert accepted(app, "train") == 1
    visit.tab("Generate")
    page.locator("#lk-number input[type=number]").fill("1")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-generate").dblclick()
    visit.wait("#lk-steps", "3 pictures scored")
    assert accepted(app, "generate") == 1


def test_pages_that_come_and_go_find_the_training_again(app, chromium, visit):
    page = visit.page
    ask_for(visit, LONG)
    page.locator("#lk-train").click()
    for method in LANES:  # they take turns: the other one has not begun
        visit.wait(f"#lk-lane-{method}", "step")
    advances(page, "textual_inversion")

    page.reload()
    advances(page, "textual_inversion")

    second = visit.open()
    advances(second, "textual_inversion")
    advances(page, "textual_inversion")
    second.close()

    kept = visit.context.storage_state()
    visit.context.close()
    again = Visit(chromium, app.address, storage_state=kept)
    advances(again.page, "textual_inversion")
    assert accepted(app, "train") == 1
    visit.context, visit.page = again.context, again.page


def test_a_killed_server_is_started_again_and_the_training_goes_on(app, visit):
    page = visit.page
    ask_for(visit, SHORT)
    page.locator("#lk-train").click()
    advances(page, "lora")
    (run,) = all_runs(app.runs)
    assert visit.errors == []
    with page.expect_event("load"):  # the page notices and loads itself anew
        app.process.kill()
        app.process.wait()
        app.start()
    page.wait_for_selector("#lk-steps li")
    visit.errors.clear()  # what the console says while nobody answers is no fault of the page
    visit.tab("Train")
    visit.wait("#lk-train", "Continue training")
    before = max(event.step for event in jobs.events(run) if event.kind == "step" and event.method == "lora")
    assert 0 < before < SHORT and not jobs.status(run).busy
    assert 0 < step(page, "lora") < SHORT
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "Trained.")
    for method in LANES:
        assert step(page, method) == SHORT
    later = [event.step for event in jobs.events(run)[jobs.status(run).first_event :]
             if event.kind == "step" and event.method == "lora"]  # fmt: skip
    assert min(later) == before + 1 and max(later) == SHORT, "it went on where it was"
