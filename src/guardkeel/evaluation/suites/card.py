"""A suite's card: what it is, where it comes from, how its records are read and split. One TOML file.

    [suite]
    name = "forum"
    version = "2024-05"
    reference = "forum.csv"                  # beside the card; or path:…, hub:…, pypi:…, with a #sha256=… pin
    licence = "CC BY 4.0"
    origin = "who made it, from what"
    description = "what an item is"
    traps = ["what its labels do not mean"]

    [mapping]                                # see mapping.py; without it the file is guardkeel's JSONL
    prompt = "question"
    labels.prompt = { field = "bad", values = { 0 = "safe", 1 = "unsafe" } }

    [splits]
    proportions = [0.4, 0.2, 0.4]

Several files: a list as `reference`, or `[[parts]]` tables that may change the mapping key by key.
`data:` references are relative to the folder that the environment variable GUARDKEEL_DATA names.
"""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from guardkeel.conversation import Label
from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites.mapping import Mapping
from guardkeel.evaluation.suites.splits import DEFAULT, Proportions, Split

DATA_VARIABLE = "GUARDKEEL_DATA"


def _proportions(value: Proportions) -> Proportions:
    if min(value) < 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-6):
        raise ValueError("proportions of fit, calibrate and test must not be negative and must add up to 1")
    return value


_Proportions = Annotated[Proportions, AfterValidator(_proportions)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitRule(_Data):
    """How a suite is split: by proportions, by other proportions for some sources, or wholly into one."""

    proportions: _Proportions = DEFAULT
    by_source: dict[str, _Proportions] = Field(default_factory=dict)
    fixed: Split | None = None


class Part(_Data):
    """One file of a suite. `mapping` holds the keys that differ from the suite's mapping."""

    reference: str
    name: str = ""
    mapping: dict[str, Any] = Field(default_factory=dict)


class SuiteCard(_Data):
    """What is known of a suite before and, in the counts, after it is loaded."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = "1"
    reference: str | list[str] = ""
    licence: str = ""
    origin: str = ""
    description: str = ""
    citation: str = ""
    traps: list[str] = Field(default_factory=list)
    examples: int | None = Field(
        default=None, description="examples after mapping; checked when the suite is loaded"
    )
    unsafe: int | None = Field(default=None, description="items labelled unsafe, over all sides; checked")
    safe: int | None = Field(default=None, description="items labelled safe, over all sides; checked")
    one_class: Label | None = Field(
        default=None,
        description="the only label there is: FPR or recall, and AUROC, cannot be measured on this suite",
    )
    mapping: Mapping | None = None
    parts: list[Part] = Field(default_factory=list)
    splits: SplitRule = SplitRule()
    folder: str = Field(
        default="", description="where relative path: references start: the card's own folder"
    )

    @field_validator("reference")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and not all(value):
            raise ValueError("a reference is empty")
        return value

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if bool(self.reference) == bool(self.parts):
            raise ValueError("give either a reference or [[parts]]")
        for index in range(len(self.parts)):
            self.mapping_of(index)
        return self

    @property
    def files(self) -> list[Part]:
        """The parts; a bare reference is a part too."""
        if self.parts:
            return self.parts
        references = [self.reference] if isinstance(self.reference, str) else self.reference
        return [Part(reference=r) for r in references]

    def mapping_of(self, index: int) -> Mapping | None:
        """The mapping of one file: the suite's, with the part's keys put over it."""
        changes = self.files[index].mapping
        if not changes:
            return self.mapping
        base = self.mapping.model_dump(exclude_unset=True) if self.mapping else {}
        return Mapping.model_validate({**base, **changes})

    def located(self, reference: str, data: str | Path | None = None) -> str:
        """A reference that does not depend on the card's place: path: and data: become absolute.

        Raises:
            ConfigError: a data: reference, and no data folder is known.
        """
        kind, _, rest = reference.partition(":")
        if kind == "data":
            folder = data or os.environ.get(DATA_VARIABLE)
            if not folder:
                raise ConfigError(
                    f"suite {self.name!r}: {reference} needs a data folder",
                    remedy=f"set {DATA_VARIABLE} to the folder that holds {rest.partition('#')[0]}",
                )
            return f"path:{Path(folder).expanduser().absolute() / rest}"
        if kind in ("hub", "pypi"):
            return reference
        rest = rest if kind == "path" else reference
        return f"path:{Path(self.folder) / Path(rest).expanduser()}"


def read_card(path: str | Path) -> SuiteCard:
    """Read a card file; raises ConfigError naming file, field, value and remedy."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
        data = tomllib.loads(text)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{path}: not TOML ({e})", remedy="check the file at that place") from e
    return parse_card(data, where=str(path), folder=str(path.absolute().parent))


def parse_card(data: dict[str, Any], *, where: str, folder: str = "") -> SuiteCard:
    """A card from TOML tables; raises ConfigError naming the field and value."""
    unknown = set(data) - {"suite", "mapping", "parts", "splits"}
    suite = data.get("suite")
    if unknown or not isinstance(suite, dict):
        raise ConfigError(
            f"{where}: unknown table {sorted(unknown)[0]!r}" if unknown else f"{where}: no [suite] table",
            remedy="a card has [suite], [mapping], [[parts]] and [splits]",
        )
    inside = set(suite) & {"mapping", "parts", "splits", "folder"}
    if inside:
        raise ConfigError(
            f"{where}: [suite] has no field {sorted(inside)[0]!r}", remedy="it is a table of its own"
        )
    rest = {k: v for k, v in data.items() if k != "suite"}
    try:
        return SuiteCard.model_validate({**suite, **rest, "folder": folder})
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "card"
        value = first.get("input")
        shown = f", not {value!r:.80}" if isinstance(value, str | int | float | bool) else ""
        raise ConfigError(
            f"{where}: {place}: {first['msg']}{shown}",
            remedy="`pydoc guardkeel.evaluation.suites.card` shows the format",
        ) from e
