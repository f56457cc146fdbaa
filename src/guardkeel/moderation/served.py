"""What is judged and what is answered: an item in, a served verdict out, and the row that the log keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardkeel.conversation import Conversation, Side
from guardkeel.moderation.aggregation import Context
from guardkeel.moderation.experts import Opinion
from guardkeel.moderation.policies import CategoryScore, Policy


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge."""

    conversation: Conversation
    side: Side = "prompt"
    language: str = "und"


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy and the version under which the store knows it."""

    policy: Policy
    version: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """A verdict as it was answered.

    Args:
        id: under which feedback speaks of it.
        item: what was judged.
        unsafe: P(unsafe) of the ensemble; None where unscored.
        flagged: by the policy; unscored items as it says.
        unscored: why there is no verdict; "" where there is one.
        categories: with scores, the highest first; "" is what no expert named.
        opinions: by expert.
        digests: of the experts' files, by expert.
        weights: by expert, in the item's context.
        context: the path of weight tables.
        disagreement: of the experts, in [0, 1].
        vote: weight of the experts that flag by themselves.
        threshold: P(unsafe) from which the policy flags what has no category.
        propensity: probability q with which the item was to be audited.
        audited: whether it was drawn.
        weights_version: sequence number of the last feedback that the weights know.
        policy: in force.
        windows: in which a long text was judged.
        created: when, in seconds since 1970.
        seconds: that it took.
    """

    id: str
    item: Item
    unsafe: float | None
    flagged: bool
    unscored: str
    categories: tuple[CategoryScore, ...]
    opinions: Mapping[str, Opinion]
    digests: Mapping[str, str]
    weights: Mapping[str, float]
    context: Context
    disagreement: float
    vote: float
    threshold: float
    propensity: float
    audited: bool
    weights_version: int
    policy: InForce
    windows: int
    created: float
    seconds: float = 0.0

    def row(self, *, request: str, key: str, digest: str, text: str | None) -> dict[str, Any]:
        """The row of the verdict log."""
        return {
            "id": self.id,
            "created": self.created,
            "request": request,
            "key": key,
            "side": self.item.side,
            "language": self.item.language,
            "context": list(self.context),
            "digest": digest,
            "text": text,
            "policy": self.policy.policy.name,
            "policy_version": self.policy.version,
            "strictness": self.policy.policy.strictness,
            "unsafe": self.unsafe,
            "flagged": self.flagged,
            "unscored": self.unscored,
            "disagreement": self.disagreement,
            "vote": self.vote,
            "weights_version": self.weights_version,
            "propensity": self.propensity,
            "audited": self.audited,
            "advice": {name: o.unsafe for name, o in self.opinions.items()},
            "weights": dict(self.weights),
            "opinions": {name: told(o) | {"digest": self.digests[name]} for name, o in self.opinions.items()},
            "categories": [[c.name, c.score, c.flagged] for c in self.categories],
            "windows": self.windows,
            "seconds": self.seconds,
        }


def told(opinion: Opinion) -> dict[str, Any]:
    """An opinion as JSON."""
    return {
        "outcome": opinion.outcome,
        "unsafe": opinion.unsafe,
        "raw": opinion.raw,
        "categories": list(opinion.categories),
        "reason": opinion.reason,
        "dropped": opinion.dropped,
        "ms": round(1000 * opinion.seconds, 3),
    }
