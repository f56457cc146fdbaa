"""A leaderboard in plain words: the first lines of its page, and what its cells and columns say."""

from __future__ import annotations

from dataclasses import dataclass

from guardkeel.evaluation.leaderboard.cells import estimate_of
from guardkeel.evaluation.leaderboard.results import (
    ALL,
    Cell,
    Column,
    Difference,
    GuardRow,
    LeaderboardResults,
    Metric,
)
from guardkeel.records import Estimate
from guardkeel.report import words

HEADS: dict[Metric, str] = {
    "f1_strict": "F1",
    "f1": "F1, scored items",
    "precision": "Precision",
    "recall": "Recall",
    "fpr": "FPR",
    "recall_at_fpr": "Recall at fixed FPR",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "unscored": "Unscored",
}
DOWN: tuple[Metric, ...] = ("fpr", "ece", "unscored")  # less is better
DECIMAL: tuple[Metric, ...] = ("auroc", "auprc", "ece")
SIGNS = {"better": "▲", "worse": "▼", "not settled": "", "not measured": ""}
NOTHING = Estimate(value=None, n=0)


@dataclass(frozen=True, slots=True)
class Headline:
    """The first lines of the page."""

    title: str
    lead: str
    sentence: str
    why: str


def headline(results: LeaderboardResults) -> Headline:
    """Who leads, by how much, and whether that is settled."""
    ranked = [g for g in results.guards if g.rank]
    failed = [g for g in results.guards if g.status == "failed"]
    count = words.plural(len(results.guards), "guard")
    title = f"{count} on {words.plural(len({c.suite for c in results.columns}), 'suite')}"
    lost = ", ".join(g.name for g in failed)
    lost = f"{words.plural(len(failed), 'guard')} gave no verdicts: {lost}." if lost else ""
    if not ranked or results.ranked_by is None:
        return Headline(title, "No guard could be ranked.", "No mean exists for all of them.", lost)
    by, best = results.ranked_by, ranked[0]
    value = ranking(results, best)
    columns = next((m.columns for m in best.macro if (m.metric, m.side) == (by, ALL)), [])
    lead = f"{best.name} has the {'lowest' if by in DOWN else 'highest'} {rank_name(results)}."
    if len(ranked) == 1:
        lead = f"{best.name} is the only guard that is ranked."
    over = words.plural(len(columns), "column")
    if results.ranked_on == "pooled":
        over = "all items, for no suite has both classes"
    sentence = f"{shown(value, by)}{ends(value, by)} over {over}."
    if len(ranked) > 1:
        second = ranked[1]
        sentence += (
            f" Next: {second.name}, {shown(ranking(results, second), by)}. {_settled(results, best, second)}"
        )
    return Headline(title, lead, sentence, lost)


def _settled(results: LeaderboardResults, best: GuardRow, second: GuardRow) -> str:
    if results.against == best.name:
        found = overall(results, second, "f1_strict")
        if found is not None and found.p_holm is not None:
            said = "is settled" if found.word == "worse" else "is not settled by these items"
            return f"The difference in F1 {said} (p {words.probability(found.p_holm)} after Holm)."
    return f"All are compared with {results.against}."


def rank_name(results: LeaderboardResults) -> str:
    """What gives the rank, as in 'mean F1'."""
    by = results.ranked_by
    if by is None:
        return "means"
    name = (
        f"recall at {percent_of(results.fixed_fpr)} false positives" if by == "recall_at_fpr" else HEADS[by]
    )
    kept = name if name[:2].isupper() or name.startswith("F1") else name[0].lower() + name[1:]
    return f"{'pooled' if results.ranked_on == 'pooled' else 'mean'} {kept}"


def ranking(results: LeaderboardResults, guard: GuardRow) -> Estimate:
    """The value that gives a guard its rank."""
    if results.ranked_on == "pooled":
        found = cell_of(guard, ALL, ALL)
        return NOTHING if found is None else found.f1_strict
    return NOTHING if results.ranked_by is None else mean(guard, results.ranked_by)


def mean(guard: GuardRow, metric: Metric, side: str = ALL) -> Estimate:
    """A macro mean; without a value where there is none."""
    return next((m.estimate for m in guard.macro if (m.metric, m.side) == (metric, side)), NOTHING)


def cell_of(guard: GuardRow, suite: str, side: str) -> Cell | None:
    """A guard's cell."""
    return next((c for c in guard.cells if (c.suite, c.side) == (suite, side)), None)


def main_metric(column: Column) -> Metric:
    """What stands for a column in the overview: F1, recall (unsafe only) or FPR (safe only)."""
    metrics: dict[str, Metric] = {"both": "f1_strict", "unsafe": "recall", "safe": "fpr"}
    return metrics[column.classes]


def main_estimate(guard: GuardRow, column: Column) -> Estimate:
    """A guard's value of it."""
    found = cell_of(guard, column.suite, column.side)
    return NOTHING if found is None else estimate_of(found, main_metric(column))


def best_of(results: LeaderboardResults, column: Column) -> float | None:
    """The best value of a column."""
    values = [e.value for g in results.guards if (e := main_estimate(g, column)).value is not None]
    if not values:
        return None
    return min(values) if main_metric(column) in DOWN else max(values)


def overall(results: LeaderboardResults, guard: GuardRow, metric: Metric) -> Difference | None:
    """A guard's difference over all suites."""
    return on(results, guard, ALL, ALL, metric)


def on(
    results: LeaderboardResults, guard: GuardRow, suite: str, side: str, metric: Metric
) -> Difference | None:
    """A guard's difference on a column."""
    key = (guard.name, suite, side, metric)
    return next((d for d in results.differences if (d.guard, d.suite, d.side, d.metric) == key), None)


def shown(estimate: Estimate, metric: Metric) -> str:
    """A value in the unit of its metric."""
    return words.decimal(estimate.value) if metric in DECIMAL else words.percent(estimate.value)


def ends(estimate: Estimate, metric: Metric) -> str:
    """Its interval, ' [94.2, 98.2]', or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    if metric in DECIMAL:
        return f" [{words.decimal(estimate.low)}, {words.decimal(estimate.high)}]"
    return f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def percent_of(value: float) -> str:
    """0.05 → '5%'."""
    return f"{100 * value:.3g}%"


def milliseconds(estimate: Estimate | None, *, span: bool = False) -> str:
    """Seconds as milliseconds in three digits; with `span`, their interval."""
    if estimate is None or estimate.value is None:
        return "" if span else words.NOTHING
    if not span:
        return f"{1e3 * estimate.value:.3g}"
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{1e3 * estimate.low:.3g}, {1e3 * estimate.high:.3g}]"
