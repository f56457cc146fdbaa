"""Hedge, the exponentially weighted average forecaster: w_i ∝ exp(−η L_i).

Freund & Schapire 1997; Cesa-Bianchi & Lugosi 2006, chapter 2 (PLG below). The rule of AEGIS (arXiv:2404.05993).
With losses in [0, 1], R_T the largest loss of the ensemble over that of an expert, N experts:

    fixed η            R_T ≤ ln N / η + η T / 8                          PLG theorem 2.2
    known horizon T    η = √(8 ln N / T):  R_T ≤ √(T ln N / 2)
    anytime            η_t = √(8 ln N / t):  R_T ≤ √(T ln N / 2) + √(T ln N / 8), T unknown
    curved losses      log loss at η = 1: R_T ≤ ln N, the Bayesian mixture; Brier at η = ½: R_T ≤ 2 ln N, for any T

The last line is for the weighted mean of the advice, not for one expert drawn by weight: e^{−η ℓ(f, y)} is concave in
f at these rates (PLG section 3.3). The anytime constant follows from Σ mix losses ≤ min_i L_i + ln N / η_T for rates
that only fall (arXiv:1301.0534, lemma 2) and Hoeffding's η_t / 8 a round; PLG's theorem 2.3 has the larger √(2 T ln N).

Rounds may have weights s_t ≤ 1. In the anytime rate, t is then 1 + the sum of s² of the rounds before, in the
bounds T is the sum of s².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation.rule import Array, Mask, log_size, mix_loss, normalised, positive


@dataclass(frozen=True, slots=True)
class Hedge:
    """Fixed rate, known horizon, or neither: anytime.

    State: cumulative losses (n), sum of squared round weights.
    """

    rate: float | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.horizon is not None:
            raise ConfigError(
                "Hedge has both a rate and a horizon", remedy="give one of them; the horizon sets the rate"
            )
        for name, value in (("rate", self.rate), ("horizon", self.horizon)):
            if value is not None:
                positive(name, value)

    @property
    def bounded(self) -> bool:
        """A rate that was given may be meant for log loss."""
        return self.rate is None

    def start(self, n: int) -> Array:
        """Nothing lost yet."""
        return np.zeros(n + 1)

    def weights(self, state: Array, awake: Mask) -> Array:
        """Proportional to exp(−η L)."""
        lost, squares = state[..., :-1], state[..., -1]
        return normalised(-self._rate(squares, awake.size)[..., None] * lost, awake)

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Add the losses; the asleep are charged the mix loss of the awake, which keeps their share."""
        lost, squares = state[..., :-1], state[..., -1]
        charged = weight * losses
        if not awake.all():
            rate = self._rate(squares, awake.size)
            w = normalised(-rate[..., None] * lost, awake)
            charged = np.where(awake, charged, mix_loss(w, charged, rate)[..., None])
        new = state.copy()
        new[..., :-1] += charged
        new[..., -1] += weight * weight
        return new

    def _rate(self, squares: Array, n: int) -> Array:
        if self.rate is not None:
            return np.asarray(self.rate, dtype=np.float64)
        rounds = 1.0 + squares if self.horizon is None else np.asarray(float(self.horizon))
        return np.asarray(np.sqrt(8.0 * log_size(n) / rounds))


def log_mixture() -> Hedge:
    """The Bayesian mixture: Hedge at η = 1, for log loss."""
    return Hedge(rate=1.0)
