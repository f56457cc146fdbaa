"""AdaHedge: Hedge that finds its own rate (de Rooij, van Erven, Grünwald & Koolen 2014, arXiv:1301.0534).

    η_t = ln N / Δ_{t−1},   Δ_t = Δ_{t−1} + δ_t,   δ_t = h_t − m_t ≥ 0

h_t = Σ w_i ℓ_i is the ensemble's loss and m_t its mix loss; δ_t, the mixability gap, is what the rate has cost. Then
R_T ≤ 2 Δ_T always, and R_T ≤ √(Σ s_t² ln N) + 4/3 ln N + 2 with s_t ≤ 1 the range of round t (corollary 7). No
horizon and no range of losses has to be known; where one expert leads clearly Δ stays small and so does the regret.
Until the first gap η is infinite, and the rule follows the leader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guardkeel.moderation.aggregation.rule import Array, Mask, log_size, mix_loss, normalised

_NO_GAP = 1e-12  # ln N over this is as good as an infinite rate, for losses of order 1


@dataclass(frozen=True, slots=True)
class AdaHedge:
    """State: cumulative losses (n), cumulative mixability gap Δ."""

    @property
    def bounded(self) -> bool:
        """Any scale of losses will do."""
        return False

    def start(self, n: int) -> Array:
        """Nothing lost, no gap."""
        return np.zeros(n + 1)

    def weights(self, state: Array, awake: Mask) -> Array:
        """Proportional to exp(−η L) at the current rate."""
        lost, gap = state[..., :-1], state[..., -1]
        return normalised(-_rate(gap, awake.size)[..., None] * lost, awake)

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Add losses and gap; the asleep are charged the mix loss of the awake."""
        lost, gap = state[..., :-1], state[..., -1]
        rate = _rate(gap, awake.size)
        w = normalised(-rate[..., None] * lost, awake)
        scaled = weight * losses
        mixed = mix_loss(w, scaled, rate)
        new = state.copy()
        new[..., :-1] += np.where(awake, scaled, mixed[..., None])
        new[..., -1] += np.maximum((w * scaled).sum(axis=-1) - mixed, 0.0)
        return new


def _rate(gap: Array, n: int) -> Array:
    return np.asarray(log_size(n) / np.maximum(gap, _NO_GAP))
