"""Which geometry measure predicts behaviour: rank correlations over the cells of a bench.

A cell is one fine-tune: a scenario, arm, variant and seed. Spearman's ρ of each measure with the cell's change in
recall as shipped, in recall at the reference's FPR, and in AUROC; beside them baselines that need no activations.
Two intervals: cells drawn anew, and whole clusters (scenario × arm) drawn anew, for the seeds and variants of an arm
resemble each other. `within` is the mean of ρ inside each scenario: a measure that only tells scenarios apart has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from guardkeel.evaluation.intervals import percentile
from guardkeel.evaluation.items import Floats
from guardkeel.tuning.collapse.figures import METRICS, Figure, Metric, Prediction
from guardkeel.tuning.collapse.measuring import Measuring, first_row
from guardkeel.tuning.collapse.reading import MEASURES, PLACES

BASELINES = ("task loss fall", "update norm", "learning rate × steps")
FEWEST = 4  # cells below which no correlation is given

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """One cell: what was measured inside it, and how its behaviour changed. What is not known is left out."""

    scenario: str
    arm: str
    measures: dict[str, float] = field(default_factory=dict)
    changes: dict[Metric, float] = field(default_factory=dict)


def points(measuring: Measuring) -> list[Point]:
    """Every trial of a bench as a point."""
    found = []
    for trial in measuring.bench.trials:
        arm, reference, cell = measuring.arm(trial), measuring.reference(trial), trial.cell
        changes = {m: first_row(arm, m) - first_row(reference, m) for m in METRICS}
        known: dict[str, float] = dict(trial.geometry)
        tune = cell.tune
        if tune is not None and tune.before is not None and tune.after is not None:
            known["task loss fall"] = tune.before.loss - tune.after.loss
        if trial.update_norm is not None:
            known["update norm"] = trial.update_norm
        known["learning rate × steps"] = cell.learning_rate * cell.steps
        found.append(
            Point(
                cell.scenario,
                cell.arm,
                {k: v for k, v in known.items() if np.isfinite(v)},
                {k: v for k, v in changes.items() if np.isfinite(v)},
            )
        )
    return found


def predict(found: Sequence[Point], *, draws: int = 500, seed: int = 0) -> list[Prediction]:
    """ρ of every measure with every change; measures that no cell has are left out."""
    names = [f"{m}, {place}" for m in MEASURES for place in PLACES] + list(BASELINES)
    return [
        _one(name, metric, [p for p in found if name in p.measures and metric in p.changes], draws, seed)
        for name in names
        if any(name in p.measures for p in found)
        for metric in METRICS
    ]


def _one(name: str, metric: Metric, found: Sequence[Point], draws: int, seed: int) -> Prediction:
    known = {"measure": name, "baseline": name in BASELINES, "outcome": metric}
    x = np.array([p.measures[name] for p in found])
    y = np.array([p.changes[metric] for p in found])
    value = spearman(x[None, :], y[None, :])[0] if x.size >= FEWEST else np.nan
    if np.isnan(value):
        note = f"fewer than {FEWEST} cells" if x.size < FEWEST else "one of the two never varies"
        return Prediction(**known, rho=Figure(n=x.size, note=note))
    clusters = np.unique([f"{p.scenario}\n{p.arm}" for p in found], return_inverse=True)[1]
    low, high = _interval(x, y, np.arange(x.size), draws, seed)
    wide = _interval(x, y, clusters, draws, seed)
    within = [
        rho
        for s in {p.scenario for p in found}
        if (here := np.array([p.scenario == s for p in found])).sum() >= FEWEST
        and not np.isnan(rho := float(spearman(x[None, here], y[None, here])[0]))
    ]
    return Prediction(
        **known,
        rho=Figure(value=float(value), low=low, high=high, n=x.size),
        clusters=int(clusters.max()) + 1,
        cluster_low=wide[0],
        cluster_high=wide[1],
        within=float(np.mean(within)) if within else None,
        within_scenarios=len(within),
    )


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's ρ of each row, (b, n) → (b,): Pearson's of midranks; NaN where a row does not vary."""
    a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return found


def _interval(
    x: Floats, y: Floats, clusters: Codes, draws: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of ρ with whole clusters drawn anew; none from fewer than FEWEST clusters."""
    count = int(clusters.max()) + 1
    if count < FEWEST:
        return None, None
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(clusters == c) for c in range(count)]
    chosen = rng.integers(0, count, size=(draws, count))
    if count == x.size:
        found = spearman(x[chosen], y[chosen])
    else:  # draws differ in size, so each is ranked by itself
        rows = [np.concatenate([members[c] for c in row]) for row in chosen]
        found = np.array([spearman(x[None, r], y[None, r])[0] for r in rows])
    found = found[~np.isnan(found)]
    return percentile(found) if found.size >= 0.9 * draws else (None, None)
