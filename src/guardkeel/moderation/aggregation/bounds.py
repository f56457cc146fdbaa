"""Regret bounds, as numbers: how much more than an expert the ensemble can have lost, whatever happened.

n is the number of experts, `rounds` T the number of rounds of full weight (for rounds of weights s ≤ 1, the sum of s²);
losses lie in [0, 1] unless said otherwise. Every bound holds against each expert on the rounds on which it was awake,
for the loss Σ w_i ℓ_i, and so for the loss of the weighted mean where the loss is convex. PLG: Cesa-Bianchi & Lugosi,
"Prediction, Learning, and Games" (2006).
"""

from __future__ import annotations

from math import log, log1p, sqrt

from guardkeel.moderation.aggregation.rule import log_size


def hedge(n: int, rate: float, rounds: float) -> float:
    """Hedge at a fixed rate: ln N / η + η T / 8 (PLG theorem 2.2)."""
    return log_size(n) / rate + rate * rounds / 8


def hedge_horizon(n: int, rounds: float) -> float:
    """Hedge at η = √(8 ln N / T): √(T ln N / 2)."""
    return sqrt(rounds * log_size(n) / 2)


def hedge_anytime(n: int, rounds: float) -> float:
    """Hedge at η_t = √(8 ln N / t): √(T ln N / 2) + √((T + 1) ln N / 8); the + 1 is for rounds of s < 1."""
    return sqrt(rounds * log_size(n) / 2) + sqrt((rounds + 1) * log_size(n) / 8)


def curved(n: int, rate: float) -> float:
    """Hedge under log loss at η ≤ 1 or Brier at η ≤ ½, for the weighted mean: ln N / η (PLG theorem 3.2)."""
    return log_size(n) / rate


def adahedge(n: int, rounds: float) -> float:
    """AdaHedge: √(T ln N) + 4/3 ln N + 2 (arXiv:1301.0534, corollary 7)."""
    return sqrt(rounds * log_size(n)) + 4 / 3 * log_size(n) + 2


def fixed_share(
    n: int, rate: float, share: float, switches: int, rounds: int, *, curved: bool = False
) -> float:
    """Fixed Share against the best sequence of experts with so many switches (PLG theorem 5.2).

    ((k + 1) ln N + ln 1 / (α^k (1 − α)^{T−k−1})) / η + η T / 8, without the last term under curved losses.
    """
    path = (switches + 1) * log(n) - switches * log(share) - (rounds - switches - 1) * log1p(-share)
    return path / rate + (0.0 if curved else rate * rounds / 8)


def squint(n: int, variance: float, rounds: float) -> float:
    """Squint, improper prior, V = Σ r² of the expert: arXiv:1502.08009, theorem 4 (see squint.py)."""
    inside = n * (0.5 + log(rounds + 1))
    return sqrt(2 * variance) * (1 + sqrt(2 * log(inside))) + 5 * log1p(2 * inside)


def delay(rate: float, outstanding: float) -> float:
    """What delayed feedback adds to Hedge at a fixed rate: η D / 4.

    D sums, over the rows of the log, how many rows before it had not yet arrived when its item was served. One loss in
    [0, 1] that is left out of the weights moves the expected loss by at most η times a covariance of two numbers in
    [0, 1], which is at most ¼.
    """
    return rate * outstanding / 4


def audited(n: int, served: int, floor: float) -> float:
    """Expected regret over all served items when each is audited with probability q ≥ floor: √(T ln N / 2 floor).

    Hedge at η = √(8 ln N / (floor · T)) on losses weighted by floor / q: their squares have expectation floor² / q ≤
    floor each. Half the bound of PLG theorem 6.1, whose weights are 1 / q and are not bounded by 1.
    """
    return sqrt(served * log_size(n) / (2 * floor))
