"""What a study of heads reads and does, as one TOML file: `guardkeel heads --config heads.toml --set items=32`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardkeel.configuration import read_configuration
from guardkeel.conversation import Side
from guardkeel.evaluation.config import DEFAULT_SUITES

Mode = Literal["q", "k", "v", "mean-q", "mean-k", "mean-v", "kv-group"]


class HeadsConfig(BaseModel):
    """What a study reads, sweeps and tries. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    guard: str = Field(
        default="keel-135m", description="the guard: a name, folder or reference, or a run of tune"
    )
    against: list[str] = Field(
        default_factory=list, description="guards of the same architecture to compare rankings with"
    )
    chat: bool = Field(
        default=False,
        description="take it as a plain chat model: its next token after a prompt, and what it replies",
    )

    suites: list[str] = Field(
        default=DEFAULT_SUITES, min_length=1, description="names, files, cards or references"
    )
    data: str | None = Field(default=None, description="folder that data: references of cards start from")
    side: Side = Field(default="prompt", description="what is judged: prompt, response or trajectory")
    items: int = Field(
        default=16,
        ge=2,
        description="unsafe items that heads are ranked on, and as many safe ones as a control",
    )

    modes: list[Mode] = Field(
        default=["q"],
        min_length=1,
        description="what ablating a head means: q, k, v, mean-q, mean-k, mean-v or kv-group; "
        "groups and effects are of the first",
    )
    epsilon: float = Field(default=1e-5, ge=0, le=1, description="what is left of what is ablated")
    measure: Literal["kl", "dataset", "verdict"] = Field(
        default="kl",
        description="what ranks: kl (Ships a query, mean), dataset (Ships of the data set), or verdict (how far "
        "the log-odds of unsafe fall)",
    )
    rank: int = Field(default=1, ge=1, description="singular vectors that dataset compares")
    screen: Literal["bf16", "second-order", "gradient"] | None = Field(
        default=None,
        description="estimate all heads in a cheaper way (bf16, second-order for kl, gradient for dataset), and "
        "sweep only the best exactly",
    )
    rescore: int = Field(default=20, ge=1, description="heads that are exact after screening")
    top: int = Field(default=10, ge=1, description="heads in the tables")

    size: int = Field(default=3, ge=0, le=5, description="heads in the group that is found greedily; 0: none")
    effect: bool = Field(default=True, description="ablate the group and see what becomes of the verdicts")
    effect_items: int = Field(
        default=50, ge=2, description="items of each label that the effect is measured on"
    )
    controls: int = Field(
        default=5, ge=1, description="random groups of each size; and as many of the same layers"
    )
    reply_tokens: int = Field(default=48, ge=1, description="longest reply of a chat model")
    system: str = Field(default="", description="system turn of a chat model")
    refusals: str | None = Field(
        default=None,
        description="replies labelled safe (refused) and unsafe (not), on which the refusal judge is measured; "
        "default: PyRIT's, where they are in the data folder or cache",
    )

    memory: float | None = Field(
        default=None,
        gt=0,
        description="GB that a sweep may take beside the model; default: half of what is free",
    )
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which a verdict is unsafe"
    )
    dtype: str = Field(
        default="float32",
        description="auto, float32, bfloat16 or float16; in 16 bits KL below about 1e-3 is rounding",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    max_tokens: int | None = Field(
        default=None, ge=64, description="longest input; longer messages are shortened"
    )
    seed: int = Field(default=0, description="of the choice of items, control groups and bootstraps")
    offline: bool | None = Field(default=None, description="never use the network")

    @model_validator(mode="after")
    def _fits(self) -> HeadsConfig:
        if len(set(self.modes)) < len(self.modes):
            raise ValueError("modes names one twice")
        if self.chat and self.measure == "verdict":
            raise ValueError("a chat model has no verdict; rank it by kl or dataset")
        if self.chat and self.side != "prompt":
            raise ValueError("a chat model is asked prompts; leave side at prompt")
        ways = {"second-order": ("kl",), "gradient": ("dataset",), "bf16": ("kl", "dataset")}
        if self.screen and self.measure not in ways[self.screen]:
            raise ValueError(f"screening by {self.screen} does not estimate {self.measure}")
        return self

    @property
    def bytes(self) -> int | None:
        """What a sweep may take."""
        return None if self.memory is None else int(self.memory * 1e9)


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> HeadsConfig:
    """See configuration.read_configuration."""
    return read_configuration(HeadsConfig, "heads", path, given, changes)
