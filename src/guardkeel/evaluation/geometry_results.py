"""From the geometry room's plain values to the typed results that go into run.json; folds of items for sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from guardkeel.geometry.values import LayerMeasures, MeasureValue, Value
from guardkeel.records import Estimate
from guardkeel.results import LayerGeometry, Measure


def to_estimate(value: Value) -> Estimate:
    """A value with its interval; None stays None, with its note."""
    return Estimate(value=value.value, low=value.low, high=value.high, n=value.n, note=value.note)


def to_measure(measure: MeasureValue) -> Measure:
    """A value beside its null."""
    return Measure(
        estimate=to_estimate(measure.estimate),
        null_mean=measure.null_mean,
        null_high=measure.null_high,
        p=measure.p,
    )


def to_result(measures: LayerMeasures) -> LayerGeometry:
    """All measures of one layer."""
    m = measures
    return LayerGeometry(
        layer=m.layer,
        n=m.n,
        rank=m.rank,
        separability_reference=to_measure(m.separability_reference),
        separability_candidate=to_measure(m.separability_candidate) if m.separability_candidate else None,
        probe_reference=to_measure(m.probe_reference),
        probe_candidate=to_measure(m.probe_candidate) if m.probe_candidate else None,
        cka=to_measure(m.cka) if m.cka else None,
        principal_angles=list(m.principal_angles),
        overlap=to_measure(m.overlap) if m.overlap else None,
        drift=to_estimate(m.drift) if m.drift else None,
        drift_inside=to_measure(m.drift_inside) if m.drift_inside else None,
    )


Summed = Callable[[Sequence[Any], Sequence[tuple[int, bool]], Sequence[int], bool], Sequence[Any]]
"""(items, fold and label of each, layers, with the candidate?) → the moments of each layer; see engines/moments.py."""


def fold_and_label(unsafe: Sequence[bool], groups: Sequence[Any], seed: int) -> list[tuple[int, bool]]:
    """Of each item: the half it is in, as measure_layer halves them, and whether it is unsafe."""
    from guardkeel.geometry.inputs import group_ids
    from guardkeel.geometry.resampling import stratified_folds

    labels = np.array(unsafe, dtype=np.bool_)
    rng = np.random.default_rng((seed, 1))
    folds = stratified_folds(labels, group_ids(groups, len(labels)), 2, rng)
    return [(int(f), bool(u)) for f, u in zip(folds, labels, strict=True)]
