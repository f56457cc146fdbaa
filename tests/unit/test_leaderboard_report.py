"""The page of a leaderboard: what it says, that nothing in it can become markup, that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation.leaderboard.runs import read_leaderboard
from guardkeel.records import Estimate
from guardkeel.report.leaderboard import render, write_leaderboard_report
from guardkeel.report.leaderboard_charts import Mark, Point, dots, scatter
from guardkeel.report.leaderboard_words import headline
from leaderboards import HOSTILE_NAME, write_leaderboard


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return write_leaderboard(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def page(out) -> str:
    return write_leaderboard_report(out).read_text()


class Elements(HTMLParser):
    """Every element and its attributes; unclosed ones are noticed."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_ids_are_its_own(page):
    elements = Elements(page)
    assert elements.open == []
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in elements.found:
        for key in ("aria-labelledby", "href"):
            for name in (attributes.get(key) or "").split():
                if key == "aria-labelledby" or name.startswith("#"):
                    assert name.removeprefix("#") in ids


def test_nothing_but_its_own_style_and_script_may_run(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace(
        "&#39;", "'"
    )
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    for _, attributes in Elements(page).found:
        assert not any(name == "style" or name.startswith("on") for name in attributes)


def test_names_and_reasons_cannot_become_markup(page):
    assert HOSTILE_NAME not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page


def test_the_page_says_who_leads_and_who_failed(page, out):
    _, results = read_leaderboard(out)
    assert results.guards[0].name == "good"
    said = headline(results)
    assert said.lead == "good has the highest mean F1."
    assert "The difference in F1 is settled" in said.sentence
    assert said.why.startswith("1 guard gave no verdicts: ")
    assert said.lead in page
    assert "the cable was cut" in page


def test_every_cell_of_the_results_is_on_the_page(page, out):
    _, results = read_leaderboard(out)
    for guard in results.guards:
        for cell in guard.cells:
            for estimate in (cell.behaviour.recall, cell.behaviour.fpr):
                if estimate.value not in (None, 0, 1):
                    assert f"{100 * estimate.value:.1f}%" in page


def test_values_sort_as_numbers_and_what_is_missing_has_none(page):
    values = re.findall(r'data-v="([^"]*)"', page)
    assert len(values) > 100
    assert "" in values
    for value in values:
        assert value == "" or float(value) is not None


def test_a_single_guard_and_nothing_to_rank_are_told_too(out):
    record, results = read_leaderboard(out)
    alone = results.model_copy(update={"guards": results.guards[:1], "differences": []})
    assert headline(alone).lead == "good is the only guard that is ranked."
    assert "Differences from" not in render(record, alone)
    nobody = results.model_copy(
        update={
            "guards": [g for g in results.guards if g.status == "failed"],
            "differences": [],
            "ranked_by": None,
        }
    )
    assert headline(nobody).lead == "No guard could be ranked."
    assert "No mean exists" in render(record, nobody)


def test_a_rank_by_pooled_items_is_said_to_be_one(out):
    record, results = read_leaderboard(out)
    pooled = results.model_copy(update={"ranked_on": "pooled"})
    said = headline(pooled)
    assert said.lead == "good has the highest pooled F1."
    value = results.guards[0].cells[0].f1_strict.value
    assert said.sentence.startswith(f"{100 * value:.1f}% [")
    assert "for no suite has both classes" in said.sentence
    assert "Pooled F1" in render(record, pooled)


def test_the_report_is_the_same_every_time(out):
    assert write_leaderboard_report(out).read_bytes() == write_leaderboard_report(out).read_bytes()


def test_an_unfinished_run_has_no_report(tmp_path):
    with pytest.raises(DataError, match="no run record"):
        write_leaderboard_report(tmp_path)


# figures


def known(value, low=None, high=None):
    return Estimate(value=value, low=low, high=high, n=10)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.93, 0.97], ["80%", "85%", "90%", "95%", "100%"]),
        ([0.61, 0.9], ["60%", "70%", "80%", "90%", "100%"]),
        ([0.01, 0.12], ["0%", "5%", "10%", "15%", "20%"]),
        ([0.05, 0.9], ["0%", "25%", "50%", "75%", "100%"]),
    ],
)
def test_axes_are_short_and_their_steps_are_round(values, labels):
    drawn = str(dots("k", "t", [Mark(i, f"g{i}", i == 0, known(v)) for i, v in enumerate(values)]))
    assert re.findall(r">(\d+%)<", drawn) == labels


def test_dots_stand_where_their_values_are():
    drawn = str(dots("k", "t", [Mark(1, "a", True, known(0.9, 0.85, 0.95)), Mark(2, "b", False, known(0.8))]))
    assert re.findall(r'cx="([\d.]+)"', drawn) == ["167"]  # the middle of 26 to 308
    assert 'x1="96.5"' in drawn  # its interval begins a quarter in
    assert 'x2="237.5"' in drawn
    assert dots("k", "t", [Mark(1, "a", True, known(None))]) is None


def test_the_scatter_shows_each_guard_and_where_its_threshold_goes():
    points = [
        Point(1, "a", True, known(0.05, 0.02, 0.1), known(0.9, 0.8, 0.95), (0.05, 0.88)),
        Point(2, "b", False, known(0.05, 0.02, 0.1), known(0.9, 0.8, 0.95), None),
        Point(3, "c", False, known(None), known(0.9), None),
    ]
    drawn = str(scatter("k", points))
    assert drawn.count("hollow") == 1
    numbers = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="at">(\d)</text>', drawn)
    assert [n for *_, n in numbers] == ["1", "2"]
    assert len({(x, y) for x, y, _ in numbers}) == 2  # they do not lie on each other
    assert scatter("k", points[2:]) is None
