"""The whole configuration of a fine-tune as one TOML file: `guardkeel tune --config tune.toml --set steps=100`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.configuration import read_configuration

DEFAULT_METHOD = "kl"


class TuneConfig(BaseModel):
    """What a fine-tune reads and does. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    guard: str = Field(default="keel-135m", description="the guard to tune: a name, folder or reference")
    data: list[str] = Field(
        min_length=1,
        description="what it is to learn: files, suite names, cards or references; of a suite its `fit` split",
    )
    kind: Literal["auto", "guard", "instructions"] = Field(
        default="auto", description="labelled guard conversations, or instructions with answers"
    )
    source: str | None = Field(
        default=None, description="use only rows of `data` whose `source` field is this"
    )
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of the data kept aside, to measure what was learned"
    )
    most: int | None = Field(default=None, ge=1, description="use at most this many rows of the data")
    method: str = Field(
        default=DEFAULT_METHOD,
        description="what keeps the guard's safety; several are joined with +, as in fwssr+replay",
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of each part of the method, by its name"
    )
    guard_data: list[str] = Field(
        default=["auto"],
        description="labelled guard conversations on which the method keeps watch; auto: keel-anchor, and "
        "keel-anchor-agents where trajectories are learned",
    )
    guard_items: int = Field(
        default=200, ge=2, description="use at most this many of them, labels in balance"
    )
    guard_batch: int = Field(default=2, ge=2, description="of them a step")
    unaligned: str | None = Field(
        default=None,
        description="the checkpoint before it became a guard, for asft and safe-lora; keel-135m knows its own",
    )
    recalibrate: bool = Field(
        default=True,
        description="move the threshold, for each side, to where the monitor's false alarms are the reference's",
    )
    adapter: Literal["lora", "dora", "full"] = Field(default="lora", description="which weights are trained")
    rank: int = Field(default=8, ge=1, description="rank of LoRA and DoRA")
    alpha: float = Field(default=16.0, gt=0, description="LoRA updates are scaled by alpha / rank")
    first_layer: int = Field(default=0, ge=0, description="blocks before this one stay as they are")
    learning_rate: float = Field(default=2e-4, gt=0, description="of AdamW")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps; default: as `epochs` says")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data, where steps is not given")
    batch: int = Field(
        default=8, ge=1, description="rows a forward; several processes take equal shares of them"
    )
    accumulation: int = Field(default=1, ge=1, description="forwards an optimiser step")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    decay: bool = Field(default=False, description="then let the rate fall, as a cosine, to a tenth")
    max_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    answer_weight: float = Field(
        default=0.3, ge=0, description="weight of what a guard's answer says after the verdict"
    )
    max_tokens: int = Field(
        default=512, ge=64, description="longest row; longer messages are shortened in the middle"
    )
    checkpointing: bool = Field(default=False, description="recompute activations, to save memory")
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="of several processes: none, each holds all weights; fsdp, each a shard of them; auto: as "
        "accelerate launch is configured, else none",
    )
    offload: bool = Field(
        default=False, description="keep the shards of fsdp and their optimiser in CPU memory"
    )
    every: int = Field(default=10, ge=1, description="steps between two looks at the guard's safety")
    monitor: list[str] = Field(
        default=["auto"],
        description="suites whose `calibrate` split is looked at; empty: none; auto: keel-anchor, advbench, "
        "do-not-answer, keel-domain, keel-contrast, and keel-anchor-agents where trajectories are learned",
    )
    monitor_items: int = Field(default=60, ge=1, description="most items of each of them")
    margin: float = Field(
        default=0.05, gt=0, lt=1, description="fall in recall at which the tripwire ends the run"
    )
    tripwire: bool = Field(
        default=False, description="stop when the fall is larger, and go back to the last good checkpoint"
    )
    keep_checkpoints: bool = Field(
        default=False, description="leave the last checkpoints in the run directory"
    )
    report_to: list[str] = Field(
        default_factory=list, description="where the Trainer logs too: tensorboard, trackio, wandb"
    )
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    dtype: str = Field(default="auto", description="auto, float32 or bfloat16")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    data_folder: str | None = Field(default=None, description="folder that data: references start from")
    seed: int = Field(default=0, description="of weights, order and draws")
    offline: bool | None = Field(default=None, description="never use the network")


WHERE = {"offline", "sharding", "offload"}
"""What says where and how a run is made, and nothing of what it makes: it may be another when the run is resumed."""


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> TuneConfig:
    """See configuration.read_configuration."""
    return read_configuration(TuneConfig, "tune", path, given, changes)
