"""Scoring a guard into a run directory, batch by batch, so that a killed run goes on where it stopped.

Every finished batch is one file, written atomically, under `progress/`. Batches depend on the items alone,
so a resumed run meets the same ones and gives the same results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.load import AnyGuard
from guardkeel.records import atomic_writer

Floats32 = np.ndarray[Any, np.dtype[np.float32]]
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """Verdicts in item order; `hidden` is (layers, sampled items, width) in the sample's order, or None."""

    verdicts: list[Verdict]
    hidden: Floats32 | None
    seconds: float

    @property
    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """P(unsafe), NaN where unscored."""
        return np.array([np.nan if v.unsafe is None else v.unsafe for v in self.verdicts])


def score(
    guard: AnyGuard,
    items: Sequence[Judgement],
    folder: Path,
    role: str,
    *,
    layers: Sequence[int] = (),
    sample: Sequence[int] = (),
    watch: Watch = lambda done, total: None,
) -> Scored:
    """Score all items, taking up what `folder/progress` already holds for this role."""
    progress = folder / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    rows: dict[int, Verdict] = {}
    states: dict[int, Floats32] = {}
    seconds = 0.0
    wanted = set(sample)
    done = set()
    for path in sorted(progress.glob(f"{role}-*.npz")):
        number, spent = _take_up(path, rows, states)
        done.add(number)
        seconds += spent
    watch(len(rows), len(items))
    started = time.perf_counter()
    for batch in guard.batches(items, layers=layers if wanted else (), skip=done):
        picked = [k for k, i in enumerate(batch.indices) if i in wanted] if batch.hidden is not None else []
        now = time.perf_counter()
        kept = batch.hidden[:, picked] if batch.hidden is not None else np.zeros((0, 0, 0), np.float32)
        head = {
            "number": batch.number,
            "indices": batch.indices,
            "seconds": now - started,
            "verdicts": [verdict_row(v) for v in batch.verdicts],
            "sampled": [batch.indices[k] for k in picked],
        }
        with atomic_writer(progress / f"{role}-{batch.number:06d}.npz") as out:
            np.savez(out, head=np.frombuffer(json.dumps(head).encode(), np.uint8), hidden=kept)
        rows.update(zip(batch.indices, batch.verdicts, strict=True))
        states.update((batch.indices[k], kept[:, j]) for j, k in enumerate(picked))
        seconds += now - started
        started = time.perf_counter()
        watch(len(rows), len(items))
    hidden = np.stack([states[i] for i in sample], axis=1) if wanted and layers else None
    return Scored([rows[i] for i in range(len(items))], hidden, seconds)


def _take_up(path: Path, rows: dict[int, Verdict], states: dict[int, Floats32]) -> tuple[int, float]:
    with np.load(path, allow_pickle=False) as stored:
        head = json.loads(stored["head"].tobytes())
        hidden = stored["hidden"]
    rows.update(zip(head["indices"], map(read_verdict, head["verdicts"]), strict=True))
    states.update((i, hidden[:, j]) for j, i in enumerate(head["sampled"]))
    return int(head["number"]), float(head["seconds"])


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    return {
        "unsafe": verdict.unsafe,
        "unscored": verdict.unscored,
        "categories": list(verdict.categories),
        "dropped": verdict.dropped,
    }


def read_verdict(row: dict[str, Any]) -> Verdict:
    """The verdict that `verdict_row` wrote."""
    return Verdict(row["unsafe"], row["unscored"], tuple(row["categories"]), row["dropped"])
