"""What a point says of the items and of the tasks' rows, each asked once and kept in the run directory.

points/<id>/progress/      finished batches of a point that is being scored, as in an audit
points/<id>/verdicts.jsonl the verdicts, in the items' order
points/<id>/point.json     the rest, written last: without it the point is unfinished
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.errors import DataError
from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.scoring import Watch, read_verdict, score, verdict_row
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.fusion.results import Diagnostics
from guardkeel.fusion.sweep.measuring import TaskRows
from guardkeel.fusion.sweep.task import Task
from guardkeel.guards.base import Verdict
from guardkeel.guards.load import AnyGuard
from guardkeel.guards.offsets import Offsets
from guardkeel.records import atomic_writer, write_json

_FILE, _VERDICTS = "point.json", "verdicts.jsonl"


@dataclass(frozen=True)
class Rows:
    """All that was asked of a point. `threshold` and `offsets` are those that it was asked with."""

    verdicts: Sequence[Verdict]
    tasks: Sequence[TaskRows]
    threshold: float
    seconds: float
    weights: Diagnostics | None = None

    @property
    def scores(self) -> Floats:
        """P(unsafe), (items,), NaN where unscored."""
        return np.array([np.nan if v.unsafe is None else v.unsafe for v in self.verdicts])


@dataclass
class Scorer:
    """Asks one loaded guard, whatever its weights are by now."""

    guard: AnyGuard
    items: Sequence[SuiteItem]
    tasks: Sequence[Task]
    folder: Path
    shipped: tuple[float, Offsets] = field(init=False)

    def __post_init__(self) -> None:
        self.shipped = self.guard.threshold, self.guard.offsets

    def known(self, identity: str) -> Rows | None:
        """What was asked before; None where the point is unfinished."""
        where = self.folder / "points" / identity
        if not (where / _FILE).is_file():
            return None
        try:
            said = json.loads((where / _FILE).read_bytes())
            lines = [json.loads(line) for line in (where / _VERDICTS).read_bytes().splitlines()]
            if [line["id"] for line in lines] != [i.judgement.id for i in self.items]:
                raise ValueError("verdicts on other items")
            tasks = [TaskRows(np.array(t["losses"]), np.array(t["right"])) for t in said["tasks"]]
            weights = None if said["weights"] is None else Diagnostics.model_validate(said["weights"])
            return Rows(
                [read_verdict(line) for line in lines], tasks, said["threshold"], said["seconds"], weights
            )
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"{where}: a finished point that cannot be read ({e})",
                remedy="delete this folder; it is scored again",
            ) from e

    def ask(
        self,
        identity: str,
        name: str,
        *,
        threshold: float | None = None,
        offsets: Offsets | None = None,
        weights: Diagnostics | None = None,
        spent: float = 0.0,
        watch: Watch = lambda done, total: None,
    ) -> Rows:
        """Ask the guard as it is now, and keep what it says.

        `threshold` and `offsets` are the point's own where it ships with its own, as a candidate does; of the tasks'
        rows everyone is asked at the reference's. `spent` are the seconds that making its weights took.
        """
        where = self.folder / "points" / identity
        common, shifts = self.shipped
        self.guard.threshold = common if threshold is None else threshold
        self.guard.offsets = shifts if offsets is None else offsets
        try:
            scored = score(self.guard, [i.judgement for i in self.items], where, "point", watch=watch)
            at = self.guard.threshold
        finally:
            self.guard.threshold, self.guard.offsets = self.shipped
        began = time.perf_counter()
        tasks = [t.ask(self.guard.model, common, shifts) for t in self.tasks]
        rows = Rows(scored.verdicts, tasks, at, spent + scored.seconds + time.perf_counter() - began, weights)
        self._keep(where, identity, name, rows)
        return rows

    def _keep(self, where: Path, identity: str, name: str, rows: Rows) -> None:
        ids = [i.judgement.id for i in self.items]
        _write_lines(
            where / _VERDICTS,
            ({"id": i} | verdict_row(v) for i, v in zip(ids, rows.verdicts, strict=True)),
        )
        value = {
            "id": identity,
            "name": name,
            "threshold": rows.threshold,
            "seconds": rows.seconds,
            "tasks": [{"losses": t.losses.tolist(), "right": t.right.tolist()} for t in rows.tasks],
            "weights": rows.weights.model_dump(mode="json") if rows.weights else None,
        }
        write_json(where / _FILE, value)
        shutil.rmtree(where / "progress", ignore_errors=True)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_writer(path) as out:
        for row in rows:
            out.write(json.dumps(row).encode() + b"\n")
