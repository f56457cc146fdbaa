"""How far activations moved, and how much of the move lies in the safety subspace.

    drift  = RMS‖h′ − h‖ / RMS‖h − μ‖        (0 nothing moved; 1 moved by as much as items differ)
    inside = Σ‖Uᵀ(h′ − h)‖² / Σ‖h′ − h‖²     (a random subspace of R^d gets k/d on average)

Intervals are percentile bootstraps over items (or groups), with μ and U held fixed; where a few items move
much more than the others they are a little short. U should come from other items than those that it is
applied to (cross-fitted): a basis leans towards the items that it was fitted on. The null, a random subspace,
knows nothing of the model: drift follows the directions in which activations vary anyway, so a small p alone
does not say that safety was singled out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.angles import random_shares
from guardkeel.geometry.inputs import Groups, activations, centred, group_ids
from guardkeel.geometry.resampling import bootstrap_weights
from guardkeel.geometry.values import (
    Array,
    Indices,
    MeasureValue,
    Value,
    against_null,
    not_measured,
    unmeasured,
)

RESAMPLES = 500


def drift(
    reference: ArrayLike, candidate: ArrayLike, *, seed: int = 0, groups: Groups | None = None
) -> Value:
    """Relative RMS change of (n, d) activations, with a bootstrap interval.

    None, with a note, where the reference does not vary.

    Raises:
        DataError: NaN or infinite activations.
        ValueError: shapes differ.
    """
    x, moved = _change(reference, candidate)
    spread = np.sum(centred(x) ** 2, axis=1)
    if not spread.any():
        return not_measured(len(x), "the reference's activations do not vary")
    value, low, high = _ratio(np.sum(moved**2, axis=1), spread, group_ids(groups, len(x)), seed)
    return Value(float(np.sqrt(value)), float(np.sqrt(low)), float(np.sqrt(high)), len(x))


def drift_inside(
    reference: ArrayLike,
    candidate: ArrayLike,
    bases: Sequence[tuple[Indices, Array]],
    *,
    draws: int = 100,
    seed: int = 0,
    groups: Groups | None = None,
) -> MeasureValue:
    """Share of the squared change in the subspace, with bootstrap interval and random-subspace null.

    The null draws one subspace for all items; two cross-fitted ones average out a little more, so that its
    95th percentile is on the safe side. None, with a note, where nothing moved.

    Args:
        reference, candidate: activations (n, d) of the same items.
        bases: (item numbers, basis (d, k)) pairs that cover each item once; one pair for a fixed basis.
        draws: random subspaces.
        seed: of bootstrap and null.
        groups: items that are not independent of each other share an entry.

    Raises:
        DataError: NaN or infinite activations.
        ValueError: shapes differ, or the bases do not cover each item once.
    """
    x, moved = _change(reference, candidate)
    n, d = x.shape
    if not np.array_equal(np.sort(np.concatenate([items for items, _ in bases])), np.arange(n)):
        raise ValueError(f"the bases must cover each of {n} items once")
    total = np.sum(moved**2, axis=1)
    if not total.any():
        return unmeasured(n, "nothing moved, so no share of it is inside")
    inside = np.zeros(n)
    for items, basis in bases:
        inside[items] = np.sum((moved[items] @ basis) ** 2, axis=1)
    value, low, high = _ratio(inside, total, group_ids(groups, n), seed)
    scatter = moved @ moved.T if n < d else moved.T @ moved
    weights = np.clip(np.linalg.eigvalsh(scatter), 0.0, None)
    rank = max(basis.shape[1] for _, basis in bases)
    null = random_shares(weights, d, rank, draws, np.random.default_rng((seed, 3)))
    return against_null(Value(value, low, high, n), null, mean=rank / d)


def _change(reference: ArrayLike, candidate: ArrayLike) -> tuple[Array, Array]:
    x, x2 = activations(reference, "reference activations"), activations(candidate, "candidate activations")
    if x.shape != x2.shape:
        raise ValueError(f"drift needs the same items and features, got shapes {x.shape} and {x2.shape}")
    return x, x2 - x


def _ratio(top: Array, bottom: Array, groups: Indices, seed: int) -> tuple[float, float, float]:
    """Σtop/Σbottom with its percentile interval."""
    one_kind, one_stratum = np.ones(groups.size, dtype=bool), np.zeros(groups.size, dtype=np.int64)
    weights = bootstrap_weights(one_kind, groups, one_stratum, RESAMPLES, np.random.default_rng((seed, 4)))
    drawn_top, drawn_bottom = weights @ top, weights @ bottom
    drawn = drawn_top[drawn_bottom > 0] / drawn_bottom[drawn_bottom > 0]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(top.sum() / bottom.sum()), float(low), float(high)
