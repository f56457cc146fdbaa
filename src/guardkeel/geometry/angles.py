"""Principal angles between two subspaces, their overlap, and what random subspaces give.

Angles by Björck & Golub (1973); the cosine loses small angles to rounding (cos θ ≈ 1 − θ²/2), so small
ones are taken from the sine.
"""

from __future__ import annotations

import numpy as np

from guardkeel.geometry.values import Array


def principal_angles(u: Array, v: Array) -> Array:
    """Angles in degrees, ascending, shape (min(k₁, k₂),), between the spans of two orthonormal bases.

    cos θ_i are the singular values of UᵀV; sin θ_i those of V − U(UᵀV), V being the smaller basis.

    Raises:
        ValueError: the bases live in different dimensions, or a basis is not orthonormal.
    """
    if u.shape[0] != v.shape[0]:
        raise ValueError(f"bases of different dimension: {u.shape[0]} and {v.shape[0]}")
    for name, basis in (("first", u), ("second", v)):
        if not np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-8):
            raise ValueError(f"the {name} basis is not orthonormal")
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    product = u.T @ v
    cosines = np.linalg.svd(product, compute_uv=False)
    sines = np.linalg.svd(v - u @ product, compute_uv=False)[::-1]
    cosines, sines = np.clip(cosines, 0.0, 1.0), np.clip(sines, 0.0, 1.0)
    radians = np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines))
    return np.sort(np.degrees(radians))


def overlap(u: Array, v: Array) -> float:
    """Mean squared cosine of the principal angles, ‖UᵀV‖²_F / min(k₁, k₂): 1 is the same subspace."""
    return float(np.sum((u.T @ v) ** 2) / min(u.shape[1], v.shape[1]))


def expected_overlap(d: int, k1: int, k2: int) -> float:
    """Mean overlap of random subspaces of R^d: k₁k₂/d directions shared, over min(k₁, k₂)."""
    return max(k1, k2) / d


def random_overlaps(d: int, k1: int, k2: int, draws: int, rng: np.random.Generator) -> Array:
    """Overlaps of a fixed k₁-dimensional subspace with `draws` uniformly random k₂-dimensional ones."""
    share = random_shares(np.ones(k1), d, k2, draws, rng)
    return share * k1 / min(k1, k2)


def random_shares(weights: Array, d: int, k: int, draws: int, rng: np.random.Generator) -> Array:
    """tr(VᵀCV)/tr(C) for uniformly random V (d × k), where C has these nonzero eigenvalues.

    V = G(GᵀG)^{-1/2} with G Gaussian. Only the rows of G along C's eigenvectors matter one by one; the
    other d − r enter through their Wishart matrix, drawn by Bartlett's decomposition. The cost does
    not depend on d, and the draws follow the distribution exactly.

    Args:
        weights: r ≤ d eigenvalues ≥ 0 of C, not all zero.
        d, k: k ≤ d.
        draws: how many.
        rng: the source of chance.
    """
    r = weights.size
    if k > d or r > d:
        raise ValueError(f"{k} directions and {r} eigenvalues do not both fit into {d} dimensions")
    seen = rng.standard_normal((draws, r, k))
    if d - r >= k:
        lower = np.tril(rng.standard_normal((draws, k, k)), -1)
        lower[:, np.arange(k), np.arange(k)] = np.sqrt(rng.chisquare(d - r - np.arange(k), size=(draws, k)))
        rest = lower @ lower.transpose(0, 2, 1)
    else:
        unseen = rng.standard_normal((draws, d - r, k))
        rest = unseen.transpose(0, 2, 1) @ unseen
    plain = seen.transpose(0, 2, 1) @ seen
    weighted = seen.transpose(0, 2, 1) @ (weights[:, None] * seen)
    solved = np.linalg.solve(plain + rest, weighted)
    out: Array = np.trace(solved, axis1=1, axis2=2) / weights.sum()
    return out
