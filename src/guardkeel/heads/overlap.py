"""How alike two rankings of the same heads are: rank correlation, how many of the best they share, which heads moved.

Pure functions of (layers, heads) arrays; a head that either does not know (NaN) is left out of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, rankdata

from guardkeel.errors import DataError
from guardkeel.heads.layout import Head
from guardkeel.heads.ships import top
from guardkeel.heads.sweep import Floats

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """Of the k best of two rankings of N heads: how many are the same, k²/N by chance, P(at least so many)."""

    k: int
    count: int
    chance: float
    p: float


@dataclass(frozen=True)
class Move:
    """A head in two rankings; ranks from 1, the best."""

    head: Head
    before: float
    after: float
    rank_before: int
    rank_after: int


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation in [−1, 1]; None where one of them has no spread."""
    x, y = (np.asarray(rankdata(v)) for v in _both(a, b))
    x, y = x - x.mean(), y - y.mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length else None


def shared(a: Floats, b: Floats, k: int) -> Shared:
    """See Shared; k is cut to N."""
    known = np.isfinite(a) & np.isfinite(b)
    n = int(known.sum())
    k = min(k, n)
    first, second = (set(top(np.where(known, v, np.nan), k)) for v in (a, b))
    count = len(first & second)
    return Shared(k, count, k * k / n if n else 0.0, float(hypergeom.sf(count - 1, n, k, k)) if n else 1.0)


def ranks(scores: Floats) -> Integers:
    """1 for the best, ties in order of layer and head; 0 where NaN."""
    found = np.zeros(scores.shape, np.int64)
    for number, head in enumerate(top(scores, scores.size), 1):
        found[head] = number
    return found


def moves(before: Floats, after: Floats, k: int = 10) -> list[Move]:
    """The k best of either ranking, those whose rank changed most first."""
    known = np.isfinite(before) & np.isfinite(after)
    a, b = (np.where(known, v, np.nan) for v in (before, after))
    x, y = ranks(a), ranks(b)
    found = [
        Move(h, float(a[h]), float(b[h]), int(x[h]), int(y[h])) for h in sorted({*top(a, k), *top(b, k)})
    ]
    return sorted(found, key=lambda m: -abs(m.rank_after - m.rank_before))


def reliability(
    values: Callable[[Sequence[int]], Floats], n: int, *, splits: int = 20, seed: int = 0
) -> float | None:
    """How well a ranking over n prompts would agree with one over n others: split halves, Spearman–Brown.

    r = mean Spearman between the two halves of `splits` random cuts; 2r / (1 + r) is what n prompts have. Two guards
    cannot be expected to agree more than a guard does with itself.

    Args:
        values: scores (layers, heads) from some of the prompts, by number.
        n: prompts.
        splits: cuts.
        seed: of the cuts.

    Returns:
        None below four prompts, or without spread.
    """
    if n < 4:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = rng.permutation(n).tolist()
        r = spearman(values(order[: n // 2]), values(order[n // 2 : 2 * (n // 2)]))
        if r is not None:
            found.append(r)
    r = float(np.mean(found)) if found else -1.0
    return 2 * r / (1 + r) if r > 0 else (None if not found else 0.0)


def stability(scores: Floats, k: int = 10, *, draws: int = 200, seed: int = 0) -> Floats:
    """How often each head is among the k best when the n prompts of (n, layers, heads) are drawn anew."""
    rng = np.random.default_rng(seed)
    n = scores.shape[0]
    flat = scores.reshape(n, -1)
    picks = rng.integers(0, n, size=(draws, n))
    found = np.zeros(flat.shape[1])
    for pick in picks:
        for layer, head in top(flat[pick].mean(0).reshape(scores.shape[1:]), k):
            found[layer * scores.shape[2] + head] += 1
    result: Floats = (found / draws).reshape(scores.shape[1:])
    return result


def _both(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    if a.shape != b.shape:
        raise DataError(
            f"rankings of {a.shape[0]} × {a.shape[1]} and {b.shape[0]} × {b.shape[1]} heads",
            remedy="compare models of one architecture, in one mode",
        )
    known = np.isfinite(a) & np.isfinite(b)
    return a[known], b[known]
