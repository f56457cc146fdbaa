"""The typed results of a leaderboard: what goes into `RunRecord.results` and what tables and reports read.

A *column* is one side of one suite. Rates are fractions in [0, 1] with unsafe as the positive class, over the scored
`test` items. A quantity that the labels do not define (F1 of a suite of one class) has no value and says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Side
from guardkeel.records import Estimate
from guardkeel.results import Behaviour, Slice, SuiteInfo

ALL = "*"  # all suites, or all sides
Metric = Literal[
    "f1", "f1_strict", "precision", "recall", "fpr", "auroc", "auprc", "ece", "recall_at_fpr", "unscored"
]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Column(_Result):
    """One side of one suite, as judged. `paired` is False for another tool's own items, which no guard here judged."""

    name: str
    suite: str
    side: Side
    classes: Literal["both", "unsafe", "safe"]
    n: int
    n_unsafe: int
    n_safe: int
    n_calibrate: int = Field(description="items that thresholds may be chosen on")
    paired: bool = True


class OperatingPoint(_Result):
    """A guard with its threshold moved to a fixed FPR on safe `calibrate` items, tried on the `test` items.

    The intervals hold the threshold's own uncertainty. `threshold` is None where there are too few safe items to
    choose it on; the note of `recall` then says so.
    """

    target: float = Field(description="the FPR that the threshold was chosen for")
    threshold: float | None
    chosen_on: Literal["suite", "all suites", "nothing"]
    n_chosen: int = Field(description="safe calibrate items behind the threshold")
    recall: Estimate
    fpr: Estimate


class Cell(_Result):
    """One guard on one column; suite "*" is all suites pooled, side "*" all sides.

    `f1_strict` counts an unscored item as wrong: an unsafe one as missed, a safe one as flagged.
    `n_not_judged` counts items of the column for which an imported file has no row.
    """

    suite: str
    side: str
    behaviour: Behaviour
    f1_strict: Estimate
    at_fpr: OperatingPoint
    n_not_judged: int = 0


class Macro(_Result):
    """The unweighted mean of a metric over columns, each of which has a value for every guard that is compared."""

    metric: Metric
    side: str
    columns: list[str]
    estimate: Estimate


class Latency(_Result):
    """Seconds an item, over `n` of them. The quantiles are of items."""

    n: int
    p50: Estimate
    p99: Estimate


class Speed(_Result):
    """How long scoring took on this machine: the one part of the results that no repetition gives again.

    `amortised`: seconds of a batch over its items, for every item; a guard that computes items together answers one
    item later than this. The first batch holds tokenising and warming up. `alone`: items sent one by one after one
    that is not counted; None where it was not asked for. `tokens` are those of the messages by the guard's own
    tokenizer, without policy and template; None where it has none.
    """

    seconds: float
    items: int
    batches: int
    items_per_second: float
    tokens: int | None
    tokens_per_second: float | None
    amortised: Latency
    alone: Latency | None = None


class Confusion(_Result):
    """How many items with this labelled category the guard gave that one."""

    labelled: str
    named: str
    n: int


class CategoryAgreement(_Result):
    """Whether the guard names the categories that the labels name, both in the home taxonomy.

    Over unsafe test items with a labelled category that has a home, which the guard flagged and for which it named at
    least one category (`n_compared` of `n_labelled`).
    """

    n_labelled: int
    n_flagged: int
    n_compared: int
    exact: Estimate = Field(description="the two sets of names are equal")
    overlap: Estimate = Field(description="they share a name")
    macro_recall: Estimate = Field(
        description="mean over categories of the share of items that got their name"
    )
    by_category: dict[str, Estimate]
    confusion: list[Confusion] = Field(description="commonest first")


class GuardRow(_Result):
    """One guard on everything."""

    name: str
    reference: str
    origin: str = Field(default="guardkeel", description="the tool that scored it")
    status: Literal["scored", "failed"]
    reason: str = Field(default="", description="why it failed")
    compared: bool = Field(description="whether it judged every item and so counts for means and ranks")
    rank: int | None = None
    family: str = ""
    threshold: float = 0.5
    policy: str = ""
    digest: str = ""
    parameters: int = 0
    dtype: str = ""
    device: str = ""
    cells: list[Cell] = Field(default_factory=list)
    macro: list[Macro] = Field(default_factory=list)
    slices: list[Slice] = Field(
        default_factory=list, description="language and home category, all suites pooled"
    )
    categories: CategoryAgreement | None = None
    speed: Speed | None = None
    unscored_reasons: dict[str, int] = Field(default_factory=dict, description="commonest first")
    shortened: int = 0
    notes: list[str] = Field(default_factory=list)


class Difference(_Result):
    """A guard against the one that all are compared with, over the items that both judged.

    `difference` is guard − against. `p` is two-sided: exact McNemar for recall, FPR and unscored, DeLong for AUROC,
    the paired bootstrap for F1; `p_holm` is Holm's over the guards (suite "*") or over guards and columns. `word` goes
    by p_holm ≤ 0.05 and by which direction is the better one.
    """

    guard: str
    against: str
    suite: str
    side: str
    metric: Metric
    n: int
    value: float | None
    value_against: float | None
    difference: Estimate
    better: int | None = Field(default=None, description="items right here and wrong there")
    worse: int | None = None
    p: float | None = None
    p_holm: float | None = None
    word: Literal["better", "worse", "not settled", "not measured"] = "not measured"


class LeaderboardResults(_Result):
    """`RunRecord.results` of a leaderboard. Guards stand in order of rank, those without a rank last."""

    suites: list[SuiteInfo]
    columns: list[Column]
    guards: list[GuardRow]
    fixed_fpr: float
    min_items: int
    against: str = Field(description="the guard that the others are compared with")
    ranked_by: Metric | None = Field(description="the measure that gives the rank")
    ranked_on: Literal["means", "pooled"] = Field(
        default="means", description="pooled: no suite has both classes, all of them together have"
    )
    differences: list[Difference] = Field(default_factory=list)
    not_averaged: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="metric → column → the guard without a value there"
    )
    notes: list[str] = Field(default_factory=list)
