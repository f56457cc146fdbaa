"""What mask learning reads and does, as one TOML file: `guardkeel fuse mask --config mask.toml --set steps=400`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardkeel.configuration import read_configuration


class MaskConfig(BaseModel):
    """The configuration of a mask (SOMF). The resolved one is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    candidates: list[str] = Field(
        min_length=1, description="the damaged guards: checkpoints, LoRA adapters or GGUF files"
    )
    reference: str = Field(default="keel-135m", description="the safe guard to get back to")
    objective: Literal["verdict", "dpo"] = Field(
        default="verdict",
        description="verdict: the guard's own answer on labelled conversations; dpo: preference pairs",
    )
    guard_data: list[str] = Field(
        default=["keel-anchor"],
        description="labelled guard conversations for the verdict: files, suites (their `fit` split), references",
    )
    guard_items: int = Field(
        default=200, ge=2, description="use at most this many of them, labels in balance"
    )
    pairs: list[str] = Field(
        default_factory=list,
        description="files of preference pairs for dpo: rows with prompt, chosen, rejected",
    )
    beta: float = Field(default=0.1, gt=0, description="of dpo: how soon a preference counts as learned")
    task_data: list[str] = Field(
        default_factory=list, description="rows of the task, to keep it as well; see task_weight"
    )
    task_weight: float = Field(
        default=0.0, ge=0, description="weight of the task's cross-entropy; 0 is the paper's"
    )
    kl_weight: float = Field(
        default=0.0, ge=0, description="weight of the KL to the reference's verdict, beside the verdict loss"
    )
    answer_weight: float = Field(
        default=0.3, ge=0, description="weight of what a guard's answer says after the verdict"
    )
    granularity: Literal["element", "row", "tensor"] = Field(
        default="element", description="what has a mask of its own: every element, output row or tensor"
    )
    space: Literal["delta", "factors"] = Field(
        default="delta",
        description="delta: the change of the weights; factors: the A and B of one LoRA adapter, each masked",
    )
    rescale: Literal["auto", "tensor", "model", "none"] = Field(
        default="auto",
        description="what a mask is divided by: its mean over the tensor (the paper's), over the model, or nothing; "
        "auto: tensor, and model for one mask a tensor, which its own mean would cancel",
    )
    merge: Literal["task-arithmetic", "ties", "dare", "average"] = Field(
        default="task-arithmetic", description="how the masked changes of several candidates are merged"
    )
    scale: float | None = Field(
        default=None,
        description="what the merged change is multiplied by; default: 1 of one candidate, of several 0.3 "
        "(task-arithmetic, dare), 0.4 (ties) or 1 (average)",
    )
    density: float = Field(default=0.2, gt=0, le=1, description="of ties: share of each tensor that is kept")
    drop: float = Field(default=0.2, ge=0, lt=1, description="of dare: share of each tensor that is dropped")
    temperature: float = Field(default=0.5, ge=0.02, description="of the Binary Concrete masks")
    init: float = Field(default=0.0, ge=-20, le=20, description="logit of every mask at the start")
    sample: bool = Field(
        default=True, description="draw masks in every step; else learn through their median"
    )
    export: Literal["expectation", "median", "binary"] = Field(
        default="expectation", description="which mask is written; none of them is a draw"
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="of a binary mask: the median from which it is 1"
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="of Adam")
    steps: int = Field(default=200, ge=1, description="optimiser steps")
    batch: int = Field(default=8, ge=1, description="rows (or pairs) a step")
    max_tokens: int = Field(
        default=512, ge=64, description="longest row; longer messages are shortened in the middle"
    )
    every: int = Field(
        default=20, ge=1, description="steps between two states that a killed run goes on from"
    )
    draws: int = Field(default=5, ge=0, description="draws of the learned masks whose spread is reported")
    measured: int = Field(default=64, ge=1, description="rows on which the objective is reported")
    force: bool = Field(default=False, description="learn though the plan says that the memory is large")
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    dtype: str = Field(default="auto", description="of the forward pass: auto, float32 or bfloat16")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    data_folder: str | None = Field(default=None, description="folder that data: references start from")
    seed: int = Field(default=0, description="of draws and order")
    offline: bool | None = Field(default=None, description="never use the network")

    @model_validator(mode="after")
    def _fits_together(self) -> MaskConfig:
        if self.space == "factors" and len(self.candidates) != 1:
            raise ValueError("factors are masked of one candidate, a LoRA adapter")
        if self.granularity == "tensor" and self.rescale == "tensor":
            raise ValueError(
                "one mask a tensor divided by its own mean is always 1; rescale by model or none"
            )
        if self.objective == "dpo" and not self.pairs:
            raise ValueError("dpo needs preference pairs")
        if self.objective == "dpo" and self.kl_weight:
            raise ValueError("kl_weight goes with the verdict loss; dpo has its own reference term")
        if self.task_weight and not self.task_data:
            raise ValueError("task_weight needs task_data")
        return self

    @property
    def rescaled(self) -> Literal["tensor", "model", "none"]:
        """`rescale` with auto resolved."""
        if self.rescale != "auto":
            return self.rescale
        return "model" if self.granularity == "tensor" else "tensor"


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> MaskConfig:
    """See configuration.read_configuration."""
    return read_configuration(MaskConfig, "fuse mask", path, given, changes)
