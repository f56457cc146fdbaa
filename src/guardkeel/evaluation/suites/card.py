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

Other places of the same set, or other readings of its labels, are copies:

    [[copies]]
    name = "local"                           # forum@local reads it; forum always reads the card's reference
    reference = "data:forum/part.jsonl"      # or [[copies.parts]]; without either, the card's own files
    note = "the first half"
    examples = 100

    [copies.mapping]                         # keys put over the card's; an empty value takes a key away
    prompt = "text"
"""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from guardkeel.conversation import SIDES, Label, Side
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites.mapping import Mapping, changed
from guardkeel.evaluation.suites.splits import DEFAULT, Proportions, Split

DATA_VARIABLE = "GUARDKEEL_DATA"
LOCAL = "local"
"""The name of the copy in the user's data folder."""

COPY_MARK = "@"
"""Stands between a suite's name and a copy's: forum@local."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Checked = Literal["read", "documented"]
Tier = Literal["open", "restricted"]


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


class _Described(_Data):
    """What a card says of its own files, and a copy of its."""

    version: str = ""
    reference: str | list[str] = ""
    licence: str = ""
    tier: Tier | None = Field(
        default=None,
        description="open: the licence allows any use with attribution; restricted: non-commercial, share-alike, "
        "gated, for one field of use, or known at second hand: for evaluation on this machine only",
    )
    gated: bool = Field(default=False, description="the source asks for its terms to be accepted first")
    checked: Checked | None = Field(
        default=None,
        description="how the mapping is known: read: records were read with it; documented: written from the "
        "source's documentation, so that the first load may refuse",
    )
    origin: str = ""
    examples: int | None = Field(
        default=None, description="examples after mapping; checked when the suite is loaded"
    )
    unsafe: int | None = Field(default=None, description="items labelled unsafe, over all sides; checked")
    safe: int | None = Field(default=None, description="items labelled safe, over all sides; checked")
    one_class: Label | None = Field(
        default=None,
        description="the only label there is: FPR or recall, and AUROC, cannot be measured on this suite",
    )
    parts: list[Part] = Field(default_factory=list)

    @field_validator("reference")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and not all(value):
            raise ValueError("a reference is empty")
        return value

    @model_validator(mode="after")
    def _one_kind_of_files(self) -> Self:
        if self.reference and self.parts:
            raise ValueError("give either a reference or [[parts]]")
        return self


class Copy(_Described):
    """Another place of the same set, or another reading of its labels.

    `mapping` holds the keys that differ from the card's. What is said here stands for what the card says of
    its own files; counts are never taken over. Without a reference and parts, the card's own files are read.
    """

    name: str = Field(default=LOCAL, pattern=NAME)
    note: str = Field(default="", description="in what it differs; stands among the traps")
    mapping: dict[str, Any] = Field(default_factory=dict)
    splits: SplitRule | None = None


class SuiteCard(_Described):
    """What is known of a suite before and, in the counts, after it is loaded."""

    name: str = Field(pattern=NAME)
    version: str = "1"
    home: str = Field(default="", description="web address of the source")
    description: str = ""
    citation: str = ""
    traps: list[str] = Field(default_factory=list)
    mapping: Mapping | None = None
    splits: SplitRule = SplitRule()
    copies: list[Copy] = Field(default_factory=list)
    read_from: str = Field(default="", description="the copy that this card stands for; empty: none")
    folder: str = Field(
        default="", description="where relative path: references start: the card's own folder"
    )

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if not self.reference and not self.parts:
            raise ValueError("give either a reference or [[parts]]")
        names = [c.name for c in self.copies]
        repeated = [n for i, n in enumerate(names) if n in names[:i]]
        if repeated:
            raise ValueError(f"two copies are named {repeated[0]!r}")
        for index in range(len(self.parts)):
            self.mapping_of(index)
        for name in names:
            self.copied(name)
        return self

    @property
    def full_name(self) -> str:
        """The name that loads this card again: forum, or forum@local."""
        return f"{self.name}{COPY_MARK}{self.read_from}" if self.read_from else self.name

    @property
    def files(self) -> list[Part]:
        """The parts; a bare reference is a part too."""
        if self.parts:
            return self.parts
        references = [self.reference] if isinstance(self.reference, str) else self.reference
        return [Part(reference=r) for r in references]

    @property
    def where(self) -> str:
        """In words, where its own files are taken from."""
        kinds = {
            "hub": "hub, gated" if self.gated else "hub",
            "pypi": "pip",
            "data": "data folder",
        }
        found = dict.fromkeys(kinds.get(p.reference.partition(":")[0], "file") for p in self.files)
        return " and ".join(found)

    @property
    def is_local(self) -> bool:
        """Whether all files lie in the user's data folder."""
        return all(part.reference.startswith("data:") for part in self.files)

    @property
    def sides(self) -> list[Side]:
        """The sides that the mapping can label; none is known of a card without one."""
        mappings = [m for i in range(len(self.files)) if (m := self.mapping_of(i)) is not None]
        return [side for side in SIDES if any(side in m.labels for m in mappings)]

    def mapping_of(self, index: int) -> Mapping | None:
        """The mapping of one file: the suite's, with the part's keys put over it."""
        changes = self.files[index].mapping
        if not changes:
            return self.mapping
        return self.mapping.changed(changes) if self.mapping else changed({}, changes)

    def copied(self, name: str) -> SuiteCard:
        """The card of a copy: the same set, read from there.

        `local` is also the card itself, where its own files lie in the data folder.

        Raises:
            DataError: there is no such copy.
        """
        copy = next((c for c in self.copies if c.name == name), None)
        if copy is None:
            if name == LOCAL and self.is_local:
                return self
            names = ", ".join(f"{self.name}{COPY_MARK}{c.name}" for c in self.copies)
            raise DataError(
                f"suite {self.name!r} has no copy {name!r}",
                remedy=f"its copies are {names}" if names else f"it has none: say {self.name}",
            )
        said = copy.model_dump(exclude_unset=True, exclude={"name", "note", "mapping", "version"})
        if copy.mapping:
            said["mapping"] = (
                self.mapping.changed(copy.mapping) if self.mapping else changed({}, copy.mapping)
            )
        if "reference" in said or "parts" in said:
            said = {"reference": "", "parts": [], **said}
        counts = dict.fromkeys(("examples", "unsafe", "safe", "one_class"))
        own = {key: getattr(self, key) for key in type(self).model_fields if key != "copies"}
        return SuiteCard.model_validate(
            {
                **own,
                **counts,
                **said,
                "version": f"{copy.version or self.version}{COPY_MARK}{name}",
                "traps": [*self.traps, *filter(None, [copy.note])],
                "read_from": name,
            }
        )

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
                    remedy=f"set {DATA_VARIABLE} to the folder that holds {rest.partition('#')[0]}"
                    + (f"; it comes from {self.home}" if self.home else ""),
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
    unknown = set(data) - {"suite", "mapping", "parts", "splits", "copies"}
    suite = data.get("suite")
    if unknown or not isinstance(suite, dict):
        raise ConfigError(
            f"{where}: unknown table {sorted(unknown)[0]!r}" if unknown else f"{where}: no [suite] table",
            remedy="a card has [suite], [mapping], [[parts]], [splits] and [[copies]]",
        )
    inside = set(suite) & {"mapping", "parts", "splits", "copies", "folder", "read_from"}
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
