"""What a sweep reads and tries, as one TOML file: `guardkeel fuse sweep --config sweep.toml --set floor=0.95`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardkeel.configuration import read_configuration
from guardkeel.evaluation.config import DEFAULT_SUITES


class PointGroup(BaseModel):
    """One `[[point]]`: a method with every combination of what its `grid` lists."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(description="a fusion method, see guardkeel fuse --list-methods")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="lists of values by setting; every combination is a point"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings that all these points share")
    extras: dict[str, list[str]] = Field(
        default_factory=dict,
        description="files by what the method calls them; several are points of their own",
    )
    seeds: list[int] | None = Field(
        default=None, min_length=1, description="of a method that draws; default: those of the sweep"
    )
    least: int = Field(default=1, ge=1, description="tried with this many candidates at least")
    most: int | None = Field(default=None, ge=1, description="and at most")

    @field_validator("extras", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: [files] if isinstance(files, str) else files for name, files in value.items()}

    @field_validator("grid", mode="after")
    @classmethod
    def _some(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if empty := [name for name, values in value.items() if not values]:
            raise ValueError(f"{empty[0]} lists no value")
        return value


class SweepConfig(BaseModel):
    """What a sweep reads, tries and asks. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid")

    reference: str = Field(default="keel-135m", description="the guard to be got back to: a whole checkpoint")
    candidates: list[str] = Field(
        min_length=1,
        description="the damaged guards: run directories of tune, which know their task; checkpoints or adapters; "
        "NAME=… gives one a name",
    )
    unaligned: str | None = Field(
        default=None, description="what the reference was made from, for methods that ask for it"
    )
    extras: dict[str, str] = Field(
        default_factory=dict, description="files of what methods need beside weights, by name"
    )
    task: list[str] = Field(
        default_factory=list,
        description="held-out rows of what was learned, one for each candidate or one for all; "
        "runs of tune have their own",
    )
    task_rows: int = Field(default=200, ge=2, description="most rows of each task")
    point: list[PointGroup] = Field(
        default_factory=list, description="what is tried; default: the grid that ships"
    )
    alphas: list[float] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        description="of the plain interpolation, a control",
    )
    keeps: list[float] = Field(
        default=[0.25, 0.5, 0.75], description="shares kept by random masks, a control"
    )
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, description="of every method that draws")

    floor: float = Field(default=0.9, ge=0, le=1, description="least task gain that the choice must keep")
    fpr_margin: float = Field(
        default=0.05, ge=0, lt=1, description="most that its FPR as shipped may lie above the reference's"
    )
    unscored_margin: float = Field(
        default=0.01, ge=0, lt=1, description="most that its share of items without a verdict may lie above"
    )
    gain: Literal["loss", "accuracy"] = Field(default="loss", description="what task gain is measured in")
    fallback: Literal["nearest", "none"] = Field(
        default="nearest", description="what is confirmed where no point satisfies the rule"
    )

    confirm: bool = Field(default=True, description="write the chosen point and audit it on `test`")
    recalibrate: bool = Field(
        default=True,
        description="ship it with its threshold moved, for each side, to the reference's false alarms on `calibrate`",
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="fall in recall to rule out on every suite")
    adapter: bool = Field(default=False, description="write the choice as a LoRA adapter on the reference")
    policy: str | None = Field(default=None, description="gate policy (TOML); default: the one that ships")
    geometry: bool = Field(default=True, description="measure activations in the confirming audits")

    suites: list[str] = Field(
        default=DEFAULT_SUITES, min_length=1, description="names, files, cards or references"
    )
    limit: int | None = Field(default=None, ge=1, description="most items of each suite and split")
    data: str | None = Field(default=None, description="folder that data: references of cards start from")
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    dtype: str = Field(
        default="auto",
        description="auto, float32, bfloat16 or float16; auto: write_dtype, where that is given",
    )
    write_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="number format of the weights that are tried and written; default: the reference's, in which a "
        "small change is partly lost to rounding",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    max_tokens: int | None = Field(
        default=None, ge=64, description="longest input; longer messages are shortened"
    )
    token_budget: int | None = Field(default=None, ge=64, description="padded tokens in a batch")
    keep: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="hold the tensors of all models in memory between points; auto: where they fit",
    )
    seed: int = Field(default=0, description="of bootstraps")
    offline: bool | None = Field(default=None, description="never use the network")

    def guard_options(self) -> dict[str, Any]:
        """The options of load_checkpoint."""
        said = self.model_dump(include={"family", "device", "max_tokens", "token_budget", "offline"})
        return said | {"dtype": self.write_dtype if self.dtype == "auto" and self.write_dtype else self.dtype}


def read_config(path: Path | None, given: Mapping[str, Any], changes: Sequence[str] = ()) -> SweepConfig:
    """See configuration.read_configuration."""
    return read_configuration(SweepConfig, "fuse sweep", path, given, changes)
