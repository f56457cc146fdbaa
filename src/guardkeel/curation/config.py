"""The pipeline as one TOML file: `guardkeel curate pipeline.toml`. A step runs where its table stands.

name = "bank"

[[source]]
name = "logs"
data = "logs/*.jsonl"

[dedup]
[redact]
[map]

[jury]
quorum = 2
[[jury.juror]]
guard = "juror-a.toml"

[split]
against = ["all"]

[export]
"""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardkeel.configuration import read_configuration
from guardkeel.conversation import Label, Side
from guardkeel.curation.mapping import Strictness
from guardkeel.curation.redaction import KINDS
from guardkeel.engines.settings import EngineSettings
from guardkeel.evaluation.suites.readers import Format
from guardkeel.evaluation.suites.splits import Proportions, Split

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAPPING = "mapping"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reconstruct(_Table):
    """Where prompts that upstream shows as REDACTED are."""

    file: str = Field(description="the file that has them, which users get from its own source")
    id: str = Field(default="", description="column of its ids; empty: the first column, which has no name")
    text: str = Field(default="text", description="column of its texts")


class SourceConfig(_Table):
    """One `[[source]]`."""

    name: str = Field(pattern=NAME, description="what its rows are called by")
    data: str | list[str] = Field(
        default="", description="files: paths, which may have * in them, and hub:, pypi: and path: references"
    )
    suite: str = Field(
        default="", description="or a suite by name, card or file, as guardkeel audit takes it"
    )
    part: Split | None = Field(default=None, description="of a suite, only this split")
    format: str = Field(
        default="auto", description="a released format, messages or guardkeel; auto goes by the columns"
    )
    mapping: dict[str, Any] | None = Field(
        default=None,
        description="a field mapping for other records, as in a suite's card; labels may be left out",
    )
    labels: dict[Side, Label] = Field(
        default_factory=dict, description="labels that all records share, where they have none of their own"
    )
    label_source: str | None = Field(
        default=None, description="who labelled: human, author, a model's name; default: as the format says"
    )
    taxonomy: str | None = Field(default=None, description="whose category names they are")
    licence: str = Field(
        default="", description="of the texts; default: as the format or the suite's card says"
    )
    origin: str = Field(default="", description="who made it, from what")
    language: str = Field(default="", description="of the texts, where the records do not say")
    group: str = Field(default="", description="field whose equal values stay in one split")
    split: Split | None = Field(default=None, description="the split that all its rows are to be in, if any")
    limit: int | None = Field(default=None, ge=1, description="read at most this many records")
    file_format: Format | None = Field(
        default=None, description="jsonl, json, csv, …; default: by the file's name"
    )
    rows: str = Field(default="", description="JSON: dotted path of the list inside the document")
    encodings: list[str] = Field(
        default=["utf-8"],
        min_length=1,
        description="tried in order, for each line of JSONL and for other files as a whole",
    )
    on_error: Literal["stop", "reject"] = Field(
        default="stop", description="a record that cannot be read ends the run, or is left out and counted"
    )
    reconstruct: Reconstruct | None = Field(
        default=None, description="puts prompts of Aegis 2.0 back in that are shown as REDACTED"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.data) == bool(self.suite):
            raise ValueError("give either data or suite")
        if self.suite and (self.mapping or self.format != "auto"):
            raise ValueError("a suite has a mapping of its own")
        if self.part and not self.suite:
            raise ValueError("part goes with suite")
        if self.mapping and self.format not in ("auto", MAPPING):
            raise ValueError("give either a format or a mapping")
        return self


class LimitsConfig(_Table):
    """[limits]: rows that are longer than what a guard can read. Nothing is ever cut."""

    max_tokens: int = Field(ge=16, description="tokens of a row's texts together")
    tokenizer: str | None = Field(
        default=None, description="whose tokens; default: a guess of four bytes a token"
    )
    action: Literal["keep", "drop"] = Field(
        default="keep", description="keep: count and mark them; drop: leave them out, and count them"
    )


class DedupConfig(_Table):
    """[dedup]: rows that say the same become one."""

    near: bool = Field(default=True, description="also rows that say nearly the same")


class RedactConfig(_Table):
    """[redact]: personal data become typed placeholders."""

    kinds: list[str] = Field(default=list(KINDS), description="what is taken out")
    regions: list[str] = Field(
        default=["US"], description="countries whose phone numbers are known without their +code"
    )


class MapConfig(_Table):
    """[map]: category names to Aegis 2.0, and labels of dialogues to labels of their sides."""

    categories: dict[str, str | list[str]] = Field(
        default_factory=dict, description='your names → ours; "*" is all others, [] leaves a name out'
    )
    unknown: Literal["keep", "drop", "stop"] = Field(
        default="keep", description="what becomes of names without a home"
    )
    strictness: Strictness = Field(
        default="strict", description="permissive: what is unsafe by nothing but Needs Caution is safe"
    )
    dialogue: bool = Field(
        default=False, description="a dialogue's label is its prompt's; a safe dialogue has a safe response"
    )


class Price(_Table):
    """What a juror costs, in the currency of [jury]."""

    input: float = Field(default=0.0, ge=0, description="a million input tokens")
    output: float = Field(default=0.0, ge=0, description="a million output tokens")
    request: float = Field(default=0.0, ge=0, description="a request")

    @property
    def free(self) -> bool:
        """Whether nothing costs anything."""
        return not (self.input or self.output or self.request)


class JurorConfig(_Table):
    """One `[[jury.juror]]`: a guard of any kind, or labels that somebody recorded."""

    guard: str = Field(
        default="", description="a server's TOML file, a checkpoint, rules, … as guardkeel audit takes it"
    )
    recorded: str = Field(default="", description="or a file of votes: id, side, label or unsafe, categories")
    name: str | None = Field(default=None, min_length=1, description="default: the guard's, or the file's")
    policy: str | None = Field(default=None, description="a guard policy (TOML) to judge under")
    family: str | None = Field(default=None, description="guard family, where it cannot be told")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which a vote is unsafe"
    )
    unsure: tuple[float, float] | None = Field(
        default=None, description="between these P(unsafe) the juror abstains"
    )
    price: Price = Price()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.guard) == bool(self.recorded):
            raise ValueError("give either guard or recorded")
        if self.recorded and (self.policy or self.family or not self.price.free):
            raise ValueError("policy, family and price are of guards")
        if self.unsure and not 0 <= self.unsure[0] < self.unsure[1] <= 1:
            raise ValueError("unsure must be two numbers in [0, 1], the lower one first")
        return self


class JuryConfig(_Table):
    """[jury]: several judges label what is not labelled."""

    juror: list[JurorConfig] = Field(min_length=1)
    sides: list[Side] = Field(default=["prompt", "response"], min_length=1, description="the sides to judge")
    items: Literal["unlabelled", "all"] = Field(
        default="unlabelled", description="all: also sides with a label, which stays; for agreement alone"
    )
    rule: Literal["majority", "dawid-skene"] = Field(
        default="majority", description="how votes become a label; both are computed and kept"
    )
    certainty: float = Field(
        default=0.8, gt=0.5, le=1, description="dawid-skene: the probability from which a label is given"
    )
    quorum: int = Field(
        default=2, ge=1, description="fewer votes than this, abstentions aside, give no label"
    )
    calibration: list[str] = Field(
        default_factory=list, description="human-labelled suites on which each juror is measured"
    )
    calibration_items: int = Field(default=200, ge=10, description="most items of each of them")
    calibration_split: Split = Field(default="calibrate", description="which split of them")
    batch: int = Field(default=500, ge=20, description="items of a batch, for drift between batches")
    budget: float | None = Field(default=None, ge=0, description="most that this run may cost")
    currency: str = "USD"
    cache: str | None = Field(
        default=None, description="file of all votes; default: jury.sqlite in the run's folder"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.quorum > len(self.juror):
            raise ValueError(f"quorum {self.quorum} is more than the {len(self.juror)} jurors")
        return self


class AdjudicateConfig(_Table):
    """[adjudicate]: people decide where jurors do not, and a share of what jurors agree on."""

    sides: list[Side] = Field(default=["prompt", "response"], min_length=1, description="the sides to decide")
    unsure: tuple[float, float] = Field(
        default=(0.2, 0.8), description="between these P(unsafe) of Dawid-Skene, or of a calibrated juror"
    )
    audit: float = Field(
        default=0.05, ge=0, le=1, description="share of agreed items that people judge as well, drawn blindly"
    )
    labelled: bool = Field(
        default=False,
        description="also sides that had a label before the jury, where the jurors contradict it",
    )
    people: int = Field(
        default=1, ge=1, le=9, description="independent labels of an item; one more decides a tie"
    )
    show_votes: bool = Field(
        default=False, description="show jurors' votes before a person has decided; such labels are marked"
    )
    lease: float = Field(default=15.0, gt=0, description="minutes for which an item is kept for one person")
    unfinished: Literal["hold", "go-on"] = Field(
        default="hold",
        description="while items wait for people: hold the pipeline, or go on with what there is",
    )
    unresolved: Literal["unlabelled", "jury", "drop"] = Field(
        default="unlabelled", description="sides on which no decision came: no label, the jury's, or no row"
    )
    file: str | None = Field(
        default=None,
        description="SQLite file of all decisions; default: adjudication.sqlite in the run's folder",
    )

    @field_validator("unsure")
    @classmethod
    def _band(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("must be two numbers in [0, 1], the lower one first")
        return value


class RefusalsConfig(_Table):
    """[synthesis.refusals]: replies that deflect unsafe prompts, labelled safe."""

    writer: str = Field(default="", description="a server's TOML file: a chat model that writes them")
    recorded: str = Field(default="", description="or a file of replies: id of the row, text, model")
    count: int | None = Field(
        default=None, ge=1, description="at most this many; default: every unsafe prompt"
    )
    ways: list[Literal["decline", "explain", "redirect", "care", "steer"]] = Field(
        default=["decline", "explain", "redirect", "care", "steer"],
        min_length=1,
        description="how the writer is asked to deflect, by turns",
    )
    check: str = Field(
        default="", description="a guard that must find a reply safe, as guardkeel audit takes it"
    )

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if not (self.writer or self.recorded):
            raise ValueError("give a writer or recorded")
        return self


class TopicsConfig(_Table):
    """[synthesis.topics]: rows under a topic's rule, on topic safe and off topic unsafe."""

    templates: int = Field(
        default=0, ge=0, description="this many from texts that come along and from the rows"
    )
    kinds: list[Literal["only", "never", "categories"]] = Field(
        default=["only", "never", "categories"], min_length=1, description="the kinds of rules of these"
    )
    writer: str = Field(default="", description="a server's TOML file: a chat model that writes dialogues")
    dialogues: int = Field(default=200, ge=1, description="how many dialogues the writer is asked for")
    recorded: str = Field(
        default="", description="a file of dialogues with turns and on_topic, or of CantTalkAboutThis"
    )
    licence: str = Field(default="", description="of written and recorded dialogues")

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if not (self.templates or self.writer or self.recorded):
            raise ValueError("give templates, a writer or recorded")
        return self


class SynthesisConfig(_Table):
    """[synthesis]: rows that are written."""

    refusals: RefusalsConfig | None = None
    topics: TopicsConfig | None = None
    price: Price = Price()
    budget: float | None = Field(default=None, ge=0, description="most that this run may cost")
    currency: str = "USD"
    cache: str | None = Field(
        default=None, description="file of all texts; default: synthesis.sqlite in the run's folder"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.refusals is None and self.topics is None:
            raise ValueError("give refusals or topics")
        return self


class SplitConfig(_Table):
    """[split]: which rows are for fitting, for calibrating and for testing."""

    proportions: Proportions = Field(default=(0.8, 0.1, 0.1), description="of fit, calibrate and test")
    against: list[str] = Field(
        default_factory=list,
        description="suites that rows must not resemble; all: every registered suite that can be read",
    )
    against_splits: list[Split] = Field(
        default=["calibrate", "test"], min_length=1, description="which of their splits"
    )
    overlaps: Literal["drop", "test"] = Field(
        default="drop",
        description="rows that resemble them, and all of their cluster: left out, or only tested on",
    )

    @field_validator("proportions")
    @classmethod
    def _whole(cls, value: Proportions) -> Proportions:
        if min(value) < 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-6):
            raise ValueError("must not be negative and must add up to 1")
        return value


class ExportConfig(_Table):
    """[export]: the finished set."""

    formats: list[Literal["parquet", "jsonl"]] = Field(default=["parquet"], min_length=1)
    also: list[str] = Field(
        default_factory=list, description="released formats to write it in as well, as JSONL beside it"
    )
    shard: int = Field(default=100_000, ge=1, description="most rows of one file")
    title: str = Field(default="", description="what the card calls it; default: the pipeline's name")
    description: str = Field(default="", description="a paragraph for the card")
    licence: str = Field(default="", description="of the whole set; default: what its sources say")


class CurateConfig(EngineSettings):
    """What `guardkeel curate` reads and does. The resolved configuration is saved with the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="guard-data", pattern=NAME, description="of the set")
    source: list[SourceConfig] = Field(min_length=1)
    limits: LimitsConfig | None = None
    dedup: DedupConfig | None = None
    redact: RedactConfig | None = None
    map: MapConfig | None = None
    jury: JuryConfig | None = None
    adjudicate: AdjudicateConfig | None = None
    synthesis: SynthesisConfig | None = None
    split: SplitConfig = SplitConfig()
    export: ExportConfig = ExportConfig()
    data_folder: str | None = Field(default=None, description="folder that data: references start from")
    offline: bool | None = Field(default=None, description="never use the network")
    seed: int = Field(default=0, description="of draws: calibration items, bootstrap")

    @field_validator("source")
    @classmethod
    def _distinct(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        names = [s.name for s in value]
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise ValueError(f"two sources are named {twice!r}")
        return value


def read_config(path: Path | None, given: MappingType[str, Any], changes: Sequence[str] = ()) -> CurateConfig:
    """See configuration.read_configuration."""
    return read_configuration(CurateConfig, "curate", path, given, changes)
