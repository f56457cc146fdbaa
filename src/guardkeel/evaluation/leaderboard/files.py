"""The files of a leaderboard beside run.json: verdicts by guard, table.csv, speed.csv, items.jsonl."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from guardkeel.errors import DataError
from guardkeel.evaluation.leaderboard.cells import estimate_of
from guardkeel.evaluation.leaderboard.results import LeaderboardResults
from guardkeel.evaluation.leaderboard.table import METRICS
from guardkeel.evaluation.scoring import read_verdict, verdict_row
from guardkeel.evaluation.selection import row
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Verdict
from guardkeel.records import Estimate, atomic_writer, write_text


def write_items(path: Path, items: Sequence[SuiteItem]) -> None:
    """One judged item a line, with the digest of its text and not the text."""
    with atomic_writer(path) as out:
        for item in items:
            kept = {k: v for k, v in row(item).items() if k != "messages"}
            out.write(json.dumps(kept).encode() + b"\n")


def verdict_file(folder: Path, number: int, label: str) -> Path:
    """Where a guard's verdicts are: verdicts/02-my-guard.jsonl."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label.rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "guard"
    return folder / "verdicts" / f"{number:02d}-{plain}.jsonl"


def write_verdicts(path: Path, ids: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    """One verdict a line: id, unsafe, unscored, categories, dropped."""
    with atomic_writer(path) as out:
        for name, verdict in zip(ids, verdicts, strict=True):
            out.write(json.dumps({"id": name} | verdict_row(verdict)).encode() + b"\n")


def read_verdicts(path: Path, ids: Sequence[str]) -> list[Verdict]:
    """The verdicts that `write_verdicts` wrote; DataError where they are not those of these items."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        if [r["id"] for r in rows] != list(ids):
            raise ValueError("it holds other items")
        return [read_verdict(r) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: not this run's verdicts ({e})", remedy="delete the file and repeat the command"
        ) from e


def write_table(folder: Path, results: LeaderboardResults) -> None:
    """table.csv: a row for each guard, suite and side, "*" for all; speed.csv: a row for each guard."""
    columns = [
        "rank",
        "guard",
        "origin",
        "status",
        "suite",
        "side",
        "n",
        "n_unsafe",
        "n_safe",
        "n_unscored",
        "threshold",
    ]
    columns += [f"{m}{end}" for m in METRICS for end in ("", "_low", "_high")]
    columns += ["threshold_at_fpr", "threshold_chosen_on", "fpr_at_fpr", "reason"]
    rows: list[list[object]] = []
    for guard in results.guards:
        head: list[object] = [guard.rank or "", guard.name, guard.origin, guard.status]
        macros = {(m.metric, m.side): m.estimate for m in guard.macro}
        for side in dict.fromkeys(m.side for m in guard.macro):
            values = [v for metric in METRICS for v in _ends(macros.get((metric, side)))]
            rows.append([*head, "macro", side, "", "", "", "", guard.threshold, *values, "", "", "", ""])
        for found in guard.cells:
            b, at = found.behaviour, found.at_fpr
            counts = [b.n, b.n_unsafe, b.n_safe, b.n_unscored, b.threshold]
            values = [v for metric in METRICS for v in _ends(estimate_of(found, metric))]
            moved = [_text(at.threshold), at.chosen_on, _text(at.fpr.value)]
            rows.append([*head, found.suite, found.side, *counts, *values, *moved, guard.reason])
        if not guard.cells:
            rows.append([*head, *[""] * (len(columns) - 5), guard.reason])
    _write_csv(folder / "table.csv", columns, rows)
    names = ["guard", "items", "batches", "seconds", "items_per_second", "tokens", "tokens_per_second"]
    names += [
        f"{kind}_{q}{end}"
        for kind in ("amortised", "alone")
        for q in ("p50", "p99")
        for end in ("", "_low", "_high")
    ]
    rows = []
    for guard in results.guards:
        if s := guard.speed:
            values = [
                v
                for kind in (s.amortised, s.alone)
                for q in ("p50", "p99")
                for v in _ends(getattr(kind, q) if kind else None)
            ]
            rates = [_text(s.seconds), _text(s.items_per_second), "" if s.tokens is None else s.tokens]
            rows.append([guard.name, s.items, s.batches, *rates, _text(s.tokens_per_second), *values])
    _write_csv(folder / "speed.csv", names, rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_calm(v) for v in r] for r in rows])
    write_text(path, out.getvalue())


def _calm(value: object) -> object:
    """A name that a spreadsheet would run as a formula is made text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def _ends(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["", "", ""]
    return [_text(estimate.value), _text(estimate.low), _text(estimate.high)]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
