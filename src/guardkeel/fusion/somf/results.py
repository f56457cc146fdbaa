"""The typed results of mask learning: what goes into `RunRecord.results`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.fusion.results import Diagnostics
from guardkeel.fusion.somf.plan import MaskPlan


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Spread(_Result):
    """The objective over draws of the learned masks."""

    draws: int
    mean: float
    sd: float = Field(description="standard deviation; 0 of a single draw")
    low: float
    high: float


class Values(_Result):
    """What is minimised, on the same rows, of several models. Lower is better."""

    rows: int = Field(description="the most rows of any term")
    reference: float = Field(description="the safe guard itself")
    unmasked: float = Field(description="the changes merged without a mask")
    uniform: float = Field(description="under one mask for all, of the learned masks' mean")
    learned: float = Field(description="under the mask that was written")
    draws: Spread | None = None


class MaskResults(_Result):
    """What was learned."""

    weights: int = Field(description="weights that have masks")
    values: int = Field(description="masked numbers")
    masks: int
    density: float = Field(description="mean of the written masks, each counted by how many numbers it masks")
    variance: float = Field(description="mean variance of the masks over draws, counted likewise")
    objective: Values
    options: dict[str, Any] = Field(description="settings of the method somf that fuse as it was learned")
    diagnostics: Diagnostics
    peak_memory: int = 0
    plan: MaskPlan | None = None
    notes: list[str] = Field(default_factory=list)
