"""Intervals for one quantity: Wilson, logit, and the bootstrap; with clusters for dependent items."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri

from guardkeel.evaluation.items import Floats
from guardkeel.records import Estimate

CONFIDENCE = 0.95
_BLOCK = 2_000_000  # cells of resampling counts held at once


def z_value(confidence: float = CONFIDENCE) -> float:
    """The two-sided normal quantile, 1.96 at 0.95."""
    return float(ndtri(0.5 + confidence / 2))


def undefined(why: str, n: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """An estimate without a value, and why."""
    return Estimate(value=None, n=n, confidence=confidence, note=why)


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; method 3 of Newcombe 1998).

    Centre (p + z²/2n) / (1 + z²/n), half width z √(p(1−p)/n + z²/4n²) / (1 + z²/n). Sound at 0 and n
    successes. Fractional counts are allowed: they are effective counts of clustered items. n > 0.
    """
    z2 = z_value(confidence) ** 2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    # at 0 or n successes one end is exact, and rounding must not move it
    low = 0.0 if successes <= 0 else max(0.0, centre - half)
    return low, 1.0 if successes >= n else min(1.0, centre + half)


def proportion(
    hits: npt.NDArray[np.bool_],
    *,
    empty: str,
    groups: npt.NDArray[np.int64] | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A share with Wilson's interval; `empty` says why when there is nothing to take a share of.

    With `groups` (one integer an item) the interval is Wilson's at n / design effect.
    """
    n = int(hits.size)
    if n == 0:
        return undefined(empty, confidence=confidence)
    p = float(hits.mean())
    effective = n / (1.0 if groups is None else design_effect(hits.astype(np.float64), groups))
    low, high = wilson(p * effective, effective, confidence)
    return Estimate(value=p, low=min(low, p), high=max(high, p), n=n, confidence=confidence)


def design_effect(values: Floats, groups: npt.NDArray[np.int64]) -> float:
    """How many times the variance of a mean grows because items of a group resemble each other; at least 1.

    (G/(G−1) Σ_g e_g²) / (n/(n−1) Σ_i e_i²), e_i = value − mean, e_g their sum over group g: the linearised
    variance of a ratio mean over clusters (Rao & Scott 1992) over that of independent items. Where the values
    do not vary the data say nothing of their correlation and it is taken as complete: n/G.
    """
    n = values.size
    if n == 0:
        return 1.0
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1
    if count == n:
        return 1.0
    errors = values - values.mean()
    within = float(errors @ errors) * n / (n - 1)
    if count == 1 or within == 0.0:
        return n / count
    sums = np.bincount(codes, weights=errors)
    return max(1.0, float(sums @ sums) * count / (count - 1) / within)


def logit_interval(value: float, se: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Normal interval on the logit scale for a value in (0, 1): logit v ± z se/(v(1−v)), mapped back."""
    half = z_value(confidence) * se / (value * (1 - value))
    centre = float(logit(value))
    return float(expit(centre - half)), float(expit(centre + half))


def bootstrap(
    statistic: Callable[[Floats], Floats],
    n: int,
    *,
    draws: int,
    rng: np.random.Generator,
    strata: npt.NDArray[np.int64] | None = None,
    groups: npt.NDArray[np.int64] | None = None,
) -> Floats:
    """Bootstrap draws of a statistic of item counts.

    `statistic` takes counts of shape (b, n), how often each item was drawn, and returns (b,) or (b, k).
    Groups are drawn whole; strata (0 … S − 1) keep their number of units. A group must lie in one stratum
    (ValueError otherwise). Returns (draws,) or (draws, k). The same generator state gives the same draws.
    """
    units = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = int(units.max(initial=-1)) + 1
    layer = np.zeros(total, dtype=np.int64)
    if strata is not None:
        layer[units] = strata
        if not np.array_equal(layer[units], strata):
            raise ValueError("a group has items in more than one stratum")
    members = [np.flatnonzero(layer == s) for s in np.unique(layer)]
    step = max(1, _BLOCK // max(n, 1))
    parts = []
    for start in range(0, draws, step):
        b = min(step, draws - start)
        counts = np.empty((b, total))
        for where in members:
            size = where.size
            cells = rng.integers(0, size, size=(b, size)) + np.arange(b)[:, None] * size
            counts[:, where] = np.bincount(cells.ravel(), minlength=b * size).reshape(b, size)
        parts.append(statistic(counts if groups is None else counts[:, units]))
    return np.concatenate(parts)


def percentile(draws: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of bootstrap draws of shape (draws,)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)
