"""The whole configuration of a multi-image run as one TOML file: `guardkeel vision mis --config mis.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from guardkeel.configuration import read_configuration
from guardkeel.vision.training import LanguageTraining


class MisConfig(LanguageTraining):
    """What a multi-image run reads and does. The resolved configuration is saved with the run."""

    start: str = Field(
        description="the model that sees: a checkpoint's folder, such as adapted/ of vision adapt"
    )
    labels: Literal["cot", "answer", "none"] = Field(
        default="cot",
        description="cot: chain-of-thought labels; answer: the answer alone; none: judge as it is",
    )
    pairs: int = Field(default=300, ge=1, description="hazardous items to learn, each with its harmless twin")
    general: int = Field(default=150, ge=0, description="other questions on one picture to learn beside them")
    test_pairs: int = Field(default=30, ge=1, description="items, with twins, that are judged in each tier")
    held_out: float = Field(
        default=0.3, gt=0, lt=1, description="share of the hazards that are never learned: the tier `hard`"
    )
    size: int = Field(default=96, ge=16, description="side of a drawn picture, in pixels")
    steps: int = Field(default=200, ge=1, description="optimiser steps")
    batch: int = Field(default=4, ge=1, description="items a step")
    vision_rate: float = Field(default=5e-4, gt=0, description="learning rate of vision tower and projector")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    decay: bool = Field(default=True, description="then let the rates fall, as a cosine, to a tenth")
    max_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    max_tokens: int = Field(default=1024, ge=64, description="longest row, pictures included")
    reply_tokens: int = Field(default=96, ge=4, description="longest reply")
    reply_batch: int = Field(default=8, ge=1, description="replies that are written together")
    every: int = Field(
        default=50, ge=1, description="steps between two checkpoints, from which a run is resumed"
    )
    keep: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="number format in which the model is kept"
    )
    seed: int = Field(default=0, description="of drawings, order and the hazards that are held out")


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> MisConfig:
    """See configuration.read_configuration."""
    return read_configuration(MisConfig, "vision mis", path, given, changes)
