"""What a step is: rows in, rows out, in a folder of its own that is there whole or not at all.

steps/<name>/rows.jsonl       the rows after the step
steps/<name>/rejected.jsonl   what it left out: {"where" or "id", "reason"}
steps/<name>/step.json        what it was made from, and what it found
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.curation.config import CurateConfig
from guardkeel.curation.jury.cost import CostEstimate
from guardkeel.curation.rows import Row, read_rows
from guardkeel.records import value_digest

Watch = Callable[[str, int, int | None], None]
OnCost = Callable[[Sequence[CostEstimate], str], None]

ROWS, REJECTED, STEP = "rows.jsonl", "rejected.jsonl", "step.json"


class Done(BaseModel):
    """step.json. `digest` is over all that the rows follow from; `rows_digest` is the sha256 of rows.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    version: int
    digest: str
    inputs: dict[str, Any] = Field(default_factory=dict)
    rows: int
    rows_digest: str
    left_out: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict)
    seconds: float
    finished_at: str


@dataclass
class Context:
    """What a step works with. `before` are the steps that are done, with their folders, in order."""

    config: CurateConfig
    out: Path
    folder: Path
    before: list[tuple[Done, Path]]
    watch: Watch
    on_cost: OnCost
    counts: dict[str, int] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    written: tuple[int, str] = (0, "")
    left_out: int = 0

    @property
    def rows_path(self) -> Path:
        """The rows of the step before."""
        return self.before[-1][1] / ROWS

    @property
    def total(self) -> int:
        """How many there are."""
        return self.before[-1][0].rows

    def rows(self, what: str = "") -> Iterator[Row]:
        """The rows of the step before; with `what`, shown as progress."""
        number = 0
        for number, row in enumerate(read_rows(self.rows_path), 1):
            if what and number % 1000 == 0:
                self.watch(what, number, self.total)
            yield row
        if what:
            self.watch(what, number, number)

    def write(self, lines: Iterable[bytes]) -> None:
        """Write the rows after this step, as lines."""
        count, digest = 0, hashlib.sha256()
        with (self.folder / ROWS).open("wb") as out:
            for line in lines:
                out.write(line)
                digest.update(line)
                count += 1
        self.written = (count, digest.hexdigest())

    def reject(self, **what: str) -> None:
        """Note something that is left out."""
        self.left_out += 1
        with (self.folder / REJECTED).open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.write(json.dumps(what, ensure_ascii=False) + "\n")

    def scratch(self) -> Path:
        """A folder for files that are needed meanwhile; the pipeline removes it."""
        folder = self.folder / "scratch"
        folder.mkdir(exist_ok=True)
        return folder


class Step(ABC):
    """One step. `version` is raised when the same inputs would give other rows."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def wanted(self, config: CurateConfig) -> bool:
        """Whether the pipeline has this step."""
        return getattr(config, self.name, None) is not None

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / "steps" / self.name

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """JSON values that its rows follow from, besides the rows before it: its table, digests of files it reads."""
        table: BaseModel = getattr(config, self.name)
        return {"table": table.model_dump(mode="json")}

    @abstractmethod
    def run(self, context: Context) -> None:
        """Write the rows, fill `counts` and `results`."""

    def digest(self, inputs: dict[str, Any], before: Sequence[Done]) -> str:
        """Of all that the rows follow from."""
        return value_digest([self.name, self.version, inputs, before[-1].rows_digest if before else ""])
