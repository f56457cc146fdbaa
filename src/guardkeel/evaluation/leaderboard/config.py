"""The whole configuration of a leaderboard as one TOML file: guards, suites, imported results, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardkeel.configuration import read_configuration
from guardkeel.engines.settings import ENGINE_FIELDS, EngineSettings
from guardkeel.errors import ConfigError
from guardkeel.evaluation.config import DEFAULT_SUITES
from guardkeel.evaluation.imports.reading import Reading

NAME = r"^[^\x00-\x1f/\\]+$"
OPTIONS = ("family", "threshold", "policy", "dtype", "device", "max_tokens", "token_budget")


class GuardEntry(BaseModel):
    """One `[[guard]]`: where it comes from and what is special about it."""

    model_config = ConfigDict(extra="forbid")

    reference: str = Field(
        min_length=1, description="a name, folder or reference, as guardkeel audit takes it"
    )
    name: str | None = Field(
        default=None,
        pattern=NAME,
        max_length=100,
        description="how the table calls it; default: the guard's own name",
    )
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which a verdict is unsafe"
    )
    policy: str | None = Field(default=None, description="a guard policy (TOML) to judge under")
    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16")
    device: str | None = Field(default=None, description="auto, cpu, cuda or cuda:N")
    max_tokens: int | None = Field(
        default=None, ge=64, description="longest input; longer messages are shortened"
    )
    token_budget: int | None = Field(default=None, ge=64, description="padded tokens in a batch")

    @property
    def label(self) -> str:
        """What the table calls it before it is loaded."""
        return self.name or self.reference

    def options(self) -> dict[str, Any]:
        """The options of load_guard that were given."""
        return self.model_dump(include=set(OPTIONS), exclude_none=True)


class ImportedEntry(BaseModel):
    """One `[[imported]]`: results that another tool wrote, to stand beside guardkeel's own."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(
        min_length=1, description="results of geh, inspect_ai, lm-eval or GuardBench: a file or a folder"
    )
    name: str | None = Field(
        default=None,
        pattern=NAME,
        max_length=100,
        description="how the table calls it; default: what the file says",
    )
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="score from which one of its verdicts is unsafe"
    )
    reading: Reading = Field(
        default_factory=Reading, description="what the file leaves open: side, scorer, unsafe words, …"
    )


class LeaderboardConfig(EngineSettings):
    """What a leaderboard reads, measures and runs on."""

    model_config = ConfigDict(extra="forbid")

    guard: list[GuardEntry] = Field(default_factory=list, description="the guards, one [[guard]] each")
    imported: list[ImportedEntry] = Field(
        default_factory=list, description="results of other tools, one [[imported]] each"
    )
    suites: list[str] = Field(
        default=DEFAULT_SUITES, min_length=1, description="names, files, cards or references"
    )
    data: str | None = Field(default=None, description="folder that data: references of cards start from")
    limit: int | None = Field(default=None, ge=1, description="most items of each suite and split")
    against: str | None = Field(
        default=None,
        description="name of the guard that the others are compared with; default: the first in rank",
    )
    rank_by: Literal["f1_strict", "f1", "auroc", "recall", "recall_at_fpr"] = Field(
        default="f1_strict", description="whose mean over suites gives the rank"
    )
    fixed_fpr: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="FPR at which recall is compared, threshold chosen on calibrate items",
    )
    min_items: int = Field(
        default=20, ge=2, description="fewest items of a language or category that get a row"
    )
    probe: int = Field(
        default=0, ge=0, description="items judged one by one for latency, besides the batches; 0: none"
    )
    draws: int = Field(default=2000, ge=200, description="bootstrap draws of differences in F1")
    seed: int = Field(default=0, ge=0, description="of bootstraps and of which items are probed")
    dtype: str | None = Field(default=None, description="for guards that name none: auto, float32, …")
    device: str | None = Field(
        default=None, description="for guards that name none: auto, cpu, cuda or cuda:N"
    )
    offline: bool | None = Field(default=None, description="never use the network")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [*(g.label for g in self.guard), *(i.name for i in self.imported if i.name)]
        twice = next((n for k, n in enumerate(labels) if n in labels[:k]), None)
        if twice is not None:
            raise ValueError(f"guard {twice!r} is there twice; give each its own name")
        return self

    def entries(self) -> list[GuardEntry]:
        """The guards, with what was said for all of them."""
        common = {k: v for k, v in (("dtype", self.dtype), ("device", self.device)) if v is not None}
        return [
            g.model_copy(update={k: v for k, v in common.items() if getattr(g, k) is None})
            for g in self.guard
        ]

    def record(self) -> dict[str, Any]:
        """What results follow from, for run.json and for telling runs apart."""
        said = self.model_dump(mode="json", exclude={"offline", "data"} | ENGINE_FIELDS)
        return said | self.engine_mark()


def read_config(
    path: Path | None, guards: Sequence[str], given: Mapping[str, Any], changes: Sequence[str] = ()
) -> LeaderboardConfig:
    """A TOML file, guards and options over it, KEY=VALUE changes over both.

    `guards` that are names or references of a `[[guard]]` of the file pick it; others are references of their own.
    Without any, all guards of the file are taken.

    Raises:
        ConfigError: naming the file, key and value; or nothing is left to compare.
    """
    found = read_configuration(LeaderboardConfig, "leaderboard", path, given, changes)
    if guards:
        known = {g.reference: g for g in found.guard} | {g.label: g for g in found.guard}
        chosen = [known.get(text) or GuardEntry(reference=text) for text in guards]
        found = read_configuration(
            LeaderboardConfig,
            "leaderboard",
            None,
            found.model_dump() | {"guard": [g.model_dump() for g in chosen]},
        )
    if not found.guard and not found.imported:
        raise ConfigError(
            "no guard is given",
            remedy="name one or more (guardkeel leaderboard keel-135m ./my-guard), or write [[guard]] in a --config",
        )
    return found
