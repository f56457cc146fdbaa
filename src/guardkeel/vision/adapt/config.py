"""The whole configuration of an adaptation as one TOML file: `guardkeel vision adapt --config adapt.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from guardkeel.configuration import read_configuration
from guardkeel.vision.shape import VisionShape
from guardkeel.vision.training import LanguageTraining

Arm = Literal["plain", "freeze-language", "safety-sft", "fwssr"]

METHODS: dict[Arm, str] = {
    "plain": "plain",
    "freeze-language": "plain",
    "safety-sft": "replay",
    "fwssr": "fwssr",
}
"""What keeps the language part's safety in each arm: a method of `guardkeel tune`, on the text side."""


class AdaptConfig(LanguageTraining):
    """What an adaptation reads and does. The resolved configuration is saved with the run."""

    model: str = Field(
        default="keel-135m", description="the language model that is given eyes: a name, folder or reference"
    )
    start: str | None = Field(
        default=None,
        description="a LLaVA checkpoint made from it, to go on with; default: a new one, which has learned to describe "
        "drawings",
    )
    subject: Literal["guard", "chat"] = Field(
        default="guard",
        description="guard: judged by its own verdicts; chat: a chat model, judged by whether it begins to refuse",
    )
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    arm: Arm = Field(default="plain", description="plain, freeze-language, safety-sft or fwssr")
    method: str | None = Field(
        default=None, description="another method of guardkeel tune than the arm's, as in kl or fwssr+replay"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of each part of the method, by its name"
    )
    vision: VisionShape = Field(default_factory=VisionShape, description="of a new vision tower")
    captions: int = Field(
        default=20_000,
        ge=0,
        description="drawn pictures that a new vision tower and projector learn to describe in the language model's "
        "word embeddings, before it is run itself; 0: a projector of random weights",
    )
    pictures: int = Field(
        default=2400, ge=1, description="pictures with questions to learn from, drawn by the seed"
    )
    test_pictures: int = Field(
        default=120, ge=1, description="others, on which accuracy is measured; the same for every seed"
    )
    kinds: list[str] = Field(
        default=["shape", "count", "place", "chart", "word", "sign"], min_length=1, description="of pictures"
    )
    guard_data: list[str] = Field(
        default=["keel-anchor"],
        min_length=1,
        description="suites or files of labelled texts that the method keeps watch on; of a suite its `fit` split",
    )
    guard_items: int = Field(
        default=200, ge=2, description="use at most this many of them, labels in balance"
    )
    guard_batch: int = Field(default=2, ge=2, description="of them a step")
    suites: list[str] = Field(
        default=["advbench", "do-not-answer", "keel-domain", "keel-contrast"],
        min_length=1,
        description="labelled texts on which the language part is audited: names, files, cards or references",
    )
    limit: int | None = Field(default=100, ge=1, description="most items of each suite and split")
    geometry_items: int = Field(default=200, ge=20, description="most items the geometry is measured on")
    typographic_suites: list[str] = Field(
        default_factory=list, description="whose requests become pictures; default: those of `suites`"
    )
    typographic: int = Field(
        default=60,
        ge=0,
        description="unsafe, and as many safe, requests that become pictures; 0: no audit of images",
    )
    data_folder: str | None = Field(default=None, description="folder that data: references start from")
    steps: int = Field(default=300, ge=1, description="optimiser steps")
    batch: int = Field(default=8, ge=1, description="pictures a step")
    vision_rate: float = Field(default=1e-3, gt=0, description="learning rate of vision tower and projector")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    decay: bool = Field(default=True, description="then let the rates fall, as a cosine, to a tenth")
    max_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    max_tokens: int = Field(default=1024, ge=64, description="longest row, pictures included")
    looks: int = Field(
        default=3, ge=1, description="audits along the way, beside the one before the first step"
    )
    alphas: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        description="shares of the language part's change that are kept in merging it with what it was; empty: none",
    )
    keep: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="number format in which the adapted model is kept"
    )
    seed: int = Field(default=0, description="of the vision tower, the pictures, their order and draws")
    offline: bool | None = Field(default=None, description="never use the network")

    @property
    def chosen_method(self) -> str:
        """The method by name."""
        return self.method or METHODS[self.arm]

    @property
    def every(self) -> int:
        """Steps between two audits."""
        return max(1, -(-self.steps // self.looks))


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> AdaptConfig:
    """See configuration.read_configuration."""
    return read_configuration(AdaptConfig, "vision adapt", path, given, changes)
