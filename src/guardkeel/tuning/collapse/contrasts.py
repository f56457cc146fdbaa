"""Paired contrasts between arms: the questions that the ladder is there to answer, and every arm against plain.

Two arms judged the same items; seeds are paired and averaged. d = mean over seeds of (first − second), on items that
both arms and the reference scored, all suites together. Intervals: bootstrap over items (see `resampling`); for
recall in one scenario never narrower than Tango's. They say nothing of other seeds: how many pairs of equal scenario
and seed share the sign of the mean stands beside them.

p = 2Φ(−1.96|d|/h), h from d to the interval's end on the side of 0: below 0.05 exactly where the interval leaves 0
out. A plain share of draws could not fall below 2/draws, which no Holm correction over so many contrasts survives.
The contrasts of one metric are one family, those pooled over scenarios and those by scenario apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from guardkeel.evaluation.intervals import z_value
from guardkeel.evaluation.items import POOLED, Floats
from guardkeel.evaluation.paired import holm
from guardkeel.tuning.collapse.figures import (
    METRICS,
    PLAIN,
    RECALIBRATED,
    Contrast,
    Figure,
    Metric,
)
from guardkeel.tuning.collapse.measuring import Measuring, recalibrated
from guardkeel.tuning.collapse.reading import Trial
from guardkeel.tuning.collapse.resampling import Measured, change_figure, free_figure, mean_hits, mean_over

QUESTIONS = (
    ("Do Fisher weights beat uniform ones?", "fwssr", "ssr-uniform"),
    ("Do the released proxy weights beat uniform ones?", "ssr-proxy", "ssr-uniform"),
    ("Does an adaptive λ beat a fixed one?", "fwssr-adaptive", "fwssr"),
    ("Does the released rule for λ beat a fixed one?", "fwssr-released-rule", "fwssr"),
    ("Does sharpening help?", "fwssr-sharpen", "fwssr-adaptive"),
    ("Does the safety subspace beat the full space?", "ssr-uniform", "ssr-full"),
    ("Does the safety subspace beat a random one?", "ssr-uniform", "ssr-random"),
    ("Does FW-SSR beat replay?", "fwssr", "replay"),
    ("Does adaptive FW-SSR beat replay?", "fwssr-adaptive", "replay"),
    ("Does FW-SSR beat KL?", "fwssr", "kl"),
    ("Does adaptive FW-SSR beat KL?", "fwssr-adaptive", "kl"),
    ("Does the code as released do anything?", "ssr-noop", PLAIN),
)
AGAINST_PLAIN = "Does it beat plain fine-tuning?"
RECALLS: tuple[Metric, ...] = ("recalibrated", "shipped")

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Difference:
    """One contrast in one scenario: (1 + draws,) by metric, each pair's sign, and each unsafe item's difference."""

    draws: dict[Metric, Floats]
    seeds: dict[Metric, list[float]]
    shifts: dict[Metric, Floats]
    groups: Codes
    n: int
    same: bool


def contrasts(measuring: Measuring) -> list[Contrast]:
    """All contrasts whose two arms were measured in a scenario's base variant."""
    scenarios = sorted({t.cell.scenario for t in measuring.bench.trials if not t.cell.variant})
    arms = {s: measuring.bench.arms(s, "") for s in scenarios}
    for found in arms.values():
        if PLAIN in found:
            found[RECALIBRATED] = found[PLAIN]
    pooled, single = [], []
    for question, first, second in _questions({a for found in arms.values() for a in found}):
        here = {
            s: _difference(measuring, found[first], found[second], first, second)
            for s, found in arms.items()
            if first in found and second in found
        }
        metrics: Sequence[Metric] = ("shipped",) if first == RECALIBRATED else METRICS  # the rest is plain's
        for metric in metrics:
            if here:
                pooled.append(_pooled(question, first, second, metric, list(here.values())))
            single += [_single(question, first, second, metric, s, d) for s, d in here.items()]
    return _corrected(pooled) + _corrected(single)


def _questions(arms: set[str]) -> Iterator[tuple[str, str, str]]:
    yield from QUESTIONS
    asked = {first for _, first, second in QUESTIONS if second == PLAIN}
    for arm in sorted(arms - asked - {PLAIN}):
        yield AGAINST_PLAIN, arm, PLAIN


def _difference(
    measuring: Measuring, first: list[Trial], second: list[Trial], one: str, other: str
) -> _Difference:
    pairs = _pairs(first, second)
    resampling = measuring.resampling(first[0].items)
    measured = []
    for a, b in pairs:
        within = measuring.scored(a) & measuring.scored(b)
        sides = (
            measuring.arm(a, None if np.array_equal(within, measuring.scored(a)) else within),
            measuring.arm(b, None if np.array_equal(within, measuring.scored(b)) else within),
        )
        measured.append((_as(one, sides[0]), _as(other, sides[1])))

    def columns(metric: Metric) -> list[Floats]:
        return [x.draws[metric][:, 0] - y.draws[metric][:, 0] for x, y in measured]

    unsafe = resampling.test_unsafe
    shifts = {m: mean_hits([x.hits[m] - y.hits[m] for x, y in measured])[unsafe] for m in RECALLS}
    groups: Codes = resampling.test_groups[unsafe]
    known = ~np.isnan(shifts["shipped"])
    return _Difference(
        draws={m: mean_over(columns(m)) for m in METRICS},
        seeds={m: [float(c[0]) for c in columns(m)] for m in METRICS},
        shifts={m: s[known] for m, s in shifts.items()},
        groups=groups[known],
        n=int(resampling.tested.size),
        same=all(np.array_equal(a.scores, b.scores, equal_nan=True) for a, b in pairs),
    )


def _pairs(first: list[Trial], second: list[Trial]) -> list[tuple[Trial, Trial]]:
    """Trials of equal seed; where there are none, each of one with each of the other."""
    seeds = {t.cell.seed: t for t in second}
    return [(t, seeds[t.cell.seed]) for t in first if t.cell.seed in seeds] or [
        (a, b) for a in first for b in second
    ]


def _as(arm: str, measured: Measured) -> Measured:
    return recalibrated(measured) if arm == RECALIBRATED else measured


def _single(
    question: str, first: str, second: str, metric: Metric, scenario: str, found: _Difference
) -> Contrast:
    draws, seeds = found.draws[metric], found.seeds[metric]
    figure = (
        free_figure(draws, seeds, found.n, same=found.same)
        if metric == "auroc"
        else change_figure(draws, seeds, found.shifts[metric], found.groups)
    )
    return _contrast(question, first, second, metric, scenario, figure, seeds)


def _pooled(question: str, first: str, second: str, metric: Metric, found: list[_Difference]) -> Contrast:
    if len(found) == 1:
        return _single(question, first, second, metric, POOLED, found[0])
    draws = mean_over([d.draws[metric] for d in found])
    seeds = [s for d in found for s in d.seeds[metric]]
    figure = free_figure(draws, seeds, sum(d.n for d in found), same=all(d.same for d in found))
    return _contrast(question, first, second, metric, POOLED, figure, seeds)


def _contrast(
    question: str,
    first: str,
    second: str,
    metric: Metric,
    scenario: str,
    figure: Figure,
    seeds: list[float],
) -> Contrast:
    known = [s for s in seeds if not np.isnan(s)]
    return Contrast(
        question=question,
        first=first,
        second=second,
        scenario=scenario,
        metric=metric,
        difference=figure,
        p=p_value(figure),
        same=sum(np.sign(s) == np.sign(figure.value) for s in known) if figure.value is not None else 0,
        of=len(known),
    )


def p_value(difference: Figure) -> float | None:
    """Two-sided p that a difference is zero, from its interval; 1 where the two are the same on every item."""
    d, low, high = difference.value, difference.low, difference.high
    if d is None or low is None or high is None:
        return None
    reach = d - low if d > 0 else high - d
    if reach <= 0:
        return 1.0 if d == 0 else None
    return float(2 * ndtr(-z_value() * abs(d) / reach))


def _corrected(found: list[Contrast]) -> list[Contrast]:
    """With Holm's p over the contrasts of each metric."""
    adjusted: dict[int, float] = {}
    for metric in METRICS:
        family = [(i, c.p) for i, c in enumerate(found) if c.metric == metric and c.p is not None]
        adjusted |= dict(zip([i for i, _ in family], holm([p for _, p in family]), strict=True))
    return [c.model_copy(update={"p_holm": adjusted.get(i)}) for i, c in enumerate(found)]
