"""How fast a guard was: quantiles of seconds an item, items and tokens a second."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from guardkeel.evaluation.intervals import CONFIDENCE, bootstrap, percentile
from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.leaderboard.judged import Timing
from guardkeel.evaluation.leaderboard.results import Latency, Speed
from guardkeel.records import Estimate

DRAWS = 500


def speed(timing: Timing, seed: int = 0) -> Speed | None:
    """The speed of a guard from its batches; None where there are none."""
    items, seconds = sum(n for n, _ in timing.batches), math.fsum(s for _, s in timing.batches)
    if not items or seconds <= 0:
        return None
    return Speed(
        seconds=seconds,
        items=items,
        batches=len(timing.batches),
        items_per_second=items / seconds,
        tokens=timing.tokens,
        tokens_per_second=None if timing.tokens is None else timing.tokens / seconds,
        amortised=_amortised(timing.batches, seed),
        alone=_alone(timing.alone) if timing.alone else None,
    )


def _amortised(batches: Sequence[tuple[int, float]], seed: int) -> Latency:
    """Quantiles over items of batch seconds / batch items; intervals from a bootstrap of whole batches."""
    sizes = np.array([n for n, _ in batches], dtype=np.float64)
    each = np.array([s for _, s in batches]) / sizes
    order = np.argsort(each, kind="stable")
    each, sizes = each[order], sizes[order]

    def quantile(counts: Floats, share: float) -> Floats:
        mass = np.cumsum(counts * sizes, axis=1)
        found: Floats = each[(mass < share * mass[:, -1:] - 1e-9).sum(axis=1)]
        return found

    def estimate(share: float) -> Estimate:
        value, n = float(quantile(np.ones((1, each.size)), share)[0]), int(sizes.sum())
        if each.size < 2:
            return Estimate(value=value, n=n, note="one batch: no interval")
        low, high = percentile(
            bootstrap(lambda c: quantile(c, share), each.size, draws=DRAWS, rng=np.random.default_rng(seed))
        )
        return Estimate(value=value, low=min(low, value), high=max(high, value), n=n)

    return Latency(n=int(sizes.sum()), p50=estimate(0.5), p99=estimate(0.99))


def _alone(seconds: Sequence[float]) -> Latency:
    """Quantiles of items judged alone, with the distribution-free interval between two order statistics."""
    from scipy.stats import binom

    ordered = sorted(seconds)
    n, tail = len(ordered), (1 - CONFIDENCE) / 2

    def estimate(share: float) -> Estimate:
        value = ordered[max(0, math.ceil(share * n) - 1)]
        first, last = int(binom.ppf(tail, n, share)), int(binom.ppf(1 - tail, n, share)) + 1
        if first < 1 or last > n:
            return Estimate(value=value, n=n, note=f"{n} items are too few for an interval")
        return Estimate(value=value, low=ordered[first - 1], high=ordered[last - 1], n=n)

    return Latency(n=n, p50=estimate(0.5), p99=estimate(0.99))
