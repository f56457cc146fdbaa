"""The ensemble: advice in, a mixture out; feedback in, new weights.

Weights are a pure function of the feedback log in the order of its sequence numbers. Every prefix of an item's context
path has a table of its own: ("prompt", "en", "Violence") has those of (), ("prompt",), ("prompt", "en") and itself,
and each is shrunk to the one above it,

    w ← w + λ (w_table − w),   λ = n / (n + m),   n = (Σ s)² / Σ s²

where s are the weights of the rounds that the table has seen, n their effective number (Kish), and m `prior_strength`
in pseudo-rounds: a table that has seen m rounds is believed half. A context without rounds takes the weights of the
nearest one above that has some. The loss of the ensemble is convex in its weights, so in a context its regret is at
most that of the tables, averaged by their shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.aggregation.feedback import Context, Feedback, weight_of
from guardkeel.moderation.aggregation.losses import Costs, LossName, charge, cut, known
from guardkeel.moderation.aggregation.rule import Array, Mask, Rule

Advice = Sequence[float | None] | Array


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What the ensemble says of one item.

    Args:
        unsafe: P(unsafe); None where every expert abstained: unscored, which is not safe.
        flagged: whether flagging is the cheaper error; None where unscored.
        vote: the weight of the experts that flag by themselves, in [0, 1].
        disagreement: twice the weighted standard deviation of the tilted advice, in [0, 1].
        weights: (n,), summing to 1 over the awake and 0 elsewhere; all 0 where unscored.
        awake: who gave advice (n,).
    """

    unsafe: float | None
    flagged: bool | None
    vote: float
    disagreement: float
    weights: Array
    awake: Mask

    @property
    def scored(self) -> bool:
        """Whether any expert gave advice."""
        return self.unsafe is not None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All that an aggregator has learnt, exact: one row of numbers for each context, and the last sequence number."""

    contexts: tuple[Context, ...]
    rows: Array
    sequence: int

    def record(self) -> dict[str, Any]:
        """As JSON-able values; floats come back bit by bit, since JSON writes the shortest text that does."""
        return {
            "contexts": [list(c) for c in self.contexts],
            "rows": self.rows.tolist(),
            "sequence": self.sequence,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote; DataError for anything else."""
        try:
            contexts = tuple(tuple(str(part) for part in c) for c in record["contexts"])
            rows = np.array(record["rows"], dtype=np.float64)
            found = cls(contexts, rows, int(record["sequence"]))
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"not a learner's state ({e})", remedy="replay the feedback log instead") from e
        if not contexts or contexts[0] != () or rows.shape[:1] != (len(contexts),) or rows.ndim != 2:
            raise DataError(
                f"not a learner's state: {len(contexts)} contexts, rows of shape {rows.shape}",
                remedy="replay the feedback log instead",
            )
        return found


class Aggregator:
    """Mixes the advice of named experts and learns their weights.

    Args:
        experts: names, in the order of all advice. An expert that joins later goes to the end; rows of the log from
            before it have no advice of it, and it counts as asleep there.
        rule: how weights follow from losses.
        loss: what experts are charged.
        costs: of the two errors.
        prior_strength: pseudo-rounds m by which a context is shrunk to the one above; `inf`: one table for all.
        floor: the smallest audit probability that can be logged, 1 with full feedback.
        unsolicited: weight of feedback that came unasked, beside an audited item with q = 1; see feedback.py.

    Raises:
        ConfigError: a parameter out of range, names twice, or a rule for losses in [0, 1] with log loss.
    """

    def __init__(
        self,
        experts: Sequence[str],
        rule: Rule,
        *,
        loss: LossName = "brier",
        costs: Costs | None = None,
        prior_strength: float = 100.0,
        floor: float = 1.0,
        unsolicited: float = 0.0,
    ) -> None:
        known(loss)
        if not experts or len(set(experts)) < len(experts):
            raise ConfigError(
                f"experts are {list(experts)!r}", remedy="give at least one, each a name of its own"
            )
        if loss == "log" and rule.bounded:
            raise ConfigError(
                f"{rule!r} is made for losses in [0, 1], and log loss has no bound",
                remedy="use loss 'brier', or Hedge(rate=1.0), FixedShare(rate=1.0) or AdaHedge for log loss",
            )
        if not prior_strength >= 0:
            raise ConfigError(f"prior_strength is {prior_strength!r}", remedy="it counts rounds, from 0 on")
        if not (0 < floor <= 1 and 0 <= unsolicited <= 1):
            raise ConfigError(
                f"floor is {floor!r}, unsolicited {unsolicited!r}",
                remedy="floor in (0, 1], unsolicited in [0, 1]",
            )
        self.experts = tuple(experts)
        self.rule = rule
        self.loss: LossName = loss
        self.costs = costs or Costs()
        self.prior_strength = prior_strength
        self.floor = floor
        self.unsolicited = unsolicited
        self.sequence: int
        self._fresh = np.concatenate((rule.start(len(experts)), (0.0, 0.0)))  # and Σ s, Σ s²
        self.restore(State(((),), self._fresh[None].copy(), -1))

    def predict(self, advice: Advice, context: Context = ()) -> Mixture:
        """Mix one item's advice (n), None or NaN where an expert abstained."""
        tilted, awake = self._read(advice)
        if not awake.any():
            return Mixture(None, None, 0.0, 0.0, np.zeros(awake.size), awake)
        w = self._blend(context, awake)
        heard = np.where(awake, tilted, 0.5)
        flags = heard >= 0.5
        vote, mean = min(1.0, float(w @ flags)), float(w @ cut(self.loss, heard))
        spread = float(w @ (heard - mean) ** 2) ** 0.5
        flagged = vote >= 0.5 if self.loss == "decision" else mean >= 0.5
        unsafe = min(1.0, max(0.0, self.costs.untilt(mean)))
        return Mixture(unsafe, flagged, vote, min(1.0, 2.0 * spread), w, awake)

    def learn(self, feedback: Feedback) -> None:
        """Take in one row of the log, which must come after all that was learnt.

        Raises:
            DataError: an earlier or repeated sequence number (see Replay for rows that arrive out of order), advice
                of more experts than there are, or a propensity under the floor.
        """
        if feedback.sequence <= self.sequence:
            raise DataError(
                f"feedback {feedback.sequence} comes after {self.sequence} was learnt",
                remedy="replay the log in the order of its sequence numbers, or add rows through Replay",
            )
        weight = weight_of(feedback, self.floor, self.unsolicited)
        tilted, awake = self._read(feedback.advice)
        self.sequence = feedback.sequence
        if weight == 0.0 or not awake.any():
            return
        losses = charge(self.loss, self.costs, np.where(awake, tilted, 0.5), feedback.unsafe)
        path = [self._row(feedback.context[:k]) for k in range(len(feedback.context) + 1)]
        rows = self._rows[path]
        rows[:, :-2] = self.rule.update(rows[:, :-2], losses, awake, weight)
        rows[:, -2:] += (weight, weight * weight)
        self._rows[path] = rows

    def weights(self, context: Context = (), awake: Sequence[bool] | Mask | None = None) -> Array:
        """Weights (n,) in a context, over the awake; by default over all."""
        mask = (
            np.ones(len(self.experts), dtype=np.bool_) if awake is None else np.asarray(awake, dtype=np.bool_)
        )
        return self._blend(context, mask) if mask.any() else np.zeros(mask.size)

    def rounds(self, context: Context = ()) -> float:
        """Effective number of rounds that a context's own table has seen."""
        row = self._rows[self._index[context]] if context in self._index else self._fresh
        return _effective(*row[-2:].tolist())

    def contexts(self) -> tuple[Context, ...]:
        """All contexts with a table of their own, in the order in which they were met."""
        return tuple(self._index)

    def losses(self, advice: Advice, unsafe: bool) -> Array:
        """What each expert is charged for an outcome (n,), NaN where it abstained."""
        return charge(self.loss, self.costs, self._read(advice)[0], unsafe)

    def loss_of(self, mixture: Mixture, unsafe: bool) -> float:
        """What the ensemble is charged: the loss of its P(unsafe), or of its vote under `decision`; NaN if unscored."""
        if mixture.unsafe is None:
            return float("nan")
        if self.loss == "decision":
            return self.costs.share(unsafe) * abs(mixture.vote - unsafe)
        tilted = self.costs.tilt(np.array(mixture.unsafe))
        return float(charge(self.loss, self.costs, tilted, unsafe))

    @property
    def state(self) -> State:
        """A copy of all that was learnt."""
        return State(tuple(self._index), self._rows[: len(self._index)].copy(), self.sequence)

    def restore(self, state: State) -> None:
        """Forget all and take a state over; DataError where it is another rule's or another ensemble's."""
        if state.rows.shape[1:] != self._fresh.shape:
            raise DataError(
                f"the state has rows of {state.rows.shape[1]} numbers, these experts and this rule need "
                f"{self._fresh.size}",
                remedy="replay the feedback log instead",
            )
        self._index = {context: k for k, context in enumerate(state.contexts)}
        self._rows = state.rows.copy()
        self.sequence = state.sequence

    def _read(self, advice: Advice) -> tuple[Array, Mask]:
        """Tilted advice (n,) and who is awake."""
        read = np.array(advice, dtype=np.float64)
        short = len(self.experts) - read.size
        if short < 0 or read.ndim != 1:
            raise DataError(
                f"advice of shape {read.shape} for {len(self.experts)} experts",
                remedy="give one number, or None, for each expert in order",
            )
        if short:
            read = np.concatenate((read, np.full(short, np.nan)))
        awake = ~np.isnan(read)
        return self.costs.tilt(read), awake

    def _blend(self, context: Context, awake: Mask) -> Array:
        """Weights along the path, each shrunk to those above."""
        prefixes = (self._index.get(context[:k]) for k in range(len(context) + 1))
        rows = self._rows[[k for k in prefixes if k is not None]]
        tables = self.rule.weights(rows[:, :-2], awake)
        w: Array = tables[0]
        for table, (total, squares) in zip(tables[1:], rows[1:, -2:].tolist(), strict=True):
            n = _effective(total, squares)
            w = w + n / (n + self.prior_strength) * (table - w)
        return w

    def _row(self, context: Context) -> int:
        """Where a context's table is; it is made where there is none."""
        found = self._index.get(context)
        if found is None:
            found = self._index[context] = len(self._index)
            if found == len(self._rows):
                self._rows = np.concatenate((self._rows, np.tile(self._fresh, (found + 1, 1))))
        return found


def _effective(total: float, squares: float) -> float:
    """Effective number of rounds from Σ s and Σ s²."""
    return total * total / squares if squares else 0.0
