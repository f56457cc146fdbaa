"""The page of the service in a browser: logging in, reviewing by keyboard, undoing, flipping the policy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from chromium import Browser, eventually
from test_report_browser import CONTRAST, OPEN_ALL

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation.keys import new_key
from guardkeel.moderation.page import routes
from moderation_parts import listening, rules, service_of

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script> a boat"
TEXTS = ["a ship", "a boat", "ships and boats", HOSTILE, "bread \u202e and butter"]
CURRENT = "return document.querySelector('.case.current')?.dataset.verdict"
SHOWN = "return [...document.querySelectorAll('.case')].filter(c => !c.hidden).map(c => c.dataset.verdict)"
TEXT = "return document.getElementById(arguments[0])?.textContent ?? ''"


@pytest.fixture
def site(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A service that listens, with some verdicts, all drawn; a reviewer has a second to undo."""
    monkeypatch.setattr(routes, "HOLD", 1.0)
    keys = tmp_path / "keys.json"
    secrets = {role: new_key(keys, role, (role,)) for role in ("moderate", "feedback", "admin")}
    service = service_of(
        tmp_path,
        rules(),
        rules("sea", ("ship*", "boat*"), weight=0.8),
        store={"url": f"sqlite:///{tmp_path}/log.db", "poll": 0.05, "texts": True},
        server={"keys": str(keys)},
        learner={"contexts": ["side"], "audit": {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}},
        policy={"threshold": 0.4, "permissive_threshold": 0.9},
    )
    browser.cdp("Network.clearBrowserCookies")
    with listening(service) as url:

        def judge(*texts: str) -> list[str]:
            bearer = {"authorization": f"Bearer {secrets['moderate']}"}
            body = {"items": [{"prompt": t} for t in texts]}
            found = httpx.post(f"{url}/v1/verdicts", json=body, headers=bearer).json()["verdicts"]
            eventually(lambda: service.store.verdict(found[-1]["id"]))
            return [v["id"] for v in found]

        made = SimpleNamespace(service=service, url=url, judge=judge, keys=secrets)
        made.log = lambda: [(r["verdict"], r["unsafe"]) for r in service.store.feedback_after(0)]
        judge(*TEXTS)
        made.verdicts = [row["id"] for row in service.store.audits()]
        yield made
        browser.driver.get("about:blank")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks for news all the time."""
    monkeypatch.setattr(routes, "EVERY", 0.3)


def shown_at(browser: Browser, width: int, dark: bool = False) -> None:
    browser.open(Path("/dev/null"), width=width, dark=dark, calm=True)


def log_in(browser: Browser, site: Any, role: str = "admin", where: str = "/page/") -> None:
    browser.driver.get(site.url + where)
    box = browser.driver.find_element("css selector", "#key")
    box.send_keys(site.keys[role])
    box.submit()
    eventually(lambda: browser.run("return !!document.querySelector('.js #review')"))


def press(browser: Browser, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser.driver).send_keys(keys).perform()


def test_logging_in_and_out(browser: Browser, site: Any) -> None:
    shown_at(browser, 1280)
    browser.driver.get(site.url)
    assert browser.driver.current_url == f"{site.url}/page/login"
    assert browser.run("return document.activeElement.id") == "key"
    box = browser.driver.find_element("css selector", "#key")
    box.send_keys("gk_0_wrong")
    box.submit()
    eventually(lambda: browser.driver.find_elements("css selector", "[role=alert]"))
    log_in(browser, site, "feedback")
    assert browser.run("return document.cookie") == ""  # scripts do not see the key
    assert site.keys["feedback"] not in browser.driver.page_source
    assert browser.driver.find_elements("css selector", "#policy") == []
    browser.driver.find_element("css selector", ".who button").click()
    eventually(lambda: browser.driver.current_url.endswith("/page/login"))
    browser.driver.get(f"{site.url}/page/")
    assert browser.driver.current_url.endswith("/page/login")


def test_reviewing_by_keyboard(browser: Browser, site: Any, quick: None) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    first, second, third, fourth, fifth = site.verdicts
    assert browser.run(SHOWN) == site.verdicts and browser.run(CURRENT) == first

    press(browser, "jj")
    assert browser.run(CURRENT) == third
    press(browser, "k")
    assert browser.run(CURRENT) == second

    veiled = "const b = document.querySelector('.case.current .body'); return [b.classList.contains('shown'),"
    veiled += " getComputedStyle(b.querySelector('.veil')).filter !== 'none', b.querySelector('.veil').inert]"
    assert browser.run(veiled) == [False, True, True]
    press(browser, "t")
    assert browser.run(veiled) == [True, False, False]
    press(browser, "jk")  # whoever comes back finds it covered
    assert browser.run(veiled) == [False, True, True]
    opinions = "return document.querySelector('.case.current .opinions').open"
    assert browser.run(opinions) is False
    press(browser, "o")
    assert browser.run(opinions) is True

    press(browser, "s")  # safe, and taken back in time
    assert second not in browser.run(SHOWN) and browser.run(CURRENT) == third
    assert "Said safe" in browser.run(TEXT, "toast-text") == browser.run(TEXT, "spoken")
    press(browser, "z")
    assert browser.run(SHOWN) == site.verdicts and browser.run(CURRENT) == second
    time.sleep(1.3)
    assert site.log() == []

    press(browser, "u")
    press(browser, "x")  # the third goes to the end
    assert browser.run(SHOWN) == [first, fourth, fifth, third] and browser.run(CURRENT) == fourth
    press(browser, "z")
    assert browser.run(SHOWN) == [first, third, fourth, fifth] and browser.run(CURRENT) == third
    assert eventually(site.log) == [(second, True)]
    press(browser, "z")  # too late
    assert "in the log already" in browser.run(TEXT, "toast-text")
    assert browser.run(SHOWN) == [first, third, fourth, fifth]

    press(browser, "susu")  # to the end of the list, from where it goes backwards
    assert browser.run(SHOWN) == [] and "Nothing waits" in browser.run(TEXT, "empty")
    press(browser, "susujkto")  # keys without an item do nothing
    eventually(lambda: len(site.log()) == 5)
    row = site.service.store.feedback_after(0)[0]
    assert (row["propensity"], row["reviewer"], row["source"]) == (1.0, "admin", "review")

    (news,) = site.judge("one more boat")  # and what is drawn later comes by itself
    assert eventually(lambda: browser.run(SHOWN)) == [news]


def test_what_is_held_is_sent_when_the_page_is_left(
    browser: Browser, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "HOLD", 60.0)
    shown_at(browser, 1280)
    log_in(browser, site)
    press(browser, "u")
    time.sleep(0.3)
    assert site.log() == []
    browser.driver.get(f"{site.url}/page/policy")
    assert eventually(site.log) == [(site.verdicts[0], True)]


def test_what_could_not_be_sent_is_sent_again_and_counts_once(browser: Browser, site: Any) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    browser.run("window.sent = fetch; let broken = 1;"
                "window.fetch = async (...a) => { const r = await sent(...a);"
                " if (a[0] === 'feedback' && broken-- > 0) throw new TypeError('lost'); return r; }")  # fmt: skip
    press(browser, "u")
    eventually(lambda: "sent again" in browser.run(TEXT, "toast-text"))
    eventually(
        lambda: browser.run("return document.getElementById('toast-text').textContent").startswith("This was")
    )
    assert site.log() == [(site.verdicts[0], True)]


def test_keys_can_be_turned_off(browser: Browser, site: Any) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    press(browser, "?")
    assert browser.run("return document.getElementById('help').open")
    press(browser, "u")  # not while it is open
    browser.driver.find_element("css selector", "#keys-on").click()
    browser.driver.find_element("css selector", "#help form button").click()
    try:
        press(browser, "ju")
        assert browser.run(SHOWN) == site.verdicts and browser.run(CURRENT) == site.verdicts[0]
        browser.driver.refresh()
        press(browser, "u")
        assert browser.run(SHOWN) == site.verdicts
    finally:
        browser.run("localStorage.clear()")
    buttons = browser.driver.find_elements("css selector", ".case.current .decide .unsafe")
    buttons[0].click()
    assert browser.run(SHOWN) == site.verdicts[1:]


def test_flipping_the_policy(browser: Browser, site: Any) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    browser.driver.find_element("css selector", "#policy .button").click()
    heading = "return document.querySelector('h1')?.textContent"
    eventually(lambda: browser.run(heading) == "Switch default to permissive?")
    page = browser.driver.find_element("css selector", "main").text
    assert "from 0.40" in page and "from 0.90" in page and "Of the last 5 verdicts" in page
    assert site.service.in_force.policy.strictness == "strict"
    browser.driver.find_element("css selector", ".confirm .primary").click()
    eventually(lambda: "Switch to strict" in browser.run(TEXT, "policy"))
    assert site.service.in_force.policy.strictness == "permissive"
    assert [p["origin"] for p in site.service.store.policy_history()] == ["api", "file"]


def test_it_follows_the_service_by_itself_and_leaves_alone_what_is_in_use(
    browser: Browser, site: Any, quick: None
) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    browser.run("document.querySelector('#weights details').open = true;"
                "document.querySelector('#policy .button').focus()")  # fmt: skip
    site.judge("bread", "bread")
    eventually(lambda: browser.run("return document.querySelector('.tile .big').textContent") == "7")
    eventually(lambda: browser.run(TEXT, "live").startswith("live"))
    press(browser, "u")
    eventually(lambda: "learnt from 1 review," in browser.run(TEXT, "weights"))
    assert browser.run("return document.querySelector('#weights details').open")
    assert browser.run("return document.querySelectorAll('.case.current').length") == 1


def test_hostile_texts_never_run_and_nothing_else_is_fetched(
    browser: Browser, site: Any, quick: None
) -> None:
    shown_at(browser, 1280)
    log_in(browser, site)
    browser.run("document.querySelectorAll('.reveal').forEach(b => b.click())")
    shown = browser.run("return document.getElementById('cases').textContent")
    assert HOSTILE in shown and "U+202E" in shown and "\u202e" not in shown
    site.judge(HOSTILE)
    eventually(lambda: browser.run("return document.querySelector('.tile .big').textContent") == "6")
    assert browser.run("return [typeof window.pwned, document.images.length]") == ["undefined", 0]
    assert [m for m in browser.messages() if "username fields" not in m] == []
    asked = {r for r in browser.requests() if not r.startswith(("data:", "file:", "about:"))}
    assert all(r.startswith(f"{site.url}/") for r in asked)


def test_it_is_read_and_worked_without_scripts(browser: Browser, site: Any) -> None:
    shown_at(browser, 390)
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        find = browser.driver.find_element
        browser.driver.get(f"{site.url}/page/login")
        find("css selector", "#key").send_keys(site.keys["admin"])
        find("css selector", ".login button").click()
        eventually(lambda: browser.driver.find_elements("css selector", ".case .text"))
        text = find("css selector", ".case .text")
        assert not text.is_displayed()
        find("css selector", ".case .body summary").click()
        assert text.is_displayed()
        assert len(browser.driver.find_elements("css selector", ".plot")) >= 1
        find("css selector", ".case .decide .unsafe").click()
        eventually(lambda: "Taken: it is in the log." in find("css selector", "#review").text)
        assert site.log() == [(site.verdicts[0], True)]
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize(
    ("width", "dark"), [(390, True), (1280, False)], ids=["narrow and dark", "wide and light"]
)
def test_it_fits_and_can_be_read(browser: Browser, site: Any, width: int, dark: bool) -> None:
    said = [
        {"id": v, "verdict": v, "unsafe": i < 3, "source": "review", "reviewer": "", "key": ""}
        for i, v in enumerate(site.verdicts[:4])
    ]
    site.service.store.write((), said)
    shown_at(browser, width, dark)
    log_in(browser, site)
    assert browser.driver.find_elements("css selector", "#regret .plot")
    for path in ("/page/", "/page/policy", "/page/login"):
        browser.driver.get(site.url + path)
        browser.run(OPEN_ALL)
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        seen, bad = browser.run(CONTRAST)
        assert seen > 4 and bad == []


def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser: Browser, site: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    shown_at(browser, 1280)
    log_in(browser, site)
    nameless = """
    const named = e => e.ariaLabel || e.textContent.trim() || e.labels?.length || e.getAttribute('aria-labelledby');
    const all = 'a, button, input:not([type=hidden]), summary, [role=region], section, dialog';
    return [...document.querySelectorAll(all)]
      .filter(e => !named(e)).map(e => e.outerHTML);
    """
    assert browser.run(nameless) == []
    assert browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id).sort()") == browser.run(
        "return [...new Set([...document.querySelectorAll('[id]')].map(e => e.id))].sort()"
    )
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    where = """
    const e = document.activeElement, s = getComputedStyle(e);
    return [e.className || e.tagName, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2];
    """
    seen = []
    for _ in range(30):
        press(browser, Keys.TAB)
        name, outlined = browser.run(where)
        seen.append(name)
        assert outlined or name == "BODY", name
    assert {"safe", "unsafe", "skip-case", "reveal", "help", "scroll", "button"} <= set(seen)
