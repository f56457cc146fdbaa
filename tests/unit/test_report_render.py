from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from guardkeel.errors import DataError
from guardkeel.records import read_record, write_record
from guardkeel.report import digest, render, write_report
from run_directories import HOSTILE, MEGABYTE, write_run

VOID = {"meta", "link", "br"}
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and keeps what tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: list[str] = []
        self.within: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({k for k, _ in attrs}) == len(attrs), f"an attribute twice on <{tag}>"
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.within.setdefault(self.open[-1] if self.open else "", []).append(data)
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.tags if name == tag]


@pytest.fixture(scope="module", params=["collapsed", "alone", "kept", "bare", "hostile"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    options = {
        "collapsed": {"items": 400},
        "alone": {"items": 200, "candidate": False, "layers": 3},
        "kept": {"items": 200, "collapse": 0.0, "layers": 1},
        "bare": {"items": 100, "candidate": False, "layers": 0, "decision": False},
        "hostile": {"items": 200, "hostile": True, "layers": 20},
    }[request.param]
    directory = write_run(tmp_path_factory.mktemp(request.param), **options)  # type: ignore[arg-type]
    return Page(render(digest(directory)))


def test_the_policy_allows_the_one_style_and_the_one_script_and_nothing_else(page: Page) -> None:
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    for tag in ("style", "script"):
        digest_of = base64.b64encode(hashlib.sha256("".join(page.within[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest_of}'" in (policy or "")
        assert len(page.all(tag)) == 1
    assert (policy or "").startswith("default-src 'none';")
    assert "unsafe" not in (policy or "")


def test_nothing_is_fetched_and_nothing_is_inline(page: Page) -> None:
    for tag, attrs, _ in page.tags:
        assert tag not in {
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "image",
            "use",
            "foreignobject",
        }
        assert not [k for k in attrs if k.startswith("on") or k in ("style", "src", "srcdoc", "xlink:href")]
        href = attrs.get("href")
        assert href is None or href.startswith("#") or href == "data:,"
    assert "url(#" in "".join(page.within["style"])
    assert not re.search(r"url\((?!#)|@import", "".join(page.within["style"]))


def test_links_and_labels_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a, _ in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in page.tags:
        for target in (attrs.get("aria-labelledby") or "").split():
            assert target in ids
        if (attrs.get("href") or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in ids


def test_tables_and_figures_have_names(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    scrolls = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in scrolls)
    titles = [parents for tag, _, parents in page.tags if tag == "title" and "svg" in parents]
    named = [a for a in page.all("svg") if a.get("role") == "img"]
    assert all(a.get("aria-hidden") == "true" for a in page.all("svg") if a.get("role") != "img")
    assert len(titles) >= len(named) > 0
    assert len(page.all("h1")) == 1


def test_nothing_invisible_reaches_the_page(page: Page) -> None:
    everything = page.text + [v or "" for _, attrs, _ in page.tags for v in attrs.values()]
    assert not [t for t in everything if HIDDEN.search(t)]


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    html = render(digest(write_run(tmp_path, items=200, hostile=True)))
    shown = "".join(Page(html).text)
    for text in HOSTILE:
        visible = HIDDEN.sub("\x00", text).split("\x00")[0]
        assert (visible[:5] if visible.startswith("Z") else visible) in shown  # a stack of marks is cut
    assert "{{ 7*7 }}" in shown
    assert "49" not in re.findall(r"(?<=\{\{ )\d+", shown)
    assert "U+202E" in shown
    assert "U+D800" in shown
    assert "combining marks" in shown
    assert f"of {len(MEGABYTE):,} characters" in shown


def test_the_first_screen_says_it_all(tmp_path: Path) -> None:
    data = digest(write_run(tmp_path, items=600))
    page = Page(render(data))
    text = re.sub(r"\s+", " ", " ".join(page.text))
    start = text[: text.index("The gate, rule by rule")]
    recall = data.numbers[0]
    for said in (
        "DENY",
        data.headline.lead,
        data.headline.sentence,
        "−65.3 points",
        f"Of {recall.difference.n} unsafe items",  # type: ignore[union-attr]
        "95% interval −71.0 to −59.0",
        "Mostly ranking",
        "Worst suite agent-steps",
        "Worst category",
        "languages other than en and de",
        "3 items were shortened",
    ):
        assert said in start, said
    order = [
        text.index(h)
        for h in (
            "The gate, rule by rule",
            "By suite",
            "Paired tests",
            "Slices",
            "How the scores",
            "layer by layer",
            "item by item",
            "Where these numbers",
            "What the words mean",
        )
    ]
    assert order == sorted(order[:2]) + order[2:]
    assert "0123" not in start


def test_sections_without_evidence_are_left_out(tmp_path: Path) -> None:
    html = render(digest(write_run(tmp_path, items=100, candidate=False, layers=0, decision=False)))
    ids = {a.get("id") for a in Page(html).all("section")}
    assert ids.isdisjoint({"gate", "tests", "geometry"})
    assert {"suites", "slices", "scores", "flips", "provenance", "glossary"} <= ids
    assert "Geometry: no layer was measured." in html
    assert "NO DECISION" in html


def test_guards_that_agree_have_nothing_to_list(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=60, layers=0)
    record = read_record(directory)
    record.results["comparison"]["flips"] = []
    write_record(directory, record)
    html = render(digest(directory))
    assert "The two guards agree on every item." in html
    assert '<article class="flip">' not in html


def test_the_cap_is_stated_with_what_is_left_out(tmp_path: Path) -> None:
    data = digest(write_run(tmp_path, items=600), cap=20)
    said = f"20 are shown (the cap is 20); {data.flips.total - 20} are left out"
    assert said in render(data)


def test_the_report_stays_small_whatever_is_in_it(tmp_path: Path) -> None:
    dense = [("\u202e\u202d" * 3000), "<&\"'>" * 2000, "漢字" * 5000, "\x00\x01" * 3000]
    ordinary = write_report(write_run(tmp_path / "a", items=5000, layers=32))
    worst = write_report(write_run(tmp_path / "b", items=5000, layers=32, texts=dense))
    assert ordinary.stat().st_size < 800_000
    assert worst.stat().st_size < 1_500_000


def test_the_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=60, layers=0)
    path = write_report(directory)
    assert path == directory / "report.html"
    first = path.read_bytes()
    (directory / "candidate.jsonl").unlink()
    with pytest.raises(DataError):
        write_report(directory)
    assert path.read_bytes() == first
    assert not list(directory.glob(".*"))


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=60)
    assert render(digest(directory)) == render(digest(directory))
