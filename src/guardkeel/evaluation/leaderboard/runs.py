"""Reading a finished leaderboard back."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.evaluation.leaderboard.results import LeaderboardResults
from guardkeel.records import RunRecord, read_record


def read_leaderboard(folder: str | Path) -> tuple[RunRecord, LeaderboardResults]:
    """Record and results; raises DataError for an unfinished run, or another verb's."""
    record = read_record(folder)
    if record.verb != "leaderboard":
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not a leaderboard",
            remedy="give a leaderboard's run directory",
        )
    try:
        return record, LeaderboardResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder}/run.json: results.{where}: {first['msg']}", remedy="run the leaderboard again"
        ) from e
