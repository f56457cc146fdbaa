"""The unweighted mean over columns, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardkeel.evaluation.intervals import undefined
from guardkeel.records import Estimate


def macro(estimates: Sequence[Estimate]) -> Estimate:
    """The mean m = Σ v_i / k of k estimates, each of which has a value; `n` is the sum of theirs.

    Interval by MOVER (Zou & Donner 2008, Statistics in Medicine 27:1693), which takes the variance near each end of
    the interval of a sum from the same end of the intervals of its parts:
    low = m − √Σ(v_i − l_i)² / k, high = m + √Σ(u_i − v_i)² / k. Unlike a bootstrap it has a width where every part is
    0 or 1. The parts are taken as independent: texts shared by two suites, and sides of one conversation, make it a
    little narrow. No interval where a part has none.
    """
    k = len(estimates)
    values = [e.value for e in estimates if e.value is not None]
    if not k or len(values) < k:
        return undefined("no suite has it for every guard")
    n, mean = sum(e.n for e in estimates), sum(values) / k
    lows = [e.low for e in estimates if e.low is not None]
    highs = [e.high for e in estimates if e.high is not None]
    if len(lows) < k or len(highs) < k:
        return Estimate(value=mean, n=n, note="a suite has no interval")
    below = math.sqrt(sum((v - low) ** 2 for v, low in zip(values, lows, strict=True))) / k
    above = math.sqrt(sum((high - v) ** 2 for v, high in zip(values, highs, strict=True))) / k
    return Estimate(value=mean, low=max(0.0, mean - below), high=min(1.0, mean + above), n=n)
