"""Leading eigenvectors of many matrices diag(λ) + c·zzᵀ at once.

A label permutation changes the scatter behind the safety basis by such a rank-one term only, so that a
permutation null can refit the basis for every draw without an eigendecomposition for each.

The eigenvalues are the roots of 1 + c·Σ_j z_j²/(λ_j − x), one between neighbouring λ (Golub 1973); the
eigenvector of root x is z_j/(λ_j − x), normalised.
"""

from __future__ import annotations

import numpy as np

from guardkeel.geometry.values import Array

_TINY = 1e-14
_ORTHONORMAL = 1e-7
_STEPS = 60


def leading_eigenvectors(values: Array, z: Array, c: float, k: int) -> Array:
    """The k leading orthonormal eigenvectors of diag(values) + c·z_d z_dᵀ for each draw d.

    Args:
        values: (r,) non-negative, descending.
        z: (draws, r).
        c: weight of the rank-one term, of any sign as long as the sum stays positive semi-definite.
        k: how many, k ≤ r.

    Returns:
        (draws, r, k), columns in descending order of eigenvalue.
    """
    r = values.size
    if k == r:  # everything is kept, and what follows looks at the span only
        return np.broadcast_to(np.eye(r), (len(z), r, r))
    found = _by_roots(values, z, c, k) if c > 0 else np.full((len(z), r, k), np.nan)
    error = np.abs(found.transpose(0, 2, 1) @ found - np.eye(k)).max(axis=(1, 2))
    for d in np.flatnonzero(~(error < _ORTHONORMAL)):  # close or negative cases: the plain way
        vectors = np.linalg.eigh(np.diag(values) + c * np.outer(z[d], z[d]))[1]
        found[d] = vectors[:, ::-1][:, :k]
    return found


def _by_roots(values: Array, z: Array, c: float, k: int) -> Array:
    """The same by roots; columns may fail to be orthonormal where roots lie close to each other.

    Each root is sought as its distance μ from the λ_i below it, which keeps the leading entry of the
    eigenvector accurate. With both poles multiplied away, the function is smooth on the whole interval
    and the Illinois form of regula falsi takes about ten steps.
    """
    r, draws = values.size, len(z)
    # Tied λ and vanishing z are moved by rounding error of the matrix, so that no root sits on a pole.
    values = values + values[0] * _TINY * np.arange(r, 0, -1)
    norm = np.sqrt(np.sum(z**2, axis=1))
    least = _TINY * np.maximum(norm, np.sqrt(values[0] / c))[:, None]
    z = np.where(np.abs(z) < least, least, z)
    push = c * z**2
    gap = np.empty((draws, k))
    gap[:, 0] = push.sum(axis=1)
    gap[:, 1:] = values[: k - 1] - values[1:k]
    distance = values - values[:k, None]  # λ_j − λ_i, (k, r)

    def smooth(mu: Array) -> Array:
        upper = gap - mu
        upper[:, 0] = 1.0  # nothing above the first root
        with np.errstate(divide="ignore", invalid="ignore"):
            secular = 1.0 + np.einsum("dr,dkr->dk", push, 1.0 / (distance - mu[..., None]))
            out: Array = mu * upper * secular
        return out

    low, high = np.zeros_like(gap), gap.copy()
    at_low = -push[:, :k] * gap
    at_low[:, 0] = -push[:, 0]
    at_high = np.empty_like(gap)
    at_high[:, 0] = np.abs(smooth(gap)[:, 0])
    at_high[:, 1:] = push[:, : k - 1] * gap[:, 1:]
    mu, was_below = gap / 2, np.zeros(gap.shape, dtype=bool)
    for turn in range(_STEPS):
        mu = (low * at_high - high * at_low) / (at_high - at_low)
        at_mu = smooth(mu)
        below = at_mu < 0
        # An end that stays put twice running counts half: that is what keeps regula falsi from stalling.
        stuck = 0.5 if turn else 1.0
        at_high = np.where(below, np.where(was_below, stuck * at_high, at_high), at_mu)
        at_low = np.where(below, at_mu, np.where(was_below, at_low, stuck * at_low))
        was_below = below
        step = np.where(below, mu - low, high - mu)
        low, high = np.where(below, mu, low), np.where(below, high, mu)
        if np.all((step <= 1e-13 * gap) | (at_mu == 0)):
            break
    with np.errstate(divide="ignore", invalid="ignore"):
        vectors = z[:, None, :] / (distance - mu[..., None])
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return vectors.transpose(0, 2, 1)
