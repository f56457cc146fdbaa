"""Folds, permutations and bootstrap weights that respect labels and groups.

A *group* is a set of items that are not independent of each other: a harmful text and its harmless twin,
the turns of one conversation. Groups are never torn between folds and are drawn whole.
"""

from __future__ import annotations

import numpy as np

from guardkeel.geometry.inputs import Labels
from guardkeel.geometry.values import Array, Indices


def stratified_folds(y: Labels, groups: Indices, count: int, rng: np.random.Generator) -> Indices:
    """A fold number 0 … count − 1 for each item; groups stay whole, classes stay balanced.

    Groups come in random order, large ones first, and each goes where it raises Σ_class (share of the class
    in that fold)² least. The order looks at sizes only, never at labels, so that permuting labels inside a
    fold leaves the chance of that fold unchanged: this is what makes the permutation nulls exact.
    """
    n_groups = int(groups.max()) + 1
    ones = np.bincount(groups, weights=y, minlength=n_groups)
    size = np.bincount(groups, minlength=n_groups)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-size[order], kind="stable")]
    unsafe_scale = 1.0 / max(1, int(y.sum())) ** 2
    safe_scale = 1.0 / max(1, int((~y).sum())) ** 2
    held = [[0.0, 0.0] for _ in range(count)]
    fold_of = np.zeros(n_groups, dtype=np.int64)
    for g in order:
        a, b = float(ones[g]), float(size[g] - ones[g])
        cost = [a * (2 * h1 + a) * unsafe_scale + b * (2 * h0 + b) * safe_scale for h1, h0 in held]
        best = min(range(count), key=cost.__getitem__)
        held[best][0] += a
        held[best][1] += b
        fold_of[g] = best
    return fold_of[groups]


def permutations(groups: Indices, strata: Indices, draws: int, rng: np.random.Generator) -> Indices:
    """Item permutations, shape (draws, n): item i takes the label (or partner) of item perm[i].

    Inside each stratum, groups of equal size change places and the items within a group are shuffled.
    Without groups this is a plain permutation inside strata; with harmful–harmless twins, every twin pair
    is kept and its labels swap at random. Under "labels say nothing once groups are known" each such
    permutation is as likely as the one observed.
    """
    n = groups.size
    out = np.tile(np.arange(n, dtype=np.int64), (draws, 1))
    order = np.lexsort((groups, strata))
    _, start, size = np.unique(groups[order], return_index=True, return_counts=True)
    for stratum in np.unique(strata):
        inside = strata[order[start]] == stratum
        for s in np.unique(size[inside]):
            chosen = start[inside & (size == s)]
            blocks = order[chosen[:, None] + np.arange(s)]
            place = rng.permuted(np.tile(np.arange(len(blocks)), (draws, 1)), axis=1)
            source = rng.permuted(blocks[place], axis=2)
            out[:, blocks.ravel()] = source.reshape(draws, blocks.size)
    return out


def bootstrap_weights(
    y: Labels, groups: Indices, strata: Indices, draws: int, rng: np.random.Generator
) -> Array:
    """How often each item is drawn, shape (draws, n), when whole groups are drawn with replacement.

    Drawing is done among groups of one stratum that hold the same classes, so that both classes stay.
    """
    n_groups = int(groups.max()) + 1
    has_unsafe = np.bincount(groups, weights=y, minlength=n_groups) > 0
    has_safe = np.bincount(groups, weights=~y, minlength=n_groups) > 0
    stratum = np.zeros(n_groups, dtype=np.int64)
    stratum[groups] = strata
    kind = 4 * stratum + 2 * has_unsafe + has_safe
    counts = np.zeros((draws, n_groups))
    for k in np.unique(kind):
        members = np.flatnonzero(kind == k)
        m = members.size
        drawn = rng.integers(m, size=(draws, m)) + m * np.arange(draws)[:, None]
        counts[:, members] = np.bincount(drawn.ravel(), minlength=draws * m).reshape(draws, m)
    return counts[:, groups]


def group_sums(values: Array, groups: Indices) -> Array:
    """Sums of the rows of (n, …) `values` over each group, shape (g, …)."""
    order = np.argsort(groups, kind="stable")
    start = np.flatnonzero(np.diff(groups[order], prepend=-1))
    out: Array = np.add.reduceat(values[order], start, axis=0)
    return out


def renumbered(groups: Indices, items: Indices) -> Indices:
    """The groups of a selection of items, numbered 0 … g − 1 again."""
    return np.unique(groups[items], return_inverse=True)[1]


def jackknife_error(left_out: Array) -> float:
    """Standard error from the values with one of g groups left out: √((g−1)/g · Σ(θ₋ᵢ − mean)²).

    NaN where a value is not finite.
    """
    g = left_out.size
    if not np.isfinite(left_out).all():
        return float("nan")
    return float(np.sqrt((g - 1) / g * np.sum((left_out - left_out.mean()) ** 2)))
