"""Fixed Share: Hedge that forgets, for experts whose order changes (Herbster & Warmuth 1998).

After each round   w_i ∝ w_i e^{−η ℓ_i},  then  w_i ← (1 − α) w_i + α / N.

Every expert keeps at least α / N, so a new best one is found within ln(N / α) / (η · its lead) rounds of a flip.
Against any sequence of experts with k switches in T rounds (PLG = Cesa-Bianchi & Lugosi 2006, theorem 5.2):

    R_T ≤ ((k + 1) ln N + ln 1 / (α^k (1 − α)^{T−k−1})) / η + η T / 8

and the last term falls away for the weighted mean under curved losses (log loss at η ≤ 1, Brier at η ≤ ½), whose loss
is at most the mix loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from guardkeel.moderation.aggregation.rule import Array, Mask, log_size, positive, shared


@dataclass(frozen=True, slots=True)
class FixedShare:
    """`rate` is η, `share` is α. The rate's default is the one for Brier loss; state: the weights (n)."""

    rate: float = 0.5
    share: float = 0.01

    def __post_init__(self) -> None:
        positive("rate", self.rate)
        positive("share", self.share, most=1.0)

    @classmethod
    def tuned(cls, n: int, horizon: int, switches: int = 1) -> Self:
        """Rates that make the bound smallest for losses in [0, 1]: PLG corollary 5.1; 1 ≤ switches < horizon − 1."""
        share = switches / (horizon - 1)
        positive("switches / (horizon − 1)", share, most=1.0)
        entropy = -share * np.log(share) - (1 - share) * np.log1p(-share)
        cost = (switches + 1) * log_size(n) + (horizon - 1) * entropy
        return cls(rate=float(np.sqrt(8 * cost / horizon)), share=share)

    @property
    def bounded(self) -> bool:
        """A rate that was given may be meant for log loss."""
        return False

    def start(self, n: int) -> Array:
        """Equal weights."""
        return np.full(n, 1.0 / n)

    def weights(self, state: Array, awake: Mask) -> Array:
        """The weights, over the awake."""
        return shared(np.where(awake, state, 0.0))

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Exponential update among the awake, whose common share stays; then everyone shares."""
        scaled = weight * losses
        before = np.where(awake, state, 0.0)
        after = before * np.exp(np.minimum(self.rate * (scaled[awake].min() - scaled), 0.0))
        after *= before.sum(axis=-1, keepdims=True) / after.sum(axis=-1, keepdims=True)
        new: Array = (1.0 - self.share) * np.where(awake, after, state) + self.share / awake.size
        return new
