"""A shift of P(unsafe) for each side: what a guard needs whose scores slid on one side more than on another.

A guard has one threshold. Trained on trajectories that are all safe, its scores fall for trajectories and hardly for
prompts; no one threshold suits both. `offsets` in guardkeel.json hold log-odds to add, by side:

    P' = σ(logit P + offset)

An order within a side never changes, and neither does a P of 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from guardkeel.conversation import Side

Offsets = Mapping[Side, float]
NO_OFFSETS: Offsets = {}
_NEAREST = 1e-9  # thresholds are kept this far from 0 and 1, whose log-odds are infinite


def shifted(chance: float, offset: float) -> float:
    """σ(logit(chance) + offset), in float64; `chance` itself where the offset is 0."""
    if not offset:
        return chance
    kept, odds = 1.0 - chance, chance * math.exp(offset)
    return odds / (odds + kept)


def offsets_to(threshold: float, sides: Mapping[Side, float]) -> dict[Side, float]:
    """The offsets that turn a threshold for each side into the one given: logit(threshold) − logit(side's)."""
    return {side: _logit(threshold) - _logit(own) for side, own in sides.items() if own != threshold}


def _logit(chance: float) -> float:
    chance = min(max(chance, _NEAREST), 1 - _NEAREST)
    return math.log(chance / (1 - chance))
