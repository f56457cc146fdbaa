from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser

from guardkeel.report import write_report
from run_directories import HOSTILE, write_run

pytestmark = pytest.mark.browser

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
OPEN_ALL = "document.querySelectorAll('details').forEach(d => { d.open = true; });"
FIRST = "document.querySelector('details.body')"
BUTTON = f"{FIRST}.parentElement.querySelector('.reveal')"

# Text nodes that show, with the contrast of their colour to what lies behind them.
CONTRAST = """
const parse = c => {
  const m = c.match(/[\\d.]+/g).map(Number), scale = c.startsWith('color(srgb') ? 255 : 1;
  return [m[0] * scale, m[1] * scale, m[2] * scale, m[3] ?? 1];
};
const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
const behind = e => {
  const stack = [];
  for (let n = e; n; n = n.parentElement) stack.push(parse(getComputedStyle(n).backgroundColor));
  return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const skipped = '.veil, script, title, desc, .hidden, .skip', bad = [];
let seen = 0;
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n; n = walk.nextNode();) {
  const e = n.parentElement;
  if (!n.data.trim() || !e.checkVisibility() || e.closest(skipped)) continue;
  const style = getComputedStyle(e), back = behind(e);
  const front = over(parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color), back);
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  seen += 1;
  if ((a + .05) / (b + .05) < 4.5) bad.push([n.data.trim().slice(0, 40), style.color, (a + .05) / (b + .05)]);
}
return [seen, bad];
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("report"), items=300))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("hostile"), items=200, hostile=True, layers=20))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("alone"), items=200, candidate=False, layers=2))


@pytest.fixture
def without_scripts(browser: Browser) -> Iterator[Browser]:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    yield browser
    browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("width", [380, 800, 1280])
@pytest.mark.parametrize("which", ["report", "hostile", "alone"])
def test_the_page_never_scrolls_sideways(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int
) -> None:
    browser.open(request.getfixturevalue(which), width=width)
    browser.run(OPEN_ALL)
    for button in (0, 1):  # show every text, hide every text
        browser.run("document.querySelectorAll('.tools button')[arguments[0]].click()", button)
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    wide = "return [...document.querySelectorAll('.tile, .note, .verdict, .scroll, figure, .flip, .rule')]"
    wide += ".filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth).length"
    assert browser.run(wide) == 0


def test_hostile_text_is_displayed_and_never_runs(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    browser.run(OPEN_ALL)
    browser.run("document.querySelectorAll('.reveal').forEach(b => b.click())")
    shown = browser.run("return document.querySelector('main').innerText")
    for text in (*HOSTILE[:6], HOSTILE[7], "U+202E", "U+D800", "combining marks"):
        assert text in shown
    every = "document.querySelectorAll('main *').forEach(e => e.dispatchEvent(new MouseEvent(arguments[0])))"
    for event in ("mouseover", "focus", "click"):
        browser.run(every, event)
    assert browser.run("return typeof window.pwned") == "undefined"
    elements = [
        "script",
        "style",
        "iframe, img, object, base, form",
        "#broken",
        "h1",
        "a[href^='javascript:']",
    ]
    counted = browser.run("return arguments[0].map(s => document.querySelectorAll(s).length)", elements)
    assert counted == [1, 1, 0, 0, 1, 0]
    attributes = "return [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert not [a for a in browser.run(attributes) if a.startswith("on") or a in ("style", "srcdoc", "src")]
    assert not HIDDEN.search(browser.run("return document.documentElement.textContent"))
    assert browser.messages() == []
    assert {r for r in browser.requests() if not r.startswith("data:")} == {hostile.resolve().as_uri()}


def test_an_injected_script_would_be_stopped_by_the_policy(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    extra = "<main><script>window.pwned=1</script><img src=x onerror='window.pwned=2'><b style='color:red'>"
    broken.write_text(report.read_text().replace("<main", extra + "<main", 1))
    browser.open(broken)
    assert browser.run("return typeof window.pwned") == "undefined"
    assert sum("Content Security Policy" in m for m in browser.messages()) >= 2


STATE = f"""
const veil = {FIRST}.querySelector('.veil'), button = {BUTTON};
const blurred = getComputedStyle(veil).filter !== 'none';
return [blurred, veil.inert, button.getAttribute('aria-expanded'), button.textContent.slice(0, 4)];
"""
VEILED, SHOWN = [True, True, "false", "Show"], [False, False, "true", "Hide"]


def test_texts_are_blurred_until_clicked(browser: Browser, report: Path) -> None:
    from selenium.webdriver.common.by import By

    browser.open(report, calm=True)
    assert browser.run(STATE) == VEILED
    cover = browser.driver.find_element(By.CSS_SELECTOR, "details.body .cover")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", cover)
    cover.click()
    assert browser.run(STATE) == SHOWN
    cover.click()  # selecting text must not hide it
    assert browser.run(STATE) == SHOWN
    browser.driver.find_element(By.CSS_SELECTOR, ".flip .reveal").click()
    assert browser.run(STATE) == VEILED
    assert browser.run("return document.querySelectorAll('details.body.shown').length") == 0


def test_texts_open_by_keyboard(browser: Browser, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(report, calm=True)
    for key in (Keys.ENTER, Keys.SPACE):
        browser.run("document.querySelector('.flip .reveal').focus()")
        browser.driver.switch_to.active_element.send_keys(key)
        assert browser.run(STATE) == SHOWN
        browser.driver.switch_to.active_element.send_keys(key)
        assert browser.run(STATE) == VEILED


def test_the_keyboard_reaches_everything_with_a_visible_focus(browser: Browser, report: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(report, calm=True)
    where = """
    const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
    const outlined = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
    return [e.className || e.tagName, outlined, r.left >= 0 && r.width > 0];
    """
    seen = []
    for _ in range(45):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        name, outlined, visible = browser.run(where)
        assert outlined, name
        assert visible, name
        seen.append(name)
    assert seen[0] == "skip"
    assert {"A", "SUMMARY", "scroll", "reveal"} <= set(seen)
    browser.open(report, calm=True)
    ActionChains(browser.driver).send_keys(Keys.TAB, Keys.ENTER).perform()
    assert browser.run("return document.activeElement.id") == "main"


def test_all_is_readable_without_javascript(without_scripts: Browser, report: Path) -> None:
    from selenium.webdriver.common.by import By

    browser = without_scripts
    browser.open(report, calm=True)
    find = browser.driver.find_elements
    assert find(By.CSS_SELECTOR, ".reveal") == []
    assert find(By.CSS_SELECTOR, "html.js") == []
    body = find(By.CSS_SELECTOR, "details.body")[0]
    text = body.find_element(By.CSS_SELECTOR, ".text")
    assert not text.is_displayed()
    body.find_element(By.TAG_NAME, "summary").click()
    assert text.is_displayed()
    assert text.text.startswith("Message ")
    assert body.find_element(By.CSS_SELECTOR, ".veil").value_of_css_property("filter") == "none"
    assert find(By.ID, "answer")[0].text == "Do not ship the changed guard."


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("which", ["report", "alone"])
def test_contrast_is_enough_everywhere(
    browser: Browser, request: pytest.FixtureRequest, which: str, dark: bool
) -> None:
    browser.open(request.getfixturevalue(which), dark=dark)
    browser.run(OPEN_ALL)
    seen, bad = browser.run(CONTRAST)
    assert seen > 500
    assert bad == []


def test_dark_mode_is_dark(browser: Browser, report: Path) -> None:
    back = "return getComputedStyle(document.body).backgroundColor"
    browser.open(report)
    light = browser.run(back)
    browser.open(report, dark=True)
    assert (light, browser.run(back)) == ("rgb(247, 247, 245)", "rgb(18, 21, 25)")


def test_print_hides_what_was_not_opened_and_is_light(browser: Browser, report: Path) -> None:
    browser.open(report, dark=True)
    browser.run(f"{BUTTON}.click()")
    browser.cdp(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    shown = "return [...document.querySelectorAll('details.body .cover')]"
    shown += ".map(c => getComputedStyle(c).display !== 'none')"
    displayed = browser.run(shown)
    assert displayed[0] is True
    assert not any(displayed[1:])
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(25, 29, 34)"
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 3 <= pdf.count(b"/Type /Page\n") <= 12


def test_motion_is_left_out_for_those_who_ask(browser: Browser, report: Path) -> None:
    motion = "return [getComputedStyle(document.documentElement).scrollBehavior,"
    motion += " parseFloat(getComputedStyle(document.querySelector('.veil')).transitionDuration)]"
    browser.open(report)
    assert browser.run(motion) == ["smooth", 0.15]
    browser.open(report, calm=True)
    assert browser.run(motion) == ["auto", 0]


def test_nothing_is_logged_and_nothing_is_fetched(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.run(OPEN_ALL)
    assert browser.messages() == []
    assert [r for r in browser.requests() if not r.startswith("data:")] == [report.resolve().as_uri()]
