"""Rules to compare with, neither of which is safe: follow the leader, and equal weights.

Following the leader has constant regret on easy data and regret T (1 − 1/N) on adversarial data. Equal weights learn
nothing, and are hard to beat where the experts are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guardkeel.moderation.aggregation.rule import Array, Mask, shared


@dataclass(frozen=True, slots=True)
class FollowTheLeader:
    """All weight on the least loss so far, shared between exact ties; the asleep are charged the ensemble's loss."""

    @property
    def bounded(self) -> bool:
        """Any loss will do."""
        return False

    def start(self, n: int) -> Array:
        """Nothing lost."""
        return np.zeros(n)

    def weights(self, state: Array, awake: Mask) -> Array:
        """Equal over the leaders."""
        lost = np.where(awake, state, np.inf)
        return shared((lost == lost.min(axis=-1, keepdims=True)).astype(np.float64))

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Add the losses."""
        own = (self.weights(state, awake) * losses).sum(axis=-1, keepdims=True)
        return state + weight * np.where(awake, losses, own)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Equal weights of the awake; no state."""

    @property
    def bounded(self) -> bool:
        """Any loss will do."""
        return False

    def start(self, n: int) -> Array:
        """Nothing to remember."""
        return np.zeros(0)

    def weights(self, state: Array, awake: Mask) -> Array:
        """1 / awake."""
        w = awake / awake.sum()
        return np.broadcast_to(w, (*state.shape[:-1], awake.size)).copy()

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """Nothing changes."""
        return state
