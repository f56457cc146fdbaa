"""Fisher separability of safe and unsafe items: how far apart the classes lie, in units of their spread.

    tr(S_b) / tr(S_w),   S_b = π_h π_b ΔΔᵀ,   Δ = μ_h − μ_b,   S_w the pooled covariance (over n − 2)

inside the span of a basis, or in the full space. Two things make pure noise look separable; both are undone:

* A basis fitted on the items that it is scored on has chased their noise. So it is *cross-fitted*: fitted on
  one fold and scored on the other, both ways.
* ‖Δ‖² of sample means is too large by tr Cov(Δ). That is subtracted, so that the value has mean 0 where the
  classes have one mean; it may be slightly negative and is not clipped.

The null permutes the labels inside each fold and refits the bases, exactly as for the observed labels. The
interval is a jackknife over the scored items, given the bases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.inputs import Groups, Labels, activations, centred_gram, group_ids, labels
from guardkeel.geometry.rankone import leading_eigenvectors
from guardkeel.geometry.resampling import (
    group_sums,
    jackknife_error,
    permutations,
    renumbered,
    stratified_folds,
)
from guardkeel.geometry.subspace import contrast, top_eigenpairs
from guardkeel.geometry.values import Array, Indices, MeasureValue, Value, against_null, interval, unmeasured

SMALLEST = 2  # independent items of each class in each fold
_AT_ONCE = 32  # draws held in memory together


@dataclass(frozen=True, slots=True)
class Half:
    """One way of the cross-fit, in coordinates along the principal axes of the items fitted on.

    `fit` (n_a, r) and `score` (n_b, r) are coordinates about the mean of the fitted items, `values` the
    squared spread (r,) of the fitted ones along each axis, descending; `fitted`, `scored` item numbers.
    """

    fit: Array
    score: Array
    values: Array
    fitted: Indices
    scored: Indices


def fisher_ratio(
    x: ArrayLike, y: ArrayLike, *, basis: Array | None = None, groups: Groups | None = None
) -> float:
    """tr(S_b)/tr(S_w) of (n, d) activations, debiased, in the span of `basis` (d, k) or in the full space.

    NaN where it is undefined: a class has fewer than two independent items, or no spread inside the classes.
    A basis must come from other items than these for the value to be fair.
    """
    x = activations(x)
    unsafe, ids = labels(y, len(x)), group_ids(groups, len(x))
    z = x if basis is None else x @ basis
    return float(_ratios(z[None], unsafe[None], ids)[0])


def separability(
    x: ArrayLike,
    y: ArrayLike,
    *,
    rank: int = 32,
    draws: int = 100,
    seed: int = 0,
    groups: Groups | None = None,
) -> MeasureValue:
    """Cross-fitted, debiased Fisher separability in the safety subspace, with interval and null.

    Args:
        x: activations (n, d).
        y: bool (n,), True = unsafe.
        rank: directions of the basis; fewer where a fold spans fewer.
        draws: label permutations.
        seed: of folds and permutations.
        groups: items that are not independent of each other share an entry.

    Raises:
        DataError: NaN or infinite activations.
    """
    x = activations(x)
    unsafe, ids = labels(y, len(x)), group_ids(groups, len(x))
    return separability_of_gram(centred_gram(x), unsafe, ids, rank=rank, draws=draws, seed=seed)


def separability_of_gram(
    gram: Array, unsafe: Labels, groups: Indices, *, rank: int, draws: int, seed: int
) -> MeasureValue:
    """The same from the centred Gram matrix (n, n) and group numbers."""
    return _cross_fitted(gram, unsafe, groups, draws=draws, seed=seed, rank=rank)


def mean_direction(
    x: ArrayLike, y: ArrayLike, *, draws: int = 100, seed: int = 0, groups: Groups | None = None
) -> MeasureValue:
    """Fisher's criterion along the mean difference, as d′ = wᵀΔ / √(wᵀS_w w), w = Δ of the other fold.

    d′ counts standard deviations between the class means on the line through them; Fisher's J is d′². It
    keeps its sign, since a direction that points the other way on new items separates nothing: on noise it
    has mean about 0. Cross-fit, null and interval as in `separability`; arguments too.
    """
    x = activations(x)
    unsafe, ids = labels(y, len(x)), group_ids(groups, len(x))
    return _cross_fitted(centred_gram(x), unsafe, ids, draws=draws, seed=seed, rank=None)


def _cross_fitted(
    gram: Array, unsafe: Labels, groups: Indices, *, draws: int, seed: int, rank: int | None
) -> MeasureValue:
    """Both ways of the cross-fit; rank None is the mean difference."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    n = unsafe.size
    rng = np.random.default_rng((seed, 1))
    folds = stratified_folds(unsafe, groups, 2, rng)
    held = [np.unique(groups[(folds == f) & (unsafe == c)]).size for f in range(2) for c in (True, False)]
    if min(held) < SMALLEST:
        return unmeasured(n, "separability needs at least 4 independent items of each class")
    halves = [_half(gram, folds, f) for f in range(2)]
    if any(not h.values.size for h in halves):
        return unmeasured(n, "activations do not vary")
    # Draw 0 is the observed labels, so that observed and null values come out of the same lines.
    orders = np.vstack([np.arange(n), permutations(groups, folds, draws, rng)])
    value, freedom = 0.0, 0
    errors: list[float] = []
    null = np.zeros(draws)
    for half in halves:
        ids = renumbered(groups, half.scored)
        share = half.scored.size / n
        stat = _ratios if rank is not None else _d_primes
        found = np.empty(draws + 1)
        for at in range(0, draws + 1, _AT_ONCE):
            y = unsafe[orders[at : at + _AT_ONCE]]
            z = _projected(half, y, rank)
            found[at : at + _AT_ONCE] = stat(z, y[:, half.scored], ids)
            if at == 0:
                left_out = _left_out(z[0], unsafe[half.scored], ids, signed=rank is None)
        value += share * float(found[0])
        null += share * found[1:]
        errors.append(share * jackknife_error(left_out))
        freedom += left_out.size - 1
    if not (np.isfinite(value) and np.isfinite(null).all()):
        return unmeasured(n, "no spread inside the classes, so separability is not finite")
    # Along the mean difference the two ways share wᵀΔ but for its scale, and so does their error.
    error = sum(errors) if rank is None else float(np.sqrt(sum(e**2 for e in errors)))
    low, high = interval(value, error, freedom) if np.isfinite(error) else (None, None)
    note = "" if low is not None else "no interval: without one group of items it is undefined"
    return against_null(Value(value, low, high, n, note), null)


def _half(gram: Array, folds: Indices, scored: int) -> Half:
    """Coordinates for one way of the cross-fit, from the Gram matrix alone."""
    a, b = np.flatnonzero(folds != scored), np.flatnonzero(folds == scored)
    k_a, k_ba = gram[np.ix_(a, a)], gram[np.ix_(b, a)]
    # Products about the mean of the fitted items, for both sets.
    column, row_b, total = k_a.mean(axis=0), k_ba.mean(axis=1), k_a.mean()
    vectors, values = top_eigenpairs(k_a - column - column[:, None] + total, a.size)
    root = np.sqrt(values)
    return Half(vectors * root, (k_ba - column - row_b[:, None] + total) @ vectors / root, values, a, b)


def _projected(half: Half, y: Labels, rank: int | None) -> Array:
    """Scored items in the basis that each row of labels gives on the fitted ones: (draws, n_b, k)."""
    y_fit = y[:, half.fitted]
    t, c = contrast(y_fit[0])
    t = np.where(y_fit, t.max(), t.min())
    z = t @ half.fit
    if rank is None:
        norm = np.linalg.norm(z, axis=1, keepdims=True)
        z = np.divide(z, norm, out=np.zeros_like(z), where=norm > 0)
        along: Array = z @ half.score.T
        return along[:, :, None]
    k = min(rank, half.values.size)
    return half.score @ leading_eigenvectors(half.values, z, c, k)


def _moments(z: Array, y: Labels) -> tuple[Array, Array, Array, Array, Array]:
    """Class counts (draws, 1), means (draws, 1, k) and total squared residuals (draws,) by draw."""
    weight = y.astype(np.float64)
    n1 = weight.sum(axis=1, keepdims=True)
    n0 = y.shape[1] - n1
    total = z.sum(axis=1, keepdims=True)
    one = weight[:, None, :] @ z
    mu1, mu0 = one / n1[..., None], (total - one) / n0[..., None]
    squares = np.einsum("dnk,dnk->d", z, z)
    within = squares - n1[:, 0] * np.sum(mu1**2, axis=(1, 2)) - n0[:, 0] * np.sum(mu0**2, axis=(1, 2))
    within = np.where(within <= 1e-12 * squares, 0.0, within)
    return n1, n0, mu1, mu0, within


def _ratios(z: Array, y: Labels, groups: Indices) -> Array:
    """Debiased tr(S_b)/tr(S_w) of each draw; NaN where undefined. z (draws, n, k), y (draws, n).

    tr Cov(Δ) = Σ_g ‖e_g‖², e_g the sum over group g of (x − μ_h)/N_h for unsafe and −(x − μ_b)/N_b for safe
    items, each class scaled by √(G/(G−1)), G its number of groups. Without groups this is
    tr(Σ_h)/N_h + tr(Σ_b)/N_b exactly; with twins it is the covariance of the paired difference.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        n1, n0, mu1, mu0, within = _moments(z, y)
        within = within / (n1 + n0 - 2)[:, 0]
        if int(groups.max()) + 1 == groups.size:
            # Σ‖x − μ‖² by class follows from sums; there is no need to form residuals.
            squares = np.einsum("dnk,dnk->dn", z, z)
            one = np.sum(squares * y, axis=1) - n1[:, 0] * np.sum(mu1**2, axis=(1, 2))
            zero = np.sum(squares * ~y, axis=1) - n0[:, 0] * np.sum(mu0**2, axis=(1, 2))
            noise = one / (n1 * (n1 - 1))[:, 0] + zero / (n0 * (n0 - 1))[:, 0]
        else:
            of_group = group_sums(np.ascontiguousarray(y.T, dtype=np.float64), groups).T
            sizes = np.bincount(groups)
            g1 = np.count_nonzero(of_group, axis=1)[:, None]
            g0 = np.count_nonzero(sizes - of_group, axis=1)[:, None]
            gain1, gain0 = np.sqrt(g1 / (g1 - 1)) / n1, -np.sqrt(g0 / (g0 - 1)) / n0
            residual = np.where(y, gain1, gain0)[..., None] * (z - np.where(y[..., None], mu1, mu0))
            of_group = group_sums(np.ascontiguousarray(residual.transpose(1, 0, 2)), groups)
            noise = np.sum(of_group**2, axis=(0, 2))
        between = np.sum((mu1 - mu0) ** 2, axis=(1, 2)) - noise
        share = (n1 * n0 / (n1 + n0) ** 2)[:, 0]
        return np.where(within > 0, share * between / within, np.nan)


def _d_primes(z: Array, y: Labels, _groups: Indices) -> Array:
    """Signed d′ of each draw on one direction; NaN where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n1, n0, mu1, mu0, within = _moments(z, y)
        spread = np.sqrt(within / (n1 + n0 - 2)[:, 0])
        return np.where(spread > 0, (mu1 - mu0)[:, 0, 0] / spread, np.nan)


def _left_out(z: Array, y: Labels, groups: Indices, *, signed: bool) -> Array:
    """The plain statistic without each group, (g,), from class sums; its error is the debiased one's too.

    (The bias that is subtracted hardly varies from sample to sample.)
    """
    class_sums = []
    for c in (True, False):
        mine = (y == c)[:, None].astype(np.float64)
        parts = np.hstack([mine, mine * z, mine * np.sum(z**2, axis=1, keepdims=True)])
        class_sums.append(parts.sum(axis=0) - group_sums(parts, groups))
    with np.errstate(divide="ignore", invalid="ignore"):
        (n1, n0), (mu1, mu0) = zip(*((s[:, 0], s[:, 1:-1] / s[:, :1]) for s in class_sums), strict=True)
        within = sum(s[:, -1] - s[:, 0] * np.sum((s[:, 1:-1] / s[:, :1]) ** 2, axis=1) for s in class_sums)
        delta = mu1 - mu0
        if signed:
            return np.asarray(delta[:, 0] / np.sqrt(within / (n1 + n0 - 2)))
        return np.asarray(n1 * n0 / (n1 + n0) ** 2 * np.sum(delta**2, axis=1) / (within / (n1 + n0 - 2)))
