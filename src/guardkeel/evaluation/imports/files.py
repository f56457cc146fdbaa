"""Reading JSON and JSON Lines that someone else wrote: bounded, and with errors that name file, line and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.errors import DataError

MAX_FILE = 1024**3
MAX_LINE = 64 * 1024**2
WRITTEN = "take the file as the tool wrote it"


def read_json(path: Path) -> Any:
    """A JSON file of at most a gibibyte."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise DataError(
                f"{path}: {size:,} bytes; the limit is {MAX_FILE:,}",
                remedy="inspect_ai: write .eval logs; otherwise give the files of one run",
            )
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Any:
    """JSON as Python reads it, NaN too; raises DataError naming where."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # also not UTF-8, and numbers of thousands of digits
        raise DataError(f"{where}: not JSON ({e!s:.120})", remedy=WRITTEN) from e


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) for each line that is not blank."""
    try:
        handle = path.open("rb")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    with handle:
        number = 0
        while raw := handle.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE:
                raise DataError(f"{where}: a line of more than {MAX_LINE:,} bytes", remedy=WRITTEN)
            if raw.strip():
                yield where, an_object(parse(raw, where), where)


def an_object(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, not {type(value).__name__}", remedy=WRITTEN)
    return value


def taken(found: dict[str, Any], field: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of the kind that the tool writes; raises DataError naming file, field and value."""
    value = found.get(field)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        said = "is missing" if field not in found else f"is {value!r:.60}"
        raise DataError(f"{where}: field {field!r} {said}", remedy=WRITTEN)
    return value


def inner(found: dict[str, Any], field: str) -> dict[str, Any]:
    """The object in a field that need not be there."""
    value = found.get(field)
    return value if isinstance(value, dict) else {}


def listed(found: dict[str, Any], field: str) -> list[Any]:
    """The list in a field that need not be there."""
    value = found.get(field)
    return value if isinstance(value, list) else []
