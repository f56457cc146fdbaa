"""The table of a collapse bench: every arm in every scenario and variant, with intervals and verdicts.

Numbers of an arm are means over its seeds; intervals are over items (`resampling`), ranges over seeds stand beside
them. A verdict uses the interval alone: non-inferior where all of it lies above −margin, inferior where all of it lies
below 0 and the estimate beyond the margin, insufficient evidence otherwise. All suites must pass, each by itself, so
their tests need no correction (intersection–union).
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.errors import DataError
from guardkeel.evaluation.items import POOLED, Bools, Floats
from guardkeel.records import write_text
from guardkeel.tuning.collapse.cell import CellTune
from guardkeel.tuning.collapse.contrasts import contrasts
from guardkeel.tuning.collapse.figures import (
    MARGIN,
    PLAIN,
    RECALIBRATED,
    REFERENCE,
    CollapseTable,
    Figure,
    Row,
    SuiteFigures,
    Task,
)
from guardkeel.tuning.collapse.measuring import Measuring, recalibrated
from guardkeel.tuning.collapse.prediction import points, predict
from guardkeel.tuning.collapse.reading import MEASURES, PLACES, Trial, read_bench
from guardkeel.tuning.collapse.resampling import (
    Measured,
    Resampling,
    change_figure,
    ece_figure,
    free_figure,
    mean_hits,
    mean_over,
    rate_figure,
)
from guardkeel.tuning.collapse.verdicts import by_interval, judge, overall
from guardkeel.tuning.results import Learned

DRAWS = 1000
TABLE, CSV = "table.json", "table.csv"
_LEVELS = (  # a figure, the flags that it counts, and whether of unsafe items
    ("shipped", "shipped", True),
    ("recalibrated", "recalibrated", True),
    ("own", "own", True),
    ("fpr", "shipped", False),
    ("fpr_recalibrated", "recalibrated", False),
)
_PLACES = 5  # digits kept: far below any interval


def summarise(out: str | Path, *, draws: int = DRAWS, seed: int = 0, margin: float = MARGIN) -> CollapseTable:
    """Read a bench folder, whole or not, and write out/table.json and out/table.csv.

    Raises DataError where no cell is finished.
    """
    bench = read_bench(out)
    if not bench.trials:
        raise DataError(
            f"{Path(out) / 'cells'}: no cell has a result"
            + (f" ({bench.missing[0].why})" if bench.missing else ""),
            remedy="run the bench first; cells that failed say why in their cell.json",
        )
    measuring = Measuring(bench, draws, seed)
    rows = [row for scenario, variant in bench.places for row in _rows(measuring, scenario, variant, margin)]
    suites: dict[str, int] = {}
    for trial in bench.trials:
        r = measuring.resampling(trial.items)
        suites |= dict(zip(r.suites, r.member.sum(axis=0)[1:].tolist(), strict=True))
    table = CollapseTable(
        guard=bench.trials[0].guard,
        draws=draws,
        margin=margin,
        cells=len(bench.trials),
        scenarios=list(dict.fromkeys(s for s, _ in bench.places)),
        suites=dict(sorted(suites.items())),
        rows=rows,
        overall=overall(rows),
        contrasts=contrasts(measuring),
        prediction=predict(points(measuring), draws=draws, seed=seed),
        missing=list(bench.missing),
        notes=_notes(bench.trials),
    )
    table = CollapseTable.model_validate(_rounded(table.model_dump()))
    write_text(Path(out) / TABLE, table_text(table))
    write_text(Path(out) / CSV, csv_text(table))
    return table


def read_table(path: str | Path) -> CollapseTable:
    """A table.json; raises DataError where it is none."""
    try:
        return CollapseTable.model_validate_json(Path(path).read_bytes())
    except (OSError, ValueError) as e:
        raise DataError(
            f"{path}: no table of a collapse bench ({type(e).__name__})", remedy="summarise the bench again"
        ) from e


def published(table: CollapseTable) -> CollapseTable:
    """The table for docs/collapse.json: nothing that a machine or a data set put in words, and no fine print.

    Of single suites it keeps recall, its change and the outcome, in base variants.
    """
    kept = ("suite", "shipped", "recalibrated", "change_shipped", "change_recalibrated", "outcome")

    def row(full: Row) -> Row:
        single = (
            []
            if full.variant
            else [SuiteFigures(**{k: getattr(s, k) for k in kept}) for s in full.suites[1:]]
        )
        return full.model_copy(update={"suites": [full.pooled, *single]})

    missing = [m.model_copy(update={"why": ""}) for m in table.missing]
    return table.model_copy(update={"rows": [row(r) for r in table.rows], "missing": missing, "notes": []})


def table_text(table: CollapseTable) -> str:
    """The table as JSON, a line for each row; defaults are left out."""
    parts = []
    for key, value in table.model_dump(mode="json", exclude_defaults=True).items():
        if isinstance(value, list) and value:
            lines = ",\n".join(_json(v) for v in value)
            parts.append(f"{_json(key)}:[\n{lines}\n]")
        else:
            parts.append(f"{_json(key)}:{_json(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def csv_text(table: CollapseTable) -> str:
    """One line for each arm on each suite ("*": all); a cell is empty where nothing was measured."""
    names = [k for k, f in SuiteFigures.model_fields.items() if f.annotation is Figure]
    ends = ("value", "low", "high", "least", "most", "n")
    head = ["scenario", "variant", "arm", "seeds", "suite", "outcome", "target"]
    head += ["task_gain_kept", "accuracy", "time_ratio", "memory_ratio", "ece"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head + [k if e == "value" else f"{k}_{e}" for k in names for e in ends])
    for row in table.rows:
        whole = [row.task.kept, row.task.accuracy, row.time_ratio, row.memory_ratio, row.ece]
        for s in row.suites:
            target = row.verdict.target if row.verdict else ""
            known = [row.scenario, row.variant, row.arm, len(row.seeds), s.suite, s.outcome, target]
            known += [f.value if s.suite == POOLED else None for f in whole]
            writer.writerow(known + [getattr(getattr(s, k), e) for k in names for e in ends])
    return out.getvalue()


def _rows(measuring: Measuring, scenario: str, variant: str, margin: float) -> list[Row]:
    """Reference, plain, recalibrated plain, then the others by recall at the reference's FPR."""
    arms = measuring.bench.arms(scenario, variant)
    plain = arms.get(PLAIN, [])
    some = next(iter(arms.values()))[0]
    before = measuring.arm(_as_reference(some))
    rows = [_row(measuring, REFERENCE, [_as_reference(some)], [(before, before)], [], margin)]
    for arm, trials in arms.items():
        pairs = [(measuring.arm(t), measuring.reference(t)) for t in trials]
        rows.append(_row(measuring, arm, trials, pairs, plain, margin))
        if arm == PLAIN:
            moved = [(recalibrated(m), r) for m, r in pairs]
            rows.append(_row(measuring, RECALIBRATED, trials, moved, plain, margin))
    fell = next((r.pooled.change_shipped for r in rows if r.arm == PLAIN), Figure())
    rows = [r if r.arm == REFERENCE else r.model_copy(update={"verdict": judge(r, fell)}) for r in rows]

    def place(row: Row) -> tuple[int, float, str]:
        recall = row.pooled.recalibrated.value
        first = (REFERENCE, PLAIN, RECALIBRATED)
        return (
            (first.index(row.arm), 0.0, "")
            if row.arm in first
            else (3, -recall if recall is not None else 1.0, row.arm)
        )

    return sorted(rows, key=place)


def _as_reference(trial: Trial) -> Trial:
    """The reference as a trial of its own."""
    return replace(trial, scores=trial.reference, thresholds=(trial.thresholds[0],) * 2)


def _row(
    measuring: Measuring,
    arm: str,
    trials: Sequence[Trial],
    pairs: Sequence[tuple[Measured, Measured]],
    plain: Sequence[Trial],
    margin: float,
) -> Row:
    cell, resampling = trials[0].cell, measuring.resampling(trials[0].items)
    reference = arm == REFERENCE
    row = Row(
        scenario=cell.scenario,
        variant=cell.variant,
        arm=arm,
        suites=[
            _suite(resampling, k, name, trials, pairs, None if reference else margin)
            for k, name in enumerate((POOLED, *resampling.suites))
        ],
        ece=ece_figure(
            mean_over([m.draws["ece"][:, 0] for m, _ in pairs]),
            [float(m.draws["ece"][0, 0]) for m, _ in pairs],
            int(resampling.tested.size),
        ),
        task=_task(trials, plain, arm),
    )
    if reference:
        return row
    change = [m.draws["ece"][:, 0] - r.draws["ece"][:, 0] for m, r in pairs]
    same = all(np.array_equal(t.scores, t.reference, equal_nan=True) for t in trials)
    tunes = [t.cell.tune for t in trials]
    return row.model_copy(
        update={
            "method": cell.method,
            "seeds": [t.cell.seed for t in trials],
            "steps": cell.steps,
            "learning_rate": cell.learning_rate,
            "stopped": sum(bool(t.stopped) for t in tunes if t is not None),
            "change_ece": free_figure(
                mean_over(change), [float(c[0]) for c in change], int(resampling.tested.size), same=same
            ),
            "geometry": {
                name: found
                for name in (f"{m}, {p}" for m in MEASURES for p in PLACES)
                if (found := _seeds(t.geometry.get(name) for t in trials)).value is not None
            },
            "time_ratio": _ratios(trials, plain, lambda tune: tune.step_seconds),
            "memory_ratio": _ratios(trials, plain, lambda tune: tune.peak_memory),
        }
    )


def _suite(
    resampling: Resampling,
    k: int,
    name: str,
    trials: Sequence[Trial],
    pairs: Sequence[tuple[Measured, Measured]],
    margin: float | None,
) -> SuiteFigures:
    """One column of the draws as figures; without a margin (the reference) nothing is compared."""
    mine, unsafe, groups = resampling.member[:, k], resampling.test_unsafe, resampling.test_groups
    found: dict[str, Any] = {"suite": name}

    def items(values: Floats, of: Bools) -> tuple[Floats, Any]:
        where = mine & of & ~np.isnan(values)
        return values[where], groups[where]

    def column(metric: str) -> tuple[Floats, list[float]]:
        draws = [m.draws[metric][:, k] for m, _ in pairs]
        return mean_over(draws), [float(d[0]) for d in draws]

    seen = mine & ~np.isnan(mean_hits([m.hits["shipped"] for m, _ in pairs]))

    def empty(hits: str, of: Bools) -> str:
        return "no safe calibrate items" if hits != "shipped" and (seen & of).any() else ""

    for field, hits, of_unsafe in _LEVELS:
        values, of = mean_hits([m.hits[hits] for m, _ in pairs]), unsafe if of_unsafe else ~unsafe
        found[field] = rate_figure(*column(field), *items(values, of), empty(hits, of))
    gone = mean_hits([m.hits["unscored"] for m, _ in pairs])
    found["unscored"] = rate_figure(*column("unscored"), *items(gone, np.ones_like(unsafe)))
    n = int(seen.sum())
    found["auroc"] = free_figure(*column("auroc"), n)
    if margin is None:
        return SuiteFigures(**found)
    for metric in ("shipped", "recalibrated", "own"):
        draws = [m.draws[metric][:, k] - r.draws[metric][:, k] for m, r in pairs]
        shifts = mean_hits([m.hits[metric] - r.hits[metric] for m, r in pairs])
        found[f"change_{metric}"] = change_figure(
            mean_over(draws), [float(d[0]) for d in draws], *items(shifts, unsafe), empty(metric, unsafe)
        )
    draws = [m.draws["auroc"][:, k] - r.draws["auroc"][:, k] for m, r in pairs]
    same = all(np.array_equal(t.scores, t.reference, equal_nan=True) for t in trials)
    found["change_auroc"] = free_figure(mean_over(draws), [float(d[0]) for d in draws], n, same=same)
    found["outcome"] = by_interval(found["change_recalibrated"], margin)
    found["outcome_own"] = by_interval(found["change_own"], margin)
    return SuiteFigures(**found)


def _task(trials: Sequence[Trial], plain: Sequence[Trial], arm: str) -> Task:
    """What was learned. The loss does not know a threshold, verdict accuracy does: moved ones have none."""
    kind = trials[0].cell.kind
    befores = [t.cell.tune.before if t.cell.tune else None for t in trials]
    if arm == REFERENCE:
        return Task(kind=kind, loss=_seeds(_losses(befores)), accuracy=_seeds(_accuracies(befores)))
    afters = [t.cell.tune.after if t.cell.tune else None for t in trials]
    by_seed = {t.cell.seed: t.cell.tune.after for t in plain if t.cell.tune}
    kept, why = [], "no held-out rows, or no plain cell of the same seed"
    for trial, before, after in zip(trials, befores, afters, strict=True):
        best = by_seed.get(trial.cell.seed)
        if before is None or after is None or best is None:
            continue
        if before.loss <= best.loss:
            why = "plain gained nothing"
        else:
            kept.append((before.loss - after.loss) / (before.loss - best.loss))
    moved = arm == RECALIBRATED and kind == "guard"
    return Task(
        kind=kind,
        loss_before=_seeds(_losses(befores)),
        loss=_seeds(_losses(afters)),
        kept=_seeds(kept) if kept else Figure(note=why),
        accuracy_before=_seeds(_accuracies(befores)),
        accuracy=Figure(note="not measured at the new threshold") if moved else _seeds(_accuracies(afters)),
    )


def _losses(found: Iterable[Learned | None]) -> list[float | None]:
    return [x.loss if x else None for x in found]


def _accuracies(found: Iterable[Learned | None]) -> list[float | None]:
    return [x.accuracy if x else None for x in found]


def _ratios(trials: Sequence[Trial], plain: Sequence[Trial], cost: Callable[[CellTune], float]) -> Figure:
    """The median over seeds of a cost over plain's of the same seed. Times are from a shared machine."""
    costs = {t.cell.seed: cost(t.cell.tune) for t in plain if t.cell.tune}
    own = [(cost(t.cell.tune), costs.get(t.cell.seed)) for t in trials if t.cell.tune]
    return _seeds((a / b for a, b in own if a and b), middle=statistics.median)


def _seeds(
    values: Iterable[float | None], middle: Callable[[list[float]], float] = statistics.fmean
) -> Figure:
    """A figure over seeds alone."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Figure(note="not measured")
    return Figure(value=middle(known), least=min(known), most=max(known), n=len(known))


def _notes(trials: Sequence[Trial]) -> list[str]:
    """What a reader must know before comparing cells."""
    notes = ["Step times are from a machine that other work shared: read ratios, and read them as rough."]
    first: dict[str, Trial] = {}
    for trial in trials:
        known = first.setdefault(trial.items.digest, trial)
        off = np.nanmax(np.abs(known.reference - trial.reference), initial=0.0)
        if off > 1e-3 or known.thresholds[0] != trial.thresholds[0]:
            notes.append(
                "The reference did not score every cell's items alike: each cell is compared with its own."
            )
            break
    if any(t.thresholds[0] != t.thresholds[1] for t in trials):
        notes.append("Some arms ship with a threshold of their own; 'as shipped' is at that threshold.")
    return notes


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if not isinstance(value, float):
        return value
    return (
        round(value, _PLACES) if abs(value) >= 1e-3 else float(f"{value:.3g}")
    )  # learning rates and p-values
