"""Everything measured on one layer of one guard, or of two."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.alignment import alignment, wide_basis
from guardkeel.geometry.cka import cka_of_grams
from guardkeel.geometry.drift import drift, drift_inside
from guardkeel.geometry.inputs import Groups, Labels, centred_gram, group_ids, labels, non_finite
from guardkeel.geometry.probe import probe_of_gram
from guardkeel.geometry.resampling import stratified_folds
from guardkeel.geometry.separability import separability_of_gram
from guardkeel.geometry.subspace import safety_basis
from guardkeel.geometry.values import Array, Indices, LayerMeasures, MeasureValue, not_measured, unmeasured

_SPARED = "the safety subspace needs both classes in both folds and activations that vary"


def measure_layer(
    layer: int,
    reference: ArrayLike,
    candidate: ArrayLike | None,
    y: ArrayLike,
    *,
    rank: int = 32,
    seed: int = 0,
    draws: int = 100,
    groups: Groups | None = None,
) -> LayerMeasures:
    """All geometry measures of one layer, at the verdict position.

    Separability and probe of each guard are of its own subspace and its own probe, made in the same way; how
    far the subspaces differ is what angles and overlap say. Folds and permutations depend on the seed and
    the labels only, so that guards and layers are compared on the same ones. A guard whose activations hold
    NaN or infinity, or do not vary, gets None with a note for all that needs it, and no item is dropped.

    The cost is a few eigendecompositions of (n, n) matrices; a draw of a null costs far less than one.

    Args:
        layer: number of the decoder block, from 1.
        reference: activations (n, d) of the reference.
        candidate: activations (n, d') of the same items by the candidate, or None. With d' ≠ d (a pruned
            guard), angles, overlap and drift are not measured.
        y: bool (n,), True = unsafe.
        rank: directions of the safety subspace, ≥ 1.
        seed: of folds, permutations, bootstrap and random subspaces.
        draws: size of each null; p cannot be smaller than 1/(1 + draws).
        groups: items that are not independent of each other (twins, turns) share an entry.

    Raises:
        ValueError: shapes do not fit together, or rank < 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    x = _matrix(reference, "reference")
    n = len(x)
    unsafe, ids = labels(y, n), group_ids(groups, n)
    broken = _broken(x, "reference")
    gram = None if broken else centred_gram(x)
    own = _one_guard(gram, broken, x.shape[1], unsafe, ids, rank=rank, draws=draws, seed=seed)
    wide = wide_basis(x, unsafe, rank) if gram is not None and gram.any() and _both(unsafe) else None
    used = 0 if wide is None else min(rank, wide.shape[1])
    if candidate is None:
        return LayerMeasures(layer, n, used, *own)
    x2 = _matrix(candidate, "candidate")
    if len(x2) != n:
        raise ValueError(f"the guards must have read the same items, got {n} and {len(x2)}")
    broken2 = _broken(x2, "candidate")
    gram2 = None if broken2 else centred_gram(x2)
    theirs = _one_guard(gram2, broken2, x2.shape[1], unsafe, ids, rank=rank, draws=draws, seed=seed)
    if gram is None or gram2 is None:
        nothing = unmeasured(n, broken or broken2)
        return LayerMeasures(
            layer,
            n,
            used,
            *own,
            *theirs,
            nothing,
            overlap=nothing,
            drift=nothing.estimate,
            drift_inside=nothing,
        )
    alike = cka_of_grams(gram, gram2, ids, draws=draws, rng=np.random.default_rng((seed, 7)))
    if x.shape != x2.shape:
        why = f"hidden sizes differ: {x.shape[1]} and {x2.shape[1]}"
        no = unmeasured(n, why)
        return LayerMeasures(
            layer, n, used, *own, *theirs, alike, overlap=no, drift=not_measured(n, why), drift_inside=no
        )
    if wide is not None and gram2.any():
        angles, same = alignment(x, x2, wide, unsafe, ids, rank=rank, draws=draws, seed=seed)
    else:
        angles, same = (
            np.empty(0),
            unmeasured(n, "the two subspaces need both classes and activations that vary"),
        )
    bases = _fold_bases(x, unsafe, ids, rank, seed)
    return LayerMeasures(
        layer,
        n,
        used,
        *own,
        *theirs,
        alike,
        tuple(float(a) for a in angles),
        same,
        drift(x, x2, seed=seed, groups=ids),
        drift_inside(x, x2, bases, draws=draws, seed=seed, groups=ids) if bases else unmeasured(n, _SPARED),
    )


def _matrix(x: ArrayLike, name: str) -> Array:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected a non-empty array (items, features), got shape {array.shape}")
    return array


def _broken(x: Array, name: str) -> str:
    """Why a guard's activations cannot be measured; empty when they can."""
    why = non_finite(x)
    return f"{name} activations: {why}" if why else ""


def _both(unsafe: Labels) -> bool:
    return bool(unsafe.any() and not unsafe.all())


def _one_guard(
    gram: Array | None, broken: str, d: int, unsafe: Labels, ids: Indices, *, rank: int, draws: int, seed: int
) -> tuple[MeasureValue, MeasureValue]:
    """Separability and probe of one guard."""
    if gram is None:
        return unmeasured(unsafe.size, broken), unmeasured(unsafe.size, broken)
    return (
        separability_of_gram(gram, unsafe, ids, rank=rank, draws=draws, seed=seed),
        probe_of_gram(gram, d, unsafe, ids, draws=draws, seed=seed),
    )


def _fold_bases(x: Array, unsafe: Labels, ids: Indices, rank: int, seed: int) -> list[tuple[Indices, Array]]:
    """For each half of the items, the basis fitted on the other half; empty where one cannot be fitted."""
    folds = stratified_folds(unsafe, ids, 2, np.random.default_rng((seed, 1)))
    out = []
    for f in range(2):
        fit, score = np.flatnonzero(folds != f), np.flatnonzero(folds == f)
        if not score.size or not _both(unsafe[fit]) or not centred_gram(x[fit]).any():
            return []
        out.append((score, safety_basis(x[fit], unsafe[fit], rank)))
    return out
