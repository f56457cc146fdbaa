"""Runs of guard-eval-harness (geh 0.2): a folder with manifest.json and datasets/NAME/predictions.jsonl.

A prediction holds sample_id, unsafe_score in [0, 1], unsafe_label and threshold. Gold labels are not in a run: they
come from the suite that the rows are joined with, or from `Reading.labels`. Samples that the run dropped are listed in
dataset-manifest.json, the first 25 of them: those become unscored rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkeel.errors import DataError
from guardkeel.evaluation.imports.files import an_object, inner, listed, read_json, read_lines, taken
from guardkeel.evaluation.imports.reading import Reading, chance, figures
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores

TOOL = "geh"


def is_prediction(found: dict[str, Any]) -> bool:
    """Whether an object is a line of predictions.jsonl."""
    return "sample_id" in found and "unsafe_score" in found


def is_run(folder: Path) -> bool:
    """Whether a folder is one that `geh run` wrote."""
    try:
        found = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else None
    except DataError:
        return False
    return isinstance(found, dict) and "adapter_capabilities" in found and "tool_version" in found


def read_run(folder: Path, reading: Reading) -> list[ImportedScores]:
    """Every data set of a run, or the one that `part` names; without predictions, its figures as a note."""
    sets = sorted(p for p in (folder / "datasets").glob("*") if p.is_dir())
    found = [_one(p, reading) for p in sets if (p / "predictions.jsonl").is_file()]
    read = {scores.suite for scores in found}
    for dataset in listed(_optional(folder / "summary.json"), "datasets"):
        if isinstance(dataset, dict) and dataset.get("name") not in read:
            note = (
                f"no predictions.jsonl: the run's own figures are {figures(inner(dataset, 'metrics'))}; "
                "they cannot be paired"
            )
            found.append(ImportedScores(_model(folder), TOOL, str(dataset.get("name")), [], [note]))
    return found


def read_predictions(path: Path, reading: Reading) -> ImportedScores:
    """One predictions.jsonl; what lies beside it says whose it is."""
    return _one(path.parent, reading, path)


def _one(folder: Path, reading: Reading, path: Path | None = None) -> ImportedScores:
    path = path or folder / "predictions.jsonl"
    run = folder.parent.parent
    about = _optional(folder / "dataset-manifest.json")
    suite = str(about.get("name") or folder.name.replace("__", "/"))
    side = reading.side_of(_side(_optional(run / "resolved-config.json"), suite))
    rows: list[ImportedRow] = []
    thresholds = set()
    for where, found in read_lines(path):
        identity = taken(found, "sample_id", str, where)
        score = chance(found.get("unsafe_score"), where, "unsafe_score")
        if isinstance(found.get("threshold"), int | float):
            thresholds.add(found["threshold"])
        unscored = "" if score is not None else "geh gave no score"
        rows.append(ImportedRow(identity, side, score, reading.labels.get(identity), unscored))
    extra = inner(about, "metadata")
    dropped = [str(i) for i in listed(extra, "dropped_sample_ids")]
    rows += [
        ImportedRow(i, side, None, reading.labels.get(i), "geh dropped it after errors") for i in dropped
    ]
    notes = [f"its own threshold is {t:g}" for t in sorted(thresholds) if t != 0.5]
    lost = extra.get("dropped_sample_count")
    if isinstance(lost, int) and lost > len(dropped):
        notes.append(
            f"{lost - len(dropped):,} more samples were dropped and are not named: they are missing here"
        )
    unlabelled = sum(r.label is None for r in rows)
    if unlabelled:
        notes.append(
            f"geh's files hold no gold labels: {unlabelled:,} rows have only those of the suite they join"
        )
    if not rows:
        raise DataError(f"{path}: has no predictions", remedy="give a run that has judged something")
    return ImportedScores(_model(run), TOOL, suite, rows, notes)


def _model(run: Path) -> str:
    model = inner(_optional(run / "manifest.json"), "model")
    return str(model.get("model_name") or model.get("adapter") or run.name or TOOL)


def _side(config: dict[str, Any], suite: str) -> str:
    for dataset in listed(config, "datasets"):
        if isinstance(dataset, dict) and dataset.get("name") == suite and dataset.get("response_field"):
            return "response"
    return ""


def _optional(path: Path) -> dict[str, Any]:
    return an_object(read_json(path), str(path)) if path.is_file() else {}
