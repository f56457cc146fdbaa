"""The feedback log replayed for the page: weights over time in every context, losses, and regret.

The replay is the learner's own, so that what is drawn is what was served with. It reads on from where it was.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guardkeel.moderation.aggregation import Context, Interval, Mixture, RegretEstimate, estimate_regret
from guardkeel.moderation.aggregation.rule import Array
from guardkeel.moderation.config import LearnerConfig
from guardkeel.moderation.learning import Learner
from guardkeel.moderation.store import Row, Store

MOST_POINTS = 160
ENDS = 40
NAN = float("nan")
Point = tuple[int, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Table:
    """Weights in one context over time: (number of the feedback, weights) pairs, and the rounds that it has seen."""

    context: Context
    rounds: float
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """What was known after so many reviews: estimated losses over all that was served by then, and regret.

    Args:
        reviews: audited items so far.
        ensemble: its cumulative loss.
        experts: each expert's; where one slept, it is charged what the ensemble was.
        best: regret against the best expert, with its interval.
        naive: the same from all feedback, however it came.
    """

    reviews: int
    ensemble: float
    experts: tuple[float, ...]
    best: Interval
    naive: float


@dataclass(frozen=True, slots=True)
class Past:
    """All of it. `feedback` counts verdicts with feedback, `audited` those of them that were drawn at random."""

    experts: tuple[str, ...]
    tables: tuple[Table, ...]
    regret: RegretEstimate
    stages: tuple[Stage, ...]
    feedback: int
    audited: int
    sequence: int


class _Track:
    """Points of a line, at most MOST_POINTS: where there are more, every second is let go, and half as many kept."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._stride, self._seen = 1, 0

    def due(self) -> bool:
        self._seen += 1
        return self._seen % self._stride == 0

    def add(self, point: Point) -> None:
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            del self.points[1::2]
            self._stride *= 2


class History:
    """Reads on in the log when it is asked; used by several threads.

    Args:
        experts: names, in the learner's order.
        config: the learner's.
    """

    def __init__(self, experts: Sequence[str], config: LearnerConfig) -> None:
        self._learner = Learner(experts, config)
        self._lock = threading.Lock()
        self._own, self._others, self._q = array("d"), array("d"), array("d")
        self._tracks: dict[Context, _Track] = {(): _Track()}
        self._tracks[()].add((0, tuple(self._learner.aggregator.weights().tolist())))
        self._drawn: tuple[tuple[int, int], Past] | None = None

    def read(self, store: Store, served: int) -> Past:
        """The past as the store has it now, of so many items served; raises StoreDownError."""
        with self._lock:
            while rows := store.feedback_after(self._learner.sequence):
                for row in rows:
                    self._take(row)
            key = (self._learner.sequence, served)
            if self._drawn is None or self._drawn[0] != key:
                self._drawn = key, self._past(served)
            return self._drawn[1]

    def _take(self, row: Row) -> None:
        self._learner.apply([row])
        if not row["first"]:
            return
        aggregator, none = self._learner.aggregator, np.zeros(0)
        said = Mixture(row["served"], None, row["vote"], 0.0, none, none.astype(np.bool_))
        advice = [row["advice"].get(name) for name in self._learner.experts]
        self._own.append(aggregator.loss_of(said, row["unsafe"]))
        self._others.extend(aggregator.losses(advice, row["unsafe"]).tolist())
        self._q.append(NAN if row["propensity"] is None else row["propensity"])
        path = tuple(row["context"])
        for context in (path[:k] for k in range(len(path) + 1)):
            if aggregator.rounds(context) > 0:
                track = self._tracks.setdefault(context, _Track())
                if track.due():
                    track.add((row["sequence"], tuple(aggregator.weights(context).tolist())))

    def _past(self, served: int) -> Past:
        own, q = np.array(self._own), np.array(self._q)
        others = np.array(self._others).reshape(len(own), len(self._learner.experts))
        audited = int((~np.isnan(q)).sum())
        served = max(served, audited)
        return Past(
            experts=self._learner.experts,
            tables=tuple(self._table(context, track) for context, track in self._tracks.items()),
            regret=estimate_regret(own, others, q, served),
            stages=tuple(_stages(own, others, q, served)),
            feedback=len(own),
            audited=audited,
            sequence=self._learner.sequence,
        )

    def _table(self, context: Context, track: _Track) -> Table:
        aggregator = self._learner.aggregator
        now = (self._learner.sequence, tuple(aggregator.weights(context).tolist()))
        points = track.points if track.points[-1] == now else [*track.points, now]
        return Table(context, aggregator.rounds(context), tuple(points))


def _stages(own: Array, others: Array, q: Array, served: int) -> list[Stage]:
    """What was known after some of the reviews, the last included.

    How many items had been served by a review is not logged; `served` is spread over reviews by 1/q, as an audit with
    probability q stands for 1/q items. At the last one everything is as `estimate_regret` has it.
    """
    rows = np.flatnonzero(~np.isnan(q))
    u = 1.0 / q[rows]
    scale = served / u.sum() if rows.size else 0.0
    loss = scale * np.cumsum(u * np.nan_to_num(own[rows]))
    gaps = np.nan_to_num(own[rows, None] - others[rows])
    behind = scale * np.cumsum(u[:, None] * gaps, axis=0)
    found = []
    for k in sorted(
        {int(k) for k in np.linspace(2, rows.size, min(rows.size, ENDS))} if rows.size > 1 else ()
    ):
        end = rows[k - 1] + 1
        so_far = max(k, round(scale * float(u[:k].sum())))
        known = estimate_regret(own[:end], others[:end], q[:end], so_far)
        experts = tuple((loss[k - 1] - behind[k - 1]).tolist())
        found.append(Stage(k, float(loss[k - 1]), experts, known.best, max(known.naive)))
    return found
