"""Debiased linear CKA: how alike two representations of the same items are, but for rotation and scale.

    CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)),   K = XXᵀ,  L = YYᵀ

with the unbiased HSIC of Song et al. (2012). Written with U-centred matrices (Székely & Rizzo 2014), whose
diagonal and row sums are zero, it is

    HSIC(K, L) = Σ_{i≠j} K̃_ij L̃_ij / (n(n − 3)).

The usual (biased) CKA of unrelated data tends to 1 when n < d (Murphy, Zylberberg & Fyshe, arXiv:2405.01012);
this one has mean about 0, and so may be slightly negative. It is not clipped.

The interval is a jackknife and not a bootstrap: a bootstrap sample holds items twice, an item and its copy
are perfectly alike in both representations, and the unbiased HSIC counts such pairs as evidence of likeness.
Leaving a group of items out never makes copies, and costs O(n²) for all groups together. It is taken on
the scale of arctanh CKA, so that it ends inside [−1, 1].

What CKA does not see: a shift of all items by one vector, and so a moved threshold. A collapsed guard can
keep a high CKA; read it beside drift and behaviour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.inputs import Groups, activations, centred_gram, group_ids
from guardkeel.geometry.resampling import group_sums, jackknife_error, permutations
from guardkeel.geometry.values import Array, Indices, MeasureValue, Value, against_null, interval, unmeasured

SMALLEST = 5
_ROUNDING = 1e-24


def cka(
    x: ArrayLike, y: ArrayLike, *, draws: int = 100, seed: int = 0, groups: Groups | None = None
) -> MeasureValue:
    """Debiased CKA of (n, d) and (n, e) activations of the same items, with jackknife interval and null.

    The null pairs each item's x with another item's y. Undefined (None, with a note) for fewer than 5 items
    or groups, or where a representation does not vary.

    Args:
        x, y: activations (n, d) and (n, e), rows of the same items.
        draws: permutations for the null.
        seed: of the permutations.
        groups: items that are not independent of each other share an entry.

    Raises:
        DataError: NaN or infinite activations.
        ValueError: different numbers of items.
    """
    x, y = activations(x, "first activations"), activations(y, "second activations")
    if len(x) != len(y):
        raise ValueError(f"CKA compares the same items, got {len(x)} and {len(y)}")
    ids = group_ids(groups, len(x))
    return cka_of_grams(centred_gram(x), centred_gram(y), ids, draws=draws, rng=np.random.default_rng(seed))


def cka_of_grams(
    k: Array,
    other: Array,
    groups: Indices,
    *,
    draws: int,
    rng: np.random.Generator,
) -> MeasureValue:
    """The same from Gram matrices (n, n) and group numbers."""
    n, n_groups = len(k), int(groups.max()) + 1
    if n_groups < SMALLEST:
        return unmeasured(n, f"CKA needs at least {SMALLEST} independent items, got {n_groups}")
    if not k.any() or not other.any():
        return unmeasured(n, "activations do not vary")
    a, b = u_centred(k), u_centred(other)
    aa, bb, ab = np.vdot(a, a), np.vdot(b, b), np.vdot(a, b)
    if aa <= _ROUNDING * np.vdot(k, k) or bb <= _ROUNDING * np.vdot(other, other):
        return unmeasured(n, "no likeness between items beyond their norms")
    scale = float(np.sqrt(aa * bb))
    value = float(ab) / scale
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = _leave_out(a, b, groups) / np.sqrt(_leave_out(a, a, groups) * _leave_out(b, b, groups))
    low, high = _interval(value, left_out)
    note = "" if low is not None else "no interval: without one group of items it is undefined"
    strata = np.zeros(n, dtype=np.int64)
    null = (
        np.array([np.vdot(a, b.take(p, 0).take(p, 1)) for p in permutations(groups, strata, draws, rng)])
        / scale
    )
    return against_null(Value(value, low, high, n, note), null)


def u_centred(gram: Array) -> Array:
    """Székely's U-centring: zero diagonal, zero row sums, unchanged by a shift of the activations. n ≥ 3."""
    n = len(gram)
    bare = gram.copy()
    np.fill_diagonal(bare, 0.0)
    rows = bare.sum(axis=1)
    out: Array = bare - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0.0)
    return out


def _leave_out(a: Array, b: Array, groups: Indices) -> Array:
    """HSIC of what is left without each group, shape (g,), from U-centred matrices of all n items.

    With m items left, r the sums that the rest loses to group G (rows of A sum to zero, so row j is left
    with −A_Gj) and s_A = A_GG:  [t + s_A·s_B/((m−1)(m−2)) − 2/(m−2)·Σ_{j∉G} A_Gj·B_Gj] / (m(m−3)).
    """
    product = a * b
    outside = np.ones((int(groups.max()) + 1, groups.size), dtype=bool)
    outside[groups, np.arange(groups.size)] = False
    a_rows, b_rows = group_sums(a, groups), group_sums(b, groups)
    p_rows = group_sums(product, groups)
    t = product.sum() - 2 * p_rows.sum(axis=1) + np.sum(p_rows, axis=1, where=~outside)
    s_a, s_b = np.sum(a_rows, axis=1, where=~outside), np.sum(b_rows, axis=1, where=~outside)
    cross = np.sum(a_rows * b_rows, axis=1, where=outside)
    m = groups.size - np.bincount(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Array = (t + s_a * s_b / ((m - 1) * (m - 2)) - 2 * cross / (m - 2)) / (m * (m - 3))
    return out


def _interval(value: float, left_out: Array) -> tuple[float | None, float | None]:
    """Jackknife on arctanh; (None, None) where leaving one group out leaves CKA undefined."""
    if not np.isfinite(left_out).all():
        return None, None
    if 1.0 - abs(value) < 1e-12:  # the same representation but for rotation and scale: no item can differ
        return value, value
    z = np.arctanh(np.clip(left_out, -1 + 1e-15, 1 - 1e-15))
    low, high = interval(float(np.arctanh(value)), jackknife_error(z), left_out.size - 1)
    return float(np.tanh(low)), float(np.tanh(high))
