"""The Generate tab in headless Chromium: cards by keyboard, favourites, sweep, variations, before and after, history.

Run with `pytest -m browser`. The base is a tiny one that draws noise; what is tested are the controls.
"""

# ruff: noqa: F811 - fixtures come from test_browser

from __future__ import annotations

import zipfile

import pytest

from tests.browser.test_browser import Visit, address, chromium, photos  # noqa: F401

pytestmark = pytest.mark.browser
IDLE = "() => !document.querySelector('#lk-generate').disabled"
CHOSEN = "#lk-style [aria-checked=true]"


def count(page, selector: str, many: int) -> None:
    page.wait_for_function(
        "([selector, many]) => document.querySelectorAll(selector).length === many", arg=[selector, many]
    )


def field(page, selector: str):
    return page.locator(f"{selector} textarea, {selector} input").first


def job_of(visit: Visit) -> None:
    """Until the job just started is over."""
    visit.page.wait_for_selector("#lk-generate-stop", state="visible")
    visit.page.wait_for_function(IDLE)


def test_what_can_be_done_with_pictures(chromium, address, tmp_path):
    visit = Visit(chromium, address)
    page = visit.page
    page.locator("#lk-view").get_by_text("Research").click()  # sweeps are there only
    visit.add_photos(photos())
    visit.tab("Train")
    for other in ("Textual inversion", "DreamBooth"):
        page.locator("#lk-methods label", has_text=other).click()
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "Trained.")
    visit.tab("Generate")

    # Cards: one place for the Tab key, arrows choose, the dials follow
    first = page.locator(CHOSEN)
    assert page.locator("#lk-style [role=radio][tabindex='0']").count() == 1
    name, prompt = first.inner_text(), field(page, "#lk-prompt").input_value()
    first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("was => document.querySelector('#lk-prompt textarea').value !== was", arg=prompt)
    assert page.locator(CHOSEN).count() == 1 and page.locator(CHOSEN).inner_text() != name
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    page.keyboard.press("Home")
    page.wait_for_function("was => document.querySelector('#lk-prompt textarea').value === was", arg=prompt)

    # Suggestions: pressed by keyboard, put into the prompt, which is nobody's card any more
    chip = page.locator("#lk-chips button").first
    phrase = chip.get_attribute("data-phrase")
    chip.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "([was, said]) => { const now = document.querySelector('#lk-prompt textarea').value;"
        " return now !== was && now.endsWith(said); }",
        arg=[prompt, phrase],
    )
    visit.wait(CHOSEN, "Own words")
    page.locator("#lk-style [role=radio]").first.click()
    page.wait_for_function("was => document.querySelector('#lk-prompt textarea').value === was", arg=prompt)

    # A seed that is not kept is new, and shown
    page.locator("#lk-number input[type=number]").fill("2")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-generate").click()
    count(page, "#lk-grid img", 4)
    job_of(visit)
    seed = field(page, "#lk-seed").input_value()
    assert visit.text("#lk-grid").count(f"seed {seed}") == 2

    # Favourite, by keyboard: it moves to the front and takes the focus along
    heart = page.locator("#lk-ranked .lk-like").last
    liked = heart.get_attribute("data-picture")
    heart.focus()
    page.keyboard.press("Enter")
    count(page, "#lk-ranked .lk-like[aria-pressed=true]", 1)
    assert page.locator("#lk-ranked .lk-like").first.get_attribute("data-picture") == liked
    page.wait_for_function("id => document.activeElement.dataset.picture === id", arg=liked)
    page.locator("#lk-only input").check()
    count(page, "#lk-ranked img", 1)
    page.locator("#lk-only input").uncheck()
    count(page, "#lk-ranked img", 4)

    # Before and after: opened by a picture's button, moved by keys
    page.locator("#lk-grid .lk-compare").nth(1).click()
    slider = page.locator("#lk-compared input[type=range]")
    slider.wait_for()
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "55%" in page.locator(".lk-ba-pair").get_attribute("style")
    assert "Untrained base" in visit.text("#lk-compared") and "LoRA" in visit.text("#lk-compared")

    # Sweep: every pair of steps and guidance on one seed, in a table
    page.locator("#lk-sweep button").first.click()
    field(page, "#lk-sweep-steps").fill("1, 2")
    field(page, "#lk-sweep-guidance").fill("1; 3")
    page.locator("#lk-sweep-start").click()
    count(page, "#lk-grid .lk-sweep img", 4)
    job_of(visit)
    assert "guidance 3" in visit.text("#lk-grid") and "2 steps" in visit.text("#lk-grid")

    # Variations of one of them; its settings say how much may change
    page.locator("#lk-grid .lk-vary").last.click()
    page.locator("#lk-vary-start").wait_for()
    page.locator("#lk-vary-number input[type=number]").fill("2")
    page.locator("#lk-vary-number input[type=number]").press("Tab")
    page.locator("#lk-vary-start").click()
    visit.wait("#lk-grid", "change 0.4")
    job_of(visit)
    count(page, "#lk-grid img", 2)

    # History: three jobs, the first one again with its settings; a reload knows them all
    page.locator("#lk-history-box button").first.click()
    jobs = page.locator("#lk-history button")
    count(page, "#lk-history button", 3)  # an accordion's content comes a moment after it opens
    assert jobs.first.get_attribute("aria-current") == "true"
    assert "Variations" in jobs.nth(0).inner_text() and "Sweep" in jobs.nth(1).inner_text()
    jobs.nth(2).focus()
    page.keyboard.press("Enter")
    count(page, "#lk-grid img", 4)
    # the timer may bring the pictures before the answer brings the dials
    page.wait_for_function("seed => document.querySelector('#lk-seed input').value === seed", arg=seed)
    assert page.locator("#lk-keep-seed input").is_checked()
    page.reload()
    page.wait_for_selector("#lk-steps li")
    visit.tab("Generate")
    count(page, "#lk-grid img", 4)
    count(page, "#lk-ranked .lk-like[aria-pressed=true]", 1)

    # Use these settings; with the seed kept the same picture is drawn again, not another one
    page.locator("#lk-grid .lk-use").last.click()
    page.wait_for_function("document.querySelector('#lk-keep-seed input').checked")
    again = field(page, "#lk-seed").input_value()
    assert int(again) == int(seed) + 1
    page.locator("#lk-generate").click()
    job_of(visit)
    assert field(page, "#lk-seed").input_value() == again
    assert f"seed {seed}" not in visit.text("#lk-grid") and f"seed {again}" in visit.text("#lk-grid")

    # The download holds the favourite under its own name
    visit.tab("Score")
    page.locator("#lk-package").click()
    with page.expect_download() as download:
        page.locator("#lk-downloads a").first.click()
    download.value.save_as(tmp_path / "likeness.zip")
    names = zipfile.ZipFile(tmp_path / "likeness.zip").namelist()
    assert len([each for each in names if each.startswith("favourites/")]) == 1
    assert visit.foreign == [] and visit.errors == []

    page.set_viewport_size({"width": 390, "height": 900})
    visit.tab("Generate")
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls no page sideways"
