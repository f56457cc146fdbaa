"""Predictions of GuardBench 1.0: OUT_DIR/DATASET/MODEL.json, one object of sample id → P(unsafe) or a flag.

Gold labels lie in GuardBench's own copy of the data, not here: they come from the suite that the rows are joined with,
or from `Reading.labels`. GuardBench flags above 0.5, guardkeel from 0.5 on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkeel.evaluation.imports.reading import Reading, chance
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores

TOOL = "guardbench"
FIGURES = frozenset(
    {"throughput", "accuracy", "precision", "recall", "f1", "auprc", "auroc", "fpr", "tp", "count"}
)
"""Keys of files that hold figures of a run, and no predictions."""


def is_predictions(found: Any) -> bool:
    """Whether a JSON value is an object of ids and numbers, and nothing else."""
    return (
        isinstance(found, dict)
        and bool(found)
        and all(value is None or isinstance(value, bool | int | float) for value in found.values())
        and FIGURES.isdisjoint(found)
    )


def read(path: Path, found: dict[str, Any], reading: Reading) -> ImportedScores:
    """One file; its folder is the data set, its name the model."""
    side = reading.side_of(None)
    rows = []
    for identity, value in found.items():
        score = chance(value, str(path), identity)
        unscored = "" if score is not None else "GuardBench has no score"
        rows.append(ImportedRow(identity, side, score, reading.labels.get(identity), unscored))
    notes = ["GuardBench flags scores above 0.5: one of exactly 0.5 is flagged here"]
    if all(isinstance(value, bool | int) for value in found.values()):
        notes = ["flags only, without probabilities"]
    if any(r.label is None for r in rows):
        notes.append("GuardBench's files hold no gold labels: rows have those of the suite they join")
    return ImportedScores(path.stem, TOOL, path.parent.name, rows, notes)
