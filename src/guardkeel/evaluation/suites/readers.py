"""Files → raw rows: JSONL, JSON, CSV, TSV, Parquet, YAML and one-text-a-line files, each also as .gz or .xz.

A raw row is the object of one record and the words that name its place (`file:line`, or `file: row n` for
formats without lines), so that an error about a value can say where the value is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from guardkeel.errors import DataError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "txt", "yaml"]
FORMATS: tuple[Format, ...] = get_args(Format)

TEXT_FIELD = "text"
"""The field that holds a record which is a bare text."""

MAX_FIELD = 16 * 1024**2
"""CSV fields longer than this many characters are refused: an unclosed quote swallows the file."""

PACKED = frozenset({".gz", ".xz"})
"""Endings of packed files, which are unpacked while reading."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
    ".yaml": "yaml",
    ".yml": "yaml",
}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record: its place in words, its number (from 1) among the file's records, its fields."""

    where: str
    number: int
    fields: dict[str, Any]


def format_of(path: Path) -> Format:
    """The format that a file name's ending stands for; raises DataError for an unknown ending."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in PACKED:
        suffixes = suffixes[:-1]
    ending = suffixes[-1].lower() if suffixes else ""
    if ending in _SUFFIXES:
        return _SUFFIXES[ending]
    raise DataError(
        f"{path}: the ending {ending!r} names no known format",
        remedy=f"say format = one of {', '.join(FORMATS)} in the card's [mapping]",
    )


def plain_stem(path: Path) -> str:
    """The file name without `.gz` or `.xz` and without the format's ending."""
    name = path.stem if path.suffix in PACKED else path.name
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name


def read_rows(
    path: Path,
    *,
    format: Format | None = None,
    rows: str = "",
    preamble: str = "",
    encoding: str = "utf-8",
) -> Iterator[RawRow]:
    """Stream the records of one file.

    Args:
        path: the file; one that ends in `.gz` or `.xz` is unpacked while reading.
        format: the format; None goes by the file name.
        rows: JSON and YAML: the dotted path of the list inside the document; empty is the document itself.
            A step `{name}` goes through all keys of an object and puts each key into the field `name` of its
            records: `{topic}` reads {"cats": ["…", "…"], "dogs": […]}.
        preamble: CSV, TSV and text: leading lines that begin with this are skipped.
        encoding: of text formats; a byte order mark is dropped.

    Raises:
        DataError: the file or a record cannot be read; names file, line and remedy.
    """
    chosen = format or format_of(path)
    try:
        if chosen == "parquet":
            yield from _parquet(path)
            return
        with _open(path) as handle:
            if chosen in ("json", "yaml"):
                yield from _document(path, _decode(path, handle.read(), encoding), chosen, rows)
            elif chosen == "jsonl":
                yield from _jsonl(path, handle, encoding)
            elif chosen == "txt":
                yield from _lines(path, handle, encoding, preamble)
            else:
                yield from _table(path, handle, encoding, preamble, "\t" if chosen == "tsv" else ",")
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as e:
        packing = "xz" if path.suffix.lower() == ".xz" else "gzip"
        raise DataError(
            f"{path}: the {packing} data is damaged ({e})", remedy="fetch or make the file again"
        ) from e
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror or e})", remedy="check the path and permissions"
        ) from e


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return lzma.open(path) if path.suffix.lower() == ".xz" else path.open("rb")


def _decode(path: Path | str, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path}: not {encoding} ({e.reason} at byte {e.start})",
            remedy="re-encode the file as UTF-8, or say its encoding in the card's [mapping]",
        ) from e
    except LookupError as e:
        raise DataError(
            f"{path}: unknown encoding {encoding!r}", remedy="use a name like utf-8 or cp1252"
        ) from e


def _record(where: str, number: int, value: Any) -> RawRow:
    if isinstance(value, str):
        return RawRow(where, number, {TEXT_FIELD: value})
    if isinstance(value, dict):
        return RawRow(where, number, value)
    raise DataError(
        f"{where}: a record must be an object or a text, not {type(value).__name__}",
        remedy="for a list inside the document, say its path as rows = … in the card's [mapping]",
    )


def _jsonl(path: Path, handle: IO[bytes], encoding: str) -> Iterator[RawRow]:
    number = 0
    for line, raw in enumerate(handle, 1):
        if not raw.strip():
            continue
        number += 1
        where = f"{path}:{line}"
        try:
            value = json.loads(_decode(where, raw, encoding))
        except (ValueError, RecursionError) as e:  # ValueError: also a number of thousands of digits
            raise DataError(f"{where}: not JSON ({e})", remedy="each line must be one JSON object") from e
        yield _record(where, number, value)


def _lines(path: Path, handle: IO[bytes], encoding: str, preamble: str) -> Iterator[RawRow]:
    number = 0
    for line, raw in enumerate(handle, 1):
        text = _decode(f"{path}:{line}", raw, encoding).strip()
        if not text or (preamble and not number and text.startswith(preamble)):
            continue
        number += 1
        yield RawRow(f"{path}:{line}", number, {TEXT_FIELD: text})


def _table(path: Path, handle: IO[bytes], encoding: str, preamble: str, delimiter: str) -> Iterator[RawRow]:
    text = _decode(path, handle.read(), encoding)
    skipped = 0
    while preamble and text.startswith(preamble):
        text = text.partition("\n")[2]
        skipped += 1
    if csv.field_size_limit() < MAX_FIELD:
        csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number, start = 0, 1
    while True:
        where = f"{path}:{start + skipped}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise DataError(
                f"{where}: not a CSV record ({e})", remedy="look for an unclosed or stray quote there"
            ) from e
        start = reader.line_num + 1
        if not header:
            header = _header(where, cells)
        elif cells:
            number += 1
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} values under {len(header)} column names",
                    remedy="quote values that hold the separator, or repair the row",
                )
            yield RawRow(where, number, dict(zip(header, cells, strict=True)))


def _header(where: str, cells: Sequence[str]) -> list[str]:
    names = [c.strip() for c in cells]
    repeated = [n for i, n in enumerate(names) if n and n in names[:i]]
    if repeated or not any(names):
        problem = f"the column name {repeated[0]!r} is there twice" if repeated else "no column names"
        raise DataError(f"{where}: {problem}", remedy="the first line must name each column once")
    return names


def _document(path: Path, text: str, format: Format, rows: str) -> Iterator[RawRow]:
    if format == "json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:  # ValueError: also a number of thousands of digits
            raise DataError(f"{path}: not JSON ({e})", remedy="one object a line is format = 'jsonl'") from e
    else:
        value = _yaml(path, text)
    steps = [step for step in rows.split(".") if step]
    for number, (keys, item) in enumerate(_walk(path, value, steps, rows, {}), 1):
        row = _record(f"{path}: row {number}", number, item)
        taken = sorted(set(keys) & set(row.fields))
        if taken:
            raise DataError(
                f"{row.where}: rows = {rows!r}: the record has a field {taken[0]!r} of its own",
                remedy="name that step differently",
            )
        yield RawRow(row.where, number, {**row.fields, **keys})


def _walk(
    path: Path, value: Any, steps: Sequence[str], rows: str, keys: dict[str, str]
) -> Iterator[tuple[dict[str, str], Any]]:
    """The records under the steps that are left, each with the keys met on the way to it."""
    if not steps:
        if isinstance(value, list):
            yield from ((keys, item) for item in value)
        elif keys and isinstance(value, dict | str):
            yield keys, value
        else:
            has = f"an object with {', '.join(map(str, value))}" if isinstance(value, dict) else "no list"
            raise DataError(
                f"{path}: the records must be a list, but it is {has:.200}",
                remedy="say the list's path as rows = … in the card's [mapping]",
            )
        return
    step, *rest = steps
    name = _PLACEHOLDER.fullmatch(step)
    if not isinstance(value, dict) or (name is None and step not in value):
        has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"{path}: rows = {rows!r}: no {'object' if name else 'key'} {step!r} there",
            remedy=f"there is: {has:.200}",
        )
    if name is None:
        yield from _walk(path, value[step], rest, rows, keys)
        return
    for key, inside in value.items():
        yield from _walk(path, inside, rest, rows, {**keys, name[1]: str(key)})


def _yaml(path: Path, text: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - both are safe loaders
    except (yaml.YAMLError, RecursionError) as e:
        raise DataError(f"{path}: not YAML ({e})", remedy="check the file's indentation and quotes") from e


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{path}: row {number}", number, fields)
    except pyarrow.ArrowException as e:
        raise DataError(
            f"{path}: not a readable Parquet file ({e})", remedy="fetch or write the file again"
        ) from e
