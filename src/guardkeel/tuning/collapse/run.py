"""A bench from its grid: every cell that is not there yet, in order of priority, until none can be taken.

    out/grid.toml       the grid as it was read last
    out/cells/          see cell.py
    out/reference/      what the reference said, once for each set of items
    out/locks/          which cells are being made; several processes may work on one folder

A cell that is there is never made again. A process that dies drops its cell, and any process takes it up.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guardkeel.errors import ConfigError, InputError
from guardkeel.records import toml_text, write_text
from guardkeel.results import AuditResults
from guardkeel.tuning.collapse.cell import Cell, read_cell
from guardkeel.tuning.collapse.grid import Grid, Plan, plans
from guardkeel.tuning.collapse.making import Workshop, taken
from guardkeel.tuning.gather import Watch

GRID = "grid.toml"


@dataclass
class Progress:
    """How far a bench is."""

    done: list[Cell] = field(default_factory=list)
    made: int = 0
    elsewhere: list[str] = field(default_factory=list)
    """Cells that other processes hold, and those made from them."""
    refused: dict[str, InputError] = field(default_factory=dict)
    """Cells that cannot be made as the grid says, and why."""


def run(
    grid: Grid,
    out: Path,
    *,
    only: Sequence[str] = (),
    retry: bool = False,
    offline: bool | None = None,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
    on_cell: Callable[[Cell, AuditResults | None], None] = lambda cell, audit: None,
    on_refused: Callable[[str, InputError], None] = lambda name, error: None,
) -> Progress:
    """Run, or go on with, a bench in a folder.

    Args:
        grid: what is to be made.
        out: made where it is not there; several processes may share it.
        only: see grid.plans.
        retry: make cells again whose fine-tune had failed.
        offline: never use the network.
        command: goes into the records.
        watch: called with (what, done, total).
        on_cell: gets each cell that is made here.
        on_refused: gets each cell that cannot be made, and why.

    Raises:
        ConfigError: a pattern names no cell, or the folder holds cells of another grid.
    """
    workshop = Workshop(out, offline=offline, command=command, watch=watch)
    waiting = {plan.name: plan for plan in plans(grid, only)}
    _check_made(workshop, waiting.values())
    _claim(out)
    write_text(out / GRID, toml_text(grid.model_dump(mode="json", by_alias=True)))
    if retry:
        _clear_failed(workshop, waiting.values())
    progress, total = Progress(), len(waiting)
    while True:
        for name in [n for n in waiting if n not in progress.refused]:
            cell = read_cell(workshop.folder(name))
            if cell is not None:
                progress.done.append(cell)
                del waiting[name]
        watch("cells", len(progress.done), total)
        for plan in _ready(waiting, progress):
            with taken(out, plan.name) as mine:
                if not mine:
                    continue
                if read_cell(workshop.folder(plan.name)) is not None:
                    break  # another process has just made it
                try:
                    cell, audit = workshop.make(plan)
                except InputError as e:
                    for name in (plan.name, *(p.name for p in waiting.values() if p.after == plan.name)):
                        progress.refused[name] = e
                        on_refused(name, e)
                else:
                    progress.made += 1
                    on_cell(cell, audit)
                break
        else:
            progress.elsewhere = [name for name in waiting if name not in progress.refused]
            return progress


def _ready(waiting: dict[str, Plan], progress: Progress) -> Iterator[Plan]:
    """The cells that can be made now, most wanted first."""
    for plan in waiting.values():
        if plan.name not in progress.refused and plan.after not in waiting:
            yield plan


def expected(plan: Plan, done: Iterable[Cell]) -> float | None:
    """Seconds that a cell will take: the median of the finished ones most like it; None where there is none."""
    name = plan.variant.name if plan.variant else ""
    alike = [c for c in done if not c.error and bool(c.after) == bool(plan.after)]
    for close in (
        [c for c in alike if (c.scenario, c.variant, c.arm) == (plan.scenario.name, name, plan.arm.name)],
        [c for c in alike if (c.scenario, c.variant) == (plan.scenario.name, name)],
        [c for c in alike if c.variant == name],
        alike,
    ):
        if close:
            return statistics.median(c.seconds for c in close)
    return None


def _claim(out: Path) -> None:
    """The folder is a bench's, or becomes one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir() if not path.match(f".{GRID}.*.part")}
    except OSError as e:
        raise ConfigError(
            f"{out}: cannot be a bench's folder ({e.strerror})", remedy="choose another --out"
        ) from e
    if names and not names & {GRID, "cells", "locks"}:
        raise ConfigError(f"{out}: is not empty, and holds no bench", remedy="choose another --out")


def _check_made(workshop: Workshop, chosen: Iterable[Plan]) -> None:
    """No table holds cells of two grids under one name."""
    for plan in chosen:
        cell = read_cell(workshop.folder(plan.name))
        if cell is not None and cell.digest != plan.digest:
            raise ConfigError(
                f"{workshop.folder(plan.name)}: was made under another grid",
                remedy="choose another --out, or delete that folder and repeat the command",
            )


def _clear_failed(workshop: Workshop, chosen: Iterable[Plan]) -> None:
    for plan in chosen:
        with taken(workshop.out, plan.name) as mine:
            cell = read_cell(workshop.folder(plan.name)) if mine else None
            if cell is not None and cell.error:
                shutil.rmtree(workshop.folder(plan.name))
