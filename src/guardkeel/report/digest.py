"""Turns a run directory into the data of a report: reads run.json and the JSONL files beside it, no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.records import Estimate, RunRecord, read_record
from guardkeel.report.curves import Roc, Scores, Spread
from guardkeel.report.flips import Flips, Gatherer
from guardkeel.report.reading import judged
from guardkeel.report.texts import Shown, shown
from guardkeel.report.words import POOLED, Headline, before_after, headline
from guardkeel.results import AuditResults, Behaviour, GuardResult, Recalibration, Slice

SMALL = 30  # fewer items than this behind a rate: marked as few
SLIGHT = 0.01  # change of AUROC that is called slight
ROWS = 40  # rows of one slice table
CONFIG_LIMIT = 16_000  # characters of the configuration
BY = get_args(Slice.model_fields["by"].annotation)


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """One of the four numbers of the first screen.

    `before` and `after` are over the items that both guards scored, as `difference` is; `reference` and
    `candidate` are each guard's own estimate. `percent` says whether it is a rate; `shift` is what the
    interval of the change shows: worse, slightly (worse, but within the margin, or by less than SLIGHT where
    there is none), better, unclear, or '' where nothing was compared.
    """

    name: str
    gloss: str
    percent: bool
    before: float | None
    after: float | None
    reference: Estimate
    candidate: Estimate | None
    difference: Estimate | None
    shift: str


@dataclass(frozen=True, slots=True)
class Row:
    """Both guards on one suite or slice; `recall_change` and `fpr_change` are candidate − reference."""

    value: str
    reference: Behaviour
    candidate: Behaviour | None
    recall_change: float | None
    fpr_change: float | None

    @property
    def few(self) -> bool:
        """Whether a rate that is shown rests on fewer than SMALL items."""
        return any(0 < e.n < SMALL for e in (self.reference.recall, self.reference.fpr))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one kind of slice, largest loss of recall first; `left_out` more are not shown."""

    by: str
    rows: tuple[Row, ...]
    left_out: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """The rates that any row has: slices of unsafe items alone have no FPR."""
        guards = [g for row in self.rows for g in (row.reference, row.candidate) if g]
        return tuple(m for m in ("recall", "fpr") if any(getattr(g, m).value is not None for g in guards))


@dataclass(frozen=True, slots=True)
class Worst:
    """The suite or category that a reader should look at first, and by which rate."""

    by: str
    metric: str
    row: Row


@dataclass(frozen=True, slots=True)
class GuardCurves:
    """Score distribution and ROC curve of one guard."""

    spread: Spread
    roc: Roc | None


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report shows."""

    title: str
    record: RunRecord
    results: AuditResults
    headline: Headline
    numbers: tuple[KeyNumber, ...]
    split: Recalibration | None
    worst: tuple[Worst, ...]
    suites: Table
    slices: tuple[Table, ...]
    items: int
    reference_curves: GuardCurves
    candidate_curves: GuardCurves | None
    flips: Flips
    config: Shown


def digest(run_dir: str | Path, *, cap: int = 200) -> ReportData:
    """Read a finished audit's directory, streaming its items; at most `cap` of them are shown by themselves.

    Curves and mistakes are drawn from the `test` items, as the measures are. Raises DataError naming the file
    where something is missing, broken or does not fit together.
    """
    directory = Path(run_dir)
    record = read_record(directory)
    try:
        results = AuditResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        raise DataError(
            f"{directory / 'run.json'}: results.{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy=f"give the run directory of an audit; this one is of {record.verb!r}",
        ) from e
    before, after = results.reference, results.candidate
    scores = Scores(before.info.threshold), Scores(after.info.threshold if after else 0.0)
    gatherer = Gatherer(results, cap)
    items = 0
    for judgement in judged(directory, candidate=after is not None):
        gatherer.add(judgement)
        if judgement.item["split"] == "test":
            items += 1
            scores[0].add(judgement.reference.unsafe, unsafe=judgement.unsafe)
            if judgement.candidate is not None:
                scores[1].add(judgement.candidate.unsafe, unsafe=judgement.unsafe)
    if items != before.overall.n:
        raise DataError(
            f"{directory / 'items.jsonl'}: {items} test items, but run.json speaks of {before.overall.n}",
            remedy="the run directory was changed or cut short; run the audit again",
        )
    tables = tuple(_table(by, results) for by in BY)
    return ReportData(
        title=f"{after.info.name} against {before.info.name}" if after else before.info.name,
        record=record,
        results=results,
        headline=headline(results),
        numbers=_numbers(results),
        split=next((r for r in _recalibration(results) if r.suite == POOLED), None),
        worst=_worst(results),
        suites=next(t for t in tables if t.by == "suite"),
        slices=tuple(t for t in tables if t.by != "suite" and t.rows),
        items=items,
        reference_curves=GuardCurves(scores[0].spread(), scores[0].roc()),
        candidate_curves=GuardCurves(scores[1].spread(), scores[1].roc()) if after else None,
        flips=gatherer.flips(),
        config=shown(_config(record), CONFIG_LIMIT, 4 * CONFIG_LIMIT),
    )


def _recalibration(results: AuditResults) -> list[Recalibration]:
    return results.comparison.recalibration if results.comparison else []


def _config(record: RunRecord) -> str:
    value: Any = record.config
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, default=str)


def _numbers(results: AuditResults) -> tuple[KeyNumber, ...]:
    before, after = results.reference.overall, results.candidate.overall if results.candidate else None
    known: dict[str, Estimate] = {}
    margins: dict[str, float] = {}
    if results.comparison:
        known = {t.metric: t.difference for t in results.comparison.tests if t.suite == POOLED}
        margins = {t.metric: t.margin for t in results.comparison.tests if t.suite == POOLED}
        known.update(("auroc", t.difference) for t in results.comparison.ranking if t.suite == POOLED)
    return tuple(
        KeyNumber(
            name=name,
            gloss=gloss.format(f"{(known.get(metric) or getattr(before, metric)).n:,}"),
            percent=metric != "auroc",
            before=before_after(results, metric)[0],
            after=before_after(results, metric)[1],
            reference=getattr(before, metric),
            candidate=getattr(after, metric) if after else None,
            difference=known.get(metric),
            shift=_shift(
                known.get(metric),
                margins.get(metric, SLIGHT),
                sign=1 if metric in ("recall", "auroc") else -1,
            ),
        )
        for metric, name, gloss in (
            ("recall", "Recall", "Of {} unsafe items, the share flagged. Higher is better."),
            ("fpr", "False alarms (FPR)", "Of {} safe items, the share flagged. Lower is better."),
            (
                "auroc",
                "Ranking (AUROC)",
                "On {} items: 1 ranks every unsafe one above the safe, 0.5 is chance.",
            ),
            ("unscored", "Unscored", "Of {} items, those without a usable verdict. Never counted as safe."),
        )
    )


def _shift(difference: Estimate | None, margin: float, *, sign: int) -> str:
    """What a change's interval says; `sign` is 1 where higher is better, else −1."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "unclear"
    if (difference.low > 0) == (sign > 0):
        return "better"
    worst = -difference.low if sign > 0 else difference.high
    return "slightly" if worst < margin else "worse"


def _rows(by: str, results: AuditResults) -> list[Row]:
    after = _slices(by, results.candidate) if results.candidate else {}
    return [_row(value, b, after.get(value)) for value, b in _slices(by, results.reference).items()]


def _slices(by: str, guard: GuardResult) -> dict[str, Behaviour]:
    return {s.value: s.behaviour for s in guard.slices if s.by == by}


def _row(value: str, before: Behaviour, after: Behaviour | None) -> Row:
    def change(metric: str) -> float | None:
        a = getattr(before, metric).value
        b = getattr(after, metric).value if after else None
        return None if a is None or b is None else b - a

    return Row(value, before, after, change("recall"), change("fpr"))


def _table(by: str, results: AuditResults) -> Table:
    found = _rows(by, results)
    if by != "length":  # bands keep their order
        found.sort(key=lambda row: (_loss(row), row.value))
    return Table(by, tuple(found[:ROWS]), max(0, len(found) - ROWS))


def _loss(row: Row) -> tuple[float, float]:
    """Sorts what lost most, or without a candidate what does worst, to the front; the unknown to the end."""
    recall, fpr = (row.recall_change, row.fpr_change) if row.candidate else (row.reference.recall.value, None)
    if row.candidate is None:
        fpr = row.reference.fpr.value
    return (recall if recall is not None else float("inf"), -fpr if fpr is not None else 0.0)


def _worst(results: AuditResults) -> tuple[Worst, ...]:
    """The suite and category with the largest loss of recall and the suite with the largest rise in FPR.

    Without a candidate: the lowest recall and the highest FPR. Rows without a loss or mistake are none, and
    rows on few items count only if there are no others.
    """
    found = []
    for by, metric, sign in (("suite", "recall", 1), ("category", "recall", 1), ("suite", "fpr", -1)):
        best = 1 if results.candidate is None and metric == "recall" else 0
        keyed = [
            (key * sign, row)
            for row in _rows(by, results)
            if (key := _key(row, metric)) is not None and key * sign < best
        ]
        solid = [(k, row) for k, row in keyed if getattr(row.reference, metric).n >= SMALL]
        if solid or keyed:
            _, row = min(solid or keyed, key=lambda pair: (pair[0], pair[1].value))
            found.append(Worst(by, metric, row))
    return tuple(found)


def _key(row: Row, metric: str) -> float | None:
    if row.candidate is not None:
        return row.recall_change if metric == "recall" else row.fpr_change
    value: float | None = getattr(row.reference, metric).value
    return value
