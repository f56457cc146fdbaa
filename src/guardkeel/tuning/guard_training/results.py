"""The typed results of a training: what goes into `RunRecord.results`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.records import Estimate
from guardkeel.results import Behaviour, RankingTest, Slice
from guardkeel.tuning.guard_training.calibration import Calibration


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Contrast(_Result):
    """One set of items under a policy with the held-out categories (given) and without them (absent).

    `gain` is given − absent, with the paired interval of Tango; `p_change` the exact McNemar p-value.
    """

    n: int
    given: Estimate
    absent: Estimate
    gain: Estimate
    p_change: float | None


class Novel(_Result):
    """Categories that were held out of training, given at inference.

    `recall` is of items that violate them, `false_alarms` of safe ones. `ranking` compares AUROC of these against
    safe items: reference without the categories, candidate with them. `alone` is the recall of each category under
    a policy that has nothing else, and the share of other items that it flags.
    """

    categories: list[str]
    recall: Contrast
    false_alarms: Contrast
    ranking: RankingTest
    by_category: dict[str, Contrast] = Field(default_factory=dict)
    alone: dict[str, tuple[Estimate, Estimate]] = Field(default_factory=dict)


class TrainResults(_Result):
    """`RunRecord.results` of a training. `slices` by "source" are by who gave the labels."""

    base: str
    task: str
    family: str
    method: str
    steps: int = Field(description="optimiser steps that are in the result")
    epoch_items: int = Field(description="items of an epoch")
    policies: int = Field(description="different policies that were shown")
    stopped: str = ""
    calibration: Calibration
    test: Behaviour | None = None
    slices: list[Slice] = Field(default_factory=list)
    topics: Behaviour | None = Field(default=None, description="test rows under their own policies")
    novel: Novel | None = None
    trained: int = Field(description="trainable parameters")
    step_seconds: float = Field(description="median of an optimiser step")
    peak_memory: int = Field(description="bytes, of the process or of the accelerator")
    monitor: list[dict[str, object]] = Field(default_factory=list, description="the monitor's points")
    notes: list[str] = Field(default_factory=list)
