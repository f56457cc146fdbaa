"""Streams the judged items of a run directory: each item with the verdicts on it, checked line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from guardkeel.errors import DataError

_ITEM = {"id": str, "suite": str, "split": str, "side": str, "label": str, "messages": list}
_VERDICT = {"id": str, "unscored": str, "categories": list, "dropped": int}
_RERUN = "the run directory was changed or cut short; run the audit again"


@dataclass(frozen=True, slots=True)
class Said:
    """What a guard said about an item: `unsafe` is P(unsafe), or None where it was unscored (and why)."""

    unsafe: float | None
    unscored: str
    categories: tuple[str, ...]
    dropped: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One item as it stands in items.jsonl, with what the guards said about it."""

    where: str
    item: Mapping[str, Any]
    reference: Said
    candidate: Said | None

    @property
    def id(self) -> str:
        """The item's id as run.json writes it, where a lone surrogate is spelled out."""
        return str(self.item["id"]).encode("utf-8", "backslashreplace").decode()

    @property
    def unsafe(self) -> bool:
        """Whether the item is labelled unsafe."""
        return bool(self.item["label"] == "unsafe")


def judged(directory: Path, *, candidate: bool) -> Iterator[Judged]:
    """Yield the items in order, a line of each file at a time.

    Raises DataError, naming file and line, where a file is missing or ends early, a line is broken, or the
    files do not speak of the same items.
    """
    items = _rows(directory / "items.jsonl", _ITEM)
    before = _rows(directory / "reference.jsonl", _VERDICT)
    after = _rows(directory / "candidate.jsonl", _VERDICT) if candidate else None
    for where, item in items:
        if item["label"] not in ("safe", "unsafe"):
            raise DataError(
                f"{where}: label {item['label']!r:.80} is neither 'safe' nor 'unsafe'", remedy=_RERUN
            )
        yield Judged(
            where,
            item,
            _said(before, directory / "reference.jsonl", item["id"]),
            _said(after, directory / "candidate.jsonl", item["id"]) if after is not None else None,
        )
    for rows in filter(None, (before, after)):
        for where, row in rows:
            raise DataError(
                f"{where}: verdict on {row['id']!r:.80}, but items.jsonl has no more items", remedy=_RERUN
            )


def _said(rows: Iterator[tuple[str, dict[str, Any]]], path: Path, expected: str) -> Said:
    where, row = next(rows, ("", {}))
    if not where:
        raise DataError(f"{path}: ends before the verdict on item {expected!r:.80}", remedy=_RERUN)
    if row["id"] != expected:
        raise DataError(
            f"{where}: verdict on {row['id']!r:.80}, expected one on {expected!r:.80}", remedy=_RERUN
        )
    score = row.get("unsafe")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise DataError(f"{where}: field 'unsafe' is {score!r:.80}, which is no probability", remedy=_RERUN)
    if score is not None and isnan(score):  # NaN: unscored, whoever wrote it
        score = None
    if score is not None and not 0 <= score <= 1:
        raise DataError(f"{where}: field 'unsafe' is {score!r:.80}, which is no probability", remedy=_RERUN)
    return Said(score, row["unscored"], tuple(map(str, row["categories"])), row["dropped"])


def _rows(path: Path, fields: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        handle = path.open("rb")
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="give the run directory of a finished audit"
        ) from e
    with handle:
        for number, raw in enumerate(handle, 1):
            if not raw.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError) as e:
                raise DataError(f"{where}: not JSON ({e})", remedy=_RERUN) from e
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}: a line must be a JSON object, not {type(row).__name__}", remedy=_RERUN
                )
            for name, kind in fields.items():
                if not isinstance(row.get(name), kind):
                    raise DataError(
                        f"{where}: field {name!r} must be {kind.__name__}, not {row.get(name)!r:.80}"
                    )
            yield where, row
