"""Calibrating an expert before it is mixed: a monotone map of its P(unsafe), kept as plain numbers.

    temperature   σ(x / T)          x = log-odds of the raw score, T > 0: the order and the point ½ stay
    platt         σ(a x + b)        a ≥ 0 (Platt 1999): the order stays
    isotonic      steps             pool adjacent violators, linear between steps: no shape assumed, needs data

Fitted on the `calibrate` split by likelihood. The targets of temperature and Platt are Platt's (n₁ + 1) / (n₁ + 2) and
1 / (n₀ + 2) instead of 1 and 0, and isotonic steps are kept within [1 / (n + 2), (n + 1) / (n + 2)]: no finite sample
makes an expert certain. An expert whose scores run against the labels gets a = 0, the base rate throughout. Scores are
cut to [1e-6, 1 − 1e-6] before their log-odds are taken. An abstention stays one: NaN gives NaN.

What is calibrated is P(unsafe) among items like those of the split; where the share of unsafe items differs in service,
the map is off by the difference of the prior log-odds, the same for all experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.aggregation.rule import Array, Mask

Kind = Literal["identity", "temperature", "platt", "isotonic"]
_CUT = 1e-6
_STEEPEST = 1e3


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map of [0, 1] to itself.

    Args:
        kind: which map.
        slope: a, or 1 / T.
        intercept: b.
        knots: isotonic: raw scores, rising.
        values: isotonic: calibrated scores at the knots, never falling.
    """

    kind: Kind = "identity"
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"calibration {self.kind!r}", remedy=f"use one of {', '.join(get_args(Kind))}")
        falls = any(b < a for pair in (self.knots, self.values) for a, b in pairwise(pair))
        outside = any(not 0 <= v <= 1 for v in (*self.knots, *self.values))
        empty = (self.kind == "isotonic") != bool(self.knots) or len(self.knots) != len(self.values)
        if falls or outside or empty or not 0 <= self.slope < np.inf or not np.isfinite(self.intercept):
            raise ConfigError(
                f"the {self.kind} calibration is not a monotone map of [0, 1]",
                remedy="fit it again on the calibrate split",
            )

    def __call__(self, scores: ArrayLike) -> Array:
        """Calibrated scores, elementwise; NaN stays NaN."""
        p = np.asarray(scores, dtype=np.float64)
        if self.kind == "identity":
            return p
        if self.kind == "isotonic":
            return np.where(np.isnan(p), np.nan, np.interp(p, self.knots, self.values))
        return np.asarray(expit(self.slope * logit(np.clip(p, _CUT, 1 - _CUT)) + self.intercept))

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self) | {"knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote; ConfigError for anything else."""
        try:
            both = {k: tuple(float(v) for v in record.get(k, ())) for k in ("knots", "values")}
            return cls(**{**record, **both})
        except TypeError as e:
            raise ConfigError(f"not a calibration ({e})", remedy="fit it again on the calibrate split") from e


def fit(kind: Kind, scores: ArrayLike, unsafe: ArrayLike) -> Calibration:
    """Fit a calibration to an expert's raw scores (n,) and labels (n,); unscored items (NaN) are left out.

    Raises:
        DataError: a class is missing among the scored items, or a score lies outside [0, 1].
    """
    p, y = np.asarray(scores, dtype=np.float64), np.asarray(unsafe, dtype=np.bool_)
    p, y = p[~np.isnan(p)], y[~np.isnan(p)]
    if y.all() or not y.any():
        raise DataError(
            f"{p.size} scored items to calibrate on, {int(y.sum())} of them unsafe",
            remedy="give a calibrate split with safe and unsafe items, or leave the expert uncalibrated",
        )
    if ((p < 0) | (p > 1)).any():
        raise DataError("scores to calibrate outside [0, 1]", remedy="give P(unsafe)")
    if kind == "identity":
        return Calibration()
    if kind == "isotonic":
        return _isotonic(p, y)
    return _logistic(kind, np.asarray(logit(np.clip(p, _CUT, 1 - _CUT))), y)


def calibrated(calibrations: Sequence[Calibration], scores: Sequence[float | None] | Array) -> Array:
    """One item's raw scores (N,), each through its expert's map; None becomes NaN."""
    raw = np.array(scores, dtype=np.float64)
    return np.array([float(c(p)) for c, p in zip(calibrations, raw, strict=True)])


def _logistic(kind: Kind, x: Array, unsafe: Mask) -> Calibration:
    unsafe_n = int(unsafe.sum())
    target = np.where(unsafe, (unsafe_n + 1) / (unsafe_n + 2), 1 / (x.size - unsafe_n + 2))
    shifts = kind == "platt"

    def cost(at: Array) -> tuple[float, Array]:
        z = at[0] * x + at[1]
        wrong = expit(z) - target
        return float((np.logaddexp(0.0, z) - target * z).mean()), np.array(
            [(wrong * x).mean(), wrong.mean() if shifts else 0.0]
        )

    bounds = [(0.0, _STEEPEST), (None, None) if shifts else (0.0, 0.0)]
    found = minimize(
        cost,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"gtol": 1e-9, "ftol": 0.0},
    )
    return Calibration(kind, slope=float(found.x[0]), intercept=float(found.x[1]))


def _isotonic(p: Array, unsafe: Mask) -> Calibration:
    levels, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=unsafe) / counts
    steps = isotonic_regression(means, weights=counts).x
    steps = np.clip(steps, 1 / (p.size + 2), (p.size + 1) / (p.size + 2))
    ends = np.ones(levels.size, dtype=np.bool_)  # inside a step, only its ends are needed
    ends[1:-1] = (steps[1:-1] != steps[:-2]) | (steps[1:-1] != steps[2:])
    return Calibration("isotonic", knots=tuple(levels[ends].tolist()), values=tuple(steps[ends].tolist()))
