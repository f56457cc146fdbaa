"""The report of a leaderboard: one HTML page, made from its run directory alone; it shows no texts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from guardkeel.evaluation.leaderboard.cells import estimate_of
from guardkeel.evaluation.leaderboard.results import ALL, Column, GuardRow, LeaderboardResults, Metric
from guardkeel.evaluation.leaderboard.runs import read_leaderboard
from guardkeel.records import RunRecord, write_text
from guardkeel.report import leaderboard_words as sayings
from guardkeel.report.leaderboard_charts import Mark, Point, dots, scatter
from guardkeel.report.render import asset, environment, source
from guardkeel.results import Behaviour

PAGE = "report.html"
MEANS: tuple[Metric, ...] = (
    "f1_strict", "recall", "fpr", "recall_at_fpr", "precision", "auroc", "auprc", "ece", "unscored",
)  # fmt: skip
OVERALL: tuple[Metric, ...] = ("f1_strict", "recall", "fpr", "auroc", "unscored")
MOST_PAIRS = 12


@dataclass(frozen=True, slots=True)
class Sliced:
    """One language or category: its behaviour for each guard, None where a guard has no row."""

    by: str
    value: str
    n: int
    found: tuple[Behaviour | None, ...]


def write_leaderboard_report(out: str | Path) -> Path:
    """Write out/report.html, whole or not at all, and return its path; DataError where the run is unfinished."""
    out = Path(out)
    record, results = read_leaderboard(out)
    write_text(out / PAGE, render(record, results))
    return out / PAGE


def render(record: RunRecord, results: LeaderboardResults) -> str:
    """The report as one HTML page."""
    style = "\n".join(asset(name) for name in ("report.css", "collapse.css", "leaderboard.css"))
    script = asset("leaderboard.js")
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    numbers = {g.name: k for k, g in enumerate(results.guards, 1)}
    scored = [g for g in results.guards if g.status == "scored"]
    sides = list(dict.fromkeys(m.side for g in scored for m in g.macro if m.side != ALL))
    page = (
        environment()
        .get_template("leaderboard.html")
        .render(
            d=record,
            r=results,
            headline=sayings.headline(results),
            say=sayings,
            numbers=numbers,
            scored=scored,
            failed=[g for g in results.guards if g.status == "failed"],
            means=_present(scored, ALL),
            sides=[(side, _present(scored, side)) for side in sides],
            overall=OVERALL,
            ranking=dots("ranking", sayings.rank_name(results), _ranking(results, numbers), width=440),
            scatter=scatter("scatter", _points(results, numbers)),
            figures=[
                (c, dots(f"c{k}", c.name, _column(results, c, numbers)))
                for k, c in enumerate(results.columns)
            ],
            slices=_slices(scored),
            named=[g for g in scored if g.categories],
            pairs=MOST_PAIRS,
            estimate_of=estimate_of,
            detail=(*MEANS[:3], "f1", *MEANS[3:]),
            command=shlex.join(record.command),
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=policy,
        )
    )
    return page + "\n"


def _present(guards: Sequence[GuardRow], side: str) -> list[Metric]:
    """The metrics that have a mean on a side."""
    there = {m.metric for g in guards for m in g.macro if m.side == side}
    return [m for m in MEANS if m in there]


def _ranking(results: LeaderboardResults, numbers: dict[str, int]) -> list[Mark]:
    return [
        Mark(numbers[g.name], g.name, g.name == results.against, sayings.ranking(results, g))
        for g in results.guards
    ]


def _column(results: LeaderboardResults, column: Column, numbers: dict[str, int]) -> list[Mark]:
    return [
        Mark(numbers[g.name], g.name, g.name == results.against, sayings.main_estimate(g, column))
        for g in results.guards
        if g.status == "scored"
    ]


def _points(results: LeaderboardResults, numbers: dict[str, int]) -> list[Point]:
    found = []
    for guard in results.guards:
        cell = sayings.cell_of(guard, ALL, ALL)
        if cell is None or guard.status == "failed":
            continue
        at = cell.at_fpr
        moved = None if at.fpr.value is None or at.recall.value is None else (at.fpr.value, at.recall.value)
        found.append(
            Point(
                numbers[guard.name],
                guard.name,
                guard.name == results.against,
                cell.behaviour.fpr,
                cell.behaviour.recall,
                moved,
            )
        )
    return found


def _slices(guards: Sequence[GuardRow]) -> dict[str, list[Sliced]]:
    """Slices by kind, largest first."""
    found: dict[str, list[Sliced]] = {}
    keys = dict.fromkeys((s.by, s.value) for g in guards for s in g.slices)
    for by, value in keys:
        rows = tuple(
            next((s.behaviour for s in g.slices if (s.by, s.value) == (by, value)), None) for g in guards
        )
        n = max(b.n for b in rows if b is not None)
        found.setdefault(by, []).append(Sliced(by, value, n, rows))
    return {by: sorted(rows, key=lambda s: (-s.n, s.value)) for by, rows in found.items()}
