"""What ablating heads does to a model's answers, against groups of as many other heads.

Everything is paired: the same items, answered as the model is and with the heads ablated. Recall is of unsafe items,
FPR of safe ones, over items that both answered; what is left without an answer is a rate of its own (a head whose loss
makes a guard stammer has not made it lenient).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from guardkeel.evaluation.compare import METRICS, compare
from guardkeel.evaluation.intervals import bootstrap, percentile, undefined
from guardkeel.evaluation.items import Floats, ItemMeta, group_codes, unsafe_labels
from guardkeel.heads.controls import Trial
from guardkeel.heads.official import label
from guardkeel.heads.results import Beside, Change, Effect, Metric
from guardkeel.heads.results import Trial as Told
from guardkeel.records import Estimate

Ask = Callable[[Trial | None], Floats]
"""Answers (items,) with a trial's heads ablated, or none."""


def effect(
    items: Sequence[ItemMeta],
    asked: Sequence[Trial],
    ask: Ask,
    threshold: float,
    *,
    seed: int = 0,
    draws: int = 500,
) -> Effect:
    """Ask under every trial and compare.

    Args:
        items: labelled.
        asked: the found group in its sizes and its controls, see controls.py.
        ask: see Ask.
        threshold: from which an answer flags.
        seed, draws: of the bootstraps.
    """
    before = ask(None)
    after = {trial: ask(trial) for trial in asked}
    labels = unsafe_labels(items)
    changes = [told(items, before, after[trial], threshold, trial) for trial in asked]
    return Effect(
        unsafe=int(labels.sum()),
        benign=int((~labels).sum()),
        threshold=threshold,
        trials=changes,
        beside=beside(items, before, after, changes, threshold, seed=seed, draws=draws),
    )


def told(items: Sequence[ItemMeta], before: Floats, after: Floats, threshold: float, trial: Trial) -> Told:
    """One trial, all suites together."""
    found = compare(items, before, after, threshold, threshold)
    tests = {t.metric: t for t in found.tests if t.suite == "*"}
    changes = {
        metric: Change(
            before=tests[metric].reference,
            after=tests[metric].candidate,
            difference=tests[metric].difference,
            p=tests[metric].p_change,
        )
        for metric in METRICS
    }
    return Told(
        kind=trial.kind,
        draw=trial.draw,
        size=len(trial.heads),
        heads=[label(head) for head in trial.heads],
        auroc=next(r.difference for r in found.ranking if r.suite == "*"),
        **changes,
    )


def beside(
    items: Sequence[ItemMeta],
    before: Floats,
    after: Mapping[Trial, Floats],
    changes: Sequence[Told],
    threshold: float,
    *,
    seed: int = 0,
    draws: int = 500,
) -> list[Beside]:
    """The found group beside its controls, size by size; `changes` are what was told of the trials."""
    found: list[Beside] = []
    for (trial, scores), alone in zip(after.items(), changes, strict=True):
        if trial.kind != "found":
            continue
        for kind in ("random", "matched"):
            others = [s for t, s in after.items() if t.kind == kind and len(t.heads) == len(trial.heads)]
            for metric in METRICS:
                own: Change = getattr(alone, metric)
                row = _beside(items, before, scores, others, own.difference, threshold, metric, seed, draws)
                if row is not None:
                    found.append(
                        Beside(size=len(trial.heads), kind=kind, metric=metric, draws=len(others), **row)
                    )
    return found


def _beside(
    items: Sequence[ItemMeta],
    before: Floats,
    found: Floats,
    others: Sequence[Floats],
    own: Estimate,
    threshold: float,
    metric: Metric,
    seed: int,
    draws: int,
) -> dict[str, Any] | None:
    labels = unsafe_labels(items)
    if metric == "unscored":
        of = np.ones(len(items), bool)
        start, mine = np.isnan(before) * 1.0, np.isnan(found) * 1.0
        rest = [np.isnan(o) * 1.0 for o in others]
    else:
        of = (labels if metric == "recall" else ~labels) & ~np.isnan(before)
        start, mine, *rest = (_flags(s, threshold) for s in (before, found, *others))
    mine, rest = (mine - start)[of], [(r - start)[of] for r in rest]
    if not rest or not of.any() or np.isnan(mine).all():
        return None
    changes = np.array([np.nanmean(r) for r in rest if np.isfinite(r).any()])
    if not changes.size:
        return None
    mean = float(np.nanmean(mine))
    held = np.isfinite(rest)
    level = np.where(held, rest, 0.0).sum(0) / np.where(held.any(0), held.sum(0), np.nan)
    return {
        "low": float(changes.min()),
        "mean": float(changes.mean()),
        "high": float(changes.max()),
        "excess": _excess(mine - level, group_codes(items)[of], own, float(changes.mean()), seed, draws),
        "p": (1 + int((np.abs(changes) >= abs(mean) - 1e-12).sum())) / (1 + changes.size),
    }


def _flags(scores: Floats, threshold: float) -> Floats:
    found: Floats = np.where(np.isnan(scores), np.nan, scores >= threshold)
    return found


def _excess(
    differences: Floats, groups: npt.NDArray[np.int64], own: Estimate, mean: float, seed: int, draws: int
) -> Estimate:
    """Mean with its bootstrap interval, never narrower than the found group's own, less the controls' mean.

    That is what keeps it honest where no item differs.
    """
    known = np.isfinite(differences)
    x, g = differences[known], groups[known]
    if not x.size:
        return undefined("no item was answered by all")

    def statistic(counts: Floats) -> Floats:
        result: Floats = counts @ x / np.maximum(counts.sum(1), 1.0)
        return result

    rng = np.random.default_rng(seed)
    low, high = percentile(bootstrap(statistic, x.size, draws=draws, rng=rng, groups=g))
    value = float(x.mean())
    ends = [v - mean for v in (own.low, own.high) if v is not None]
    return Estimate(value=value, low=min(low, value, *ends), high=max(high, value, *ends), n=int(x.size))
