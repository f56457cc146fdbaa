"""How far the candidate's safety subspace has turned away from the reference's.

Each guard's basis is fitted on the same items; the principal angles between them and their mean squared
cosine (overlap) follow. The null is a random subspace. The interval of the overlap is a jackknife that
leaves out one of eight blocks of items and refits both bases (within the 4k leading directions of all
items, which hold the k leading ones of nearly all items).

The last directions of a basis are ordinary variation, in no fixed order: two samples of one guard do not
reach overlap 1 either. Compare with the overlap after a harmless change rather than with 1.
"""

from __future__ import annotations

import numpy as np

from guardkeel.geometry.angles import expected_overlap, overlap, principal_angles, random_overlaps
from guardkeel.geometry.inputs import Labels, centred
from guardkeel.geometry.resampling import jackknife_error, stratified_folds
from guardkeel.geometry.subspace import safety_basis
from guardkeel.geometry.values import Array, Indices, MeasureValue, Value, against_null, interval

BLOCKS = 8
WIDER = 4


def wide_basis(x: Array, unsafe: Labels, rank: int) -> Array:
    """The safety basis with 4k directions, of which the first k are the basis of rank k."""
    return safety_basis(x, unsafe, WIDER * rank)


def alignment(
    x: Array, x2: Array, wide: Array, unsafe: Labels, groups: Indices, *, rank: int, draws: int, seed: int
) -> tuple[Array, MeasureValue]:
    """Principal angles (degrees, ascending) and overlap of the two guards' safety bases.

    Args:
        x, x2: activations (n, d) of reference and candidate, both varying.
        wide: the reference's `wide_basis`.
        unsafe: bool (n,), both classes present.
        groups: group numbers (n,).
        rank: directions of each basis.
        draws: random subspaces for the null.
        seed: of null and blocks.

    Raises:
        DataError: as `safety_basis`.
    """
    wide2 = wide_basis(x2, unsafe, rank)
    u, v = wide[:, :rank], wide2[:, :rank]
    value = overlap(u, v)
    left_out = _leave_blocks_out(x @ wide, x2 @ wide2, wide.T @ wide2, unsafe, groups, rank=rank, seed=seed)
    if left_out.size == BLOCKS:
        low, high = interval(value, jackknife_error(left_out), BLOCKS - 1)
        estimate = Value(value, max(0.0, low), min(1.0, high), len(x))
    else:
        estimate = Value(value, None, None, len(x), "no interval: too few independent items")
    d, k1, k2 = len(u), u.shape[1], v.shape[1]
    null = random_overlaps(d, k1, k2, draws, np.random.default_rng((seed, 5)))
    return principal_angles(u, v), against_null(estimate, null, mean=expected_overlap(d, k1, k2))


def _leave_blocks_out(
    z: Array, z2: Array, product: Array, unsafe: Labels, groups: Indices, *, rank: int, seed: int
) -> Array:
    """Overlap without each block, (BLOCKS,), or empty where there are too few items for that.

    z (n, w) and z2 (n, w') are coordinates in the wide bases U and V of all items, `product` is UᵀV: bases A
    and B found in coordinates have overlap ‖Aᵀ(UᵀV)B‖²/k.
    """
    if min(np.unique(groups[unsafe]).size, np.unique(groups[~unsafe]).size) < BLOCKS:
        return np.empty(0)
    blocks = stratified_folds(unsafe, groups, BLOCKS, np.random.default_rng((seed, 6)))
    out = np.empty(BLOCKS)
    for block in range(BLOCKS):
        stay = blocks != block
        if not (centred(z[stay]).any() and centred(z2[stay]).any()):
            return np.empty(0)
        a, b = safety_basis(z[stay], unsafe[stay], rank), safety_basis(z2[stay], unsafe[stay], rank)
        out[block] = np.sum((a.T @ product @ b) ** 2) / min(a.shape[1], b.shape[1])
    return out
