"""The typed results of a study of heads: what goes into run.json, and what reports and other programs read.

Heads are named `layer-head`, both from 0, as in the files of arXiv:2410.13708's released code. Rates are fractions;
differences are ablated − as it is. The (layers, heads) arrays stand in heads.npz.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.records import Estimate
from guardkeel.results import GuardInfo

Metric = Literal["recall", "fpr", "unscored"]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Head(_Result):
    """One head in a table; values by measure: nats (kl, verdict), degrees (dataset)."""

    head: str
    unsafe: dict[str, float]
    benign: dict[str, float] = Field(default_factory=dict)
    benign_rank: int | None = Field(default=None, description="its rank on the safe items, from 1")
    stability: float | None = Field(
        default=None,
        description="share of bootstrap samples of the prompts in which it is among as many best",
    )


class Spread(_Result):
    """How values of one measure are spread over heads: quantiles from 0 to 1 in tenths, mean, share of the best."""

    quantiles: list[float]
    mean: float
    top_share: float | None = Field(
        default=None, description="of the sum, that of the ten best; None below 0"
    )


class Ranked(_Result):
    """One model's heads in one mode on one set."""

    model: str
    mode: str
    set: str
    n: int
    exact: int = Field(description="heads that were swept; the others are estimates or nothing")
    heads: int
    spreads: dict[str, Spread]
    reliability: float | None = Field(
        default=None,
        description="what this ranking would have in rank correlation with one over other prompts",
    )
    screening: float | None = Field(
        default=None,
        description="rank correlation of estimates and exact values, over the heads that are exact",
    )
    seconds: float


class SharedTop(_Result):
    """Of the k best of two rankings: how many are the same, how many would be by chance, P(at least so many)."""

    k: int
    count: int
    chance: float
    p: float


class Overlap(_Result):
    """Two rankings of the same heads. `ceiling`: the correlation that two rankings so noisy can reach."""

    what: Literal["sets", "suites", "modes", "measures", "models"]
    a: str
    b: str
    mode: str
    set: str
    measure: str
    spearman: float | None
    ceiling: float | None = None
    top: list[SharedTop]


class Moved(_Result):
    """A head that is among the best of either model; ranks from 1."""

    head: str
    before: float
    after: float
    rank_before: int
    rank_after: int


class Against(_Result):
    """Another model beside the first, on the same items."""

    info: GuardInfo
    key: str = Field(description="of its arrays in heads.npz")
    top: list[str]
    moved: list[Moved]


class Group(_Result):
    """The heads that were found together, in the order in which they were added, and the group's score after each."""

    mode: str
    measure: str
    heads: list[str]
    scores: list[float]


class Change(_Result):
    """A rate as it is and ablated, paired over the same items; p: exact McNemar that anything changed."""

    before: float | None
    after: float | None
    difference: Estimate
    p: float | None = None


class Trial(_Result):
    """What ablating some heads together did."""

    kind: Literal["found", "random", "matched"]
    draw: int
    size: int
    heads: list[str]
    recall: Change
    fpr: Change
    unscored: Change
    auroc: Estimate = Field(description="change of AUROC, paired")


class Beside(_Result):
    """The found group beside its controls of one size and kind, for one metric.

    `excess` is the found group's change less the mean of the controls', with a bootstrap interval over conversations;
    p = (1 + controls that change it at least as much) / (1 + controls), so it is never below that of the draws.
    """

    size: int
    kind: Literal["random", "matched"]
    metric: Metric
    draws: int
    low: float
    mean: float
    high: float
    excess: Estimate
    p: float


class Effect(_Result):
    """What ablation does to the answers. For a chat model an item is flagged where the reply refuses."""

    unsafe: int
    benign: int
    threshold: float
    trials: list[Trial]
    beside: list[Beside]

    def trial(self, kind: str, size: int, draw: int = 0) -> Trial | None:
        """One of them."""
        return next((t for t in self.trials if (t.kind, t.size, t.draw) == (kind, size, draw)), None)


class Judge(_Result):
    """The refusal judge against people; attack: its "did not refuse" against "achieved the harmful objective"."""

    of: Literal["refusal", "attack"]
    digest: str
    sensitivity: Estimate
    specificity: Estimate
    unscored: int


class HeadsResults(_Result):
    """A study of one model's heads."""

    model: GuardInfo
    architecture: str
    chat: bool
    layers: int
    query_heads: int
    key_heads: int
    head_width: int
    template: str = Field(description="sha256 of what stands around a message")
    modes: list[str]
    epsilon: float
    measure: str
    rank: int
    suites: dict[str, dict[str, int]] = Field(description="set → suite → prompts; `effect` is a set too")
    top: dict[str, list[Head]] = Field(description="mode → best first")
    ranked: list[Ranked]
    overlaps: list[Overlap]
    group: Group | None = None
    effect: Effect | None = None
    judge: list[Judge] = Field(default_factory=list)
    against: list[Against] = Field(default_factory=list)
    plans: list[str] = Field(description="what each sweep was to take, as said before it")
    memory: int = Field(description="most bytes that a sweep took beside the model, as planned")
    notes: list[str] = Field(default_factory=list)
