"""Fitting every expert's calibration on labelled items: the `calibrate` split of suites.

An ensemble mixes probabilities, so 0.8 must mean the same from every expert. See aggregation/calibration.py for the
maps; `platt` needs some tens of items, `isotonic` some hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.errors import DataError
from guardkeel.evaluation.suites import SuiteItem, load_suite, split_many
from guardkeel.moderation.aggregation import Calibration, fit
from guardkeel.moderation.aggregation.calibration import Kind
from guardkeel.moderation.experts import Expert, centred
from guardkeel.records import write_json

Watch = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """One expert's calibration, and what it was fitted on: log loss before (with its threshold at one half) and after.

    Both losses are of the items that it was fitted on, so `after` flatters.
    """

    expert: str
    calibration: Calibration
    items: int
    unscored: int
    before: float
    after: float


def fit_experts(
    experts: Sequence[Expert], items: Sequence[SuiteItem], kind: Kind, watch: Watch | None = None
) -> list[Fit]:
    """Score the items with each expert and fit its map.

    Raises:
        DataError: an expert scored no safe or no unsafe item.
    """
    unsafe = np.array([i.label == "unsafe" for i in items])
    found = []
    for expert in experts:
        raw = np.full(len(items), np.nan)
        done = 0
        for batch in expert.guard.batches([i.judgement for i in items], categories=False):
            for index, verdict in zip(batch.indices, batch.verdicts, strict=True):
                raw[index] = np.nan if verdict.unsafe is None else verdict.unsafe
            done += len(batch.indices)
            if watch is not None:
                watch(expert.name, done, len(items))
        try:
            made = fit(kind, raw, unsafe)
        except DataError as e:
            raise DataError(f"expert {expert.name}: {e.problem}", remedy=e.remedy) from e
        scored = ~np.isnan(raw)
        plain = centred(expert.guard.threshold)
        found.append(
            Fit(
                expert.name,
                made,
                int(scored.sum()),
                int((~scored).sum()),
                _log_loss(plain(raw[scored]), unsafe[scored]),
                _log_loss(made(raw[scored]), unsafe[scored]),
            )
        )
    return found


def write_calibrations(path: Path, fits: Sequence[Fit]) -> None:
    """All of them in one file, by the expert's name."""
    write_json(path, {f.expert: f.calibration.record() for f in fits})


def calibrate_items(suites: Sequence[str], limit: int | None = None) -> list[SuiteItem]:
    """Labelled items of the `calibrate` splits, split together so that no text is in two splits."""
    loaded = split_many([load_suite(name) for name in suites])
    items = [item for suite in loaded for item in suite.items("calibrate")]
    return items[:limit] if limit else items


def _log_loss(p: Any, unsafe: Any) -> float:
    kept = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(np.where(unsafe, np.log(kept), np.log(1 - kept)))) if len(p) else float("nan")
