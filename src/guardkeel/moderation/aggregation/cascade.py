"""Asking cheap experts first, and the rest only where they could matter.

Experts are asked in the order of their cost. After each answer the tilted mean m of those who answered is looked at
(tilting: losses.py); W is their weight and R that of those not asked. No more are asked once

    settled      whatever the others say, the decision stays: W m / (W + R) ≥ ½ or (W m + R) / (W + R) < ½
    confident    m − ½ ≥ reach · R / (W + R) or ½ − m > reach · R / (W + R), and those who answered disagree by at most
                 `disagreement`: the decision stays if the others' mean is no further than `reach` from theirs

Settling costs nothing: the decision is that of the whole ensemble, and a later abstention cannot change it. Confidence
costs a little, which `fit_reach` keeps under a margin on items kept apart for it. A cheap expert of little weight
settles little, however sure it is. Experts that were not asked are asleep
in what is learnt from the item; nothing else needs to know of the cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from scipy.special import ndtri

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation.aggregator import Advice
from guardkeel.moderation.aggregation.estimates import Interval
from guardkeel.moderation.aggregation.losses import Costs
from guardkeel.moderation.aggregation.rule import Array, Mask


@dataclass(frozen=True, slots=True)
class Cascade:
    """Whom to ask next.

    Args:
        costs: what asking each expert costs (n), in any one unit: money, milliseconds.
        reach: how far from the mean of those who answered that of the others is taken to lie at most, in [0, 1]; at 1
            only settled items stop early, at 0 the first answer is believed.
        disagreement: the most (twice their weighted standard deviation) at which they are believed.
    """

    costs: tuple[float, ...]
    _: KW_ONLY
    reach: float = 1.0
    disagreement: float = 0.5

    def __post_init__(self) -> None:
        if not self.costs or not all(0 <= c < np.inf for c in self.costs) or not 0 <= self.reach <= 1:
            raise ConfigError(
                f"cascade with costs {self.costs!r} and reach {self.reach!r}",
                remedy="give each expert a finite cost from 0 on, and a reach in [0, 1]",
            )

    @property
    def order(self) -> tuple[int, ...]:
        """Experts by cost, cheapest first; equal costs in the order of the experts."""
        return tuple(sorted(range(len(self.costs)), key=lambda i: self.costs[i]))

    def next_expert(
        self, advice: Advice, asked: Sequence[bool] | Mask, weights: Array, costs: Costs | None = None
    ) -> int | None:
        """The expert to ask next; None when those asked will do.

        Args:
            advice: calibrated P(unsafe) (n,), None or NaN for the not asked and for those who abstained.
            asked: who was asked (n,).
            weights: of all experts in the item's context (n,), as Aggregator.weights gives them.
            costs: of the two errors.
        """
        tilted = (costs or Costs()).tilt(np.array(advice, dtype=np.float64))
        was = np.asarray(asked, dtype=np.bool_)
        if not self._open(tilted[None], was, np.asarray(weights)[None])[0]:
            return None
        return next((i for i in self.order if not was[i]), None)

    def _open(self, tilted: Array, asked: Mask, weights: Array) -> Mask:
        """Of items (t, n) of which the same experts were asked (n,): where more should be."""
        heard = asked & ~np.isnan(tilted)
        w, t = np.where(heard, weights, 0.0), np.where(heard, tilted, 0.5)
        mass, rest = w.sum(axis=1), np.where(asked, 0.0, weights).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # no mass: no answer yet, nothing below is True
            mean = (w * t).sum(axis=1) / mass
            spread = 2 * np.sqrt((w * (t - mean[:, None]) ** 2).sum(axis=1) / mass)
            settled = (mass * mean >= (mass + rest) / 2) | (mass * mean + rest < (mass + rest) / 2)
            reach = self.reach * rest / (mass + rest)
            far = np.where(mean < 0.5, 0.5 - mean > reach, mean - 0.5 >= reach)  # a mean of ½ is flagged
            sure = far & (spread <= self.disagreement)
        more: Mask = ~((mass > 0) & (settled | sure))
        return more


@dataclass(frozen=True, slots=True)
class Savings:
    """What a cascade saves over asking everyone, and what it costs, with intervals over items.

    Args:
        calls: share of the calls saved.
        cost: share of the experts' cost saved.
        loss: mean extra cost of its decisions, in [−1, 1]: those of the cascade − those of the whole ensemble, paired.
        changed: share of items decided otherwise.
    """

    calls: Interval
    cost: Interval
    loss: Interval
    changed: float


def run_cascade(
    cascade: Cascade, advice: Array, weights: Array, costs: Costs | None = None
) -> tuple[Mask, Array]:
    """Who is asked about each of t items (t, n), and the tilted mean of those who answered (t,), NaN where none did.

    `advice` is (t, n); `weights` (t, n), or (n,) for all items alike.
    """
    tilted = (costs or Costs()).tilt(np.asarray(advice, dtype=np.float64))
    w = np.broadcast_to(np.asarray(weights, dtype=np.float64), tilted.shape)
    asked = np.zeros(tilted.shape, dtype=np.bool_)
    still = np.arange(len(tilted))
    done = np.zeros(tilted.shape[1], dtype=np.bool_)
    for expert in cascade.order:
        asked[still, expert] = done[expert] = True
        still = still[cascade._open(tilted[still], done, w[still])]
    return asked, _mean(tilted, asked, w)


def _mean(tilted: Array, asked: Mask, weights: Array) -> Array:
    """The weighted mean of those who answered (t,), NaN where none did."""
    heard = np.where(asked & ~np.isnan(tilted), weights, 0.0)
    with np.errstate(invalid="ignore"):
        found: Array = (heard * np.where(heard > 0, tilted, 0.0)).sum(axis=1) / heard.sum(axis=1)
    return found


def simulate(
    cascade: Cascade,
    advice: Array,
    weights: Array,
    unsafe: Mask,
    costs: Costs | None = None,
    *,
    confidence: float = 0.95,
) -> Savings:
    """Offline: a cascade against the whole ensemble on items (t, n) whose advice is all known, t ≥ 2.

    An unscored item counts as wrong in both.
    """
    errors = costs or Costs()
    asked, mean = run_cascade(cascade, advice, weights, errors)
    tilted = errors.tilt(np.asarray(advice, dtype=np.float64))
    whole = _mean(tilted, np.ones(tilted.shape, dtype=np.bool_), np.asarray(weights, dtype=np.float64))
    price = np.asarray(cascade.costs) / (sum(cascade.costs) or 1.0)
    share = np.where(unsafe, errors.share(True), errors.share(False))

    def wrong(mean: Array) -> Array:
        return np.asarray(share * (np.isnan(mean) | ((mean >= 0.5) != unsafe)))

    def over(values: Array) -> Interval:
        half = float(ndtri(0.5 + confidence / 2)) * float(values.std(ddof=1)) / np.sqrt(values.size)
        middle = float(values.mean())
        return Interval(middle, middle - half, middle + half, values.size, float(values.size))

    return Savings(
        calls=over(1.0 - asked.mean(axis=1)),
        cost=over(1.0 - asked @ price),
        loss=over(wrong(mean) - wrong(whole)),
        changed=float(((mean >= 0.5) != (whole >= 0.5)).mean()),
    )


def fit_reach(
    cascade: Cascade,
    advice: Array,
    weights: Array,
    unsafe: Mask,
    costs: Costs | None = None,
    *,
    margin: float = 0.01,
    steps: int = 50,
) -> Cascade:
    """The cascade with the least reach whose loss is within a margin of the whole ensemble's on these items.

    Within: the upper end of the paired 95% interval of the extra loss is at most `margin`. Reaches are tried from 1
    down, and the first that fails ends the search. Measure the savings on other items.
    """
    best = replace(cascade, reach=1.0)
    for reach in np.linspace(1.0, 0.0, steps + 1).tolist():
        tried = replace(cascade, reach=reach)
        if simulate(tried, advice, weights, unsafe, costs).loss.high > margin:
            break
        best = tried
    return best
