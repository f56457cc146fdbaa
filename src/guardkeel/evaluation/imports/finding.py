"""Which tool wrote a file or folder, told by what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.imports import geh, guardbench, inspect_logs, lm_eval
from guardkeel.evaluation.imports.files import MAX_LINE, parse, read_json
from guardkeel.evaluation.imports.reading import Reading
from guardkeel.evaluation.leaderboard.imported import ImportedScores

DEPTH, MOST_FILES = 4, 2_000
KNOWN = (
    "a geh run folder or predictions.jsonl, an inspect_ai log (.eval or .json), "
    "lm-eval's samples_*.jsonl or results_*.json, or a GuardBench DATASET/MODEL.json"
)


def read_results(path: str | Path, reading: Reading | None = None) -> ImportedScores:
    """One guard's results on one suite, from a file or folder that another tool wrote.

    Raises:
        ConfigError: there are several; `Reading.part` names one.
        DataError: nothing known, a bad file, field or value.
        UnsafeFileError: an archive that looks like an attack.
    """
    reading = reading or Reading()
    found = read_all(path, reading)
    if len(found) == 1:
        return found[0]
    parts = sorted({scores.suite for scores in found})
    if len(parts) == len(found):
        raise ConfigError(
            f"{path}: holds {len(found)} results: {', '.join(parts[:8])}{' …' if len(parts) > 8 else ''}",
            remedy=f"choose one: part = {parts[0]!r}",
        )
    raise ConfigError(
        f"{path}: holds {len(found)} results, several of one suite ({', '.join(parts[:8])})",
        remedy="give the file of one run",
    )


def read_all(path: str | Path, reading: Reading | None = None) -> list[ImportedScores]:
    """All results in a file or folder, in the order of their names, or those of `Reading.part`; at least one.

    A folder is looked through four levels deep; files that no tool here wrote are passed over.
    """
    path, reading = Path(path), reading or Reading()
    if path.is_dir():
        found = geh.read_run(path, reading) if geh.is_run(path) else _folder(path, reading)
    else:
        found = _file(path, reading, _Seen()) or []
    if not found:
        raise DataError(f"{path}: holds no results that are known here", remedy=f"give {KNOWN}")
    if reading.part is None:
        return found
    chosen = [scores for scores in found if scores.suite == reading.part]
    if not chosen:
        parts = sorted({scores.suite for scores in found})
        raise ConfigError(f"{path}: no part {reading.part!r}", remedy=f"it has {', '.join(parts[:20])}")
    return chosen


class _Seen:
    """Samples files that a results file has already spoken for."""

    def __init__(self) -> None:
        self.files: set[Path] = set()


def _folder(folder: Path, reading: Reading) -> list[ImportedScores]:
    seen, found = _Seen(), []
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".eval", ".json", ".jsonl") and p.is_file())
    files = [p for p in files if len(p.relative_to(folder).parts) <= DEPTH]
    if len(files) > MOST_FILES:
        raise DataError(
            f"{folder}: {len(files):,} files; the limit is {MOST_FILES:,}",
            remedy="give the folder of one run",
        )
    runs = [p.parent for p in files if p.name == "manifest.json" and geh.is_run(p.parent)]
    for run in runs:
        found += geh.read_run(run, reading)
    for path in files:
        if path not in seen.files and not any(path.is_relative_to(run) for run in runs):
            found += _file(path, reading, seen) or []
    return found


def _file(path: Path, reading: Reading, seen: _Seen) -> list[ImportedScores] | None:
    """The results in a file; None where no tool here wrote it."""
    first = _first_line(path)
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return [inspect_logs.read_archive(path, reading)]
    line = _maybe(first, path)
    if isinstance(line, dict) and geh.is_prediction(line):
        return [geh.read_predictions(path, reading)]
    if isinstance(line, dict) and lm_eval.is_sample(line):
        return [lm_eval.read_samples(path, reading)]
    if path.suffix == ".jsonl":
        return None
    found = read_json(path)
    if inspect_logs.is_log(found):
        return [inspect_logs.read_document(path, found, reading)]
    if lm_eval.is_results(found):
        beside = lm_eval.samples_beside(path)
        seen.files.update(beside.values())
        samples = [lm_eval.read_samples(p, reading) for p in beside.values()]
        return samples + lm_eval.read_figures(path, found, set(beside))
    if guardbench.is_predictions(found):
        return [guardbench.read(path, found, reading)]
    return None


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            for _ in range(100):
                line = handle.readline(MAX_LINE)
                if line.strip():
                    return line
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    raise DataError(f"{path}: is empty", remedy=f"give {KNOWN}")


def _maybe(line: bytes, path: Path) -> Any:
    try:
        return parse(line, str(path))
    except DataError:
        return None
