"""The page of a dossier in a browser: width, contrast, links to records, hostile text, and that nothing leaves it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from chromium import Browser
from test_report_browser import CONTRAST, OPEN_ALL

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import Clock, lived
from guardkeel.dossier.bundle import write
from guardkeel.dossier.kinds import Finding, RiskDomain
from guardkeel.report.dossier import page
from run_directories import HOSTILE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dossier")
    clock = Clock()
    dossier, guard = lived(folder / "d", folder / "run", clock)
    texts = [t.encode("utf-8", "replace").decode() for t in HOSTILE]
    hostile = [RiskDomain(id=f"odd-{i}", title=t, foresight=t * 3) for i, t in enumerate(texts)]
    finding = Finding(
        id="odd", model="bank", fingerprint=guard.fingerprint, level="alert", what=" ".join(texts)
    )
    dossier.record([*hostile, finding], texts[0])
    clock.at += timedelta(days=20)  # clocks run out
    write(dossier, folder / "whole", lambda s: page(s, clock()))
    write(dossier, folder / "redacted", lambda s: page(s, clock(), True), redact=True)
    dossier.store.close()
    return folder


@pytest.mark.parametrize("width", [380, 800, 1280])
@pytest.mark.parametrize("name", ["whole", "redacted"])
def test_the_page_never_scrolls_sideways(browser: Browser, bundle: Path, name: str, width: int) -> None:
    browser.open(bundle / name / "index.html", width=width)
    browser.run(OPEN_ALL)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_is_enough_everywhere(browser: Browser, bundle: Path, dark: bool) -> None:
    browser.open(bundle / "whole" / "index.html", dark=dark)
    browser.run(OPEN_ALL)
    seen, bad = browser.run(CONTRAST)
    assert seen > 500
    assert bad == []


def test_nothing_runs_nothing_leaves_and_nothing_breaks_out(browser: Browser, bundle: Path) -> None:
    browser.open(bundle / "whole" / "index.html")
    browser.run(OPEN_ALL)
    assert browser.run("return window.pwned ?? null") is None
    assert browser.messages() == []
    assert len([r for r in browser.requests() if not r.startswith("data:")]) == 1
    assert browser.run("return document.querySelectorAll('h1').length") == 1
    assert browser.run("return document.querySelectorAll('main script, main iframe, main img').length") == 0


def test_every_rule_leads_to_its_records(browser: Browser, bundle: Path) -> None:
    browser.open(bundle / "whole" / "index.html")
    links = "return [...document.querySelectorAll('.evidence a')].map(a => a.getAttribute('href'))"
    found = browser.run(links)
    assert len(found) > 10
    missing = "return arguments[0].filter(h => !document.querySelector(h)).length"
    assert browser.run(missing, found) == 0
    files = browser.run("return document.querySelector('#runs .evidence').textContent")
    assert "candidate.jsonl" in files


def test_what_matters_is_said_at_the_top(browser: Browser, bundle: Path) -> None:
    browser.open(bundle / "whole" / "index.html")
    assert browser.run("return document.querySelector('.badge-word').textContent") == "IN FORCE"
    text = browser.run("return document.body.innerText")
    assert "overdue" in text and "allow-with-safeguards" in text and "does not seem to apply" in text
    browser.open(bundle / "redacted" / "index.html")
    browser.run(OPEN_ALL)
    text = browser.run("return document.body.innerText")
    assert "withheld, leaf" in text and "Mr Smith" not in text and "somebody (withheld)" in text


def test_it_prints(browser: Browser, bundle: Path) -> None:
    browser.open(bundle / "whole" / "index.html", media="print")
    assert browser.pdf().startswith(b"%PDF")
