"""Reading finished audits back."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.records import read_record
from guardkeel.results import AuditResults


def read_audit(folder: str | Path) -> AuditResults:
    """The results of a finished audit; raises DataError for an unfinished one, or another verb's run."""
    record = read_record(folder)
    if record.verb != "audit":
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not an audit", remedy="give an audit's run directory"
        )
    try:
        return AuditResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder}/run.json: results.{where}: {first['msg']}", remedy="run the audit again"
        ) from e
