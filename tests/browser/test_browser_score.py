"""The Score tab in headless Chromium: a picture dropped in before any training, a blind vote by keyboard, the tally.

Run with `pytest -m browser`. Skipped with the reason where there is no Chromium, or no photos with faces.
"""

from __future__ import annotations

import re

import pytest

from tests.browser.test_browser import ROOT, Visit, address, chromium, photos  # noqa: F401

pytestmark = pytest.mark.browser
METHOD_WORDS = re.compile(r"lora|dreambooth|textual|inversion|untrained|renders", re.IGNORECASE)


@pytest.mark.parametrize("width", [390, 1280])
def test_any_picture_is_judged_before_anything_is_trained(chromium, address, width):  # noqa: F811
    visit = Visit(chromium, address, width)
    page = visit.page
    # On a busy machine Gradio measures the tabs before their style is there and folds them away until the next resize.
    page.set_viewport_size({"width": width, "height": 901})
    assert page.get_by_role("tab", name="Score").is_enabled()
    visit.add_photos(photos(), consent=False)
    visit.tab("Score")
    visit.wait("#lk-look", "Tick the consent box")
    visit.tab("Upload")
    page.locator("#lk-consent input").check()
    visit.wait("#lk-steps", "Judges any picture now")
    visit.tab("Score")
    page.locator("#lk-any input[type=file]").set_input_files(photos()[0])
    visit.wait("#lk-answer", "This person's own photos")
    assert page.locator("#lk-answer .lk-opinions li").count() >= 1
    assert page.locator("#lk-answer img").get_attribute("alt").startswith("The dropped picture")
    assert not page.locator("#lk-table").is_visible() and not page.locator("#lk-vote-start").is_visible()
    page.locator("#lk-any input[type=file]").set_input_files(
        {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"not a picture"}
    )
    visit.wait("#lk-answer", "is not a photo that can be read")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.foreign == [] and visit.errors == []


def test_a_friend_votes_blind_and_the_tally_stands_beside_the_judge(chromium, address):  # noqa: F811
    visit = Visit(chromium, address)
    page = visit.page
    visit.add_photos(photos())
    visit.tab("Train")
    page.locator("#lk-methods label", has_text="DreamBooth").click()
    page.locator("#lk-train").click()
    visit.wait("#lk-steps", "Textual inversion, LoRA")
    visit.tab("Generate")
    page.locator("#lk-number input[type=number]").fill("2")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-generate").click()
    visit.wait("#lk-steps", "6 pictures scored")
    visit.tab("Score")
    page.locator("#lk-vote-base input").check()
    page.locator("#lk-vote-start").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#lk-vote-links a")
    with visit.context.expect_page() as opened:
        page.locator("#lk-vote-links a").focus()
        page.keyboard.press("Enter")
    vote = opened.value
    vote.wait_for_selector("form")
    assert not METHOD_WORDS.search(re.sub(r"base64,[A-Za-z0-9+/=]+", "", vote.content()))
    assert vote.locator("form img").count() == 3 and vote.evaluate("[...document.images].every(i => i.alt)")
    vote.set_viewport_size({"width": 390, "height": 844})
    assert vote.evaluate("document.documentElement.scrollWidth") <= 390
    vote.keyboard.press("2")  # a number key
    vote.wait_for_function("document.body.innerText.includes('Round 2 of 2')")
    vote.get_by_role("button", name="Picture 1").focus()
    vote.keyboard.press("Enter")  # a focused button
    vote.wait_for_function("document.body.innerText.includes('Thank you')")
    vote.go_back()
    vote.reload()
    vote.wait_for_function("document.body.innerText.includes('Thank you')")
    vote.close()
    visit.wait("#lk-votes", "1 voter answered 2 rounds")
    assert "Friends' picks" in visit.text("#lk-table") and "finished" in visit.text("#lk-vote-links")
    page.reload()
    page.wait_for_selector("#lk-steps li")
    visit.tab("Score")
    visit.wait("#lk-votes", "1 voter answered 2 rounds")
    assert visit.foreign == [] and visit.errors == []
