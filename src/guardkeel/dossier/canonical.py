"""One text for one JSON value, so that its digest means something: RFC 8785 (JSON Canonicalization Scheme).

Keys are sorted by their UTF-16 code units, numbers are written as ECMAScript writes them, strings as JSON.stringify
does, and there is no white space. What JSON readers do not agree on is refused: NaN and infinities, integers beyond
±(2⁵³ − 1), lone surrogates, keys that are not strings.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from guardkeel.errors import DataError

MOST = 2**53 - 1
_quoted = json.JSONEncoder(ensure_ascii=False).encode


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value, as UTF-8; raises DataError where it has none."""
    try:
        return _text(value).encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(
            f"text with a lone surrogate at character {e.start} has no canonical JSON",
            remedy="write the text as valid Unicode",
        ) from e


def loads(text: str | bytes) -> Any:
    """The value of JSON text. What is beyond 2⁵³ can only have been a double, and is one again."""
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | float:
    value = int(digits)
    return value if abs(value) <= MOST else float(digits)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, as hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if abs(value) > MOST:
            raise DataError(f"the integer {value} is beyond 2⁵³ − 1", remedy="write it as a float or as text")
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise DataError("a key of an object is no text", remedy="make keys of objects text")
        plain = all(k.isascii() for k in value)
        keys = sorted(value) if plain else sorted(value, key=lambda k: k.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join([f"{_quoted(k)}:{_text(value[k])}" for k in keys]) + "}"
    raise DataError(
        f"a {type(value).__name__} is no JSON value", remedy="use text, numbers, lists and objects"
    )


def _number(value: float) -> str:
    """ECMAScript's Number::toString: the shortest digits that read back as the same double."""
    if not math.isfinite(value):
        raise DataError(
            f"{value} is no JSON number", remedy="leave the field out, or say why it is undefined"
        )
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    spread = whole + fraction
    digits = spread.lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(spread) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        power = point - 1
        text = (
            digits[0] + (f".{digits[1:]}" if count > 1 else "") + f"e{'+' if power >= 0 else '-'}{abs(power)}"
        )
    return ("-" if value < 0 else "") + text
