"""What an aggregation rule is: weights over N experts, folded over their losses round by round.

A rule is a frozen set of parameters. All that it learns is one row of float64 numbers, its state; `weights` and
`update` are pure functions of it. States may be stacked, shape (..., width): one call then serves several tables.

Experts may sleep (abstain). Weights are over the awake, and a round changes the standing of the awake among
themselves only: their common share of the whole stays what it was (Freund, Schapire, Singer & Warmuth 1997,
"Using and combining predictors that specialize"). So regret is counted against each expert on the rounds on which it
was awake, and a bound that holds for experts who never sleep holds for these.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from guardkeel.errors import ConfigError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Rule(Protocol):
    """How weights follow from losses."""

    @property
    def bounded(self) -> bool:
        """Whether the rule is made for losses in [0, 1]."""

    def start(self, n: int) -> Array:
        """The state before the first round, for n experts, shape (width,)."""

    def weights(self, state: Array, awake: Mask) -> Array:
        """Weights (..., n) that sum to 1 and are 0 for the asleep; at least one of `awake` (n,) must be True."""

    def update(self, state: Array, losses: Array, awake: Mask, weight: float = 1.0) -> Array:
        """The state after a round.

        Args:
            state: (..., width); it is not changed.
            losses: of the experts (n,), in [0, 1] (log loss excepted), finite also where asleep.
            awake: who gave advice (n,), at least one.
            weight: of the round in (0, 1]; the losses are multiplied by it.
        """


def normalised(log_weights: Array, awake: Mask) -> Array:
    """Softmax of (..., n) over the awake (n,); 0 for the asleep."""
    x = np.where(awake, log_weights, -np.inf)
    return shared(np.exp(x - x.max(axis=-1, keepdims=True)))


def shared(shares: Array) -> Array:
    """Non-negative numbers (..., n) over their sum."""
    w: Array = shares / shares.sum(axis=-1, keepdims=True)
    return w


def mix_loss(weights: Array, losses: Array, rate: Array) -> Array:
    """−1/η · ln Σ w_i e^{−η ℓ_i} over weights (..., n), losses (n,) and rates η > 0 (...): at most Σ w_i ℓ_i.

    What exponential weights are charged: with it the sum telescopes, M_T ≤ min_i L_i + ln N / η. Where a weight is
    0 the loss does not matter.
    """
    low = np.where(weights > 0, losses, np.inf).min(axis=-1)
    # the exponents of experts without weight may be positive; they are cut so that 0 · e^x stays 0
    power = np.expm1(np.minimum(-rate[..., None] * (losses - low[..., None]), 0.0))
    result: Array = low - np.log1p((weights * power).sum(axis=-1)) / rate
    return result


def log_size(n: int) -> float:
    """ln N of the rates; ln 2 for one expert, whose weight is 1 at any rate."""
    return float(np.log(max(n, 2)))


def positive(name: str, value: float, most: float = np.inf) -> None:
    """Refuse a parameter outside (0, most)."""
    if not 0 < value < most:
        span = "be positive and finite" if most == np.inf else f"lie between 0 and {most:g}"
        raise ConfigError(f"{name} is {value!r}", remedy=f"it must {span}")
