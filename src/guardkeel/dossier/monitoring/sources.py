"""What a service has logged, read from its database or from an export; nothing of the service is imported.

    verdicts   id, created, unsafe (null: unscored), flagged, opinions (by expert, each with the digest of its weights)
    feedback   sequence, verdict, received, unsafe (the reviewer's label), flagged, propensity (null: not drawn), first

An export is JSON lines with those keys, of which `opinions` may be absent; a line with `verdict` is feedback, any other
a verdict. Feedback counts for recall only where its verdict was drawn for review by chance, with the propensity of the
draw: what people sent in by themselves says nothing of what was missed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from guardkeel.dossier.canonical import digest
from guardkeel.errors import DataError, RunError

LEAST = 0.001
"""Rows that were drawn for review with a smaller chance are left out, and counted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows of a log since a moment, in order."""

    flagged: list[bool]
    """Of scored verdicts: whether they were flagged."""
    unscored: list[bool]
    """Of all verdicts."""
    caught: list[bool]
    """Of reviewed verdicts that are unsafe: whether the service flagged them."""
    weights: list[float]
    """Of the same: 1/propensity."""
    left_out: int
    answered_by: Counter[frozenset[str]]
    """Of verdicts: how many a service with experts of these digests gave; where a digest is not known, not counted."""
    cursor: str
    """Digest of what was read."""


def read(source: str, since: datetime) -> Seen:
    """Read a log: a SQLAlchemy URL, or the path of a JSON lines export.

    Raises:
        DataError: a file that is none, or a row without a key or with another value.
        RunError: the database cannot be used.
    """
    start = since.timestamp()
    if "://" in source:
        return _seen(*_tables(source, start))
    return _seen(*_lines(Path(source), start))


def _tables(url: str, start: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from sqlalchemy import bindparam, create_engine, text
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    verdicts = (
        "SELECT id, created, unsafe, flagged, opinions FROM verdicts "
        "WHERE created >= :start ORDER BY created, id"
    )
    feedback = (
        "SELECT sequence, verdict, received, unsafe, flagged, propensity, first FROM feedback "
        "WHERE received >= :start ORDER BY sequence"
    )
    try:
        engine = create_engine(url, hide_parameters=True)
        try:
            with engine.connect() as connection:
                found = [
                    [
                        dict(r)
                        for r in connection.execute(text(q).bindparams(bindparam("start", start))).mappings()
                    ]
                    for q in (verdicts, feedback)
                ]
        finally:
            engine.dispose()
    except ArgumentError as e:
        raise DataError("--log is no SQLAlchemy URL", remedy="for example sqlite:///moderation.db") from e
    except (SQLAlchemyError, ImportError) as e:
        cause = getattr(e, "orig", None) or e
        raise RunError(
            f"the log cannot be read ({type(cause).__name__})", remedy="give the URL of the service's store"
        ) from e
    return found[0], found[1]


def _lines(path: Path, start: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    verdicts: list[dict[str, Any]] = []
    feedback: list[dict[str, Any]] = []
    for where, row in _objects(path):
        into, when = (feedback, "received") if "verdict" in row else (verdicts, "created")
        if _number(row, when, where) >= start:
            into.append(row)
    return verdicts, feedback


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path} line {number}"
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as e:
                        raise DataError(f"{where}: no JSON", remedy="export the log again") from e
                    if not isinstance(row, dict):
                        raise DataError(f"{where}: no object", remedy="export the log again")
                    yield where, row
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{where}: {key} is {value!r:.40}, not a number", remedy="export the log with its own keys"
        )
    return float(value)


def _flag(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    if value not in (True, False, 0, 1):
        raise DataError(
            f"a row of the log: {key} is {value!r:.40}, not true or false",
            remedy="export the log with its own keys",
        )
    return bool(value)


def _seen(verdicts: Iterable[dict[str, Any]], feedback: Iterable[dict[str, Any]]) -> Seen:
    flagged: list[bool] = []
    unscored: list[bool] = []
    caught: list[bool] = []
    weights: list[float] = []
    read_rows: list[str] = []
    left_out = 0
    answered_by: Counter[frozenset[str]] = Counter()
    for row in verdicts:
        lost = row.get("unsafe") is None
        unscored.append(lost)
        if not lost:
            flagged.append(_flag(row, "flagged"))
        read_rows.append(str(row.get("id")))
        digests = _digests(row.get("opinions"))
        if digests and all(digests):
            answered_by[digests] += 1
    for row in feedback:
        read_rows.append(str(row.get("sequence", row.get("id"))))
        propensity = row.get("propensity")
        if propensity is None or not _flag(row, "first") or not _flag(row, "unsafe"):
            continue
        if not isinstance(propensity, int | float) or not LEAST <= propensity <= 1:
            left_out += 1
            continue
        caught.append(_flag(row, "flagged"))
        weights.append(1 / float(propensity))
    return Seen(flagged, unscored, caught, weights, left_out, answered_by, digest(read_rows))


def _digests(opinions: Any) -> frozenset[str]:
    """Of the experts behind a verdict; a database without a type for JSON gives its text."""
    try:
        said = json.loads(opinions) if isinstance(opinions, str) else opinions or {}
        return frozenset(str(o.get("digest", "")) for o in said.values())
    except (ValueError, AttributeError) as e:
        raise DataError(
            f"a row of the log: opinions is {opinions!r:.40}, not an object of objects",
            remedy="export the log with its own keys",
        ) from e
