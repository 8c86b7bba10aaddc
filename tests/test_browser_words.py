"""The pages in the browser's own language, in headless Chromium. Run with `pytest -m browser`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_browser import Visit, address, chromium  # noqa: E402, F401

from ui.words import translate  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("locale", "language"), [("de-DE", "de"), ("es-ES", "es"), ("es-MX", "es"), ("fr-FR", "en"), ("en-US", "en")]
)
def test_the_page_speaks_the_browsers_language(chromium, address, locale, language):  # noqa: F811
    from ui.upload import CONSENT

    visit = Visit(chromium, address, locale=locale)
    page = visit.page
    assert translate("Photos of one person, or a ZIP of them - 5 to 15 are best", language) in visit.text("#lk-drop")
    assert translate(CONSENT, language) in visit.text("#lk-consent")
    assert page.get_by_role("tab", name=translate("Generate", language)).is_disabled()
    # what the server sends anew is translated too: the button's text comes with every answer
    assert page.locator("#lk-train").text_content().strip() == translate("Train", language)
    assert page.locator("#lk-prompt").text_content().count("{subject}") == 1, "braces are shown, in every language"
    assert "__i18n__" not in page.content(), "no marker is left"
    assert visit.foreign == [] and visit.errors == []


def test_a_friend_is_asked_in_the_friends_language(chromium, address):  # noqa: F811
    context = chromium.new_context(locale="es-ES")
    page = context.new_page()
    page.goto(f"{address}/vote/{'a' * 32}/{'b' * 22}")
    assert translate("There is no such vote. Ask for a new link.", "es") in page.content()
    assert page.locator("html").get_attribute("lang") == "es"
    context.close()
