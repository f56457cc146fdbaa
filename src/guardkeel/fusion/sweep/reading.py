"""Reading a finished sweep back."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.fusion.sweep.results import SweepResults
from guardkeel.records import RunRecord, read_record

VERB = "fuse-sweep"


def read_sweep(folder: str | Path) -> tuple[RunRecord, SweepResults]:
    """Record and results; raises DataError for an unfinished run, or another verb's."""
    record = read_record(folder)
    if record.verb != VERB:
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not a sweep", remedy="give the run directory of a sweep"
        )
    try:
        return record, SweepResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder}/run.json: results.{where}: {first['msg']}", remedy="run the sweep again"
        ) from e
