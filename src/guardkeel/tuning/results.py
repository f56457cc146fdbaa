"""The typed results of a fine-tune: what goes into `RunRecord.results`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Side


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Learned(_Result):
    """What the guard knows of the task, on rows kept aside. Accuracy is of verdicts at the threshold, or of tokens."""

    n: int
    loss: float
    accuracy: float


class TuneResults(_Result):
    """`RunRecord.results` of a fine-tune."""

    method: str
    steps: int = Field(description="optimiser steps that are in the result")
    stopped: str = Field(default="", description="why the run ended before its time, or empty")
    before: Learned | None = None
    after: Learned | None = None
    after_shipped: Learned | None = Field(
        default=None, description="the same at the operating point before, where it was moved"
    )
    threshold: float = Field(description="P(unsafe) from which the tuned guard's verdict is unsafe")
    threshold_before: float
    offsets: dict[Side, float] = Field(
        default_factory=dict, description="log-odds that the tuned guard adds to P(unsafe), by side"
    )
    trained: int = Field(description="trainable parameters")
    step_seconds: float = Field(description="median of an optimiser step")
    peak_memory: int = Field(description="bytes, of the process or of the accelerator")
    monitor: list[dict[str, object]] = Field(default_factory=list, description="the monitor's points")
    notes: list[str] = Field(default_factory=list)
