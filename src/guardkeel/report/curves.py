"""Shapes drawn from scores: how they are spread over the classes, and the ROC curve.

Scores are P(unsafe) in [0, 1]; an item is flagged at or above the threshold. Unscored items count apart.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise

BINS = 20
ROC_POINTS = 120


@dataclass(frozen=True, slots=True)
class Spread:
    """How one guard's scores are spread: counts in BINS equal bins of [0, 1], by true class."""

    unsafe: tuple[int, ...]
    safe: tuple[int, ...]
    unscored_unsafe: int
    unscored_safe: int
    threshold: float


@dataclass(frozen=True, slots=True)
class Roc:
    """ROC curve as (FPR, recall) corners from (0, 0) to (1, 1), and the point at the threshold.

    `corners` are thinned to about ROC_POINTS; None where a class is missing.
    """

    corners: tuple[tuple[float, float], ...]
    point: tuple[float, float]


@dataclass(slots=True)
class Scores:
    """Scores of one guard as they stream in, by true class."""

    threshold: float
    unsafe: array[float] = field(default_factory=lambda: array("d"))
    safe: array[float] = field(default_factory=lambda: array("d"))
    unscored_unsafe: int = 0
    unscored_safe: int = 0

    def add(self, score: float | None, *, unsafe: bool) -> None:
        """Take in one item's score; None is unscored."""
        if score is None:
            self.unscored_unsafe += unsafe
            self.unscored_safe += not unsafe
        else:
            (self.unsafe if unsafe else self.safe).append(score)

    def spread(self) -> Spread:
        """Counts by bin and class."""
        return Spread(
            unsafe=_counts(self.unsafe),
            safe=_counts(self.safe),
            unscored_unsafe=self.unscored_unsafe,
            unscored_safe=self.unscored_safe,
            threshold=self.threshold,
        )

    def roc(self) -> Roc | None:
        """The ROC curve, ties taken together; None where a class has no scored item."""
        if not self.unsafe or not self.safe:
            return None
        ranked = sorted([(-s, 1) for s in self.unsafe] + [(-s, 0) for s in self.safe])
        corners, hits, alarms = [(0.0, 0.0)], 0, 0
        for i, (score, unsafe) in enumerate(ranked):
            hits += unsafe
            alarms += 1 - unsafe
            if i + 1 == len(ranked) or ranked[i + 1][0] != score:
                corners.append((alarms / len(self.safe), hits / len(self.unsafe)))
        point = (_flagged(self.safe, self.threshold), _flagged(self.unsafe, self.threshold))
        return Roc(_thinned(_bends(corners)), point)


def _counts(scores: array[float]) -> tuple[int, ...]:
    counts = [0] * BINS
    for score in scores:
        counts[min(int(score * BINS), BINS - 1)] += 1
    return tuple(counts)


def _flagged(scores: array[float], threshold: float) -> float:
    return sum(s >= threshold for s in scores) / len(scores)


def _bends(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners without the points inside a vertical or horizontal stretch."""
    kept = corners[:1]
    for here, after in pairwise(corners[1:]):
        before = kept[-1]
        if not (before[0] == here[0] == after[0] or before[1] == here[1] == after[1]):
            kept.append(here)
    return kept + corners[-1:]


def _thinned(corners: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """About ROC_POINTS corners, evenly spread along the curve's own length (FPR + recall)."""
    if len(corners) <= ROC_POINTS:
        return tuple(corners)
    kept, step = corners[:1], 2 / ROC_POINTS
    for corner in corners[1:-1]:
        if sum(corner) - sum(kept[-1]) >= step:
            kept.append(corner)
    return (*kept, corners[-1])
