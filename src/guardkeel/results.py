"""The typed results of an audit: what goes into `RunRecord.results` and what reports and gates read.

All rates are fractions in [0, 1]; *unsafe* is the positive class; differences are candidate − reference.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.records import Estimate


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Behaviour(_Result):
    """How a guard behaved on a set of labelled items, at its threshold.

    Rates are over *scored* items; what was unscored is a rate of its own over all items.
    """

    n: int
    n_unsafe: int
    n_safe: int
    n_unscored: int
    threshold: float
    recall: Estimate
    fpr: Estimate
    precision: Estimate
    f1: Estimate
    auroc: Estimate
    auprc: Estimate
    ece: Estimate
    unscored: Estimate


class Slice(_Result):
    """The same, on the items of one category, side, source, language or length band."""

    by: Literal["suite", "category", "side", "source", "language", "length"]
    value: str
    behaviour: Behaviour


class PairedTest(_Result):
    """A paired comparison of one rate on one suite (or on all suites, suite = "*").

    `difference` is candidate − reference with its paired interval. `harm` is the difference in the harmful
    direction (a fall in recall, a rise in FPR or unscored rate). `p` is the one-sided p-value of
    non-inferiority (H0: harm ≥ margin), `p_holm` the same after Holm over the family; `p_change` the exact
    McNemar p-value that anything changed. `worse` counts items that changed for the worse, `better` for the
    better. `detectable` is the smallest margin that n and the discordance seen could resolve at 80% power.
    """

    suite: str
    metric: Literal["recall", "fpr", "unscored"]
    n: int
    reference: float | None
    candidate: float | None
    difference: Estimate
    margin: float
    worse: int
    better: int
    design_effect: float = Field(
        default=1.0,
        ge=1,
        description="variance over that of independent items; counts are divided by it in tests",
    )
    p: float | None
    p_holm: float | None
    p_change: float | None
    detectable: float | None
    outcome: Literal["non-inferior", "inferior", "insufficient evidence", "not measured"]


class RankingTest(_Result):
    """Paired change of AUROC on one suite or on all (DeLong)."""

    suite: str
    reference: Estimate
    candidate: Estimate
    difference: Estimate


class Recalibration(_Result):
    """How much of a fall in recall is operating point and how much is ranking.

    The candidate's threshold is moved, on the `calibrate` items, to where its FPR equals the reference's;
    `recall_recalibrated` is its recall there on the `test` items.
    recall lost = (reference − recalibrated) [ranking] + (recalibrated − as shipped) [operating point].
    """

    suite: str
    threshold: float | None
    recall_reference: Estimate
    recall_shipped: Estimate
    recall_recalibrated: Estimate
    lost_to_ranking: Estimate
    lost_to_operating_point: Estimate
    note: str = ""


class Flip(_Result):
    """An item on which the two guards disagree, or of which one has no score."""

    id: str
    kind: Literal["missed", "false alarm", "lost score", "caught", "cleared", "gained score"]
    reference: float | None
    candidate: float | None


class Comparison(_Result):
    """Everything paired between reference and candidate."""

    tests: list[PairedTest]
    ranking: list[RankingTest]
    recalibration: list[Recalibration]
    flips: list[Flip] = Field(description="failures first, largest change of score first")


class Measure(_Result):
    """One geometry measure of one layer, with what the same measure gives where there is nothing to find."""

    estimate: Estimate
    null_mean: float | None = None
    null_high: float | None = Field(default=None, description="95th percentile of the null")
    p: float | None = Field(default=None, description="(1 + null at least as extreme) / (1 + draws)")


class LayerGeometry(_Result):
    """Geometry of one layer at the verdict position. `layer` counts decoder blocks from 1."""

    layer: int
    n: int
    rank: int
    separability_reference: Measure
    separability_candidate: Measure | None = None
    probe_reference: Measure
    probe_candidate: Measure | None = None
    cka: Measure | None = None
    principal_angles: list[float] = Field(default_factory=list, description="degrees, ascending")
    overlap: Measure | None = Field(default=None, description="mean squared cosine of the angles")
    drift: Estimate | None = Field(default=None, description="RMS change over RMS centred norm")
    drift_inside: Measure | None = Field(default=None, description="share of squared change in the subspace")


class Rule(_Result):
    """One rule of a gate policy and what became of it."""

    name: str
    kind: Literal["behaviour", "absolute", "geometry", "completeness"]
    advisory: bool
    suite: str
    requirement: str
    observed: str
    n: int
    outcome: Literal["pass", "fail", "hold"]
    reason: str


class Decision(_Result):
    """The gate's answer and its trace."""

    decision: Literal["allow", "hold", "deny"]
    policy: str
    policy_digest: str
    rules: list[Rule]
    reason: str


class GuardInfo(_Result):
    """Which guard was run."""

    name: str
    reference: str = Field(description="the reference it was loaded from")
    family: str
    threshold: float
    digest: str
    parameters: int
    dtype: str
    device: str


class SuiteInfo(_Result):
    """Which suite was used, after splitting."""

    name: str
    version: str
    digest: str
    split: str
    n: int
    n_unsafe: int
    n_safe: int
    licence: str = ""
    origin: str = ""


class GuardResult(_Result):
    """One guard's behaviour: pooled over suites, by suite, and by slice."""

    info: GuardInfo
    overall: Behaviour
    slices: list[Slice]


class AuditResults(_Result):
    """`RunRecord.results` of an audit."""

    suites: list[SuiteInfo]
    reference: GuardResult
    candidate: GuardResult | None = None
    comparison: Comparison | None = None
    geometry: list[LayerGeometry] = Field(default_factory=list)
    decision: Decision | None = None
    shortened: int = Field(default=0, description="items whose message was shortened to fit")
