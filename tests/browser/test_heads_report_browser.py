"""The page of a study of heads in a browser: width, contrast, print, and that nothing leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Browser
from test_report_browser import CONTRAST, OPEN_ALL

from guardkeel.report.heads import write_heads_report
from heads_runs import HOSTILE, write_heads

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads_report(write_heads(tmp_path_factory.mktemp("heads"), layers=24, heads=6))


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
    assert seen > 300
    assert bad == []


def test_tables_are_ordered_and_nothing_is_logged_or_fetched(browser: Browser, page: Path) -> None:
    browser.open(page)
    names = "return [...document.querySelectorAll('#best tbody tr')].map(r => r.cells[0].innerText)"
    assert browser.run(names) == [str(k) for k in range(1, 11)]
    browser.run("document.querySelector('#best thead th:nth-child(3) .sort').click()")
    assert browser.run(names) == [str(k) for k in range(1, 11)]  # by the measure that ranks: the same order
    browser.run("document.querySelector('#best thead th:nth-child(3) .sort').click()")
    assert browser.run(names) == [str(k) for k in range(10, 0, -1)]
    assert HOSTILE in browser.run("return document.querySelector('main').innerText")
    assert browser.run("return document.images.length") == 0
    assert browser.messages() == []
    assert [r for r in browser.requests() if not r.startswith("data:")] == [page.resolve().as_uri()]


def test_it_prints_light_on_a_few_pages(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True, media="print")
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 10
