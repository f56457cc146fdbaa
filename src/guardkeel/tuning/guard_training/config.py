"""The whole configuration of a training as one TOML file: `guardkeel train-guard --config train.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardkeel.configuration import read_configuration
from guardkeel.tuning.config import TuneConfig

DEFAULT_BASE = "smollm2-135m"
ANY = "*"


class TrainConfig(BaseModel):
    """What a training reads and does. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    base: str = Field(
        default=DEFAULT_BASE,
        description="the model to train: a named base, a folder or reference; a language model, a sequence "
        "classifier or a guard",
    )
    data: list[str] = Field(
        min_length=1,
        description="curated sets (folders of guardkeel curate), JSONL or Parquet files of them, or suites",
    )
    accept_terms: bool = Field(default=False, description="the base's terms have been read and accepted")
    kind: Literal["auto", "causal", "classifier"] = Field(
        default="auto", description="what it becomes; auto: what the checkpoint is"
    )
    family: str | None = Field(
        default=None,
        description="guard family; default: the base's own where it is a guard, else keel-policy",
    )
    policy: str | None = Field(
        default=None, description="guard policy (TOML) with your categories; default: Aegis 2.0's by name"
    )
    strictness: Literal["strict", "permissive"] = Field(
        default="strict", description="strict: Needs Caution is unsafe; permissive: it is safe"
    )
    hold_out: list[str] = Field(
        default_factory=list,
        description="categories that are left out of policy and data, and measured as new ones afterwards",
    )
    varied: float = Field(
        default=0.5, ge=0, le=1, description="share of the items that are shown under a varied policy"
    )
    variants: int = Field(default=12, ge=1, description="varied policies an epoch")
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="chance that a varied policy leaves a category out"
    )
    shuffle: bool = Field(default=True, description="varied policies list their categories in another order")
    flipped: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of varied unsafe items shown under a policy without their categories, as safe ones",
    )
    topic_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of topic-following items in an epoch; default: all that there are",
    )
    source_weights: dict[str, float] = Field(
        default_factory=dict,
        description='weight of a label by who gave it, as human = 1; "*" is all others, 1 by default',
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: safe and unsafe items weigh the same in sum, on each side"
    )
    most: int | None = Field(default=None, ge=1, description="learn from at most this many items")
    too_long: Literal["shorten", "leave-out"] = Field(
        default="shorten", description="items over max_tokens; both are counted"
    )
    method: str = Field(
        default="plain", description="what keeps a guard's safety, where the base is one; see guardkeel tune"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of each part of the method, by its name"
    )
    guard_data: list[str] = Field(
        default=["keel-anchor"], description="labelled guard conversations on which the method keeps watch"
    )
    guard_items: int = Field(default=200, ge=2, description="use at most this many of them")
    guard_batch: int = Field(default=2, ge=2, description="of them a step")
    unaligned: str | None = Field(
        default=None, description="the checkpoint before it became a guard, for asft and safe-lora"
    )
    adapter: Literal["lora", "dora", "full"] = Field(default="lora", description="which weights are trained")
    rank: int = Field(default=16, ge=1, description="rank of LoRA and DoRA")
    alpha: float = Field(default=32.0, gt=0, description="LoRA updates are scaled by alpha / rank")
    first_layer: int = Field(default=0, ge=0, description="blocks before this one stay as they are")
    learning_rate: float = Field(default=3e-4, gt=0, description="of AdamW")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps; default: as `epochs` says")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data, where steps is not given")
    batch: int = Field(default=16, ge=1, description="items a forward")
    accumulation: int = Field(default=1, ge=1, description="forwards an optimiser step")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    decay: bool = Field(default=True, description="then let the rate fall, as a cosine, to a tenth")
    max_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    answer_weight: float = Field(
        default=0.3, ge=0, description="weight of the category names after the verdict"
    )
    max_tokens: int = Field(default=512, ge=64, description="longest item with its policy")
    checkpointing: bool = Field(default=False, description="recompute activations, to save memory")
    false_alarms: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="the threshold flags at most this share of the safe calibrate items, on each side",
    )
    calibrate_items: int = Field(default=1000, ge=20, description="most calibrate items to choose it on")
    every: int = Field(default=50, ge=1, description="steps between two checkpoints and looks at the guard")
    monitor_items: int = Field(default=80, ge=0, description="calibrate items of a look; 0: no looks")
    test_items: int = Field(default=1000, ge=0, description="most test items to measure the guard on")
    keep_checkpoints: bool = Field(
        default=False, description="leave the last checkpoints in the run directory"
    )
    report_to: list[str] = Field(
        default_factory=list, description="where the Trainer logs too: tensorboard, trackio, wandb"
    )
    dtype: str = Field(default="auto", description="auto, float32 or bfloat16")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    data_folder: str | None = Field(default=None, description="folder that data: references start from")
    seed: int = Field(default=0, description="of weights, order and draws")
    offline: bool | None = Field(default=None, description="never use the network")

    @model_validator(mode="after")
    def _weights(self) -> Self:
        wrong = next((k for k, w in self.source_weights.items() if w < 0), None)
        if wrong is not None:
            raise ValueError(f"the weight of {wrong!r} is negative")
        return self

    def tuning(self) -> TuneConfig:
        """What this means to the machinery of `guardkeel tune`: method, weights, optimiser."""
        shared = TuneConfig.model_fields.keys() & TrainConfig.model_fields.keys() - {
            "data",
            "kind",
            "most",
            "monitor_items",
        }
        given = {name: getattr(self, name) for name in shared}
        return TuneConfig(guard=self.base, data=self.data, **given)


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> TrainConfig:
    """See configuration.read_configuration."""
    return read_configuration(TrainConfig, "train-guard", path, given, changes)
