from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench_folders import items_of, write_bench, write_cell
from guardkeel.report.collapse import markdown, render, write_collapse_report
from guardkeel.report.collapse_charts import scatter
from guardkeel.report.collapse_words import headline
from guardkeel.tuning.collapse.figures import CollapseTable, Figure, Missing, Row
from guardkeel.tuning.collapse.table import published, summarise, table_text
from run_directories import HOSTILE

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "link", "br"}
VARIANTS = (("longer", 2.0), ("hotter", 3.0))


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and keeps tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({k for k, _ in attrs}) == len(attrs), f"an attribute twice on <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    write_bench(out, arms=("plain", "replay", "fwssr", "ssr-uniform"), variants=VARIANTS, layers=2)
    items = items_of({"x": (1, 1)})
    write_cell(out, "medical", "ewc", items=items, before=[], after=[], error=f"stopped: {HOSTILE[0]}")
    summarise(out, draws=60)
    return out


@pytest.fixture(scope="module")
def table(bench: Path) -> CollapseTable:
    return CollapseTable.model_validate_json((bench / "table.json").read_bytes())


def hostile(table: CollapseTable) -> CollapseTable:
    """Every name that a grid, a suite or a machine gives is an attack, or long."""
    names = {
        a: f"{a}{HOSTILE[k % len(HOSTILE)]}" for k, a in enumerate(dict.fromkeys(r.arm for r in table.rows))
    }
    rows = []
    for r in table.rows:
        suites = [
            s.model_copy(update={"suite": s.suite if s.suite == "*" else s.suite + HOSTILE[5]})
            for s in r.suites
        ]
        verdict = r.verdict and r.verdict.model_copy(update={"reason": HOSTILE[1], "worst_suite": HOSTILE[3]})
        known = {
            "scenario": r.scenario + HOSTILE[0],
            "arm": names[r.arm],
            "suites": suites,
            "verdict": verdict,
        }
        rows.append(
            r.model_copy(
                update=known | {"variant": r.variant and r.variant + HOSTILE[4], "method": HOSTILE[2]}
            )
        )
    return table.model_copy(
        update={
            "guard": HOSTILE[2] + HOSTILE[8] + HOSTILE[9],
            "scenarios": [s + HOSTILE[0] for s in table.scenarios],
            "suites": {k + HOSTILE[5]: n for k, n in table.suites.items()},
            "rows": rows,
            "overall": [
                o.model_copy(update={"arm": names[o.arm], "worst_where": HOSTILE[6]}) for o in table.overall
            ],
            "contrasts": [
                c.model_copy(
                    update={"first": names[c.first], "second": names[c.second], "question": HOSTILE[7]}
                )
                for c in table.contrasts
            ],
            "prediction": [
                p.model_copy(update={"measure": p.measure + HOSTILE[10]}) for p in table.prediction
            ],
            "missing": [Missing(scenario=h, arm=h, variant=h, seed=1, why=h) for h in HOSTILE],
            "notes": list(HOSTILE),
        }
    )


def test_the_page_is_whole_and_asks_for_nothing(bench: Path) -> None:
    path = write_collapse_report(bench)
    assert path == bench / "report.html"
    html = path.read_text("utf-8")
    page = Page(html)
    assert not [
        a
        for _, a in page.tags
        for k, v in a.items()
        if k in ("src", "href") and not (v or "").startswith(("#", "data:"))
    ]
    assert not [a for _, a in page.tags for k in a if k.startswith("on") or k == "style"]
    [policy] = [a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert links <= set(ids)
    named = {i for _, a in page.tags for i in (a.get("aria-labelledby") or "").split()}
    assert named <= set(ids)


def test_the_page_says_what_the_table_says(bench: Path, table: CollapseTable) -> None:
    page = Page(render(table))
    for text in (
        "domain",
        "medical",
        "plain, recalibrated",
        "ssr-uniform",
        "longer",
        "hotter",
        "Does FW-SSR beat replay?",
    ):
        assert text in page.words
    replay = next(r for r in table.rows if (r.arm, r.scenario, r.variant) == ("replay", "medical", ""))
    assert f"{100 * (replay.pooled.recalibrated.value or 0):.1f}%" in page.words
    assert "1 cell of" in page.words and "ewc (seed 0): stopped: <script>" in page.words
    forests = [
        a
        for t, a in page.tags
        if t == "svg" and a.get("viewbox") == "0 0 300 24" and a.get("class") != "plot"
    ]
    assert len(forests) == 2 * 6  # reference, four arms and recalibrated plain, in two scenarios


def test_hostile_names_stay_text(table: CollapseTable) -> None:
    html = render(hostile(table))
    page = Page(html)
    tags = {t for t, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "plaintext", "base", "h3"}
    assert not [k for _, a in page.tags for k in a if k.startswith("on")]
    assert "<script>window.pwned=1</script>" in page.words and "{{ 7*7 }}" in page.words
    assert "⟨U+202E⟩" in page.words and "\u202e" not in html and "\x00" not in html


def test_150_cells_fit(table: CollapseTable) -> None:
    """Four scenarios of eighteen arms (eight of them with three seeds), and fourteen rows of variants."""
    scenarios = [f"scenario-{k}" for k in range(4)]
    base = [r for r in table.rows if r.scenario == "medical" and not r.variant]
    one = {k: Figure(**dict(f, least=None, most=None)) for k, f in base[-1].pooled if isinstance(f, Figure)}
    once = [base[-1].pooled.model_copy(update=one), *base[-1].suites[1:]]
    many = [
        base[-1].model_copy(update={"arm": f"another-arm-{k}", "suites": once, "seeds": [0]})
        for k in range(14)
    ]
    rows = [r.model_copy(update={"scenario": s}) for s in scenarios for r in (*base, *many)]
    rows = [r.model_copy(update={"suites": [*r.suites, *(r.suites[1:] + r.suites[1:])[:5]]}) for r in rows]
    hot = [r for r in table.rows if r.variant and r.arm != "reference"][:14]
    rows += [r.model_copy(update={"scenario": scenarios[k % 2]}) for k, r in enumerate(hot)]
    more = [o.model_copy(update={"arm": a}) for o in table.overall[:1] for a in sorted({r.arm for r in many})]
    pooled = [c for c in table.contrasts if c.scenario == "*"]
    asked = [c.model_copy(update={"first": f"{c.first}{k}"}) for c in pooled for k in range(3)]
    asked += [c.model_copy(update={"scenario": s}) for c in asked for s in scenarios]
    grown = {"scenarios": scenarios, "rows": rows, "overall": [*table.overall, *more], "contrasts": asked}
    html = render(table.model_copy(update=grown | {"cells": 150}))
    Page(html)
    assert len(html.encode()) < 200_000


@pytest.mark.parametrize("arms", [("plain",), ("replay",), ("plain", "fwssr")])
def test_small_and_partial_benches(tmp_path: Path, arms: tuple[str, ...]) -> None:
    write_bench(
        tmp_path, arms=arms, scenarios=("one",), seeds=1, layers=0, suites={"only": (8, 8)}, calibrate=8
    )
    page = Page(write_collapse_report(tmp_path).read_text("utf-8"))
    assert ("Plain fine-tuning was not measured" in page.words) == ("plain" not in arms)
    made = CollapseTable.model_validate_json((tmp_path / "table.json").read_bytes())
    parts = markdown(made)
    assert parts["variants"] == "No variant has been measured.\n"
    assert "nan" not in " ".join(parts.values()).lower()


def test_without_thresholds_nothing_is_drawn_or_invented(tmp_path: Path) -> None:
    items = items_of({"a": (5, 5)})
    some: list[float | None] = [0.9 if x[1] == "unsafe" else None for x in items]
    write_cell(tmp_path, "one", "plain", items=items, before=some, after=some, losses=None)
    page = Page(write_collapse_report(tmp_path).read_text("utf-8"))
    assert "no safe calibrate items" in page.words
    assert "50.0%" in page.words  # unscored: half of the items
    assert not [a for _, a in page.tags if a.get("id") == "s0-scatter-t"]


def verdicts(table: CollapseTable, **targets: str) -> CollapseTable:
    overall = [
        o.model_copy(update={"target": targets.get(o.arm.replace("-", "_"), "no")}) for o in table.overall
    ]
    return table.model_copy(update={"overall": overall})


def test_headlines(table: CollapseTable) -> None:
    assert headline(verdicts(table)).badge == "NOT MET"
    one = headline(verdicts(table, fwssr="yes"))
    assert (one.outcome, one.lead) == ("pass", "fwssr keeps the guard safe, and the task gain.")
    two = headline(verdicts(table, fwssr="yes", replay="yes"))
    assert "fwssr and replay keep" in two.lead or "replay and fwssr keep" in two.lead
    assert headline(verdicts(table, fwssr="insufficient evidence")).badge == "OPEN"
    free = table.model_copy(
        update={
            "overall": [
                o.model_copy(update={"target": "yes" if "rec" in o.arm else "no"}) for o in table.overall
            ]
        }
    )
    assert "new threshold is enough" in headline(free).lead
    untested = [
        r.model_copy(update={"verdict": r.verdict and r.verdict.model_copy(update={"plain_fell": "no"})})
        for r in table.rows
    ]
    assert "not seen to fall" in headline(table.model_copy(update={"rows": untested})).lead


def test_scatter_keeps_numbers_apart_and_inside(table: CollapseTable) -> None:
    base = [r for r in table.rows if r.scenario == "medical" and not r.variant]
    reference = base[0]
    task = base[-1].task.model_copy(update={"kept": Figure(value=1.0)})
    crowd = [base[-1].model_copy(update={"arm": f"a{k}", "task": task}) for k in range(8)]
    far = crowd[0].model_copy(
        update={"arm": "far", "task": task.model_copy(update={"kept": Figure(value=-40.0)})}
    )
    drawn = scatter("k", [reference, *crowd, far], {f"a{k}": k for k in range(8)} | {"far": 9}, reference)
    page = Page(str(drawn))
    at = [
        (float(a["x"] or 0), float(a["y"] or 0))
        for t, a in page.tags
        if t == "text" and a.get("class") == "at"
    ]
    assert len(at) == 9
    assert all(abs(a - c) > 10 or abs(b - d) > 10 for i, (a, b) in enumerate(at) for c, d in at[:i])
    dots = [float(a["cx"] or 0) for t, a in page.tags if t == "circle"]
    assert min(dots) == 48  # on the axis, not outside


def test_markdown(table: CollapseTable) -> None:
    parts = markdown(table)
    assert set(parts) == {"overall", "table", "contrasts", "prediction", "variants"}
    for text in parts.values():
        widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")}
        assert len(widths) <= 2  # contrasts, say, are as wide as their head
    line = next(x for x in parts["table"].split("**medical**")[1].splitlines() if x.startswith("| `replay`"))
    row = next(r for r in table.rows if (r.arm, r.scenario, r.variant) == ("replay", "medical", ""))
    assert f"{100 * (row.pooled.shipped.value or 0):.1f}%" in line
    assert markdown(published(table)) == {**parts, "table": parts["table"]}
    evil = markdown(hostile(table))
    assert not re.search(r"<\w", " ".join(evil.values()))


def docs_parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_parts_of_collapse", ROOT / "docs" / "parts.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def test_parts_of_the_documentation(tmp_path: Path, table: CollapseTable) -> None:
    parts: Any = docs_parts()
    names = [n for n in parts.PARTS if n.startswith("collapse-")]
    assert names == [f"collapse-{n}" for n in markdown(table)]
    parts.COLLAPSE = tmp_path / "collapse.json"
    assert {parts.PARTS[n]() for n in names} == {"No figures are there yet: the bench has not been run.\n"}
    parts.COLLAPSE.write_text(table_text(published(table)), "utf-8")
    assert parts.PARTS["collapse-table"]() == markdown(table)["table"]


def test_rows_of_a_page_are_those_of_the_table(table: CollapseTable) -> None:
    """Arms keep one number everywhere."""
    html = render(table)
    for number, o in enumerate(table.overall, 1):
        marked = re.findall(rf'<i(?: class="cand")?>{number}</i></td><th scope="row"[^>]*>(.*?)<', html)
        assert set(marked) == {o.arm}
    assert isinstance(table.rows[0], Row)
