"""One cell of the grid: a fine-tune of the guard, and the audit of what became of it.

cells/<scenario>/<arm>/<variant or "base">/seed-<k>/
    tune/       the run directory of an ordinary `guardkeel tune`
    audit/      the run directory of an ordinary `guardkeel audit`, reference against tune/tuned
    cell.json   Cell, written last: without it the cell is unfinished
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.errors import DataError
from guardkeel.tuning.results import Learned

SCHEMA_VERSION = 1
BASE = "base"
FILE = "cell.json"

Family = Literal["main", "rest", "variant"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CellTune(_Part):
    """What of the fine-tune the table needs; all of it is in tune/run.json."""

    before: Learned | None = None
    after: Learned | None = None
    steps: int = Field(description="optimiser steps that are in the result")
    step_seconds: float
    peak_memory: int = Field(description="bytes")
    trained: int = Field(description="trainable parameters")
    stopped: str = ""
    notes: list[str] = Field(default_factory=list)


class Cell(_Part):
    """What a cell was and what its fine-tune came to. Paths are relative to the cell's folder."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    arm: str
    method: str
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variant: str = Field(default="", description="empty: the scenario's own settings")
    seed: int
    family: Family
    kind: Literal["guard", "instructions"] = Field(description="of the task's data")
    after: str = Field(default="", description="the arm whose result was repaired, where nothing was trained")
    learning_rate: float
    steps: int = Field(description="optimiser steps that were asked for")
    recalibrated: bool = Field(default=False, description="whether the fine-tune moved the threshold")
    digest: str = Field(description="of what the grid says about this cell")
    tune: CellTune | None = Field(default=None, description="none where the fine-tune failed")
    tune_run: str = "tune"
    audit_run: str = "audit"
    seconds: float = Field(description="fine-tune and audit, without what cells share")
    error: str = Field(default="", description="why there is no result: a result of its own")

    @property
    def name(self) -> str:
        """scenario/arm/variant/seed-k, which is also its folder's place."""
        return cell_name(self.scenario, self.arm, self.variant, self.seed)


def cell_name(scenario: str, arm: str, variant: str, seed: int) -> str:
    """See Cell.name."""
    return f"{scenario}/{arm}/{variant or BASE}/seed-{seed}"


def read_cell(folder: Path) -> Cell | None:
    """The cell in a folder; None where it is unfinished. DataError where the file is none of ours."""
    path = folder / FILE
    try:
        return Cell.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as e:
        first = e.errors()[0]
        raise DataError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="delete the cell's folder and repeat the command",
        ) from e


def read_cells(out: Path) -> list[tuple[Path, Cell]]:
    """Every finished cell under a bench's folder with its own, by name."""
    found = [
        (path.parent, read_cell(path.parent)) for path in sorted((out / "cells").glob(f"*/*/*/*/{FILE}"))
    ]
    return [(folder, cell) for folder, cell in found if cell is not None]
