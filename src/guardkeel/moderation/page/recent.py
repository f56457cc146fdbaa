"""The last verdicts in numbers: what was unscored and why, how long it took, what the cascade saved, what a flip of
the policy would have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guardkeel.moderation.experts import Expert
from guardkeel.moderation.policies import Policy, Strictness, threshold_of
from guardkeel.moderation.store import Row
from guardkeel.taxonomy import home

REASONS = 4
Reasons = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Heard:
    """One expert.

    Args:
        name: its name.
        asked: questions, those that its circuit breaker held back included.
        saved: questions that the cascade had no need of.
        unscored: questions without a score.
        reasons: of those, the commonest first.
        latency: of the questions that it got; None where it got none.
    """

    name: str
    asked: int
    saved: int
    unscored: int
    reasons: Reasons
    latency: Latency | None


@dataclass(frozen=True, slots=True)
class Recent:
    """All of them together; `calls` and `cost` are the shares that the cascade saved, None where nobody was asked."""

    verdicts: int
    flagged: int
    unscored: int
    reasons: Reasons
    latency: Latency | None
    experts: tuple[Heard, ...]
    calls: float | None
    cost: float | None


def summary(rows: Sequence[Row], experts: Sequence[Expert]) -> Recent:
    """Numbers of verdicts."""
    heard = tuple(_heard(rows, e.name) for e in experts)
    costs = [e.config.cost for e in experts]
    return Recent(
        verdicts=len(rows),
        flagged=sum(row["flagged"] for row in rows),
        unscored=sum(bool(row["unscored"]) for row in rows),
        reasons=_commonest(row["unscored"] for row in rows if row["unscored"]),
        latency=_latency([1000 * row["seconds"] for row in rows]),
        experts=heard,
        calls=_saved(heard, [1.0] * len(heard)),
        cost=_saved(heard, costs),
    )


def _heard(rows: Sequence[Row], name: str) -> Heard:
    opinions = [row["opinions"][name] for row in rows if name in row["opinions"]]
    asked = [o for o in opinions if o["outcome"] != "not asked"]
    silent = [o for o in asked if o["unsafe"] is None]
    return Heard(
        name=name,
        asked=len(asked),
        saved=len(opinions) - len(asked),
        unscored=len(silent),
        reasons=_commonest(o["reason"] or o["outcome"] for o in silent),
        latency=_latency([o["ms"] for o in asked if o["outcome"] != "resting"]),
    )


def _commonest(reasons: object) -> Reasons:
    return tuple(Counter(reasons).most_common(REASONS))  # type: ignore[call-overload]


def _latency(ms: Sequence[float]) -> Latency | None:
    return Latency(*np.quantile(ms, (0.5, 0.95, 0.99)).tolist()) if ms else None


def _saved(heard: Sequence[Heard], costs: Sequence[float]) -> float | None:
    whole = sum(c * (h.asked + h.saved) for c, h in zip(costs, heard, strict=True))
    return sum(c * h.saved for c, h in zip(costs, heard, strict=True)) / whole if whole else None


@dataclass(frozen=True, slots=True)
class Change:
    """From which score something is flagged, now and after the flip; None: never."""

    name: str
    now: float | None
    then: float | None


@dataclass(frozen=True, slots=True)
class Flip:
    """What a flip of the policy would change.

    Args:
        to: the strictness that it would then have.
        thresholds: of categories with a rule of their own, and of all others (the name "").
        verdicts: the last ones, decided again under both.
        now: of them flagged under the policy in force.
        then: after the flip.
        more: flagged after it that are not now.
        fewer: flagged now that are not after it.
    """

    to: Strictness
    thresholds: tuple[Change, ...]
    verdicts: int
    now: int
    then: int
    more: int
    fewer: int

    @property
    def changed(self) -> tuple[Change, ...]:
        """Thresholds that move."""
        return tuple(c for c in self.thresholds if c.now != c.then)


def flip(policy: Policy, rows: Sequence[Row], by_costs: float) -> Flip:
    """What the other strictness would change.

    Args:
        policy: in force.
        rows: verdicts; their scores do not depend on the strictness.
        by_costs: threshold of the learner's costs.
    """
    to: Strictness = "permissive" if policy.strictness == "strict" else "strict"
    other = policy.model_copy(update={"strictness": to})
    names = ["", *(home(rule.name) for rule in policy.categories)]
    now = [_flagged(policy, row, by_costs) for row in rows]
    then = [_flagged(other, row, by_costs) for row in rows]
    return Flip(
        to=to,
        thresholds=tuple(Change(n, _from(policy, n, by_costs), _from(other, n, by_costs)) for n in names),
        verdicts=len(rows),
        now=sum(now),
        then=sum(then),
        more=sum(b and not a for a, b in zip(now, then, strict=True)),
        fewer=sum(a and not b for a, b in zip(now, then, strict=True)),
    )


def _flagged(policy: Policy, row: Row, by_costs: float) -> bool:
    """As the service decides: by any category, or unscored under a policy that does not let that pass."""
    starts = ((_from(policy, name, by_costs), score) for name, score, _ in row["categories"])
    return any(at is not None and score >= at for at, score in starts) or (
        bool(row["unscored"]) and policy.unscored != "open"
    )


def _from(policy: Policy, category: str, by_costs: float) -> float | None:
    return threshold_of(policy, category, policy.threshold_at(by_costs))
