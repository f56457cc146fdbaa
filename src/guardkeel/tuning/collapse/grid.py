"""The grid of a collapse bench as one TOML file: scenarios × arms × seeds, and variants of some of them.

    [grid]                  # what all cells share: the guard, its guard data, the suites that judge it
    [tune]                  # settings of every fine-tune, as in tune.toml
    [[scenario]]            # name, data; [scenario.tune] for settings of its own
    [[arm]]                 # name, method, options; family = "main" for all seeds; after = "plain" repairs that arm
    [[variant]]             # name, arms, scenarios; [variant.tune]: the same again, longer or hotter

A setting is taken from the variant, else the arm, else the scenario, else [tune]. Files are looked for beside the
grid; `data:` references start from its data_folder, else from GUARDKEEL_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites.card import DATA_VARIABLE
from guardkeel.records import value_digest
from guardkeel.tuning.collapse.cell import Family, cell_name
from guardkeel.tuning.config import TuneConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Settings(_Table):
    """What all cells share."""

    guard: str = Field(default="keel-135m", description="the guard to tune: a name, folder or reference")
    guard_data: list[str] = Field(default=["keel-anchor"], min_length=1, description="for the methods")
    judged_on: list[str] = Field(default=[], description="suites that judge every cell")
    limit: int = Field(default=60, ge=1, description="most test items of each suite")
    limits: dict[str, int] = Field(default_factory=dict, description="the same for some suites, by name")
    calibrate: int = Field(
        default=30, ge=1, description="most safe items of each suite that move the threshold"
    )
    share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="of a suite whose card has it all for testing, how much moves the threshold instead",
    )
    max_tokens: int | None = Field(default=None, ge=64, description="longest input that is judged")
    seeds: Seeds = [0, 1, 2]
    geometry: bool = True
    layers: list[int] | None = Field(default=None, description="blocks to watch; default: eight of them")
    geometry_items: int = Field(default=200, ge=20)
    rank: int = Field(default=32, ge=1, description="of the safety subspace")
    draws: int = Field(default=19, ge=19, description="draws of each null")
    data_folder: str | None = Field(default=None, description="folder that data: references start from")


class Scenario(_Table):
    """A harmless task."""

    name: Name
    summary: str = ""
    data: list[str] = Field(min_length=1, description="what is learned; of a suite its `fit` split")
    kind: Literal["auto", "guard", "instructions"] = "auto"
    source: str | None = Field(default=None, description="use only rows whose `source` is this")
    judged_on: list[str] = Field(default=[], description="more suites")
    tune: dict[str, Any] = Field(default_factory=dict)


class Arm(_Table):
    """A way to tune."""

    name: Name
    summary: str = ""
    method: str = Field(default="", description="default: the arm's name")
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    family: Literal["main", "rest"] = "rest"
    seeds: Seeds | None = Field(default=None, description="default: all for main, the first for the rest")
    after: str = Field(
        default="", description="repair that arm's result of the same seed; nothing is trained"
    )
    tune: dict[str, Any] = Field(default_factory=dict)


class Variant(_Table):
    """Some cells again under other settings."""

    name: Name
    summary: str = ""
    scenarios: list[str] = Field(default=[], description="default: all")
    arms: list[str] = Field(min_length=1)
    seeds: Seeds | None = Field(default=None, description="default: the first")
    guard_data: list[str] = Field(default=[], description="default: the grid's")
    tune: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if not self.tune and not self.guard_data:
            raise ValueError("a variant changes tune or guard_data")
        return self


class Grid(_Table):
    """A grid file."""

    settings: Settings = Field(default_factory=Settings, alias="grid")
    tune: dict[str, Any] = Field(default_factory=dict)
    scenarios: list[Scenario] = Field(alias="scenario", min_length=1)
    arms: list[Arm] = Field(alias="arm", min_length=1)
    variants: list[Variant] = Field(default_factory=list, alias="variant")
    _folder: Path = PrivateAttr(default_factory=Path)

    def beside(self, file: Path) -> Grid:
        """The grid of that file, whose folder its own files lie in."""
        found = self.model_copy()
        found._folder = file.absolute().parent
        return found

    def located(self, name: str) -> str:
        """A suite's name or a reference as it is; a file by its whole path."""
        if name.startswith("data:"):
            folder = self.data_folder or os.environ.get(DATA_VARIABLE)
            if not folder:
                raise ConfigError(
                    f"{name} needs a data folder",
                    remedy=f"set {DATA_VARIABLE}, or data_folder in [grid], to the folder that holds {name[5:]}",
                )
            return str(Path(folder).expanduser().absolute() / name.removeprefix("data:"))
        if name.startswith(("hub:", "pypi:", "path:")):
            return name
        path = Path(self._folder, name).absolute()
        return os.path.normpath(path) if "/" in name or path.is_file() else name

    @property
    def data_folder(self) -> str | None:
        """Where data: references start, where the grid says so."""
        said = self.settings.data_folder
        return str(Path(self._folder, Path(said).expanduser()).absolute()) if said else None


@dataclass(frozen=True)
class Plan:
    """A cell to be made."""

    grid: Grid = field(repr=False)
    scenario: Scenario
    arm: Arm
    variant: Variant | None
    seed: int

    @property
    def name(self) -> str:
        """scenario/arm/variant/seed-k."""
        return cell_name(
            self.scenario.name, self.arm.name, self.variant.name if self.variant else "", self.seed
        )

    @property
    def after(self) -> str:
        """The name of the cell whose result is repaired here; empty for a cell that is trained."""
        return self.name.replace(f"/{self.arm.name}/", f"/{self.arm.after}/", 1) if self.arm.after else ""

    @property
    def family(self) -> Family:
        """Which part of the table the cell belongs to."""
        return "variant" if self.variant else self.arm.family

    @property
    def method(self) -> str:
        """Of the fine-tune."""
        return self.arm.method or self.arm.name

    @property
    def settings(self) -> dict[str, Any]:
        """All tune tables on top of each other."""
        changed = self.variant.tune if self.variant else {}
        return self.grid.tune | self.scenario.tune | self.arm.tune | changed

    @property
    def judged_on(self) -> list[str]:
        """Suites that judge this cell."""
        return list(dict.fromkeys([*self.grid.settings.judged_on, *self.scenario.judged_on]))

    @property
    def guard_data(self) -> list[str]:
        """What the methods keep watch on."""
        return (self.variant.guard_data if self.variant else []) or self.grid.settings.guard_data

    def config(self, offline: bool | None = None) -> TuneConfig:
        """The configuration of the fine-tune: no monitor and no moved threshold, for the audit measures both."""
        shared, grid = self.grid.settings, self.grid
        return TuneConfig.model_validate(
            {
                "guard": shared.guard,
                "data": [grid.located(name) for name in self.scenario.data],
                "kind": self.scenario.kind,
                "source": self.scenario.source,
                "method": self.method,
                "options": self.arm.options,
                "guard_data": [grid.located(name) for name in self.guard_data],
                "monitor": [],
                "recalibrate": False,
                "data_folder": grid.data_folder,
                "seed": self.seed,
                "offline": offline,
                **self.settings,
            }
        )

    @cached_property
    def digest(self) -> str:
        """Of all that the grid says about the cell, but where it runs and where data lie."""
        shared = self.grid.settings.model_dump(exclude={"seeds", "judged_on", "data_folder"})
        own = [self.scenario.data, self.scenario.kind, self.scenario.source, self.judged_on]
        own += [self.variant.guard_data] if self.variant and self.variant.guard_data else []
        tuned = {k: v for k, v in self.settings.items() if k != "device"}
        return value_digest([shared, own, self.method, self.arm.options, self.arm.after, tuned, self.seed])


def plans(grid: Grid, only: Sequence[str] = ()) -> list[Plan]:
    """The cells in the order in which they are made. With `only`, those that a pattern such as medical/fwssr* names.

    Patterns are for scenario/arm, or for scenario/arm/variant/seed-k. Cells that others are made from come with them.

    Raises:
        ConfigError: a pattern names no cell.
    """
    found = sorted(cells(grid), key=priority)
    if not only:
        return found
    chosen: set[str] = set()
    for pattern in only:
        named = {
            p.name
            for p in found
            if fnmatchcase(f"{p.scenario.name}/{p.arm.name}", pattern) or fnmatchcase(p.name, pattern)
        }
        if not named:
            raise ConfigError(
                f"--only {pattern!r} names no cell",
                remedy="write scenario/arm, with * for any; --dry-run lists the cells",
            )
        chosen |= named
    chosen |= {p.after for p in found if p.name in chosen}
    return [p for p in found if p.name in chosen]


def priority(plan: Plan) -> tuple[int, ...]:
    """Which cells come first, so that a bench which is cut short has answered the larger questions.

    1. Every arm once on the first scenario: which methods work at all.
    2. The main arms once on the other scenarios: does that hold elsewhere.
    3. The main arms' other seeds, seed by seed over all scenarios: is it more than chance.
    4. Variants: where does each arm break.
    5. The other arms on the other scenarios.

    Within each: seed, variant, scenario, arm, in the order of the file.
    """
    grid = plan.grid
    scenario, seed = grid.scenarios.index(plan.scenario), grid.settings.seeds.index(plan.seed)
    main = plan.arm.family == "main"
    if plan.variant is not None:
        tier = 3
    elif seed == 0 and (scenario == 0 or main):
        tier = min(scenario, 1)
    else:
        tier = 2 if main else 4
    variant = grid.variants.index(plan.variant) + 1 if plan.variant else 0
    return tier, seed, variant, scenario, grid.arms.index(plan.arm)


def cells(grid: Grid) -> Iterator[Plan]:
    """Every cell, as the tables name them."""
    seeds = grid.settings.seeds
    for scenario in grid.scenarios:
        for arm in grid.arms:
            for seed in arm.seeds or (seeds if arm.family == "main" else seeds[:1]):
                yield Plan(grid, scenario, arm, None, seed)
        for variant in grid.variants:
            for arm in grid.arms:
                if arm.name in variant.arms and scenario.name in (variant.scenarios or [scenario.name]):
                    for seed in variant.seeds or seeds[:1]:
                        yield Plan(grid, scenario, arm, variant, seed)
