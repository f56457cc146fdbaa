"""Reads a bench folder: its cells with their scores, and which cells have no result and why.

    out/cells/<scenario>/<arm>/<variant or "base">/seed-<k>/   cell.json, and audit/, an ordinary audit run directory

A bench that was stopped midway is normal: what cannot be read is listed, never guessed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from guardkeel.errors import DataError
from guardkeel.evaluation.items import Floats, ItemMeta, as_scores
from guardkeel.evaluation.runs import read_audit
from guardkeel.records import value_digest
from guardkeel.results import LayerGeometry, Measure
from guardkeel.tuning.collapse.cell import Cell, read_cell
from guardkeel.tuning.collapse.figures import Missing

Geometry = dict[str, float]
MEASURES = (
    "CKA lost",
    "separability kept",
    "probe AUROC change",
    "drift",
    "drift inside",
    "drift outside",
    "share inside",
    "overlap lost",
)
PLACES = ("last", "mean")


@dataclass(frozen=True)
class Items:
    """What a cell judged: items of the test and the calibrate split, in the order of items.jsonl."""

    metas: tuple[ItemMeta, ...]
    calibrate: np.ndarray[Any, np.dtype[np.bool_]]
    digest: str


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished cell with its scores, of reference and arm, in the order of `items`; NaN where unscored."""

    cell: Cell
    items: Items
    reference: Floats
    scores: Floats
    thresholds: tuple[float, float]
    geometry: Geometry = field(default_factory=dict)
    guard: str = ""


@dataclass(frozen=True)
class Bench:
    """All cells that have a result, and those that have none. In one scenario all judged the same items."""

    trials: tuple[Trial, ...]
    missing: tuple[Missing, ...]

    def arms(self, scenario: str, variant: str) -> dict[str, list[Trial]]:
        """The trials of one scenario and variant by arm, seeds ascending."""
        found: dict[str, list[Trial]] = {}
        for trial in sorted(self.trials, key=lambda t: (t.cell.arm, t.cell.seed)):
            if (trial.cell.scenario, trial.cell.variant) == (scenario, variant):
                found.setdefault(trial.cell.arm, []).append(trial)
        return found


def read_bench(out: str | Path) -> Bench:
    """Read out/cells. Raises DataError where there is no such folder."""
    root = Path(out) / "cells"
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", remedy="give the --out of a collapse bench")
    trials: list[Trial] = []
    missing: list[Missing] = []
    known: dict[str, Items] = {}
    for folder in sorted(p for p in root.glob("*/*/*/seed-*") if p.is_dir()):
        found = _trial(folder, known)
        if isinstance(found, Trial):
            trials.append(found)
        else:
            missing.append(found)
    alike, others = _comparable(trials)
    return Bench(tuple(alike), tuple(missing + others))


def _trial(folder: Path, known: dict[str, Items]) -> Trial | Missing:
    try:
        cell = read_cell(folder)
    except DataError:
        return _unread(folder, "cell.json cannot be read")
    if cell is None:
        return _unread(folder, "not finished")
    if cell.error:
        return _without(cell, cell.error)
    run = folder / cell.audit_run
    try:
        audit = read_audit(run)
        if audit.candidate is None:
            return _without(cell, "its audit has no candidate")
        items = _items(run / "items.jsonl", known)
        return Trial(
            cell,
            items,
            _scores(run / "reference.jsonl", items),
            _scores(run / "candidate.jsonl", items),
            (audit.reference.info.threshold, audit.candidate.info.threshold),
            geometry(audit.geometry),
            audit.reference.info.name,
        )
    except DataError as e:
        return _without(cell, e.problem.replace(f"{folder}/", ""))


def _without(cell: Cell, why: str) -> Missing:
    return Missing(scenario=cell.scenario, arm=cell.arm, variant=cell.variant, seed=cell.seed, why=why)


def _unread(folder: Path, why: str) -> Missing:
    scenario, arm, variant, seed = folder.parts[-4:]
    number = seed.removeprefix("seed-")
    return Missing(
        scenario=scenario,
        arm=arm,
        variant="" if variant == "base" else variant,
        seed=int(number) if number.isdigit() else -1,
        why=why,
    )


def _items(path: Path, known: dict[str, Items]) -> Items:
    """The items of a run; `known` holds those of earlier cells, which mostly judged the same."""
    metas, held = [], []
    for row in _rows(path):
        try:
            metas.append(
                ItemMeta(id=str(row["id"]), suite=str(row["suite"]), side=row["side"], label=row["label"])
            )
            held.append(row["split"] == "calibrate")
        except KeyError as e:
            raise DataError(f"{path}: an item has no field {e}", remedy="run the cell again") from e
        if metas[-1].label not in ("safe", "unsafe"):
            raise DataError(f"{path}: an item is neither safe nor unsafe", remedy="run the cell again")
    digest = value_digest([[m.id, m.suite, m.label, h] for m, h in zip(metas, held, strict=True)])
    return known.setdefault(digest, Items(tuple(metas), np.array(held, dtype=np.bool_), digest))


def _scores(path: Path, items: Items) -> Floats:
    rows = list(_rows(path))
    if [str(r.get("id")) for r in rows] != [m.id for m in items.metas]:
        raise DataError(f"{path}: does not speak of the items of items.jsonl", remedy="run the cell again")
    try:
        return as_scores([math.nan if r["unsafe"] is None else r["unsafe"] for r in rows], len(rows))
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path}: a verdict is no probability", remedy="run the cell again") from e


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({type(e).__name__})", remedy="run the cell again") from e
    if not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: a line is no JSON object", remedy="run the cell again")
    return cast(list[dict[str, Any]], rows)


def _comparable(trials: list[Trial]) -> tuple[list[Trial], list[Missing]]:
    """The trials that judged what most of their scenario judged; no table holds others beside them."""
    judged: dict[str, Counter[str]] = {}
    for trial in trials:
        judged.setdefault(trial.cell.scenario, Counter())[trial.items.digest] += 1
    usual = {scenario: counts.most_common(1)[0][0] for scenario, counts in judged.items()}
    alike = [t for t in trials if t.items.digest == usual[t.cell.scenario]]
    others = [t for t in trials if t.items.digest != usual[t.cell.scenario]]
    return alike, [_without(t.cell, "it judged other items than the rest of its scenario") for t in others]


def geometry(layers: list[LayerGeometry]) -> Geometry:
    """Each of MEASURES at the last layer and as mean over layers; what was not measured is left out.

    CKA lost = 1 − CKA; separability kept = after/before; drift inside = drift·√share, outside = drift·√(1 − share),
    share that of the squared drift in the safety subspace; overlap lost = 1 − overlap of the two subspaces.
    """
    found: Geometry = {}
    by_layer = [_of_layer(g) for g in sorted(layers, key=lambda g: g.layer)]
    for name in MEASURES:
        values = [layer[name] for layer in by_layer if name in layer]
        if values:
            found[f"{name}, mean"] = sum(values) / len(values)
        if by_layer and name in by_layer[-1]:
            found[f"{name}, last"] = by_layer[-1][name]
    return found


def _of_layer(g: LayerGeometry) -> Geometry:
    def value(measure: Measure | None) -> float | None:
        return measure.estimate.value if measure is not None else None

    cka, overlap, share = value(g.cka), value(g.overlap), value(g.drift_inside)
    drift = g.drift.value if g.drift is not None else None
    before, after = value(g.separability_reference), value(g.separability_candidate)
    probes = value(g.probe_reference), value(g.probe_candidate)
    split = None if drift is None or share is None else (drift, min(max(share, 0.0), 1.0))
    found = {
        "CKA lost": None if cka is None else 1 - cka,
        "separability kept": after / before if before and after is not None and before > 0 else None,
        "probe AUROC change": probes[1] - probes[0]
        if probes[0] is not None and probes[1] is not None
        else None,
        "drift": drift,
        "drift inside": split and split[0] * math.sqrt(split[1]),
        "drift outside": split and split[0] * math.sqrt(1 - split[1]),
        "share inside": share,
        "overlap lost": None if overlap is None else 1 - overlap,
    }
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}
