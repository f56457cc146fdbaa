"""The typed results of a sweep: what goes into `RunRecord.results` and what its report reads.

Rates are fractions; unsafe is the positive class. All that is said of a point is of `calibrate` items and of task rows
kept aside; `Confirmation` is of `test` items.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Side
from guardkeel.fusion.results import Diagnostics, Measured
from guardkeel.records import Estimate
from guardkeel.results import GuardInfo, SuiteInfo

Control = Literal["", "reference", "candidate", "random mask", "interpolation"]
Answer = Literal["non-inferior", "inferior", "insufficient evidence"]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TaskGain(_Result):
    """What a point knows of one candidate's task, on rows kept aside."""

    candidate: str
    n: int
    loss: float
    accuracy: float = Field(
        description="of verdicts at the reference's operating point, or of the answers' tokens"
    )
    by_loss: Estimate = Field(description="(reference − point) / (reference − candidate) in loss")
    by_accuracy: Estimate = Field(description="(point − reference) / (candidate − reference) in accuracy")


class Point(_Result):
    """One guard of the sweep: a method with its settings, or a control that nothing was fused for."""

    id: str
    name: str
    method: str = Field(description="empty for reference and candidates, which are not fused")
    settings: dict[str, Any] = Field(default_factory=dict)
    extras: dict[str, str] = Field(default_factory=dict)
    seed: int | None = Field(default=None, description="of a method that draws")
    control: Control = ""
    n_unscored: int = 0
    threshold: float = Field(description="as shipped")
    recall: Estimate = Field(description="as shipped, of scored unsafe items")
    fpr: Estimate = Field(description="as shipped, of scored safe items")
    auroc: Estimate
    unscored: Estimate = Field(description="items without a verdict, of all")
    moved: float | None = Field(description="threshold at which the FPR is the reference's")
    sides: dict[Side, float] = Field(
        default_factory=dict, description="the same of sides that have their own"
    )
    recall_matched: Estimate = Field(
        description="recall there, of all unsafe items: one that is unscored is not caught"
    )
    change: Estimate = Field(description="of recall_matched against the reference's, paired")
    suites: dict[str, Estimate] = Field(default_factory=dict, description="recall_matched by suite")
    gains: list[TaskGain] = Field(default_factory=list)
    gain: Estimate = Field(
        description="task gain kept, the mean over candidates, in what the rule measures it in"
    )
    score_distance: float | None = Field(
        description="mean |P(unsafe) − the reference's| over items scored by both"
    )
    weights: Measured | None = Field(
        default=None, description="change of the weights; none for the reference"
    )
    seconds: float
    front: bool = False


class Failed(_Result):
    """A point that could not be made, or a method that could not be tried, and why."""

    name: str
    reason: str


class Choice(_Result):
    """What the rule came to."""

    rule: str = Field(description="in words")
    chosen: str | None = Field(description="id of the point")
    satisfied: bool = Field(description="whether it satisfies the rule; where not, it is the nearest one")
    reason: str
    eligible: int = Field(description="how many settings satisfy the rule")
    considered: int


class Standing(_Result):
    """The best that a method came to under the rule, against the best of plain interpolation."""

    method: str = Field(description="its name, or the control's")
    point: str = Field(description="id of its best setting's point, the first seed's where it draws")
    satisfied: bool = Field(
        description="whether that setting satisfies the rule; where not, it is the nearest"
    )
    recall: float | None = Field(description="at the reference's FPR, the mean over seeds")
    gain: float | None = Field(description="task gain kept, the mean over seeds")
    fpr: float | None = Field(description="as shipped, the mean over seeds")
    seeds: int
    against: Estimate = Field(description="recall − plain interpolation's, paired; undefined for itself")


class SuiteVerdict(_Result):
    """Recall on one suite of `test` items (or all, "*"): the reference, the damaged guards and the repaired one."""

    suite: str
    n: int
    reference: float | None
    repaired: float | None
    change: Estimate = Field(description="repaired − reference, paired, as shipped")
    outcome: Answer | None = Field(description="none where there is no unsafe item")
    damaged: dict[str, float | None] = Field(default_factory=dict, description="by candidate")
    damaged_change: dict[str, Estimate] = Field(default_factory=dict)


class Audited(_Result):
    """One of the confirming audits: reference against the repaired guard or against a candidate."""

    name: str
    folder: str = Field(description="its run directory, in this one")
    decision: Literal["allow", "hold", "deny"]
    reason: str
    fpr_change: Estimate
    unscored_change: Estimate
    recall_matched: Estimate = Field(description="at the reference's FPR by calibrate items, all suites")
    auroc: Estimate


class Confirmation(_Result):
    """The chosen point, written out and judged on `test` items."""

    checkpoint: str = Field(description="folder, in the run directory")
    kind: Literal["checkpoint", "adapter"]
    threshold: float
    offsets: dict[Side, float] = Field(default_factory=dict)
    moved: bool = Field(description="whether threshold or offsets are other than the reference's")
    as_swept: float | None = Field(
        description="largest |P(unsafe) of the written guard − of the point in the sweep| on calibrate items"
    )
    margin: float
    suites: list[SuiteVerdict]
    verdict: Answer = Field(
        description="over all suites: inferior on one is inferior, one not settled is not settled"
    )
    repaired: Audited
    damaged: list[Audited]


class SweepResults(_Result):
    """`RunRecord.results` of a sweep."""

    reference: GuardInfo
    candidates: list[str]
    gain: Literal["loss", "accuracy"]
    floor: float
    fpr_margin: float
    unscored_margin: float
    suites: list[SuiteInfo]
    points: list[Point]
    failed: list[Failed] = Field(default_factory=list)
    skipped: list[Failed] = Field(
        default_factory=list, description="methods of the shipped grid that lack something"
    )
    choice: Choice
    standings: list[Standing] = Field(default_factory=list, description="the best of each method, best first")
    diagnostics: Diagnostics | None = Field(default=None, description="of the chosen point")
    confirmation: Confirmation | None = None
    notes: list[str] = Field(default_factory=list)

    def point(self, identity: str | None) -> Point | None:
        """A point by its id."""
        return next((p for p in self.points if p.id == identity), None)
