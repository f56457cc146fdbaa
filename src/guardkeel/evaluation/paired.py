"""Paired comparison of one rate: exact McNemar, Tango's score test and interval, Newcombe's interval, Holm.

Both guards judge the same n items. `worse` items changed for the worse, `better` for the better; the rest did
not change. harm δ = P(worse) − P(better), estimated by (worse − better)/n. Counts may be fractional: they are
then effective counts of clustered items (counts divided by the design effect).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from scipy.optimize import brentq
from scipy.special import betainc, ndtr, ndtri

from guardkeel.evaluation.intervals import CONFIDENCE, wilson, z_value

Outcome = Literal["non-inferior", "inferior", "insufficient evidence"]


def mcnemar_exact(worse: float, better: float) -> float:
    """Two-sided exact McNemar p-value that anything changed: twice the smaller tail of `harm_p`, or 1."""
    return min(1.0, 2.0 * harm_p(max(worse, better), min(worse, better)))


def harm_p(worse: float, better: float) -> float:
    """One-sided exact McNemar p-value of harm (H0: δ ≤ 0): P(X ≥ worse), X ~ Binomial(worse + better, ½).

    The tail is the regularised incomplete beta I_½(worse, better + 1), which also takes effective counts.
    """
    return float(betainc(worse, better + 1, 0.5)) if worse > 0 else 1.0


def tango_z(worse: float, better: float, n: float, delta: float) -> float:
    """Tango's score statistic of H0: harm = delta (Tango 1998, Statistics in Medicine 17:891, eq. 4).

    z = (worse − better − nδ) / √(n(2q + δ(1 − δ))), q the maximum-likelihood P(better) given the harm δ:
    q = (√(B² − 4AC) − B)/2A, A = 2n, B = −worse − better + (2n − worse + better)δ, C = −better·δ(1 − δ).
    Falls as δ grows. n > 0, −1 ≤ δ ≤ 1.
    """
    a = 2.0 * n
    b = -worse - better + (2.0 * n - worse + better) * delta
    c = -better * delta * (1.0 - delta)
    root = math.sqrt(max(0.0, b * b - 4.0 * a * c))
    # the usual quadratic formula cancels where b > 0
    q = -2.0 * c / (b + root) if b > 0 else (root - b) / (2.0 * a)
    top = worse - better - n * delta
    variance = n * (2.0 * q + delta * (1.0 - delta))
    if variance <= 1e-12 * n:
        return 0.0 if abs(top) < 1e-9 else math.copysign(math.inf, top)
    return top / math.sqrt(variance)


def tango_interval(
    worse: float, better: float, n: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Tango's score interval of the harm: all δ with |z(δ)| ≤ z_crit. Sound without any discordant pair."""
    critical = z_value(confidence)
    harm = (worse - better) / n

    def end(sign: float) -> float:
        edge = -sign  # the end of the range on the side that is sought
        if abs(harm - edge) < 1e-12:
            return edge

        def beyond(delta: float) -> float:  # z is infinite at the edge, which the root finder cannot use
            return max(-1e6, min(1e6, tango_z(worse, better, n, delta))) - sign * critical

        return float(brentq(beyond, harm, edge, xtol=1e-10))

    return end(1.0), end(-1.0)


def noninferiority_p(worse: float, better: float, n: float, margin: float) -> float:
    """One-sided p-value of non-inferiority, H0: harm ≥ margin: Φ(z(margin)), Tango's score test."""
    return float(ndtr(tango_z(worse, better, n, margin)))


def newcombe_interval(
    both: float, worse: float, better: float, neither: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Newcombe's paired interval of (worse − better)/n (Newcombe 1998, Stat. in Medicine 17:2635, method 10).

    Wilson intervals [l, u] of p1 = (both + worse)/n and p2 = (both + better)/n, squared and added with the
    correlation φ, continuity-corrected towards 0: low = d − √((p1−l1)² − 2φ(p1−l1)(u2−p2) + (u2−p2)²).
    """
    n = both + worse + better + neither
    x1, x2 = both + worse, both + better
    product = x1 * (n - x1) * x2 * (n - x2)
    cross = both * neither - worse * better
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = corrected / math.sqrt(product) if product > 0 else 0.0
    p1, p2 = x1 / n, x2 / n
    (l1, u1), (l2, u2) = wilson(x1, n, confidence), wilson(x2, n, confidence)

    def width(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))

    d = p1 - p2
    return d - width(p1 - l1, u2 - p2), d + width(u1 - p1, p2 - l2)


def detectable_margin(n: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest margin that n pairs could resolve if there is no harm in truth; None without pairs.

    With discordance ψ = (worse + better)/n split evenly, the margin Δ at which Tango's one-sided test at
    `alpha` has the power: Δ = z_α se₀(Δ) + z_β √(ψ/n), se₀ the score's standard error under harm = Δ. At
    most 1.
    """
    if n <= 0:
        return None
    z_alpha, z_beta = float(ndtri(1 - alpha)), float(ndtri(power))
    half = n * discordance / 2

    def spare(margin: float) -> float:
        # z(Δ) = −nΔ / (n se₀) when worse = better, so se₀ = −Δ / z
        standard_error = -margin / tango_z(half, half, n, margin)
        return margin - z_alpha * standard_error - z_beta * math.sqrt(discordance / n)

    if spare(1 - 1e-9) <= 0:
        return 1.0
    return float(brentq(spare, 1e-9, 1 - 1e-9, xtol=1e-9))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: max over j ≤ i of min(1, (m − j + 1) p_(j)), in the order given."""
    adjusted = [0.0] * len(ps)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def outcome(p_holm: float, harm: float, low: float, margin: float, alpha: float) -> Outcome:
    """The word for a paired test.

    non-inferior: p_holm ≤ alpha, so harm ≥ margin is refuted. inferior: the interval of harm lies above 0
    (the harm is no accident) and its best estimate exceeds the margin. Anything else is insufficient
    evidence: nobody may read it as a pass. The rule for *inferior* asks less than an interval wholly beyond
    the margin, for a guard that demonstrably got worse by more than was agreed should not wait for more data.
    """
    if p_holm <= alpha:
        return "non-inferior"
    return "inferior" if low > 0 and harm > margin else "insufficient evidence"
