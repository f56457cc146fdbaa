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

from guardkeel.evaluation.intervals import bootstrap, percentile
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
    baseline = name in BASELINES
    x = np.array([p.measures[name] for p in found])
    y = np.array([p.changes[metric] for p in found])
    value = _rho(x, y)
    if value is None:
        note = f"fewer than {FEWEST} cells" if x.size < FEWEST else "one of the two never varies"
        return Prediction(measure=name, baseline=baseline, outcome=metric, rho=Figure(n=x.size, note=note))
    clusters = np.unique([f"{p.scenario}\n{p.arm}" for p in found], return_inverse=True)[1]
    low, high = _interval(x, y, np.arange(x.size), draws, seed)
    wide = _interval(x, y, clusters, draws, seed)
    inside = [np.array([p.scenario == s for p in found]) for s in sorted({p.scenario for p in found})]
    within = [rho for here in inside if (rho := _rho(x[here], y[here])) is not None]
    return Prediction(
        measure=name,
        baseline=baseline,
        outcome=metric,
        rho=Figure(value=value, low=low, high=high, n=x.size),
        clusters=int(clusters.max()) + 1,
        cluster_low=wide[0],
        cluster_high=wide[1],
        within=float(np.mean(within)) if within else None,
        within_scenarios=len(within),
    )


def _rho(x: Floats, y: Floats) -> float | None:
    if x.size < FEWEST:
        return None
    found = float(spearman(x, y, np.ones((1, x.size)))[0])
    return None if np.isnan(found) else found


def spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Spearman's ρ of (n,) and (n,) with each pair counted `counts` times, (b, n) → (b,); NaN where one is constant.

    Pearson's correlation of midranks, both weighted: the midrank of a value is the count below it and half its own.
    """
    a, b = (_midranks(v, counts) - counts.sum(axis=1, keepdims=True) / 2 for v in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = (counts * a * b).sum(axis=1) / np.sqrt(
            (counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1)
        )
    return found


def _midranks(values: Floats, counts: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    _, starts, place = np.unique(values[order], return_index=True, return_inverse=True)
    own = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.empty_like(counts)
    ranks[:, order] = (np.cumsum(own, axis=1) - own / 2)[:, place]
    return ranks


def _interval(
    x: Floats, y: Floats, clusters: Codes, draws: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of ρ with whole clusters drawn anew; none from fewer than FEWEST clusters."""
    if int(clusters.max()) + 1 < FEWEST:
        return None, None
    found = bootstrap(
        lambda counts: spearman(x, y, counts),
        x.size,
        draws=draws,
        rng=np.random.default_rng(seed),
        groups=clusters,
    )
    found = found[~np.isnan(found)]
    return percentile(found) if found.size >= 0.9 * draws else (None, None)
