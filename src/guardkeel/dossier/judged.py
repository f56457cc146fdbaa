"""Results whose labels came from a judge that errs, corrected by its sensitivity and specificity, with an interval.

A judge with sensitivity s = P(says unsafe | unsafe) and specificity c = P(says safe | safe) calls a share
q = s·p + (1 − c)(1 − p) of things unsafe of which p are. So of n things that it called unsafe y times

    A(y, n) = (y − (1 − c) n) / (s + c − 1),  cut to [0, n],

are unsafe (Rogan & Gladen 1978; for judges of language models arXiv:2511.21140). What a guard flagged and what it did
not are two such groups: with y₁ of n₁ flagged items and y₀ of n₀ others labelled unsafe,

    recall = A₁ / (A₁ + A₀),  FPR = (n₁ − A₁) / (n₁ − A₁ + n₀ − A₀),  precision = A₁ / n₁.

That holds where the judge errs alike on what was flagged and what was not, and errs as often as it did on the human
labels. Intervals carry the chance in both samples: quantiles over draws of the four counts from their Dirichlet
posterior and of s and c from their Beta posteriors, under Jeffreys' priors. (The paper has a closed form for one rate;
for a ratio of two corrected counts there is none.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from guardkeel.dossier.kinds import EvalSpec, Judge, Result, Run
from guardkeel.dossier.state import State

Floats = npt.NDArray[np.float64]
DRAWS = 4000
SHARES = ("rate", "accuracy")
"""Last words of metrics that are the share of what the judge said yes to."""
OWN = ("unscored",)
"""Metrics that no label enters."""


def measured(judge: Judge | None) -> bool:
    """Whether a judge's errors are known, and it is better than chance."""
    return (
        judge is not None
        and judge.sensitivity is not None
        and judge.specificity is not None
        and judge.n > 0
        and judge.sensitivity + judge.specificity > 1
    )


def results(state: State, run: Run) -> list[Result]:
    """The results of a run as a decision may read them: where a judge labelled it, corrected for its errors.

    What cannot be corrected has no value, and says why. A judge that was not measured leaves them as they are: the
    gate holds for that reason alone.
    """
    found = state.results(run.id)
    judge = state.find(Judge, run.judge) if run.judge else None
    if judge is None or not measured(judge) or not state.get(EvalSpec, run.spec).judged:
        return found
    by = {(r.metric, r.slice): r for r in found}
    return [_corrected(r, by, judge) for r in found]


def _corrected(result: Result, by: dict[tuple[str, str], Result], judge: Judge) -> Result:
    if result.value is None or result.metric in OWN:
        return result
    recall, fpr = by.get(("recall", result.slice)), by.get(("fpr", result.slice))
    if result.metric in ("recall", "fpr", "precision") and recall and fpr:
        counts = _counts(recall, fpr)
        value, draws = _behaviour(result.metric, counts, judge)
    elif result.metric.split()[-1] in SHARES and result.n:
        value, draws = _share(result.value, result.n, judge)
    else:
        why = f"{result.metric} cannot be corrected for the errors of judge {judge.id}"
        return result.model_copy(update={"value": None, "low": None, "high": None, "why": why})
    if value is None or not np.isfinite(value):
        why = f"nothing is left of it after the errors of judge {judge.id}"
        return result.model_copy(update={"value": None, "low": None, "high": None, "why": why})
    tail = (1 - result.confidence) / 2
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    said = f"corrected for the errors of judge {judge.id}, which gave {result.value:.3f}"
    return result.model_copy(
        update={"value": value, "low": min(float(low), value), "high": max(float(high), value), "why": said}
    )


def _counts(recall: Result, fpr: Result) -> tuple[int, int, int, int]:
    """(flagged, passed) of what was labelled unsafe, then of what was labelled safe. An undefined rate is of none."""
    flagged = [round((r.value or 0.0) * r.n) for r in (recall, fpr)]
    return flagged[0], recall.n - flagged[0], flagged[1], fpr.n - flagged[1]


def _behaviour(metric: str, counts: Sequence[int], judge: Judge) -> tuple[float | None, Floats]:
    rng, size = np.random.default_rng(0), sum(counts)
    drawn = rng.dirichlet(np.array(counts) + 0.5, DRAWS).T * size
    s, c = _errors(judge, rng)
    return float(rate(metric, counts, judge.sensitivity, judge.specificity)), rate(metric, drawn, s, c)


def _share(value: float, n: int, judge: Judge) -> tuple[float | None, Floats]:
    rng, hits = np.random.default_rng(0), value * n
    drawn = rng.beta(hits + 0.5, n - hits + 0.5, DRAWS)
    s, c = _errors(judge, rng)
    return float(unsafe(value, 1.0, judge.sensitivity, judge.specificity)), unsafe(drawn, 1.0, s, c)


def _errors(judge: Judge, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draws of sensitivity and specificity, from as many human labels of each kind as there were."""
    bad = judge.n / 2 if judge.n_unsafe is None else judge.n_unsafe
    drawn = []
    for share, n in ((judge.sensitivity, bad), (judge.specificity, judge.n - bad)):
        hits = (share or 0.0) * n
        drawn.append(rng.beta(hits + 0.5, n - hits + 0.5, DRAWS))
    return drawn[0], drawn[1]


def unsafe(y: Any, n: Any, sensitivity: Any, specificity: Any) -> Any:
    """A(y, n): how many of n are unsafe where the judge called y so; nan where the judge is no better than chance."""
    gain = np.asarray(sensitivity + specificity - 1, dtype=np.float64)
    gain = np.where(gain > 0, gain, np.nan)
    return np.clip((y - (1 - specificity) * n) / gain, 0, n)


def rate(metric: str, counts: Any, sensitivity: Any, specificity: Any) -> Any:
    """recall, fpr or precision from (flagged, passed) of what was labelled unsafe and of what was labelled safe."""
    hit, missed, alarm, passed = counts
    flagged, rest = hit + alarm, missed + passed
    bad = unsafe(hit, flagged, sensitivity, specificity)
    let = unsafe(missed, rest, sensitivity, specificity)
    good, fine = flagged - bad, rest - let
    top, whole = {"recall": (bad, bad + let), "fpr": (good, good + fine), "precision": (bad, flagged)}[metric]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, top / np.asarray(whole, dtype=np.float64), np.nan)
