"""The page of a leaderboard in a browser: sorting, width, contrast, and that nothing leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Browser
from test_report_browser import CONTRAST, OPEN_ALL

from guardkeel.report.leaderboard import write_leaderboard_report
from leaderboards import write_leaderboard

pytestmark = pytest.mark.browser

TABLE = "const table = document.querySelector('#means table');"
NAMES = TABLE + "return [...table.tBodies[0].rows].map(r => r.cells[1].innerText.split(' ')[0])"
HEAD = TABLE + "const head = table.tHead.rows[0].cells[arguments[0]];"
CLICK = HEAD + "head.querySelector('button').click()"
SORTED = HEAD + "return head.getAttribute('aria-sort')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_leaderboard_report(write_leaderboard(tmp_path_factory.mktemp("board")))


def test_a_click_on_a_heading_orders_the_rows(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run(NAMES) == ["good", "fair", "poor"]
    browser.run(CLICK, 2)  # F1, best first
    assert (browser.run(NAMES), browser.run(SORTED, 2)) == (["good", "fair", "poor"], "descending")
    browser.run(CLICK, 2)
    assert (browser.run(NAMES), browser.run(SORTED, 2)) == (["poor", "fair", "good"], "ascending")
    browser.run(CLICK, 1)  # names
    assert (browser.run(NAMES), browser.run(SORTED, 1)) == (["fair", "good", "poor"], "ascending")
    assert browser.run(SORTED, 2) is None
    browser.run(CLICK, 4)  # FPR: least first
    fpr = TABLE + "return [...table.tBodies[0].rows].map(r => +r.cells[4].dataset.v)"
    assert browser.run(fpr) == sorted(browser.run(fpr))


@pytest.mark.parametrize("width", [380, 800, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    browser.run(OPEN_ALL)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    wide = "return [...document.querySelectorAll('.scroll, figure, .verdict, .facts')]"
    wide += ".filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth).length"
    assert browser.run(wide) == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_is_enough_everywhere(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    browser.run(OPEN_ALL)
    seen, bad = browser.run(CONTRAST)
    assert seen > 500
    assert bad == []


def test_nothing_is_logged_fetched_or_run_and_names_are_shown_as_they_are(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    browser.run(OPEN_ALL)
    assert "<img src=x onerror=alert(1)>" in browser.run("return document.querySelector('main').innerText")
    assert browser.run("return document.images.length") == 0
    assert browser.messages() == []
    assert [r for r in browser.requests() if not r.startswith("data:")] == [page.resolve().as_uri()]


def test_it_is_whole_without_scripts(browser: Browser, page: Path) -> None:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.driver.find_elements("css selector", ".sort") == []
        assert len(browser.driver.find_elements("css selector", "#means table tbody tr")) >= 3
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints_light_on_a_few_pages(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True, media="print")
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 10
