"""Reading a grid file, and every way in which it can be wrong, found before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from guardkeel.configuration import read_configuration
from guardkeel.errors import ConfigError
from guardkeel.tuning.collapse.cell import BASE
from guardkeel.tuning.collapse.grid import Arm, Grid, Plan, Scenario, Settings, Variant, cells
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.regularisers.registry import build

VERB = "bench collapse"
SHIPPED = "grid.toml"
_SEE = f"see the grid that ships: guardkeel {VERB} --print-grid"
_OURS = {
    *("guard", "data", "kind", "source", "method", "options", "guard_data", "monitor", "recalibrate"),
    *("data_folder", "seed", "offline"),
}
SETTINGS = tuple(name for name in TuneConfig.model_fields if name not in _OURS)
"""What [tune] and the other tune tables may set; the grid itself says the rest."""


def shipped_text() -> str:
    """The grid that ships, as TOML."""
    return (files("guardkeel.tuning.collapse") / SHIPPED).read_text("utf-8")


def read_grid(path: Path | None = None, changes: Sequence[str] = ()) -> Grid:
    """Read and check a grid file; None is the one that ships, which needs no data but packages'.

    Raises:
        ConfigError: naming the file, the key and the value.
    """
    if path is None:
        with as_file(files("guardkeel.tuning.collapse") / SHIPPED) as ours:
            return read_grid(ours, changes)
    try:
        grid = read_configuration(Grid, VERB, path, {}, changes)
    except ConfigError as e:
        if isinstance(e.__cause__, ValidationError):
            raise _explained(path, e.__cause__) from e
        raise
    grid = grid.beside(path)
    _check(grid, str(path))
    return grid


def _check(grid: Grid, where: str) -> None:
    """What only shows when the tables are put together; ConfigError naming the table."""
    for table, named in (("scenario", grid.scenarios), ("arm", grid.arms), ("variant", grid.variants)):
        names = [one.name for one in named]
        for name in names:
            if names.count(name) > 1 or (table == "variant" and name == BASE):
                raise ConfigError(f"{where}: {table} {name!r}: the name is taken", remedy="choose another")
    _names_exist(grid, where)
    for text, settings in _tune_tables(grid):
        for key in settings:
            if key not in SETTINGS:
                near = difflib.get_close_matches(key, SETTINGS, n=2)
                raise ConfigError(
                    f"{where}: {text}: {key!r} is "
                    + (
                        "said by the grid itself"
                        if key in TuneConfig.model_fields
                        else "no setting of a fine-tune"
                    ),
                    remedy=f"did you mean {' or '.join(near)}?"
                    if near
                    else f"keys are {', '.join(SETTINGS)}",
                )
    for arm in grid.arms:
        _check_method(arm, where)
    made = list(cells(grid))
    for plan in made:
        if plan.seed not in grid.settings.seeds:
            raise ConfigError(
                f"{where}: {plan.name}: {plan.seed} is none of the grid's seeds {grid.settings.seeds}",
                remedy="add it to seeds in [grid]",
            )
        if not plan.judged_on:
            raise ConfigError(
                f"{where}: scenario {plan.scenario.name!r}: no suite judges it",
                remedy="name some in judged_on",
            )
        try:
            config = plan.config()
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{where}: {_blamed(plan, key)}: {key} = {first['input']!r:.80}: {first['msg']}",
                remedy=f"see {key.partition('.')[0]} in guardkeel tune --help",
            ) from e
        if plan.after and plan.after not in {p.name for p in made}:
            raise ConfigError(
                f"{where}: {plan.name} repairs {plan.after}, which is no cell",
                remedy=f"give {plan.arm.after!r} the same seeds, and name it in the same variants",
            )
        if plan.after and config.adapter != "lora":
            raise ConfigError(
                f"{where}: {plan.name}: only a LoRA can be repaired afterwards, but adapter is {config.adapter!r}",
                remedy='set adapter = "lora"',
            )


def _names_exist(grid: Grid, where: str) -> None:
    arms, scenarios = [a.name for a in grid.arms], [s.name for s in grid.scenarios]
    for table, wanted, known in (
        *((f"arm {a.name!r}: after", [a.after], arms) for a in grid.arms if a.after),
        *((f"variant {v.name!r}: arms", v.arms, arms) for v in grid.variants),
        *((f"variant {v.name!r}: scenarios", v.scenarios, scenarios) for v in grid.variants),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"{where}: {table}: there is no {name!r}", remedy=f"there are {', '.join(known)}"
                )


def _tune_tables(grid: Grid) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "[tune]", grid.tune
    for kind, named in (("scenario", grid.scenarios), ("arm", grid.arms), ("variant", grid.variants)):
        for one in named:
            yield f"{kind} {one.name!r}: tune", one.tune


def _check_method(arm: Arm, where: str) -> None:
    try:
        built = build(arm.method or arm.name, arm.options)
    except ConfigError as e:
        raise ConfigError(f"{where}: arm {arm.name!r}: {e.problem}", remedy=e.remedy) from e
    if arm.after and not isinstance(built, PostHoc):
        raise ConfigError(
            f"{where}: arm {arm.name!r} repairs {arm.after!r}, but its method {arm.method or arm.name!r} trains",
            remedy="remove `after`, or choose a method that repairs: interpolation, safe-lora",
        )


def _blamed(plan: Plan, key: str) -> str:
    """The table that a setting of this cell comes from."""
    top = key.partition(".")[0]
    places = [("variant", plan.variant), ("arm", plan.arm), ("scenario", plan.scenario)]
    return next((f"{kind} {one.name!r}" for kind, one in places if one and top in one.tune), "[tune]")


_TABLES: dict[str, type[BaseModel]] = {
    "grid": Settings,
    "scenario": Scenario,
    "arm": Arm,
    "variant": Variant,
}


def _explained(path: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    table, *rest = first["loc"] or ("",)
    inside = [str(part) for part in rest if isinstance(part, str)] if rest else []
    place = f"{table} {rest[0] + 1}" if rest and isinstance(rest[0], int) else str(table)
    model = _TABLES.get(str(table)) if inside else None
    known = [f.alias or n for n, f in (model or Grid).model_fields.items()]
    key = ".".join(inside) or str(table)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{path}: {place}: unknown key {key!r}", remedy=f"keys are {', '.join(known)}")
    if first["type"] == "missing":
        what = f"{place}: {key} is missing" if inside else f"there is no [[{key}]]"
        return ConfigError(f"{path}: {what}", remedy=_SEE)
    return ConfigError(
        f"{path}: {place}: {key} = {first['input']!r:.80}: {first['msg']}",
        remedy=_SEE,
    )
