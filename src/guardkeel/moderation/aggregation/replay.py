"""The feedback log as it arrives: late, out of order and more than once; weights as if it had come in order.

`replay` is the definition: the rows sorted by sequence number, learnt one by one. `Replay` gives the same bits at any
moment while rows arrive in any order: a row that comes late rewinds to a checkpoint before it and learns again what
followed. Replicas that have read the same rows of one store therefore have the same weights, in whatever order the
rows reached them. (The bits are the same on machines with the same numpy and instruction set; elsewhere exp and log may
differ in their last digit.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from guardkeel.errors import DataError
from guardkeel.moderation.aggregation.aggregator import Aggregator, State
from guardkeel.moderation.aggregation.feedback import Feedback


def replay(aggregator: Aggregator, log: Iterable[Feedback]) -> None:
    """Learn the rows of a log in the order of their sequence numbers; equal rows count once.

    Raises:
        DataError: two different rows under one sequence number, or one at or before what was learnt.
    """
    rows: dict[int, Feedback] = {}
    for row in log:
        _same(rows.setdefault(row.sequence, row), row)
    for sequence in sorted(rows):
        aggregator.learn(rows[sequence])


class Replay:
    """Keeps an aggregator at the replay of all rows added so far.

    Args:
        aggregator: what was learnt before is kept; rows must come after it.
        every: rows between checkpoints.
        keep: rows that may still be rewound; older ones are dropped, and a row that would go before them is refused.
    """

    def __init__(self, aggregator: Aggregator, *, every: int = 256, keep: int = 10_000) -> None:
        self.aggregator = aggregator
        self._every, self._keep = every, keep
        self._rows: list[Feedback] = []
        self._checkpoints: list[tuple[int, State]] = [(0, aggregator.state)]  # rows before it, state

    def add(self, row: Feedback) -> bool:
        """Take in a row; False where it is known already.

        Raises:
            DataError: another row under its sequence number, a row older than those kept, or one that the aggregator
                cannot learn; the weights are then as before.
        """
        at = bisect_left(self._rows, row.sequence, key=lambda r: r.sequence)
        if at < len(self._rows) and self._rows[at].sequence == row.sequence:
            _same(self._rows[at], row)
            return False
        if row.sequence <= self._checkpoints[0][1].sequence:
            raise DataError(
                f"feedback {row.sequence} is older than what can be rewound "
                f"(after {self._checkpoints[0][1].sequence})",
                remedy="restore an earlier state, or replay the whole log",
            )
        if at == len(self._rows):
            self.aggregator.learn(row)
            self._rows.append(row)
            self._mark()
        else:
            self._insert(at, row)
        return True

    def _insert(self, at: int, row: Feedback) -> None:
        """Rewind to the last checkpoint with at most `at` rows before it, and go on from there."""
        keep = next(k for k in reversed(range(len(self._checkpoints))) if self._checkpoints[k][0] <= at)
        start, state = self._checkpoints[keep]
        before = self.aggregator.state
        self.aggregator.restore(state)
        try:
            for earlier in self._rows[start:at]:
                self.aggregator.learn(earlier)
            self.aggregator.learn(row)
        except DataError:
            self.aggregator.restore(before)
            raise
        later = self._rows[at:]
        self._rows[at:] = [row]
        del self._checkpoints[keep + 1 :]
        for known in later:
            self.aggregator.learn(known)
            self._rows.append(known)
            self._mark()

    def _mark(self) -> None:
        """A checkpoint where one is due; forget what lies too far back."""
        if len(self._rows) - self._checkpoints[-1][0] >= self._every:
            self._checkpoints.append((len(self._rows), self.aggregator.state))
        while len(self._checkpoints) > 1 and len(self._rows) - self._checkpoints[1][0] >= self._keep:
            drop = self._checkpoints[1][0]
            del self._rows[:drop], self._checkpoints[0]
            self._checkpoints = [(n - drop, state) for n, state in self._checkpoints]


def _same(known: Feedback, row: Feedback) -> None:
    if known != row:
        raise DataError(
            f"feedback {row.sequence}: two different rows have this sequence number",
            remedy="a correction is a row of its own, under a number of its own",
        )
