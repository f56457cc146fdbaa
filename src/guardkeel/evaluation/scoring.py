"""Scoring a guard into a run directory, batch by batch, so that a killed run goes on where it stopped.

Every finished batch is one file, written atomically, under `progress/`. Batches depend on the items alone,
so a resumed run meets the same ones and gives the same results, whichever engine judges them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.engines.parts import Floats32, judge, parts
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Guard, Judgement, Verdict
from guardkeel.records import atomic_writer, value_digest, write_json

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """Verdicts in item order; `hidden` is (layers, sampled items, width) in the sample's order, or None.

    `seconds` is what the guard took; where several workers judged, of all of them together.
    """

    verdicts: list[Verdict]
    hidden: Floats32 | None
    seconds: float

    @property
    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """P(unsafe), NaN where unscored."""
        return np.array([np.nan if v.unsafe is None else v.unsafe for v in self.verdicts])


def score(
    guard: Guard,
    items: Sequence[Judgement],
    folder: Path,
    role: str,
    *,
    layers: Sequence[int] = (),
    sample: Sequence[int] = (),
    watch: Watch = lambda done, total: None,
) -> Scored:
    """Score all items, taking up what `folder/progress` already holds for this role.

    Raises ConfigError where that was scored otherwise than this guard would.
    """
    progress = folder / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    _check_same(progress / f"{role}.json", guard, items, layers, sample)
    rows: dict[int, Verdict] = {}
    states: dict[int, Floats32] = {}
    seconds = 0.0
    wanted = set(sample)
    done = set()
    for path in sorted(progress.glob(f"{role}-*.npz")):
        try:
            number, spent = _take_up(path, rows, states)
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
            path.unlink()  # a disk that lost its last writes: the batch is scored again
            continue
        done.add(number)
        seconds += spent
    watch(len(rows), len(items))
    for found in judge(guard, parts(items, layers=layers, sample=wanted, known=done, judged=rows)):
        head = {
            "number": found.number,
            "indices": found.indices,
            "seconds": found.seconds,
            "verdicts": [verdict_row(v) for v in found.verdicts],
            "sampled": found.sampled,
        }
        with atomic_writer(progress / f"{role}-{found.number:06d}.npz") as out:
            np.savez(out, head=np.frombuffer(json.dumps(head).encode(), np.uint8), hidden=found.hidden)
        rows.update(zip(found.indices, found.verdicts, strict=True))
        states.update((i, found.hidden[:, j]) for j, i in enumerate(found.sampled))
        seconds += found.seconds
        watch(len(rows), len(items))
    hidden = np.stack([states[i] for i in sample], axis=1) if wanted and layers else None
    return Scored([rows[i] for i in range(len(items))], hidden, seconds)


def _check_same(
    path: Path, guard: Guard, items: Sequence[Judgement], layers: Sequence[int], sample: Sequence[int]
) -> None:
    """Batches and verdicts follow from these; kept batches of others must not be mixed with them."""
    facts = {
        "family": guard.family,
        "threshold": guard.threshold,
        **guard.facts,
        "items": value_digest([i.id for i in items]),
        "layers": list(layers),
        "sample": value_digest(list(sample)),
    }
    try:
        before = json.loads(path.read_bytes())
    except (OSError, ValueError):
        before = None
    if before is None:
        write_json(path, facts)
    elif before != facts:
        key = next(k for k in {**facts, **before} if before.get(k) != facts.get(k))
        raise ConfigError(
            f"{path.parent.parent}: holds an unfinished run with {key} {before.get(key)}, "
            f"this one has {facts.get(key)}",
            remedy="repeat its command to resume it, or choose another --out",
        )


def _take_up(path: Path, rows: dict[int, Verdict], states: dict[int, Floats32]) -> tuple[int, float]:
    with np.load(path, allow_pickle=False) as stored:
        head = json.loads(stored["head"].tobytes())
        hidden = stored["hidden"]
    found = dict(zip(head["indices"], map(read_verdict, head["verdicts"]), strict=True))
    number, spent = int(head["number"]), float(head["seconds"])
    states.update({i: hidden[:, j] for j, i in enumerate(head["sampled"])})
    rows.update(found)
    return number, spent


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
