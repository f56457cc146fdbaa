"""Activations, labels and groups as they come in: checked once, then trusted.

Data that no measure can use (NaN, infinity) is a DataError; arrays that do not fit together are a
ValueError, because only a mistake in the calling code can produce them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guardkeel.errors import DataError
from guardkeel.geometry.values import Array, Indices

Labels = NDArray[np.bool_]
Groups = Sequence[Hashable] | NDArray[np.generic]

# Centred variance below this share of the raw mean square is rounding, not variation.
_ROUNDING = 1e-24


def activations(x: ArrayLike, name: str = "activations") -> Array:
    """An (items, features) float64 array, finite throughout."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected a non-empty array (items, features), got shape {array.shape}")
    if why := non_finite(array):
        raise DataError(
            f"{name}: {why}", remedy="capture the activations again in float32 or bfloat16, not float16"
        )
    return array


def non_finite(x: ArrayLike) -> str:
    """Which items hold NaN or infinity, in words; empty when none does."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(x)).all(axis=1))
    return f"{bad.size} of {len(np.asarray(x))} items are not finite, first item {bad[0]}" if bad.size else ""


def labels(y: ArrayLike, n: int) -> Labels:
    """A bool vector of length n, True = unsafe. Integers are taken when they are 0 and 1 only."""
    array = np.asarray(y)
    if array.shape != (n,):
        raise ValueError(f"labels: expected shape ({n},), got {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(f"labels: expected True (unsafe) and False, got dtype {array.dtype}")
    return array.astype(np.bool_)


def group_ids(groups: Groups | None, n: int) -> Indices:
    """Group numbers 0 … g − 1 in order of first appearance; without groups each item is its own."""
    if groups is None:
        return np.arange(n, dtype=np.int64)
    if len(groups) != n:
        raise ValueError(f"groups: expected {n} entries, got {len(groups)}")
    seen: dict[Hashable, int] = {}
    return np.array(
        [seen.setdefault(g.item() if isinstance(g, np.generic) else g, len(seen)) for g in groups]
    )


def centred(x: Array) -> Array:
    """X minus its mean row; exactly zero where what is left is only rounding."""
    shifted: Array = x - x.mean(axis=0)
    if np.vdot(shifted, shifted) <= _ROUNDING * np.vdot(x, x):
        return np.zeros_like(shifted)
    return shifted


def centred_gram(x: Array) -> Array:
    """K = X_c X_cᵀ, shape (n, n): all that a measure which ignores rotation needs to know of X."""
    c = centred(x)
    return c @ c.T


def recentred(gram: Array) -> Array:
    """H K H with H = I − 11ᵀ/n: the Gram matrix about the mean of the items that it holds."""
    rows = gram - gram.mean(axis=0)
    out: Array = rows - rows.mean(axis=1, keepdims=True)
    return out
