"""What a verdict costs: two kinds of error, and the losses that experts are charged.

A missed harm costs `miss`, a false alarm `alarm`. With a calibrated P(unsafe) the cheapest decision is to flag from

    threshold = alarm / (miss + alarm)

on. Advice f is *tilted* before anything is done with it, so that this threshold comes to lie at one half:

    t = miss f / (miss f + alarm (1 − f))

that is, ln(miss / alarm) is added to its log-odds. With s_y = miss or alarm over the larger of them, a loss is

    brier      s_y (t − y)²                 the default
    log        s_y · −ln(t or 1 − t)        t cut to [1e-6, 1 − 1e-6]
    absolute   s_y |t − y|
    decision   s_y, where t ≥ ½ and y disagree, else 0

All but log lie in [0, 1]. Brier and log stay proper under unequal costs: what minimises them is the tilt of the true
probability. They are convex in t, so experts are mixed there and the loss of the weighted mean is at most the mean
loss. `decision` is not: its guarantee is for the *vote*, the weight of those who flag, and the loss s_y |vote − y|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation.rule import Array, positive

LossName = Literal["brier", "log", "absolute", "decision"]
LOSSES: tuple[str, ...] = get_args(LossName)
_CUT = 1e-6


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost of a missed harm and of a false alarm; only their ratio matters."""

    miss: float = 1.0
    alarm: float = 1.0

    def __post_init__(self) -> None:
        positive("cost of a missed harm", self.miss)
        positive("cost of a false alarm", self.alarm)

    @property
    def threshold(self) -> float:
        """P(unsafe) from which flagging is the cheaper error."""
        return self.alarm / (self.miss + self.alarm)

    def share(self, unsafe: bool) -> float:
        """s_y: the cost of getting this outcome wrong, over the larger cost."""
        return (self.miss if unsafe else self.alarm) / max(self.miss, self.alarm)

    def tilt(self, p: Array) -> Array:
        """P(unsafe) with the threshold moved to one half; NaN stays NaN."""
        if self.miss == self.alarm:
            return p
        return self.miss * p / (self.miss * p + self.alarm * (1.0 - p))

    def untilt(self, t: float) -> float:
        """The P(unsafe) that was tilted to t."""
        return self.alarm * t / (self.alarm * t + self.miss * (1.0 - t))


def charge(loss: LossName, costs: Costs, tilted: Array, unsafe: bool) -> Array:
    """Losses of tilted advice, elementwise; NaN stays NaN."""
    share = costs.share(unsafe)
    if loss == "decision":
        wrong = (tilted >= 0.5) != unsafe
        return np.where(np.isnan(tilted), np.nan, share * wrong)
    if loss == "log":
        inside = cut(loss, tilted)
        return -share * np.log(inside if unsafe else 1.0 - inside)
    off = 1.0 - tilted if unsafe else tilted
    return share * (off * off if loss == "brier" else off)


def cut(loss: LossName, tilted: Array) -> Array:
    """Advice as it is mixed: log loss keeps it away from 0 and 1."""
    return np.clip(tilted, _CUT, 1.0 - _CUT) if loss == "log" else tilted


def known(loss: str) -> None:
    """ConfigError for a loss that is none of LOSSES."""
    if loss not in LOSSES:
        raise ConfigError(f"loss {loss!r} is not known", remedy=f"use one of {', '.join(LOSSES)}")
