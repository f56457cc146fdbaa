"""Pages with pictures: hidden until they are asked for, sized, described, and nothing leaves the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from chromium import Browser

from guardkeel.conversation import Conversation
from guardkeel.images import Image
from guardkeel.report import write_report
from guardkeel.report.pictures import SIDE, shown_picture, shown_pictures
from guardkeel.report.vision import write_vision_report
from guardkeel.vision.pairs import pair
from run_directories import write_run
from vision_runs import adaptation, multi

pytestmark = pytest.mark.browser

PICTURES = "document.querySelectorAll('.pictures img')"
HIDDEN = f"return [...{PICTURES}].map(i => getComputedStyle(i).filter + getComputedStyle(i.closest('.veil')).filter)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    audit = write_run(tmp_path_factory.mktemp("audit") / "run", items=60)
    rows = [json.loads(line) for line in (audit / "items.jsonl").open()]
    for row in rows:
        images = [pair(1).image, Image("gone.png")]
        row["messages"] = Conversation.of(
            "What is this?", "A shape." * (row["side"] != "prompt") or None, images
        ).to_messages()
    (audit / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "audit": write_report(audit),
        "adaptation": write_vision_report(adaptation(tmp_path_factory.mktemp("adapt") / "run")),
        "hostile": write_vision_report(adaptation(tmp_path_factory.mktemp("hostile") / "run", hostile=True)),
        "multi": write_vision_report(multi(tmp_path_factory.mktemp("multi") / "run")),
    }


@pytest.fixture
def without_scripts(browser: Browser) -> Iterator[Browser]:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    yield browser
    browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("which", ["audit", "adaptation", "hostile", "multi"])
def test_pictures_are_hidden_until_they_are_asked_for(
    browser: Browser, pages: dict[str, Path], which: str
) -> None:
    browser.open(pages[which], calm=True)  # else the blur fades
    browser.run("document.querySelectorAll('details.group').forEach(d => { d.open = true; })")
    filters = browser.run(HIDDEN)
    assert filters
    assert all("blur" in each for each in filters)
    browser.run("document.querySelectorAll('.tools button')[0].click()")
    assert all("blur" not in each for each in browser.run(HIDDEN))
    browser.run("document.querySelectorAll('.tools button')[1].click()")
    assert all("blur" in each for each in browser.run(HIDDEN))
    browser.run(f"{PICTURES}[0].closest('article').querySelector('.reveal').click()")
    assert "blur" not in browser.run(HIDDEN)[0]


@pytest.mark.parametrize("which", ["audit", "adaptation", "hostile", "multi"])
def test_pictures_have_a_size_and_words_and_nothing_is_fetched(
    browser: Browser, pages: dict[str, Path], which: str
) -> None:
    browser.open(pages[which])
    facts = browser.run(
        f"return [...{PICTURES}].map(i => [i.width, i.height, i.naturalWidth, i.alt, i.src.slice(0, 11), i.complete])"
    )
    assert facts
    for width, height, natural, alt, start, _ in facts:
        assert 0 < width <= SIDE
        assert 0 < height <= SIDE
        assert natural <= SIDE
        assert alt.strip()
        assert start == "data:image/"
        assert "\u202e" not in alt
    assert not browser.messages()
    assert [r for r in browser.requests() if not r.startswith("data:")] == [pages[which].resolve().as_uri()]


@pytest.mark.parametrize("which", ["adaptation", "multi"])
@pytest.mark.parametrize("width", [380, 1280])
def test_the_page_never_scrolls_sideways(
    browser: Browser, pages: dict[str, Path], which: str, width: int
) -> None:
    browser.open(pages[which], width=width)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_without_scripts_pictures_lie_in_closed_details(
    without_scripts: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    without_scripts.open(pages["multi"])
    text = pages["multi"].read_text()
    assert '<details class="body">' in text
    assert '<details class="body" open' not in text


def test_hostile_words_stay_words(pages: dict[str, Path]) -> None:
    text = pages["hostile"].read_text()
    assert "<script>alert" not in text
    assert "a picture that cannot be shown: gone.png: no such picture" in text


def test_no_byte_of_a_picture_as_it_came_is_in_the_page() -> None:
    import base64

    original = pair(3).image
    shown = shown_picture(original)
    assert base64.b64decode(original.source.partition(",")[2]) not in base64.b64decode(
        str(shown.source).partition(",")[2]
    )
    assert shown.alt == original.alt
    address = shown_picture(Image("https://example.org/a.png"))
    assert (address.source, "not fetched" in address.note) == ("", True)
    assert [p.note for p in shown_pictures([original] * 6)][-1] == "2 more, not shown"
