"""What every measure returns: a value with its interval, and what the same measure gives on nothing.

A quantity that cannot be measured has value None and a note that says why; it is never a number.
Intervals are at 95% confidence. `n` counts items.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Value:
    """A value with its 95% interval and the number of items behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class MeasureValue:
    """A value beside its null: what the measure gives where there is nothing to find.

    `null_high` is the 95th percentile of the null, `p` = (1 + draws at least as large) / (1 + draws).
    """

    estimate: Value
    null_mean: float | None = None
    null_high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class LayerMeasures:
    """Everything measured on one layer; the candidate's fields are None when there is no candidate."""

    layer: int
    n: int
    rank: int
    separability_reference: MeasureValue
    probe_reference: MeasureValue
    separability_candidate: MeasureValue | None = None
    probe_candidate: MeasureValue | None = None
    cka: MeasureValue | None = None
    principal_angles: tuple[float, ...] = field(default=())
    overlap: MeasureValue | None = None
    drift: Value | None = None
    drift_inside: MeasureValue | None = None


def not_measured(n: int, why: str) -> Value:
    """The value of something that could not be measured."""
    return Value(None, None, None, n, why)


def unmeasured(n: int, why: str) -> MeasureValue:
    """The same, as a measure without a null."""
    return MeasureValue(not_measured(n, why))


def against_null(estimate: Value, null: Array, mean: float | None = None) -> MeasureValue:
    """Set a value beside draws of its null, large values being the finding.

    A draw that equals the value but for rounding counts as at least as large. `mean` replaces the draws'
    mean where it is known exactly. With no draws, or no value, nothing is said about the null.
    """
    if estimate.value is None or null.size == 0:
        return MeasureValue(estimate, null_mean=mean)
    slack = 1e-9 * max(abs(estimate.value), float(np.abs(null).max()))
    reached = int(np.count_nonzero(null >= estimate.value - slack))
    return MeasureValue(
        estimate,
        null_mean=float(null.mean()) if mean is None else mean,
        null_high=float(np.quantile(null, 0.95)),
        p=(1 + reached) / (1 + null.size),
    )


def interval(value: float, standard_error: float, freedom: float) -> tuple[float, float]:
    """Value ± Student's t quantile × standard error."""
    from scipy.special import stdtrit

    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * standard_error
    return value - reach, value + reach
