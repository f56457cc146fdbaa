"""The page on which people decide, in a browser: worked by keyboard alone, blind, and never losing an answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chromium import Browser, eventually
from test_report_browser import CONTRAST

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from sqlalchemy import select

from adjudication_parts import Clock, judged, listening, queue_of
from guardkeel.curation.adjudication.access import Annotators
from guardkeel.curation.adjudication.desk import Desk
from guardkeel.curation.adjudication.guidelines import categories
from guardkeel.curation.adjudication.store import Store
from guardkeel.curation.adjudication.tables import leases
from guardkeel.curation.config import AdjudicateConfig

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script> bread \u202e and butter"
TEXTS = ["a ship in the harbour", "a boat", HOSTILE, "ships and boats " * 300]
TEXT = "return document.querySelector(arguments[0])?.textContent ?? ''"
ITEM = "return document.querySelector('#item')?.dataset.item ?? ''"
COVERED = """
const b = document.querySelector('.body'), veil = b.querySelector('.veil');
return [!b.classList.contains('shown'), getComputedStyle(veil).filter !== 'none', veil.inert];
"""
TICKED = "return [...document.querySelectorAll('.category :checked')].map(c => c.value)"


@pytest.fixture
def site(tmp_path: Path, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that is served; `parametrize` it indirectly for other tables or another pace."""
    table = dict(getattr(request, "param", {}))
    every = table.pop("every", 30.0)
    clock = Clock()
    store = Store(tmp_path / "adjudication.sqlite", create=True, clock=clock)
    rows = [judged(f"r{i}", 0.9, 0.1, 0.8, prompt=t) for i, t in enumerate(TEXTS)]
    config = AdjudicateConfig(audit=0.0, **table)
    queue = queue_of(rows, audit=0.0).items
    store.load(queue, config.people, "strict")
    desk = Desk(store, config, "strict", Annotators(["ann", "bob"], b"s" * 32), categories())
    browser.cdp("Network.clearBrowserCookies")
    with listening(desk, every) as url:
        made = SimpleNamespace(url=url, desk=desk, store=store, clock=clock, keys=desk.annotators.keys())
        made.order = [i.key for i in queue]
        made.log = lambda: [(r["kind"], r["choice"], r["categories"]) for r in store.records()]
        yield made
        browser.driver.get("about:blank")
    store.close()


def enter(browser: Browser, site: Any, who: str = "ann", width: int = 1280, dark: bool = False) -> None:
    browser.open(Path("/dev/null"), width=width, dark=dark, calm=True)
    browser.driver.get(f"{site.url}/enter?key={site.keys[who]}")
    eventually(lambda: browser.run("return document.documentElement.classList.contains('js')"))
    browser.run("localStorage.clear()")


def press(browser: Browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser.driver).send_keys(*keys).perform()


def after(browser: Browser, item: str) -> str:
    """The item that stands there once this one is gone."""
    return eventually(lambda: (now := browser.run(ITEM)) != item and (now or "nothing"))


def look(browser: Browser, name: str) -> None:
    """Keep a picture for people where ADJUDICATION_PICTURES says."""
    folder = os.environ.get("ADJUDICATION_PICTURES")
    if folder:
        browser.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_a_queue_is_worked_by_keyboard_alone(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site)
    first, second, third, fourth = site.order
    assert browser.run(ITEM) == first and browser.run(COVERED) == [True, True, True]
    press(browser, "s")  # not before it was looked at
    assert "Look at the text first" in browser.run(TEXT, "#toast") == browser.run(TEXT, "#spoken")
    press(browser, "u")
    assert site.log() == [] and browser.run("return document.activeElement.id") != "find"

    press(browser, Keys.SPACE)
    assert browser.run(COVERED) == [False, False, False]
    press(browser, "t")
    assert browser.run(COVERED)[0]
    press(browser, "t", "u")  # unsafe, and then categories
    assert browser.run("return document.activeElement.id") == "find"
    assert "Unsafe: find categories" in browser.run(TEXT, "#armed")
    press(browser, "thr")
    assert browser.run(TEXT, ".category.first .name") == "Threat"
    assert browser.run(TEXT, "#spoken") == "5 Threat: Enter ticks"
    press(browser, Keys.ENTER, "12")
    assert browser.run(TEXT, ".category.first .name") == "Profanity"
    press(browser, Keys.ENTER)
    assert browser.run(TICKED) == ["Threat", "Profanity"] and site.log() == []
    press(browser, "pii", Keys.ESCAPE)  # the first Esc empties the box
    press(browser, Keys.ENTER)
    assert after(browser, first) == second
    assert site.log() == [("label", "unsafe", ["Threat", "Profanity"])]
    assert "said unsafe of a prompt (Threat, Profanity)" in browser.run(TEXT, "#last")

    assert browser.run(COVERED)[0] and browser.run("return document.activeElement.id") == "item"
    press(browser, Keys.SPACE, "s")
    after(browser, second)
    press(browser, "n")  # skipping needs no look
    assert after(browser, third) == fourth
    press(browser, Keys.SPACE, "m", "not sure", Keys.ESCAPE, "c", Keys.ENTER)
    assert after(browser, fourth) == third  # the skipped one comes again
    assert site.store.last("ann")["note"] == "not sure" and site.log()[-1] == ("label", "caution", [])

    press(browser, "z")  # back to the fourth
    assert after(browser, third) == fourth and "Taken back" in browser.run(TEXT, "#said")
    press(browser, "z")  # and to the skipped one
    assert after(browser, fourth) == third
    press(browser, Keys.SPACE, "x")
    assert after(browser, third) == fourth
    press(browser, Keys.SPACE, "u", Keys.ESCAPE)  # thought better of it
    assert browser.run("return document.activeElement.id") != "find" and browser.run(TEXT, "#armed") == ""
    press(browser, "s")
    assert after(browser, fourth) == "nothing" and "All is decided" in browser.run(TEXT, "#nothing")
    assert "4 of 4 decided" in " ".join(browser.run(TEXT, "#progress").split())
    standing = [(r["item"], r["choice"]) for r in site.store.standing()]
    assert sorted(standing) == sorted(
        [(first, "unsafe"), (second, "safe"), (third, "unclear"), (fourth, "safe")]
    )
    press(browser, "sucxn ?")  # keys without an item do nothing, but for help
    assert browser.run("return document.getElementById('help').open")


def test_votes_are_hidden_until_the_person_has_voted(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site)
    first = browser.run(ITEM)
    assert "disagree" not in browser.driver.page_source and "P(unsafe)" not in browser.driver.page_source
    press(browser, "v", Keys.SPACE, "s")
    after(browser, first)
    assert browser.run("return document.getElementById('votes').open") is False
    press(browser, "v")
    shown = browser.driver.find_element("css selector", "#last").text
    assert "P(unsafe) 0.90" in shown and "jurors disagree: unsafe a, c; safe b" in shown
    assert "0% same, of 1" in browser.driver.find_element("css selector", ".side").text
    press(browser, Keys.SPACE, "s")  # it stays open for whoever likes it so
    after(browser, site.order[1])
    assert browser.run("return document.getElementById('votes').open") is True


def test_what_could_not_be_sent_is_sent_again_and_counts_once(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site)
    first, second = site.order[:2]
    browser.run("window.real = fetch; let broken = 1;"
                "window.fetch = async (...a) => { const r = await real(...a);"
                " if (a[0] === 'decide' && broken-- > 0) throw new TypeError('lost'); return r; }")  # fmt: skip
    press(browser, Keys.SPACE, "s")
    eventually(lambda: "sent again" in browser.run(TEXT, "#toast"))
    press(browser, "s", "n")  # keys wait for it
    assert after(browser, first) == second and "counts once" in browser.run(TEXT, "#said")
    assert [c for _, c, _ in site.log()] == ["safe"]


@pytest.mark.parametrize("site", [{"lease": 15.0, "every": 0.3}], indirect=True)
def test_an_item_stays_ones_own_while_one_looks_at_it(browser: Browser, site: Any) -> None:
    enter(browser, site)
    first = browser.run(ITEM)

    def expires() -> float:
        return site.store.read(select(leases.c.expires).where(leases.c.annotator == "ann"))[0]["expires"]

    for _ in range(3):
        site.clock.now += 800
        eventually(lambda: expires() == site.clock.now + 900)
    assert browser.run(ITEM) == first
    browser.run("window.real = fetch; window.fetch = () => Promise.reject(new TypeError('away'))")
    site.clock.now += 901
    assert site.store.claim("bob", 900).item["key"] == first
    browser.run("window.fetch = real")
    assert after(browser, first) in site.order[1:]
    assert "somebody else has it" in eventually(lambda: browser.run(TEXT, "#toast"))


@pytest.mark.parametrize("site", [{"people": 2, "every": 0.3}], indirect=True)
def test_two_people_see_nothing_of_each_other_and_the_page_follows(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    from adjudication_parts import say

    for _ in TEXTS:
        say(site.store, "bob", "unsafe", ("Threat",), "bobs note")
    enter(browser, site)
    assert "bob" not in browser.driver.page_source
    for _ in TEXTS:
        here = browser.run(ITEM)
        press(browser, Keys.SPACE, "s")
        after(browser, here)
    assert "Nothing for you" in browser.run(TEXT, "#nothing")  # a third is wanted for each
    site.store.undo("bob", site.store.last("bob")["id"], 0)
    say(site.store, "bob", "safe")
    eventually(lambda: "1 of 4 decided" in " ".join(browser.run(TEXT, "#progress").split()))


def test_hostile_texts_never_run_and_nothing_else_is_fetched(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site)
    while browser.run(ITEM):
        here = browser.run(ITEM)
        press(browser, Keys.SPACE)
        shown = browser.run(TEXT, "#text")
        if "pwned" in shown:
            assert HOSTILE.split("\u202e")[0] in shown and "U+202E" in shown and "\u202e" not in shown
        press(browser, "m", "<img src=x onerror='window.pwned=3'>", Keys.ESCAPE, "s")
        after(browser, here)
    assert browser.run("return [typeof window.pwned, document.images.length]") == ["undefined", 0]
    assert [m for m in browser.messages() if "username fields" not in m] == []
    asked = {r for r in browser.requests() if not r.startswith(("data:", "file:", "about:"))}
    assert all(r.startswith(f"{site.url}/") for r in asked)
    assert browser.run("return document.cookie") == "" and site.keys["ann"] not in browser.driver.page_source


def test_it_is_worked_without_scripts(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(Path("/dev/null"), width=390, calm=True)
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    find = browser.driver.find_element
    try:
        browser.driver.get(f"{site.url}/")
        find("css selector", "#key").send_keys(site.keys["bob"])
        find("css selector", ".login button").click()
        text = eventually(lambda: browser.driver.find_elements("css selector", ".text"))[0]
        assert not text.is_displayed()
        find("css selector", ".body summary").click()
        assert text.is_displayed()
        find("css selector", "#note").send_keys("a note", Keys.ENTER)  # Enter sends nothing
        assert site.log() == []
        find("css selector", ".category input").click()
        find("css selector", ".answers .unsafe").click()
        eventually(lambda: browser.driver.find_elements("css selector", "#last"))
        assert site.log() == [("label", "unsafe", ["Hate/Identity Hate"])]
        find("css selector", "#undo button").click()
        eventually(lambda: "Taken back" in find("css selector", "main").text)
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


def test_keys_can_be_turned_off_and_the_mouse_does(browser: Browser, site: Any) -> None:
    enter(browser, site)
    first = browser.run(ITEM)
    press(browser, "?")
    browser.driver.find_element("css selector", "#keys-on").click()
    browser.driver.find_element("css selector", "#help form button").click()
    try:
        press(browser, "t")
        assert browser.run(COVERED)[0]
        browser.driver.find_element("css selector", ".answers .safe").click()
        assert site.log() == []  # not looked at
        browser.driver.find_element("css selector", ".cover").click()
        browser.driver.find_element("css selector", ".answers .safe").click()
        after(browser, first)
        assert site.log() == [("label", "safe", [])]
    finally:
        browser.run("localStorage.clear()")


@pytest.mark.parametrize(
    ("width", "dark"),
    [(390, True), (1280, False), (1280, True)],
    ids=["narrow dark", "wide light", "wide dark"],
)
def test_it_fits_and_can_be_read(browser: Browser, site: Any, width: int, dark: bool) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site, width=width, dark=dark)
    kind = f"{width}-{'dark' if dark else 'light'}"
    look(browser, f"covered-{kind}")
    press(browser, Keys.SPACE, "s")
    after(browser, site.order[0])
    press(browser, Keys.SPACE, "v", "u", "th")
    look(browser, f"armed-{kind}")

    def readable() -> None:
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        seen, bad = browser.run(CONTRAST.replace("'.veil, ", "'.finding .category, .veil, "))
        assert seen > 4 and bad == []

    readable()
    press(browser, Keys.ESCAPE, Keys.ESCAPE, "g", "?")
    look(browser, f"help-{kind}")
    readable()
    press(browser, Keys.ESCAPE)
    eventually(lambda: not browser.run("return document.getElementById('help').open"))
    # covered again, as all that follow; a key right after the help has closed may still be the help's
    eventually(lambda: browser.run(COVERED)[0] or press(browser, Keys.SPACE))
    while here := browser.run(ITEM):
        press(browser, Keys.SPACE, "c", Keys.ENTER)
        after(browser, here)
    look(browser, f"done-{kind}")
    readable()
    browser.driver.get(f"{site.url}/login")
    look(browser, f"login-{kind}")
    readable()


def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site)
    first = browser.run(ITEM)
    press(browser, Keys.SPACE, "s")
    after(browser, first)
    press(browser, Keys.SPACE)
    nameless = """
    const named = e => e.ariaLabel || e.textContent.trim() || e.labels?.length || e.getAttribute('aria-labelledby');
    const all = 'a, button:not([hidden]), input:not([type=hidden]), summary, [role=region], section, dialog, aside';
    return [...document.querySelectorAll(all)].filter(e => !named(e)).map(e => e.outerHTML);
    """
    assert browser.run(nameless) == []
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    assert browser.run(f"return {ids}.length - new Set({ids}).size") == 0
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    where = """
    const e = document.activeElement, s = getComputedStyle(e);
    return [e.id || e.name || e.className || e.tagName, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2];
    """
    seen = set()
    for _ in range(60):
        press(browser, Keys.TAB)
        name, outlined = browser.run(where)
        seen.add(name)
        assert outlined or name == "BODY", name
    assert {"choice", "reveal", "category", "note", "find", "help-open", "guide", "text", "BUTTON"} <= seen
