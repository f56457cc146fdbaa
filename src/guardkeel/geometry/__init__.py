"""Geometry of a guard's activations at the verdict position: pure functions, one file per measure.

Arrays are float64, activations (items, features), labels bool with True = unsafe. Each measure comes with an
interval and with what it gives where there is nothing to find; `measure_layer` takes them all.
"""

from __future__ import annotations

from guardkeel.geometry.alignment import alignment
from guardkeel.geometry.angles import (
    expected_overlap,
    overlap,
    principal_angles,
    random_overlaps,
    random_shares,
)
from guardkeel.geometry.cka import cka
from guardkeel.geometry.drift import drift, drift_inside
from guardkeel.geometry.layer import measure_layer
from guardkeel.geometry.probe import probe
from guardkeel.geometry.separability import fisher_ratio, mean_direction, separability
from guardkeel.geometry.subspace import paired_basis, random_basis, safety_basis
from guardkeel.geometry.values import LayerMeasures, MeasureValue, Value

__all__ = [
    "LayerMeasures",
    "MeasureValue",
    "Value",
    "alignment",
    "cka",
    "drift",
    "drift_inside",
    "expected_overlap",
    "fisher_ratio",
    "mean_direction",
    "measure_layer",
    "overlap",
    "paired_basis",
    "principal_angles",
    "probe",
    "random_basis",
    "random_overlaps",
    "random_shares",
    "safety_basis",
    "separability",
]
