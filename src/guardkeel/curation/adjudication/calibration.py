"""Calibrated jurors: P(unsafe) as a juror gives it → how often people say unsafe then. Platt's map, for each side.

P(people say unsafe) = σ(a logit p + b), fitted by penalised likelihood (scikit-learn's logistic regression, C = 1) to
what people said of calibration suites and of rows. A juror with fewer than 20 such items of either label is not
calibrated, and its score is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guardkeel.conversation import Label, Side
from guardkeel.curation.rows import Vote

LEAST = 20
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Known:
    """A side whose label people gave, and what jurors say of it."""

    side: Side
    votes: tuple[Vote, ...]
    truth: Label


@dataclass(frozen=True, slots=True)
class Calibration:
    """Slopes and intercepts by juror and side; `items` says how many each was fitted to."""

    maps: Mapping[tuple[str, Side], tuple[float, float]]
    items: Mapping[tuple[str, Side], int]

    def of(self, side: Side, votes: Sequence[Vote]) -> dict[str, float]:
        """Calibrated P(unsafe) of the jurors that have a map and gave a score."""
        found = {}
        for vote in votes:
            known = self.maps.get((vote.by, side))
            if known is not None and vote.unsafe is not None:
                found[vote.by] = 1 / (1 + math.exp(-(known[0] * _logit(vote.unsafe) + known[1])))
        return found


def calibrate(known: Iterable[Known]) -> Calibration:
    """Fit each juror on each side; see the module's text."""
    scores: dict[tuple[str, Side], list[tuple[float, int]]] = {}
    for one in known:
        for vote in one.votes:
            if vote.unsafe is not None:
                scores.setdefault((vote.by, one.side), []).append(
                    (_logit(vote.unsafe), int(one.truth == "unsafe"))
                )
    enough = {
        key: given
        for key, given in scores.items()
        if min(sum(t == label for _, t in given) for label in (0, 1)) >= LEAST
    }
    return Calibration(
        {key: _fitted(given) for key, given in enough.items()}, {k: len(v) for k, v in enough.items()}
    )


def _fitted(given: Sequence[tuple[float, int]]) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    made = LogisticRegression().fit([[score] for score, _ in given], [truth for _, truth in given])
    return float(made.coef_[0, 0]), float(made.intercept_[0])


def _logit(chance: float) -> float:
    held = min(max(chance, _EDGE), 1 - _EDGE)
    return math.log(held / (1 - held))
