"""Squint with the improper prior: second-order, for many experts (Koolen & van Erven 2015, arXiv:1502.08009).

With r_i = h − ℓ_i the regret of a round, R_i = Σ r_i and V_i = Σ r_i²:

    w_i ∝ ∫₀^½ e^{η R_i − η² V_i} dη

which averages over all rates and so needs none. It pays for the variance V of the regret instead of T, and for the
share of experts that are good instead of ln N: many near-duplicates cost nothing. The asleep have r = 0. For every
expert (theorem 4, L = ½ + ln(T + 1)):

    R_i ≤ √(2 V_i) (1 + √(2 ln(N L))) + 5 ln(1 + 2 N L)

It rests on Σ_i Φ(R_i, V_i) ≤ 0 for Φ(R, V) = ∫₀^½ (e^{ηR − η²V} − 1)/η dη, which needs |r| ≤ 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from guardkeel.moderation.aggregation.rule import Array, Mask, normalised

_SMALL = 1e-10  # variance below which e^{−η²V} is 1 to eleven digits
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class Squint:
    """State: R (n), V (n)."""

    @property
    def bounded(self) -> bool:
        """|r| ≤ 1 is needed."""
        return True

    def start(self, n: int) -> Array:
        """No regret."""
        return np.zeros(2 * n)

    def weights(self, state: Array, awake: Mask) -> Array:
        """Proportional to the evidence of each expert."""
        return normalised(log_evidence(state[..., : awake.size], state[..., awake.size :]), awake)

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Add regret and its square for the awake."""
        w = self.weights(state, awake)
        scaled = weight * losses
        regret = np.where(awake, (w * scaled).sum(axis=-1, keepdims=True) - scaled, 0.0)
        new: Array = state + np.concatenate((regret, regret * regret), axis=-1)
        return new


def log_evidence(regret: Array, variance: Array) -> Array:
    """ln ∫₀^½ e^{ηR − η²V} dη, elementwise.

    Completing the square: = ln √(π/V) + R²/4V + ln(Φ(√2 a) − Φ(√2 b)), a = R / 2√V, b = a − √V / 2, Φ the normal
    distribution function. The difference is taken in the lower tail, where it keeps its digits; R² ≤ T V keeps those of
    a² for any T that will ever be reached.
    """
    root = np.sqrt(np.maximum(variance, _SMALL))
    a = regret / (2 * root)
    b = a - root / 2
    upper = a + b > 0
    high, low = np.sqrt(2) * np.where(upper, -b, a), np.sqrt(2) * np.where(upper, -a, b)
    top = log_ndtr(high)
    with np.errstate(divide="ignore"):  # where the other branch is taken
        curved: Array = (
            0.5 * np.log(np.pi) - np.log(root) + a * a + top + np.log(-np.expm1(log_ndtr(low) - top))
        )
    still = variance < _SMALL
    if not still.any():
        return curved
    r = np.where(still, regret, 0.0)
    flat = np.log(np.where(np.abs(r) > _TINY, np.expm1(r / 2) / np.where(np.abs(r) > _TINY, r, 1.0), 0.5))
    return np.where(still, flat, curved)
