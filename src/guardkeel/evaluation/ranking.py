"""AUROC and its paired change (DeLong, DeLong & Clarke-Pearson 1988; midranks after Sun & Xu 2014).

AUROC θ = P(score of unsafe > score of safe) + ½ P(equal). For m unsafe and n safe items, each unsafe item i
has the placement V10_i = share of safe items below it (ties ½), each safe item j V01_j = share of unsafe
items above it; θ̂ is the mean of either, and Cov(θ̂_a, θ̂_b) = S10_ab/m + S01_ab/n with S the sample
covariances. Items are taken as independent.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

from guardkeel.evaluation.intervals import CONFIDENCE, logit_interval, undefined, wilson, z_value
from guardkeel.evaluation.items import Bools, Floats
from guardkeel.records import Estimate
from guardkeel.results import RankingTest


def placements(scores: Floats, unsafe: Bools) -> tuple[Floats, Floats]:
    """V10 of shape (m,) and V01 of shape (n,), in O((m+n) log(m+n)). Needs both classes."""
    positive, negative = scores[unsafe], scores[~unsafe]
    m, n = positive.size, negative.size
    ranks = rankdata(np.concatenate((positive, negative)))
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1.0 - (ranks[m:] - rankdata(negative)) / m
    return above, below


def auroc(scores: Floats, unsafe: Bools, confidence: float = CONFIDENCE) -> Estimate:
    """AUROC of scored items with DeLong's interval on the logit scale.

    At 0, at 1, and with a single item of a class DeLong's variance is zero or undefined; the interval is then
    Wilson's on min(m, n) disjoint unsafe–safe pairs, which are independent: wide, and never of zero width.
    """
    missing = one_class(unsafe)
    if missing:
        return undefined(missing, int(unsafe.size), confidence)
    above, below = placements(scores, unsafe)
    return _estimate(above, below, confidence)


def _estimate(above: Floats, below: Floats, confidence: float) -> Estimate:
    value, m, n = float(above.mean()), above.size, below.size
    variance = (_var(above) / m + _var(below) / n) if min(m, n) > 1 else 0.0
    if variance > 0:
        low, high = logit_interval(value, math.sqrt(variance), confidence)
        return Estimate(value=value, low=low, high=high, n=m + n, confidence=confidence)
    pairs = min(m, n)
    low, high = wilson(value * pairs, pairs, confidence)
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=m + n,
        confidence=confidence,
        note=f"interval from {pairs} disjoint pairs",
    )


def auroc_change(
    suite: str, reference: Floats, candidate: Floats, unsafe: Bools, confidence: float = CONFIDENCE
) -> RankingTest:
    """Paired change of AUROC, candidate − reference, over the items that both guards scored (NaN left out).

    Var = Var(θ̂_c) + Var(θ̂_r) − 2 Cov; normal interval, cut to [−1, 1]. Where both rank perfectly although
    they rank differently the variance is zero for want of evidence, and no interval is given.
    """
    both = ~(np.isnan(reference) | np.isnan(candidate))
    reference, candidate, unsafe = reference[both], candidate[both], unsafe[both]
    missing = one_class(unsafe)
    if missing:
        nothing = undefined(missing, int(unsafe.size), confidence)
        return RankingTest(suite=suite, reference=nothing, candidate=nothing, difference=nothing)
    above_r, below_r = placements(reference, unsafe)
    above_c, below_c = placements(candidate, unsafe)
    m, n = above_r.size, below_r.size
    value = float(above_c.mean() - above_r.mean())
    shift_above, shift_below = above_c - above_r, below_c - below_r
    variance = (_var(shift_above) / m + _var(shift_below) / n) if min(m, n) > 1 else 0.0
    same = bool(np.array_equal(rankdata(reference), rankdata(candidate)))
    difference = Estimate(
        value=value, n=m + n, confidence=confidence, note="too little variation for an interval"
    )
    if variance > 0 or same:
        half = z_value(confidence) * math.sqrt(variance)
        difference = Estimate(
            value=value,
            low=max(-1.0, value - half),
            high=min(1.0, value + half),
            n=m + n,
            confidence=confidence,
            note="the two rank every item alike" if same else "",
        )
    return RankingTest(
        suite=suite,
        reference=_estimate(above_r, below_r, confidence),
        candidate=_estimate(above_c, below_c, confidence),
        difference=difference,
    )


def one_class(unsafe: Bools) -> str:
    """Why a quantity that needs both classes is undefined here, or ''."""
    if unsafe.size == 0:
        return "no scored items"
    if unsafe.all():
        return "no scored safe items"
    return "" if unsafe.any() else "no scored unsafe items"


def _var(values: Floats) -> float:
    # placements of equal items differ by rounding alone; that is no variance
    variance = float(values.var(ddof=1))
    return variance if variance > 1e-24 else 0.0
