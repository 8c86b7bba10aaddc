"""The first twenty seconds in headless Chromium: the first screen, the two views, the example, portraits at one press.

Run with `pytest -m browser`. Skipped with the reason where there is no Chromium, or no photos with faces.
"""

# ruff: noqa: F811 - fixtures come from test_browser

from __future__ import annotations

import time

import pytest

from tests.browser.test_browser import Visit, address, chromium, more_photos  # noqa: F401
from ui.front import example

pytestmark = pytest.mark.browser
VIEW = "document.documentElement.dataset.view"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_view_is_remembered_and_a_link_can_say_which(chromium, address, width):
    visit = Visit(chromium, address, width, view="")
    page = visit.page
    page.wait_for_function(f"{VIEW} === 'portrait'")
    page.locator("#lk-view").get_by_text("Research").click()
    page.wait_for_function(f"{VIEW} === 'research'")
    page.reload()
    page.wait_for_function(f"{VIEW} === 'research'")
    page.goto(f"{address}?view=portrait")
    page.wait_for_function(f"{VIEW} === 'portrait'")
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<i class=lk-research>r</i><i class=lk-portrait>p</i>')"
    )
    assert page.locator("i.lk-research").is_hidden() and page.locator("i.lk-portrait").is_visible()
    page.locator("#lk-compare-methods").click()
    page.wait_for_function(f"{VIEW} === 'research'")
    visit.fits()
    assert not visit.foreign and not visit.errors


@pytest.mark.skipif(not example.is_there(), reason="the example is not built")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_example_opens_on_every_tab_and_own_photos_clear_it(chromium, address, width):
    visit = Visit(chromium, address, width, view="")
    page = visit.page
    page.wait_for_function("document.querySelector('.lk-hero img')?.naturalWidth > 900")
    since = time.monotonic()
    page.locator("#lk-example").click()
    page.wait_for_function("document.querySelectorAll('#lk-portraits img').length === 4")
    print(f"example open after {time.monotonic() - since:.2f} s")
    visit.wait("#lk-steps", "32 pictures scored")
    visit.tab("Generate")
    base = page.locator("#lk-columns label", has_text="Untrained base")
    page.locator("#lk-ranked .lk-shot:visible").first.wait_for()
    assert page.locator("#lk-ranked .lk-shot").count() == 32 and not base.is_visible()
    assert page.locator("#lk-ranked .lk-shot:visible").count() == 24 and not page.locator("#lk-grid").is_visible()
    for tab, shown in (("Train", "#lk-lane-lora img"), ("Generate", "#lk-style img"), ("Upload", "#lk-cards img")):
        visit.tab(tab)
        page.locator(shown).first.wait_for()
        visit.fits()
    page.reload()
    page.locator("#lk-own").click()
    visit.wait("#lk-steps", "Start here")
    page.wait_for_selector(".lk-hero img")
    assert page.locator("#lk-portraits img").count() == 0 and not page.locator("#lk-consent input").is_checked()
    assert not visit.foreign and not visit.errors


def test_portraits_at_one_press_survive_a_reload(chromium, address):
    visit = Visit(chromium, address, view="")
    page = visit.page
    page.locator("#lk-make").click()
    visit.wait("#lk-hint", "Add 5 more photos")
    visit.add_photos(more_photos())
    page.locator("#lk-make").click()
    page.wait_for_selector("#lk-portrait-bar [role=progressbar]")
    page.reload()
    page.wait_for_function("document.querySelectorAll('#lk-portraits img').length === 4")
    page.wait_for_function("!document.querySelector('#lk-portrait-bar [role=progressbar]')")
    with page.expect_download() as download:
        page.locator("#lk-portraits a").first.click()
    assert download.value.suggested_filename == "portrait-1.png"
    page.locator("#lk-portraits button").first.click()
    visit.wait("#lk-portraits", "Download for LinkedIn")
    visit.fits()
    assert not visit.foreign and not visit.errors
