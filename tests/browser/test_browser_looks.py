"""What everybody can read and reach: contrast in the light and the dark colours, and a visit by keyboard alone.

In headless Chromium; run with `pytest -m browser`. Skipped with the reason where there is no Chromium, or no photos.
"""

# ruff: noqa: F811 - fixtures come from test_browser

from __future__ import annotations

import pytest

from tests.browser.test_browser import LENGTH, Visit, address, chromium, photos  # noqa: F401

pytestmark = pytest.mark.browser
TABS = ("Upload", "Train", "Generate", "Score")
STOPS = 150  # of the Tab key on one page; more than any tab has

# Every text that is shown with less contrast than WCAG 2.2 asks for (1.4.3, AA): 4.5, and 3 where it is large. As
# there, what can't be used (disabled) and what stands in a picture is left out.
FAINT = """() => {
  const parse = (text) => {
    const [r, g, b, a] = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return text.startsWith('color(srgb') ? [255 * r, 255 * g, 255 * b, a ?? 1] : [r, g, b, a ?? 1];
  };
  const over = (top, below) => below.map((value, k) => k === 3 ? 1 : top[k] * top[3] + value * (1 - top[3]));
  const light = ([r, g, b]) => [r, g, b]
    .map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0);
  const contrast = (one, two) => {
    const [high, low] = [light(one), light(two)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const shape = 'rect, path, circle';
  const behind = (element, middle) => {
    const layers = [];
    if (element.ownerSVGElement) {
      for (const drawn of [...element.ownerSVGElement.querySelectorAll(shape)].reverse()) {
        const box = drawn.getBoundingClientRect(), style = getComputedStyle(drawn);
        const inside = box.left <= middle.x && middle.x <= box.right && box.top <= middle.y && middle.y <= box.bottom;
        const below = drawn.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING;
        if (!inside || !below || style.fill === 'none' || !style.fill.startsWith('rgb')) continue;
        const [r, g, b, a] = parse(style.fill);
        layers.push([r, g, b, a * style.fillOpacity * style.opacity]);
      }
    }
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage.includes('url(')) return null;
      layers.push(parse(style.backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const texts = [];
  const walk = document.createTreeWalker(document.querySelector('.gradio-container'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const words = walk.currentNode.nodeValue.trim();
    const unseen = walk.currentNode.parentElement.closest('script, style, title, .sr-only');
    if (!/[\\p{L}\\p{N}]/u.test(words) || unseen) continue;
    const range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    texts.push([walk.currentNode.parentElement, words, range.getBoundingClientRect()]);
  }
  for (const field of document.querySelectorAll('.gradio-container :is(input, textarea)')) {
    const written = field.value && !['checkbox', 'radio', 'range', 'file'].includes(field.type);
    if (written) texts.push([field, field.value, field.getBoundingClientRect()]);
  }
  const found = {};
  for (const [element, words, box] of texts) {
    const visible = element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});
    const hidden = box.width < 2 || box.height < 2 || element.closest('[aria-hidden=true]');
    if (!visible || hidden || element.closest(':disabled, [aria-disabled=true], .disabled')) continue;
    const style = getComputedStyle(element);
    const below = behind(element, {x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2});
    if (below === null) continue;
    let ink = parse(element.ownerSVGElement ? style.fill : style.color);
    for (let at = element; at; at = at.parentElement) ink[3] *= getComputedStyle(at).opacity;
    const px = parseFloat(style.fontSize);
    const large = px >= 24 || (px >= 18.66 && style.fontWeight >= 700);
    const seen = contrast(over(ink, below), below);
    if (seen >= (large ? 3 : 4.5)) continue;
    const near = element.closest('[id^=lk-]')?.id || element.className?.toString();
    found[`${near}: ${words.slice(0, 40)}`] = `${seen.toFixed(2)} of ${style.color} ${element.outerHTML.slice(0, 90)}`;
  }
  return {count: texts.length, found};
}"""

# Whether it shows that the focused element has the focus: something of it, or of what it stands in, looks otherwise.
SHOWS_FOCUS = """() => {
  const at = document.activeElement;
  const round = [at, at.nextElementSibling, at.parentElement, at.parentElement?.parentElement].filter(Boolean);
  const look = () => JSON.stringify(round.map((each) => {
    const style = getComputedStyle(each);
    const outlined = style.outlineStyle === 'none' || style.outlineWidth === '0px' ? '' : style.outline;
    return [outlined, style.boxShadow, style.borderColor, style.backgroundColor, style.textDecoration, style.color];
  }));
  const still = document.head.appendChild(document.createElement('style'));
  still.textContent = '* {transition: none !important}';
  const focused = look();
  at.blur();
  const blurred = look();
  at.focus({focusVisible: true, preventScroll: true});
  still.remove();
  return focused !== blurred;
}"""
HERE = "document.activeElement.outerHTML.replace(/\\s+/g, ' ').slice(0, 160)"


def fill(visit: Visit, tmp_path) -> None:
    """A run with something to see on every tab: a photo that was refused, lanes, pictures, scores."""
    page = visit.page
    bad = tmp_path / "notes.jpg"
    bad.write_text("not a photo")
    visit.add_photos([*photos(), str(bad)])
    visit.tab("Train")
    page.locator("#lk-train").click()
    visit.wait("#lk-train-status", "Trained.")
    visit.tab("Generate")
    page.locator("#lk-number input[type=number]").fill("1")
    page.locator("#lk-number input[type=number]").press("Tab")
    page.locator("#lk-generate").click()
    visit.wait("#lk-steps", "4 pictures scored")
    page.wait_for_selector("#lk-generate-stop", state="hidden")


def test_every_text_can_be_read_in_both_colours(chromium, address, tmp_path):
    visit = Visit(chromium, address)
    page = visit.page
    faint = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        page.wait_for_selector("#lk-steps li")
        page.wait_for_timeout(1500)  # colours that change slowly have arrived
        faint[f"{scheme} empty"] = page.evaluate(FAINT)["found"]
    fill(visit, tmp_path)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        visit.tab("Upload")  # a reload comes back to the tab that was open
        page.wait_for_selector("#lk-cards img")
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        for tab in TABS:
            visit.tab(tab)
            page.wait_for_timeout(1500)
            said = page.evaluate(FAINT)
            assert said["count"] > 40
            faint[f"{scheme} {tab}"] = said["found"]
    assert {where: found for where, found in faint.items() if found} == {}
    assert visit.foreign == [] and visit.errors == []


def tab_to(page, selector: str, *, back: bool = False) -> None:
    """Press Tab until the focus is there. Wherever it stops on the way, it has to be seen."""
    for _ in range(STOPS):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        where = page.evaluate(HERE)
        assert page.evaluate("document.activeElement === document.body") or page.evaluate(SHOWS_FOCUS), where
        if page.evaluate("s => !!document.activeElement.closest(s)", selector):
            return
    raise AssertionError(f"the Tab key never reaches {selector}")


def open_tab(page, name: str) -> None:
    """From somewhere further down."""
    tab_to(page, f"[role=tab][data-tab-id={name}]", back=True)
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.ariaSelected === 'true'")


def test_a_visit_by_keyboard_alone(chromium, address, monkeypatch):
    visit = Visit(chromium, address)
    page = visit.page
    press = page.keyboard.press

    tab_to(page, "#lk-drop button")
    page.locator("#lk-drop input[type=file]").set_input_files(photos())  # what the file dialogue would do
    visit.wait("#lk-upload-status", "photos are used")
    tab_to(page, "#lk-class-word input[value=man]")  # Gradio makes each radio a group of its own: no arrows
    press("Space")
    page.wait_for_function("document.querySelector('#lk-class-word input[value=man]').checked")
    tab_to(page, "#lk-consent input")
    press("Space")
    visit.wait("#lk-steps", "Ready")

    monkeypatch.setitem(LENGTH, "steps", 100_000)
    open_tab(page, "train")
    tab_to(page, "#lk-methods input[name=DreamBooth], #lk-methods label:nth-of-type(2) input")
    press("Space")
    tab_to(page, "#lk-train")
    press("Enter")
    visit.wait("#lk-lane-lora", "training")
    tab_to(page, "#lk-stop")
    press("Enter")
    visit.wait("#lk-train-status", "kept")

    open_tab(page, "generate")
    tab_to(page, "#lk-number input[type=number]")
    press("Control+A")
    page.keyboard.type("1")
    tab_to(page, "#lk-generate")
    press("Enter")
    visit.wait("#lk-steps", "3 pictures scored")

    open_tab(page, "upload")
    tab_to(page, "#lk-delete")
    press("Enter")
    tab_to(page, "#lk-delete-yes")
    press("Enter")
    visit.wait("#lk-receipt", "Deleted")
    assert visit.foreign == [] and visit.errors == []
