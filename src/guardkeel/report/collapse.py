"""The report of a collapse bench: one HTML page, made from table.json alone, in the look of the audit report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

import guardkeel
from guardkeel.records import write_text
from guardkeel.report import collapse_charts as charts
from guardkeel.report import collapse_words as sayings
from guardkeel.report import words
from guardkeel.report.collapse_words import markdown
from guardkeel.report.render import asset, environment, source
from guardkeel.tuning.collapse.contrasts import AGAINST_PLAIN
from guardkeel.tuning.collapse.figures import METRICS, REFERENCE, CollapseTable, Contrast, Metric, Row
from guardkeel.tuning.collapse.reading import MEASURES
from guardkeel.tuning.collapse.table import TABLE, read_table, summarise

__all__ = ["PAGE", "markdown", "render", "write_collapse_report"]

PAGE = "report.html"
DERIVED = ("drift inside", "drift outside")  # drift and the share inside say the same


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario's rows (base variant, reference first) with its figures; None where nothing can be drawn."""

    name: str
    rows: tuple[Row, ...]
    suites: tuple[str, ...]
    forest: tuple[tuple[Row, Markup], ...]
    axis: Markup
    scatter: Markup | None
    measures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A contrast of two arms over all scenarios, with what came out by metric."""

    question: str
    first: str
    second: str
    found: dict[Metric, Contrast]


def write_collapse_report(out: str | Path) -> Path:
    """Write out/report.html, whole or not at all, and return its path.

    Reads out/table.json, which `summarise` makes where there is none yet. Raises DataError where no cell is finished.
    """
    out = Path(out)
    table = read_table(out / TABLE) if (out / TABLE).exists() else summarise(out)
    write_text(out / PAGE, render(table))
    return out / PAGE


def render(table: CollapseTable) -> str:
    """The report as one HTML page."""
    style = asset("report.css") + "\n" + asset("collapse.css")
    numbers = {o.arm: k for k, o in enumerate(table.overall, 1)}
    asked = _asked(table.contrasts)
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = (
        environment()
        .get_template("collapse.html")
        .render(
            t=table,
            headline=sayings.headline(table),
            numbers=numbers,
            scenarios=[_scenario(table, s, numbers, f"s{k}") for k, s in enumerate(table.scenarios)],
            variants=_variants(table, numbers),
            questions=[a for a in asked if a.question != AGAINST_PLAIN],
            against=[a for a in asked if a.question == AGAINST_PLAIN],
            by_scenario=_by_scenario(table.contrasts),
            predictions=sayings.ranked(table.prediction),
            say=sayings,
            metrics=METRICS,
            role=charts.role,
            version=guardkeel.__version__,
            style=Markup(style),  # noqa: S704 - our own files
            policy=policy,
        )
    )
    return page + "\n"


def _scenario(table: CollapseTable, name: str, numbers: dict[str, int], key: str) -> Scenario:
    rows = tuple(r for r in table.rows if r.scenario == name and not r.variant)
    reference = next((r for r in rows if r.arm == REFERENCE), None)
    floor = charts.floor_of(rows)
    measured = [
        r for r in rows if r.pooled.recalibrated.value is not None or r.pooled.shipped.value is not None
    ]
    return Scenario(
        name=name,
        rows=rows,
        suites=tuple(s.suite for s in rows[0].suites[1:]) if rows else (),
        forest=tuple((r, charts.forest_row(r, f"{key}-guides", floor)) for r in measured),
        axis=charts.forest_axis(charts.forest_guides(f"{key}-guides", reference, table.margin, floor), floor),
        scatter=charts.scatter(f"{key}-scatter", rows, numbers, reference),
        measures=tuple(
            m for m in MEASURES if m not in DERIVED and any(f"{m}, mean" in r.geometry for r in rows)
        ),
    )


def _variants(table: CollapseTable, numbers: dict[str, int]) -> list[tuple[str, Markup | None, list[Row]]]:
    """For each scenario with variants: its figure, and the rows behind it."""
    found = []
    for k, name in enumerate(table.scenarios):
        rows = [r for r in table.rows if r.scenario == name]
        changed = [r for r in rows if r.variant]
        if changed:
            harder = {r.variant: (r.learning_rate or 0.0) * (r.steps or 0) for r in changed if r.steps}
            order = ["", *sorted(dict.fromkeys(r.variant for r in changed), key=lambda v: harder.get(v, 0.0))]
            tried = {r.arm for r in changed}
            figure = charts.lines(f"v{k}", [r for r in rows if r.arm in tried], numbers, order)
            found.append((name, figure, [r for r in changed if r.arm in numbers]))
    return found


def _asked(found: Sequence[Contrast]) -> list[Asked]:
    """The contrasts over all scenarios, the metrics of a question together."""
    by_pair: dict[tuple[str, str, str], dict[Metric, Contrast]] = {}
    for c in found:
        if c.scenario == words.POOLED:
            by_pair.setdefault((c.question, c.first, c.second), {})[c.metric] = c
    return [Asked(*key, by_metric) for key, by_metric in by_pair.items()]


def _by_scenario(found: Sequence[Contrast]) -> dict[tuple[str, str], dict[str, Contrast]]:
    """The questions scenario by scenario, in recall at the reference's FPR."""
    by_pair: dict[tuple[str, str], dict[str, Contrast]] = {}
    for c in found:
        if c.scenario != words.POOLED and c.metric == "recalibrated" and c.question != AGAINST_PLAIN:
            by_pair.setdefault((c.first, c.second), {})[c.scenario] = c
    return by_pair
