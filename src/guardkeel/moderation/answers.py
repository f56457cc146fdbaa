"""Served verdicts as the endpoints answer them: in OpenAI's schema, and with all that is known."""

from __future__ import annotations

from typing import Any

from guardkeel.moderation import openai_schema
from guardkeel.moderation.policies import Policy
from guardkeel.moderation.served import Served, told


def openai_result(served: Served) -> dict[str, Any]:
    """One entry of `results`.

    An unscored item that the policy closes is flagged, with no category and scores of 0: the schema has no third
    value, and a made-up category may set off a report to someone.
    """
    policy = served.policy.policy
    if served.unscored:
        return openai_schema.result(served.flagged, ())
    return openai_schema.result(
        served.flagged, ((openai_keys(policy, c.name), c.score, c.flagged) for c in served.categories)
    )


def openai_keys(policy: Policy, category: str) -> tuple[str, ...]:
    """Keys of OpenAI's schema that a category counts as."""
    rule = policy.rule(category)
    if rule is not None and rule.openai is not None:
        return rule.openai
    return openai_schema.CROSSWALK.get(category, ())


def rich(served: Served) -> dict[str, Any]:
    """One verdict of `/v1/verdicts`."""
    policy = served.policy.policy
    return {
        "id": served.id,
        "side": served.item.side,
        "language": served.item.language,
        "unsafe": served.unsafe,
        "flagged": served.flagged,
        "unscored": served.unscored or None,
        "categories": [
            {"name": c.name or None, "score": c.score, "flagged": c.flagged} for c in served.categories
        ],
        "threshold": served.threshold,
        "policy": {"name": policy.name, "version": served.policy.version, "strictness": policy.strictness},
        "context": list(served.context),
        "weights_version": served.weights_version,
        "disagreement": served.disagreement,
        "experts": {
            name: {**told(opinion), "weight": served.weights[name]}
            for name, opinion in served.opinions.items()
        },
        "audit": {"drawn": served.audited, "propensity": served.propensity},
        "windows": served.windows,
        "ms": round(1000 * served.seconds, 3),
    }
