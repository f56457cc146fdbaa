"""The learner of the service: an aggregator kept at the replay of the feedback log.

The log's order is that of its sequence numbers, which the store gives out in the order of commits, without gaps.
So a replica that reads on from where it was sees every row once, and all replicas that have read the same rows have
the same weights. Rows name experts: after a change of the ensemble the whole log is replayed, with experts that have
gone left out and new ones asleep.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guardkeel.errors import DataError
from guardkeel.moderation.aggregation import (
    Aggregator,
    AuditPolicy,
    Cascade,
    Context,
    Costs,
    Feedback,
    make_rule,
)
from guardkeel.moderation.config import LearnerConfig

log = logging.getLogger("guardkeel.serve")


class Learner:
    """Weights of named experts, and how much of the log they know.

    Args:
        experts: names, in the order of all advice.
        config: the rule and its settings.

    Raises:
        ConfigError: the rule, or its settings, are not known or do not fit the loss.
    """

    def __init__(self, experts: Sequence[str], config: LearnerConfig) -> None:
        self.experts, self.config = tuple(experts), config
        self.costs = Costs(config.costs.miss, config.costs.alarm)
        audit = config.audit
        self.audit = AuditPolicy(audit.floor, audit.flagged, audit.allowed, audit.focus)
        self.aggregator = Aggregator(
            self.experts,
            make_rule(config.rule, **config.settings),
            loss=config.loss,
            costs=self.costs,
            prior_strength=config.prior_strength,
            floor=audit.floor,
            unsolicited=config.unsolicited,
        )
        self.sequence = 0
        """Of the last row of the log that was looked at: the version of the weights."""
        self.skipped = 0
        """Rows that could not be learnt from."""

    def apply(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Learn rows of the log in the order of their numbers; those already known are passed over.

        Returns how many were new. A row that cannot be learnt (advice that is none, an audit under the floor of this
        configuration) is left out, the same everywhere, and said in the log.
        """
        new = 0
        for row in rows:
            if row["sequence"] <= self.sequence:
                continue
            new += 1
            self.sequence = row["sequence"]
            if not row["first"]:
                continue
            try:
                self.aggregator.learn(feedback_of(row, self.experts))
            except DataError as e:
                self.skipped += 1
                log.error(
                    "feedback %d cannot be learnt from: %s", row["sequence"], e.problem.partition(": ")[2]
                )
        return new

    def weights(self, context: Context = ()) -> dict[str, float]:
        """Weights by expert in a context, all awake."""
        return dict(zip(self.experts, self.aggregator.weights(context).tolist(), strict=True))

    def tables(self) -> list[dict[str, Any]]:
        """Every table with its weights and the effective number of rounds that it has seen."""
        return [
            {"context": list(c), "rounds": self.aggregator.rounds(c), "weights": self.weights(c)}
            for c in self.aggregator.contexts()
        ]

    def cascade(self, costs: Sequence[float]) -> Cascade | None:
        """How experts are asked, where not all at once."""
        said = self.config.cascade
        return (
            Cascade(tuple(costs), reach=said.reach, disagreement=said.disagreement) if said.enabled else None
        )


def feedback_of(row: Mapping[str, Any], experts: Sequence[str]) -> Feedback:
    """A row of the log as the learner takes it."""
    return Feedback(
        sequence=row["sequence"],
        advice=tuple(row["advice"].get(name) for name in experts),
        unsafe=row["unsafe"],
        propensity=row["propensity"],
        context=tuple(row["context"]),
    )
