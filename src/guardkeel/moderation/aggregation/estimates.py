"""How much the ensemble has lost against each expert, from audited items alone.

Of T served items those audited are known, each with its probability q. With d = loss of the ensemble − loss of the
expert on an item (0 where the expert slept), the regret Σ d over all served items is estimated by

    weighted           D = Σ d / q                              unbiased (Horvitz & Thompson 1952)
                       V = Σ (1 − q) (d / q)²
    self-normalised    D = T · Σ(d / q) / Σ(1 / q)              (Hájek 1971) usually narrower, bias of order 1 / n
                       V = (T / Σ 1/q)² Σ (1 − q) ((d − D/T) / q)²

with sums over audited items and D ± z √V. V estimates the variance over which items the audits drew, the served items
being what they are: with q = 1 throughout the regret is known and the interval is a point. The interval of the best
expert takes z at 1 − α / 2N, so that it covers whichever expert is best (Bonferroni).

The naive estimate, T times the plain mean over *all* feedback, solicited or not, stands beside it: where the two part,
feedback is one-sided. The normal interval needs some thirty audited items; look at `effective` = (Σ 1/q)² / Σ 1/q².
An interval that is watched all the time is left at some moment with more than probability α.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from guardkeel.moderation.aggregation.rule import Array

Method = Literal["weighted", "self-normalised"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval, the audited items behind it, and their effective number."""

    value: float
    low: float
    high: float
    n: int
    effective: float


@dataclass(frozen=True, slots=True)
class RegretEstimate:
    """Regret over all served items, in units of loss; divide by `served` for the mean an item.

    Args:
        experts: against each expert.
        best: against the best expert in hindsight, whichever it is.
        naive: against each expert, as all feedback together would have it.
        served: items served, T.
    """

    experts: tuple[Interval, ...]
    best: Interval
    naive: tuple[float, ...]
    served: int


def estimate_regret(
    ensemble: ArrayLike,
    experts: ArrayLike,
    propensities: ArrayLike,
    served: int,
    *,
    method: Method = "self-normalised",
    confidence: float = 0.95,
) -> RegretEstimate:
    """Regret from feedback.

    Args:
        ensemble: its loss on each item with feedback (n,); NaN where it was unscored.
        experts: losses (n, N), NaN where an expert slept.
        propensities: q (n,); NaN for feedback that came unasked, which only the naive estimate looks at.
        served: all items that could have been audited, at least the audited ones.
        method: see above.
        confidence: of the intervals.

    Raises:
        ValueError: arrays that do not fit together, or fewer items served than audited.
    """
    own, other = np.asarray(ensemble, dtype=np.float64), np.asarray(experts, dtype=np.float64)
    q = np.asarray(propensities, dtype=np.float64)
    if other.ndim != 2 or own.shape != other.shape[:1] or q.shape != own.shape:
        raise ValueError(f"losses of shapes {own.shape} and {other.shape}, propensities {q.shape}")
    audited = ~np.isnan(q)
    if served < audited.sum():
        raise ValueError(f"{served} items served, {audited.sum()} audited")
    gaps = np.nan_to_num(own[:, None] - other, nan=0.0)
    z, every = (float(ndtri(1 - (1 - confidence) / (2 * k))) for k in (1, other.shape[1]))
    values, errors, effective = _weighted(gaps[audited], q[audited], served, method)
    n = int(audited.sum())

    def around(value: float, error: float, times: float) -> Interval:
        return Interval(value, value - times * error, value + times * error, n, effective)

    wide = [around(v, e, every) for v, e in zip(values.tolist(), errors.tolist(), strict=True)]
    best = Interval(float(values.max()), max(i.low for i in wide), max(i.high for i in wide), n, effective)
    naive = served * gaps.mean(axis=0) if own.size else np.full(other.shape[1], np.nan)
    return RegretEstimate(
        tuple(around(v, e, z) for v, e in zip(values.tolist(), errors.tolist(), strict=True)),
        best,
        tuple(naive.tolist()),
        served,
    )


def _weighted(gaps: Array, q: Array, served: int, method: Method) -> tuple[Array, Array, float]:
    """Estimates (N,), standard errors (N,), effective number of items."""
    if q.size == 0:  # nothing is known
        return np.full(gaps.shape[1], np.nan), np.full(gaps.shape[1], np.nan), 0.0
    u = 1.0 / q
    total, squares = float(u.sum()), float(u @ u)
    scale, centre = 1.0, np.zeros(gaps.shape[1])
    if method == "self-normalised":
        scale, centre = served / total, (u @ gaps) / total
    values = scale * (u @ gaps)
    errors = scale * np.sqrt(((1.0 - q)[:, None] * ((gaps - centre) * u[:, None]) ** 2).sum(axis=0))
    return values, errors, total * total / squares
