"""Reading single values of a raw record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from guardkeel.errors import DataError

AS_JSON = ":json"
"""A text field whose name ends so may hold anything, and is read as JSON text."""


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a field name or dotted path; raises DataError naming what there is instead."""
    if path in fields:
        return fields[path]
    value: Any = fields
    for key in path.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and key.isdigit()
            and int(key) < len(value)
        ):
            value = value[int(key)]
        else:
            raise DataError(
                f"field {path!r} is missing", remedy=f"the record has {', '.join(map(str, fields))}"[:300]
            )
    return value


def value_key(value: Any) -> str:
    """How a value is written in a value map: `null`, `true`, `false`, `1` (also for 1.0 and "1.0"), text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def number(value: Any, name: str) -> float:
    """A number, or text that is one; raises DataError."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if math.isnan(found) or isinstance(value, bool):
        raise DataError(
            f"field {name!r} must be a number, not {value!r:.80}", remedy="repair or drop the row"
        )
    return found


def content(value: Any, name: str) -> str:
    """A text, empty for null; raises DataError for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"field {name!r} must be text, not {value!r:.80}",
            remedy=f"map a text field, or drop the row; {name}{AS_JSON} reads it as JSON text",
        )
    return value


def text_at(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field; one whose name ends in `:json` may hold anything, and is written as JSON."""
    if name.endswith(AS_JSON) and name not in fields:
        value = lookup(fields, name.removesuffix(AS_JSON))
        return "" if value is None else json.dumps(value, ensure_ascii=False)
    return content(lookup(fields, name), name)


def required(text: str, name: str) -> str:
    """The text; raises DataError when it is blank."""
    if not text.strip():
        raise DataError(
            f"field {name!r} holds no text",
            remedy="fill it, or leave such rows out by [[mapping.drop]] with values = ['', 'null']",
        )
    return text
