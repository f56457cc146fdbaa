"""Bases of a layer's safety subspace (FW-SSR, arXiv:2605.02914).

A basis is a (d, k) matrix with orthonormal columns, most important direction first. Each column is signed
so that its largest entry is positive. A basis has fewer than k columns only where the data span fewer
dimensions: directions that the data do not determine are never made up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.errors import DataError
from guardkeel.geometry.inputs import Labels, activations, centred, labels
from guardkeel.geometry.values import Array

COPIES = 32
GAIN = 5.0
# Squared singular values come from a Gram matrix, so what lies under σ₁·√(n·ε) is rounding.
_EPSILON = float(np.finfo(np.float64).eps)


def safety_basis(x: ArrayLike, y: ArrayLike, rank: int) -> Array:
    """The class-conditional basis: top right singular vectors of stacked rows

        [H_harm − μ_h ; H_ben − μ_b ; m copies of 5(μ_h − μ_b)],   m = min(32, N_h),

    so that it holds both the mean difference (stressed 5√m-fold) and the main axes inside the classes.

    The rows are never stacked. With X_c = X − mean, Δ = μ_h − μ_b = X_cᵀt and t_i = 1/N_h or −1/N_b,
    their scatter is X_cᵀX_c + cΔΔᵀ, c = 25m − N_h·N_b/N, which is the scatter of (I + s·ttᵀ/‖t‖²)X_c.

    Departs from the released code in where x comes from (the verdict position, not a mean over padding);
    the basis of given activations is the same.

    Args:
        x: activations (n, d).
        y: bool (n,), True = unsafe.
        rank: k ≥ 1.

    Raises:
        DataError: one class is missing, activations are not finite or do not vary.
    """
    x = activations(x)
    unsafe = labels(y, len(x))
    if unsafe.all() or not unsafe.any():
        raise DataError(
            f"a safety subspace needs both classes, got {int(unsafe.sum())} unsafe of {len(x)} items",
            remedy="use a suite that holds safe and unsafe items",
        )
    t, c = contrast(unsafe)
    return _top(stretched(centred(x), t, c), rank)


def paired_basis(harmful: ArrayLike, harmless: ArrayLike, rank: int) -> Array:
    """The basis of twins: top right singular vectors of the rows harmful_i − harmless_i, not centred.

    Not centred, because the mean difference is what the twins are for; topic, which twins share, drops out.
    This basis is not in the paper.
    """
    a, b = activations(harmful, "harmful twins"), activations(harmless, "harmless twins")
    if a.shape != b.shape:
        raise ValueError(f"twins must match row by row, got shapes {a.shape} and {b.shape}")
    return _top(a - b, rank)


def random_basis(d: int, k: int, rng: np.random.Generator) -> Array:
    """A uniformly random k-dimensional subspace of R^d, as (d, k): the control for any basis."""
    if not 1 <= k <= d:
        raise ValueError(f"a basis of {k} directions does not fit into {d} dimensions")
    return _signed(np.linalg.qr(rng.standard_normal((d, k)))[0])


def contrast(unsafe: Labels) -> tuple[Array, float]:
    """The vector t with X_cᵀt = μ_h − μ_b, and the weight c of ΔΔᵀ beside the total scatter."""
    n, n_unsafe = unsafe.size, int(unsafe.sum())
    n_safe = n - n_unsafe
    t = np.where(unsafe, 1.0 / n_unsafe, -1.0 / n_safe)
    return t, GAIN**2 * min(COPIES, n_unsafe) - n_unsafe * n_safe / n


def stretched(rows: Array, t: Array, c: float) -> Array:
    """(I + s·ttᵀ/‖t‖²) · rows with (1 + s)² = 1 + c‖t‖², the square root of I + c·ttᵀ."""
    norm = float(t @ t)
    s = np.sqrt(max(0.0, 1.0 + c * norm)) - 1.0
    out: Array = rows + np.outer(t, (s / norm) * (t @ rows))
    return out


def top_eigenpairs(symmetric: Array, rank: int) -> tuple[Array, Array]:
    """Leading eigenvectors (n, k) and eigenvalues (k,) of a positive semi-definite matrix, largest first.

    Eigenvalues that are rounding are left out; none may be left.
    """
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = min(rank, int(np.count_nonzero(values > max(values[0], 0.0) * len(values) * _EPSILON)))
    return vectors[:, :keep], values[:keep]


def _top(rows: Array, rank: int) -> Array:
    """Top right singular vectors of (n, d) rows, through the smaller of the two Gram matrices."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    n, d = rows.shape
    if n < d:
        vectors, values = top_eigenpairs(rows @ rows.T, rank)
        basis = rows.T @ (vectors / np.sqrt(values))
    else:
        basis, _ = top_eigenpairs(rows.T @ rows, rank)
    if basis.shape[1] == 0:
        raise DataError(
            "activations do not vary, so they have no subspace", remedy="check that the guard is not broken"
        )
    # Vectors that come through a Gram matrix are orthogonal to about √ε only; one QR step makes them exact.
    q, r = np.linalg.qr(basis)
    return _signed(q * np.sign(np.diag(r)))


def _signed(basis: Array) -> Array:
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])]
    out: Array = basis * np.where(largest < 0, -1.0, 1.0)
    return out
