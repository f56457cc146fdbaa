"""The whole configuration of an audit as one TOML file: `guardkeel audit --config audit.toml --set limit=200`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from guardkeel.configuration import read_configuration
from guardkeel.engines.settings import EngineSettings
from guardkeel.evaluation.settings import AuditSettings

DEFAULT_SUITES = [
    "advbench",
    "do-not-answer",
    "pyrit-objective",
    "bastion-injection",
    "keel-domain",
    "keel-contrast",
]


class AuditConfig(EngineSettings, AuditSettings):
    """What an audit reads and runs on, and all of AuditSettings."""

    reference: str = Field(default="keel-135m", description="the guard before: a name, folder or reference")
    against: str | None = Field(
        default=None, description="the guard after: a checkpoint, or a LoRA adapter on the reference"
    )
    suites: list[str] = Field(
        default=DEFAULT_SUITES, min_length=1, description="names, files, cards or references"
    )
    data: str | None = Field(default=None, description="folder that data: references of cards start from")
    policy: str | None = Field(default=None, description="gate policy (TOML); default: the one that ships")
    guard_policy: str | None = Field(
        default=None, description="what the guards are to look for (TOML); default: their own policy"
    )
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which a verdict is unsafe"
    )
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    max_tokens: int | None = Field(
        default=None, ge=64, description="longest input; longer messages are shortened"
    )
    token_budget: int | None = Field(default=None, ge=64, description="padded tokens in a batch")
    images: bool = Field(
        default=False, description="load the image parts of the guards too, and judge images with their texts"
    )
    offline: bool | None = Field(default=None, description="never use the network")

    def guard_options(self) -> dict[str, Any]:
        """The options of load_guard."""
        names = {"family", "threshold", "dtype", "device", "max_tokens", "token_budget", "offline"}
        seeing = {"images": True} if self.images else {}
        return self.model_dump(include=names) | seeing | {"policy": self.guard_policy}

    def settings(self) -> AuditSettings:
        """The part that the audit itself reads."""
        return AuditSettings(**self.model_dump(include=set(AuditSettings.model_fields)))


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> AuditConfig:
    """See configuration.read_configuration."""
    return read_configuration(AuditConfig, "audit", path, given, changes)
