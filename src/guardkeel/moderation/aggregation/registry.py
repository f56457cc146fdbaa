"""Rules by name, for configuration files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation.adahedge import AdaHedge
from guardkeel.moderation.aggregation.controls import FollowTheLeader, Uniform
from guardkeel.moderation.aggregation.fixed_share import FixedShare
from guardkeel.moderation.aggregation.hedge import Hedge, log_mixture
from guardkeel.moderation.aggregation.rule import Rule
from guardkeel.moderation.aggregation.squint import Squint

RULES: Mapping[str, Callable[..., Rule]] = {
    "hedge": Hedge,
    "log-mixture": log_mixture,
    "adahedge": AdaHedge,
    "fixed-share": FixedShare,
    "squint": Squint,
    "follow-the-leader": FollowTheLeader,
    "uniform": Uniform,
}


def make_rule(name: str, **parameters: float) -> Rule:
    """A rule by its name; ConfigError for a name or parameter that is not known."""
    if name not in RULES:
        raise ConfigError(f"rule {name!r} is not known", remedy=f"use one of {', '.join(RULES)}")
    try:
        return RULES[name](**parameters)
    except TypeError as e:
        raise ConfigError(f"rule {name!r} with {parameters!r} ({e})", remedy="see docs/learner.md") from e
