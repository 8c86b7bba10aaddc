"""The pages in the browser's own language, in headless Chromium. Run with `pytest -m browser`."""

from __future__ import annotations

import pytest

from tests.browser.test_browser import Visit, address, chromium, photos  # noqa: F401
from ui.upload.layout import CONSENT  # noqa: E402
from ui.words.words import translate  # noqa: E402

pytestmark = pytest.mark.browser
DROP = "Photos of one person, or a ZIP of them - 5 to 15 are best"
TABS = ("Upload", "Train", "Generate", "Score")
# Of what a person sees; the page's own script holds the markers.
SHOWN = "document.querySelector('.gradio-container').innerText"


@pytest.mark.parametrize(
    ("locale", "language"), [("de-DE", "de"), ("es-MX", "es"), ("fr-FR", "en"), ("en-US", "en"), ("zh-CN", "en")]
)
def test_the_upload_tab_speaks_the_browsers_language(chromium, address, locale, language):  # noqa: F811
    visit = Visit(chromium, address, locale=locale)
    assert translate(DROP, language) in visit.text("#lk-drop")
    assert translate(CONSENT, language) in visit.text("#lk-consent")
    visit.wait("#lk-steps", translate("Start here: add photos", language))  # the page's first answer brings it
    tabs = visit.page.get_by_role("tab").all_inner_texts()
    assert [tab.strip() for tab in tabs] == [translate(name, language) for name in TABS]
    assert "__i18n__" not in visit.page.evaluate(SHOWN)
    assert visit.foreign == [] and visit.errors == []


@pytest.mark.parametrize(("locale", "language"), [("de-DE", "de"), ("es-ES", "es")])
def test_what_the_server_sends_anew_is_translated_too(chromium, address, locale, language):  # noqa: F811
    visit = Visit(chromium, address, locale=locale)
    page = visit.page
    visit.add_photos(photos())
    steps = visit.text("#lk-steps")
    assert translate("{count} good photos", language).format(count=len(photos())) in steps
    assert translate("Train at least one method first.", language) in steps and "Ready" not in steps
    assert translate("Change", language) in visit.text("#lk-cards")
    menus = page.locator("#lk-cards").text_content()
    assert menus and translate("Learn from it", language) in menus
    assert translate("woman", language) in visit.text("#lk-class-word")
    visit.tab(translate("Train", language))
    page.wait_for_selector("#lk-train")  # every answer brings its text
    assert visit.text("#lk-train").strip() == translate("Train", language)
    page.locator("#lk-train-advanced").get_by_text(translate("Advanced", language)).click()
    visit.wait("#lk-lora-rank", translate("Rank", language))
    visit.tab(translate("Score", language))
    visit.wait("#lk-any", translate("Any one picture", language))
    assert "__i18n__" not in page.evaluate(SHOWN)
    assert visit.foreign == [] and visit.errors == []


@pytest.mark.parametrize(("locale", "language"), [("de-DE", "de"), ("es-ES", "es"), ("en-US", "en")])
def test_every_tab_has_room_on_a_phone(chromium, address, locale, language):  # noqa: F811
    visit = Visit(chromium, address, 390, locale)
    tabs = visit.page.get_by_role("tab").all_inner_texts()
    assert [tab.strip() for tab in tabs] == [translate(name, language) for name in TABS]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.errors == []


def test_a_friend_is_asked_in_the_friends_language(chromium, address):  # noqa: F811
    context = chromium.new_context(locale="es-ES")
    page = context.new_page()
    page.goto(f"{address}/vote/{'a' * 32}/{'b' * 22}")
    assert translate("There is no such vote. Ask for a new link.", "es") in page.content()
    assert page.locator("html").get_attribute("lang") == "es"
    context.close()


# Pictures and drawings without a text of ours. Icons of Gradio's controls are none; a plot names itself in English.
UNNAMED = """[...document.querySelectorAll('img, canvas, [role=img], [role^=graphics-document]')].filter((each) =>
  each.checkVisibility() && !each.closest('[aria-hidden=true]') && (each.role?.startsWith('graphics')
    || !/\\p{L}{3}/u.test(each.getAttribute('alt') ?? each.getAttribute('aria-label') ?? ''))
).map((each) => each.outerHTML)"""


def test_a_run_is_told_in_german_and_whatever_is_drawn_has_a_text(chromium, address):  # noqa: F811
    visit = Visit(chromium, address, locale="de-DE")
    page = visit.page
    visit.add_photos(photos()[:5])
    assert page.evaluate(UNNAMED) == []
    visit.tab("Trainieren")
    for method in ("Textual inversion", "DreamBooth"):
        page.locator("#lk-methods label", has_text=method).click()
    page.locator("#lk-train").click()
    visit.wait("#lk-lane-lora", "fertig")
    visit.wait("#lk-lane-lora", "Keine Ähnlichkeitskurve: Bei weniger als 8 Fotos")
    assert "Füge unter „Hochladen“ noch 3 Fotos hinzu." in visit.text("#lk-lane-lora")
    visit.wait_for_picture("#lk-lane-lora img")
    plot = page.locator("#lk-loss-lora")
    plot.locator("svg").first.wait_for()
    for text in ("Schritt", "Verlust", "geglättet", "jeder Schritt"):
        assert text in plot.text_content(), text
    said = page.locator("#lk-lane-lora [data-plot=lk-loss-lora]")
    assert "bei Schritt 6" in said.text_content()
    page.wait_for_function("document.querySelector('#lk-loss-lora').getAttribute('aria-hidden') === 'true'")
    assert page.evaluate(UNNAMED) == []

    visit.tab("Erzeugen")
    page.locator("#lk-number input[type=number]").fill("2")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-generate").click()
    visit.wait("#lk-steps", "4 Bilder bewertet")
    page.locator("#lk-history-box button").first.click()
    page.wait_for_selector("#lk-history img")
    page.locator("#lk-grid .lk-compare").nth(1).click()
    page.wait_for_selector("#lk-compared img")
    visit.wait("#lk-finish", "Das ähnlichste.")
    assert "Weißabgleich und Belichtung" in visit.text("#lk-finish-steps")
    assert page.evaluate(UNNAMED) == []

    visit.tab("Bewerten")
    page.locator("#lk-vote-base input, #lk-vote-start").first.wait_for()
    page.locator("#lk-vote-start").click()
    visit.wait("#lk-vote-links", "Abstimmung öffnen")
    page.locator("#lk-any input[type=file]").set_input_files(photos()[0])
    page.wait_for_selector("#lk-answer img")
    assert page.evaluate(UNNAMED) == []
    assert "__i18n__" not in page.evaluate(SHOWN)
    assert visit.foreign == [] and visit.errors == []
