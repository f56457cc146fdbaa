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

from guardkeel.configuration import read_configuration
from guardkeel.errors import DataError, GuardkeelError
from guardkeel.evaluation.items import Floats, ItemMeta, as_scores
from guardkeel.evaluation.runs import read_audit
from guardkeel.records import file_digest, value_digest
from guardkeel.results import LayerGeometry, Measure
from guardkeel.tuning.collapse.cell import Cell, read_cell
from guardkeel.tuning.collapse.figures import PLAIN, Missing
from guardkeel.tuning.collapse.grid import Grid, cells

GRID = "grid.toml"
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
    update_norm: float | None = None
    guard: str = ""


@dataclass(frozen=True)
class Bench:
    """All cells that have a result, and those that have none. In one scenario all judged the same items."""

    trials: tuple[Trial, ...]
    missing: tuple[Missing, ...]
    order: tuple[tuple[str, str], ...] = ()

    @property
    def places(self) -> list[tuple[str, str]]:
        """Scenario and variant of all trials, in the grid's order."""
        found = {(t.cell.scenario, t.cell.variant) for t in self.trials}
        return [*(p for p in dict.fromkeys(self.order) if p in found), *sorted(found - set(self.order))]

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
    plan = _planned(Path(out) / GRID)
    missing += others
    known_cells = {_key(t.cell) for t in alike} | {_key(m) for m in missing}
    missing += [cell for cell in plan if _key(cell) not in known_cells]
    return Bench(tuple(alike), tuple(missing), tuple((cell.scenario, cell.variant) for cell in plan))


def _planned(path: Path) -> list[Missing]:
    """The cells that the grid asks for, none where there is no grid that can be read."""
    try:
        grid = read_configuration(Grid, "bench collapse", path, {})
    except GuardkeelError:
        return []
    return [
        Missing(
            scenario=plan.scenario.name,
            arm=plan.arm.name,
            variant=plan.variant.name if plan.variant else "",
            seed=plan.seed,
            why="not run yet",
        )
        for plan in cells(grid)
    ]


def _key(cell: Cell | Missing) -> tuple[str, str, str, int]:
    return cell.scenario, cell.variant, cell.arm, cell.seed


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
            update_norm(folder / cell.tune_run / "tuned"),
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
    """The items of a run; `known` holds those of earlier cells, by file and by what they are."""
    try:
        file = file_digest(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="run the cell again") from e
    if file in known:
        return known[file]
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
    known[file] = known.setdefault(digest, Items(tuple(metas), np.array(held, dtype=np.bool_), digest))
    return known[file]


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
        rows = json.loads(
            b"[" + b",".join(line for line in path.read_bytes().split(b"\n") if line.strip()) + b"]"
        )
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({type(e).__name__})", remedy="run the cell again") from e
    if not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: a line is no JSON object", remedy="run the cell again")
    return cast(list[dict[str, Any]], rows)


def _comparable(trials: list[Trial]) -> tuple[list[Trial], list[Missing]]:
    """The trials that judged what most of their scenario (or else plain) judged; no table holds others beside them."""
    judged: dict[str, Counter[str]] = {}
    for trial in sorted(trials, key=lambda t: t.cell.arm != PLAIN):
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


def update_norm(folder: Path) -> float | None:
    """‖ΔW‖ over all matrices of a LoRA adapter: √Σ (α/r)²‖BA‖², ‖BA‖² = Σ (BᵀB) ∘ (AAᵀ). None for other adapters."""
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        scale = float(config["lora_alpha"]) / int(config["r"])
        if config.get("use_dora") or config.get("use_rslora"):
            return None
        with safe_open(folder / "adapter_model.safetensors", "numpy") as held:
            names = [k for k in held.keys() if k.endswith("lora_A.weight")]  # noqa: SIM118 - it is no dict
            total = 0.0
            for name in names:
                a = held.get_tensor(name).astype(np.float64)
                b = held.get_tensor(name.replace("lora_A.weight", "lora_B.weight")).astype(np.float64)
                total += float(((b.T @ b) * (a @ a.T)).sum())
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, SafetensorError):
        return None  # the weights of a cell are often deleted after its audit
    return scale * math.sqrt(total) if names else None
