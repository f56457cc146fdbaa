"""Rows → files: any released format as JSON, JSONL, CSV or Parquet, and the typed Parquet of a finished set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from guardkeel.conversation import SIDES
from guardkeel.curation.formats import Released, format_named
from guardkeel.curation.rows import Row
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.readers import format_of
from guardkeel.records import atomic_writer

BATCH = 4096


def write_released(path: str | Path, rows: Iterable[Row], format: str | Released) -> int:
    """Write rows in a released format and return their number; the kind of file goes by the name's ending.

    JSON is one list, as Aegis 2.0 has it. CSV writes null as an empty cell. The file appears whole or not at all.

    Raises:
        DataError: an unknown format, or an ending that cannot be written.
    """
    path = Path(path)
    chosen = format_named(format) if isinstance(format, str) else format
    records = (chosen.record(row) for row in rows)
    kind = format_of(path)
    if kind in ("jsonl", "json"):
        return _json(path, records, lines=kind == "jsonl")
    if kind in ("csv", "tsv"):
        return _table(path, records, chosen.columns, "\t" if kind == "tsv" else ",")
    if kind == "parquet":
        return _parquet(path, records, chosen.columns)
    raise DataError(
        f"{path}: {kind} files are not written", remedy="name it .json, .jsonl, .csv, .tsv or .parquet"
    )


def _json(path: Path, records: Iterable[dict[str, Any]], *, lines: bool) -> int:
    count = 0
    with atomic_writer(path) as out:
        for record in records:
            before = b"" if lines else b",\n" if count else b"[\n"
            text = json.dumps(record, ensure_ascii=False)
            out.write(before + text.encode("utf-8", "backslashreplace") + (b"\n" if lines else b""))
            count += 1
        if not lines:
            out.write(b"\n]\n" if count else b"[]\n")
    return count


def _table(path: Path, records: Iterable[dict[str, Any]], columns: Sequence[str], delimiter: str) -> int:
    count = 0
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(columns)
    with atomic_writer(path) as out:
        for record in records:
            writer.writerow([_cell(record.get(c)) for c in columns])
            count += 1
            if count % BATCH == 0:
                _flush(buffer, out)
        _flush(buffer, out)
    return count


def _flush(buffer: io.StringIO, out: Any) -> None:
    out.write(buffer.getvalue().encode("utf-8", "backslashreplace"))
    buffer.seek(0)
    buffer.truncate()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _parquet(path: Path, records: Iterable[dict[str, Any]], columns: Sequence[str]) -> int:
    """The schema follows from all records together, so they are held: released sets are small."""
    import pyarrow
    import pyarrow.parquet

    held = [_encodable(record) for record in records]
    there = [c for c in columns if any(c in record for record in held)]
    table = pyarrow.table({c: [record.get(c) for record in held] for c in there})
    with atomic_writer(path) as out:
        pyarrow.parquet.write_table(table, out)
    return int(table.num_rows)


def schema() -> Any:
    """The columns of a finished set. Side labels are null where unknown; `votes` names side, judge and what it said."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    call = pa.struct([("id", text), ("name", text), ("arguments", text)])
    message = pa.struct(
        [
            ("role", text),
            ("content", text),
            ("name", text),
            ("tool_call_id", text),
            ("tool_calls", pa.list_(call)),
        ]
    )
    vote = pa.struct(
        [
            ("side", text),
            ("by", text),
            ("label", text),
            ("unsafe", pa.float64()),
            ("categories", texts),
            ("reason", text),
            ("dropped", pa.int64()),
        ]
    )
    score = pa.struct([("side", text), ("rule", text), ("unsafe", pa.float64())])
    redaction = pa.struct([("kind", text), ("count", pa.int64())])
    labels = [(f"{side}_label{end}", text) for side in SIDES for end in ("", "_source")]
    return pa.schema(
        [
            ("id", text),
            ("group", text),
            ("split", text),
            ("messages", pa.list_(message)),
            *labels,
            ("categories", texts),
            ("votes", pa.list_(vote)),
            ("scores", pa.list_(score)),
            ("source", text),
            ("origin", text),
            ("licence", text),
            ("language", text),
            ("redactions", pa.list_(redaction)),
            ("absorbed", texts),
            ("history", texts),
            ("extra", text),
        ]
    )


def flat(row: Row) -> dict[str, Any]:
    """A row under `schema`. `extra` is JSON text, for it has other fields in every source."""
    made: dict[str, Any] = {
        "id": row.id,
        "group": row.group or row.id,
        "split": row.split,
        "messages": [
            {
                "role": t.role,
                "content": t.content,
                "name": t.name or None,
                "tool_call_id": t.tool_call_id or None,
                "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in t.tool_calls],
            }
            for t in row.conversation.turns
        ],
        "categories": list(row.categories),
        "votes": [
            {
                "side": side,
                "by": v.by,
                "label": v.label,
                "unsafe": v.unsafe,
                "categories": list(v.categories),
                "reason": v.reason or None,
                "dropped": v.dropped,
            }
            for side, given in row.labels.items()
            for v in given.votes
        ],
        "scores": [
            {"side": side, "rule": rule, "unsafe": value}
            for side, given in row.labels.items()
            for rule, value in given.scores.items()
        ],
        "source": row.source,
        "origin": row.origin,
        "licence": row.licence,
        "language": row.language or None,
        "redactions": [{"kind": k, "count": n} for k, n in row.redactions.items()],
        "absorbed": list(row.absorbed),
        "history": list(row.history),
        "extra": json.dumps(dict(row.extra), ensure_ascii=False, default=str) if row.extra else None,
    }
    for side in SIDES:
        given = row.labels.get(side)
        made[f"{side}_label"] = given.label if given else None
        made[f"{side}_label_source"] = given.source if given else None
    return made


def write_set(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows as Parquet under `schema`, a batch at a time, and return their number."""
    import pyarrow
    import pyarrow.parquet

    columns, count = schema(), 0
    with atomic_writer(path) as out, pyarrow.parquet.ParquetWriter(out, columns) as writer:
        for batch in _batches(rows):
            records = [_encodable(flat(row)) for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(records, schema=columns))
            count += len(batch)
    return count


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    given = iter(rows)
    while batch := list(islice(given, BATCH)):
        yield batch


def _encodable(value: Any) -> Any:
    """Lone surrogates, which UTF-8 does not have, as a question mark each."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_encodable(v) for v in value]
    return {k: _encodable(v) for k, v in value.items()} if isinstance(value, dict) else value
