"""Learning from feedback which experts to trust: pure functions of numbers, one idea a file.

    mixture = aggregator.predict(advice, context)        P(unsafe) of the ensemble, or unscored
    aggregator.learn(feedback)                           one row of the feedback log, in order
    replay.add(feedback)                                 the same, rows in any order and more than once

No files, no clocks, no randomness: the same log gives the same weights. Regret bounds are in bounds.py.
"""

from __future__ import annotations

from guardkeel.moderation.aggregation.adahedge import AdaHedge
from guardkeel.moderation.aggregation.aggregator import Aggregator, Mixture, State
from guardkeel.moderation.aggregation.audit import AuditPolicy
from guardkeel.moderation.aggregation.calibration import Calibration, calibrated, fit
from guardkeel.moderation.aggregation.cascade import Cascade, Savings, fit_reach, run_cascade, simulate
from guardkeel.moderation.aggregation.controls import FollowTheLeader, Uniform
from guardkeel.moderation.aggregation.estimates import Interval, RegretEstimate, estimate_regret
from guardkeel.moderation.aggregation.feedback import Context, Feedback
from guardkeel.moderation.aggregation.fixed_share import FixedShare
from guardkeel.moderation.aggregation.hedge import Hedge, log_mixture
from guardkeel.moderation.aggregation.losses import LOSSES, Costs, LossName
from guardkeel.moderation.aggregation.registry import RULES, make_rule
from guardkeel.moderation.aggregation.replay import Replay, replay
from guardkeel.moderation.aggregation.rule import Rule
from guardkeel.moderation.aggregation.squint import Squint

__all__ = [
    "LOSSES",
    "RULES",
    "AdaHedge",
    "Aggregator",
    "AuditPolicy",
    "Calibration",
    "Cascade",
    "Context",
    "Costs",
    "Feedback",
    "FixedShare",
    "FollowTheLeader",
    "Hedge",
    "Interval",
    "LossName",
    "Mixture",
    "RegretEstimate",
    "Replay",
    "Rule",
    "Savings",
    "Squint",
    "State",
    "Uniform",
    "calibrated",
    "estimate_regret",
    "fit",
    "fit_reach",
    "log_mixture",
    "make_rule",
    "replay",
    "run_cascade",
    "simulate",
]
