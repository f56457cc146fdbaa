"""Sequential tests that hold at every look, and the intervals that go with them. Pure: numbers in, numbers out.

A test here is an e-process: a non-negative process E with E[E_τ] ≤ 1 under the null at any stopping time τ. By Ville's
inequality P(sup_t E_t ≥ 1/α) ≤ α, so one may look after every row, stop when one likes, and go on: the chance of ever
giving a false alarm stays at most α. All functions give log E.

**Proportions** (`rise`, `fall`): Robbins' mixture likelihood ratio, the mixture SPRT (Robbins 1970; Johari, Pekelis &
Walsh, arXiv:1512.04922; Howard, Ramdas, McAuliffe & Sekhon, arXiv:1810.08240). For H0: p ≤ q, with S hits and F misses,

    E = ∫_q^1 (p/q)^S ((1−p)/(1−q))^F dπ(p),  π = Beta(a, b) truncated to (q, 1)
      = B(a+S, b+F) Q(q; a+S, b+F) / (B(a, b) Q(q; a, b)) / (q^S (1−q)^F),  Q the upper tail of the Beta distribution.

Every p > q in the mixture makes the ratio a supermartingale under each p' ≤ q, so E is one for the whole of H0. Rows
need not be independent: it is enough that, given the past, each is a hit with a chance of at most q.

**Weighted bounded values** (`betting`): for rows that were drawn unequally, with weights w = 1/propensity, and
H0: E[x] ≥ m, the capital of a bettor against it, averaged over a grid of stakes (Waudby-Smith & Ramdas,
arXiv:2010.09686, with importance weights as in Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, arXiv:2210.10768):

    E_t = mean_λ [ Σ_{j≤t} γ_j Π_{i=j..t} (1 + λ (w_i/W) (m − x_i)) + Σ_{j>t} γ_j ],  γ_j = 1/(j (j+1)),

with 0 < λ < 1/(1 − m) and W ≥ every weight, known beforehand. A share γ_j of the capital is first staked on row j, the
rest is kept until then. So a quiet time of j rows, in which who bets from the first one on would have lost nearly all,
delays the alarm by a term in 2 log j. E-detectors (arXiv:2203.03532) begin at every row with all of the capital, which
is faster still, and bound how often there is a false alarm, not whether there ever is one.

**Intervals** (`confidence_sequence`): all p whose two-sided mixture ratio under the uniform prior stays below 1/α; they
cover the truth at every n together with probability 1 − α, and are wider than an interval for one n.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betaincc, betaln, xlogy

Floats = npt.NDArray[np.float64]
PRIOR = (1.0, 1.0)
STAKES = 24


def rise(
    hits: npt.ArrayLike, misses: npt.ArrayLike, null: float, prior: tuple[float, float] = PRIOR
) -> Floats:
    """log E against H0: p ≤ null, for numbers of hits and misses so far, of any one shape; 0 < null < 1."""
    s, f = np.asarray(hits, dtype=np.float64), np.asarray(misses, dtype=np.float64)
    a, b = prior
    top = betaln(a + s, b + f) + _upper(null, a + s, b + f)
    bottom = betaln(a, b) + _upper(null, a, b)
    found: Floats = np.asarray(top - bottom - xlogy(s, null) - xlogy(f, 1 - null), dtype=np.float64)
    return found


def fall(
    hits: npt.ArrayLike, misses: npt.ArrayLike, null: float, prior: tuple[float, float] = PRIOR
) -> Floats:
    """log E against H0: p ≥ null: `rise` of the misses."""
    return rise(misses, hits, 1 - null, prior[::-1])


def _upper(q: float, a: Any, b: Any) -> Any:
    """Log of the upper tail of Beta(a, b) at q, a and b ≥ 1. Where that underflows, a bound from below, which keeps E
    valid: ∫_q^1 x^(a−1) (1−x)^(b−1) dx ≥ q^(a−1) (1−q)^b / b.
    """
    tail = betaincc(a, b, q)
    low = (a - 1) * math.log(q) + b * math.log1p(-q) - betaln(a, b) - np.log(b)
    return np.where(tail > 1e-280, np.log(np.maximum(tail, 1e-290)), np.minimum(low, 0.0))


def both(up: Floats, down: Floats) -> Floats:
    """log of the mean of two e-processes, which is one against both directions."""
    return np.logaddexp(up, down) - math.log(2)


def betting(
    values: npt.ArrayLike, weights: npt.ArrayLike, null: float, most: float, stakes: int = STAKES
) -> Floats:
    """log E after each row, of shape (…, n), against H0: the weighted mean of values in [0, 1] is ≥ null.

    Args:
        values: (…, n), in [0, 1].
        weights: (…, n), in (0, most].
        null: 0 < null < 1.
        most: a bound on all weights that was known before the rows.
        stakes: points of the grid, spread evenly on a logarithmic scale up to the largest stake.
    """
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if x.size and (x.min() < 0 or x.max() > 1 or w.min() <= 0 or w.max() > most * (1 + 1e-12)):
        raise ValueError("values must be in [0, 1] and weights in (0, most]")
    largest = 0.95 / (1 - null)
    steps = np.minimum(w / most, 1.0) * (null - x)
    rows = np.arange(1, x.shape[-1] + 1)
    share, kept = -np.log(rows) - np.log1p(rows), -np.log1p(rows)
    total = np.full(x.shape, -np.inf)
    for stake in np.geomspace(largest / 200, largest, stakes):
        gain = np.log1p(stake * steps)
        path = np.cumsum(gain, axis=-1)
        begun = path + np.logaddexp.accumulate(share - (path - gain), axis=-1)
        total = np.logaddexp(total, np.logaddexp(begun, kept))
    found: Floats = total - math.log(stakes)
    return found


def betting_above(values: npt.ArrayLike, weights: npt.ArrayLike, null: float, most: float) -> Floats:
    """The same against H0: the weighted mean is ≤ null."""
    return betting(1 - np.asarray(values, dtype=np.float64), weights, 1 - null, most)


def confidence_sequence(hits: float, n: float, alpha: float) -> tuple[float, float]:
    """The interval of a proportion after n rows that holds at every n together; (0, 1) without any."""
    if n <= 0:
        return 0.0, 1.0
    share = hits / n
    limit = -math.log(alpha)

    def over(p: float) -> float:
        """log of the mixture ratio against p, less its limit."""
        return float(betaln(1 + hits, 1 + n - hits) - xlogy(hits, p) - xlogy(n - hits, 1 - p)) - limit

    tiny = 1e-12
    low = 0.0 if hits <= 0 or over(tiny) < 0 else float(brentq(over, tiny, max(share, 2 * tiny)))
    high = 1.0 if hits >= n or over(1 - tiny) < 0 else float(brentq(over, min(share, 1 - 2 * tiny), 1 - tiny))
    return low, high
