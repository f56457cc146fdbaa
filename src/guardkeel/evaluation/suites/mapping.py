"""A field mapping: how a foreign record becomes an example. Declared as data, in a card's [mapping].

    [mapping]
    prompt = "question"                       # a field; "a.b.0" walks into objects and lists
    response = "reply"
    labels.response = { field = "score", values = { 0 = "safe", 1 = "unsafe" }, skip = ["unsure"] }
    categories = "kind"
    category_map = { weapons = "Guns and Illegal Weapons", "*" = [] }   # "*": all others; [] drops
    source = { constant = "forum" }

Categories say what is unsafe, so an example without an unsafe side gets none.

Nothing is guessed: a field that is missing, or a label value that the mapping does not name, is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from guardkeel.conversation import LABELS, Conversation, Example, Label, Side
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.readers import Format, RawRow
from guardkeel.evaluation.suites.splits import SPLITS, Split
from guardkeel.taxonomy import home


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Data):
    """A value that all records share."""

    constant: str | list[str]


Value = str | Constant


class LabelRule(_Data):
    """How one side's label is read: a constant, a field with a value map, or a number with two limits.

    With several fields the numbers are averaged (raters). A value between the limits, or one listed in
    `skip`, leaves the side without a label; every other unknown value is an error.
    """

    constant: Label | None = None
    field: str | list[str] = ""
    values: dict[str, Label] = Field(default_factory=dict)
    skip: list[str] = Field(default_factory=list)
    safe_up_to: float | None = None
    unsafe_from: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        limits = (self.safe_up_to, self.unsafe_from)
        numeric = any(limit is not None for limit in limits)
        if (self.constant is None) == (not self.field):
            raise ValueError("give either a constant or a field")
        if self.constant is not None and (self.values or self.skip or numeric):
            raise ValueError("a constant takes no values, skip or limits")
        if numeric and (self.values or None in limits):
            raise ValueError("give both safe_up_to and unsafe_from, and no values")
        if (
            self.safe_up_to is not None
            and self.unsafe_from is not None
            and self.safe_up_to >= self.unsafe_from
        ):
            raise ValueError("safe_up_to must be below unsafe_from")
        if isinstance(self.field, list) and not numeric:
            raise ValueError("several fields need safe_up_to and unsafe_from")
        return self


def _label_shorthand(value: Any) -> Any:
    return {"constant": value} if isinstance(value, str) and value in LABELS else value


class Messages(_Data):
    """Where the messages are, and how their keys and roles are called.

    `content` may name several keys, whose texts are joined by line ends (an agent's thought and action).
    """

    field: str
    role: str = "role"
    content: str | list[str] = "content"
    roles: dict[str, str] = Field(default_factory=dict)


class Filter(_Data):
    """A test of one field: equal to one of `values`, or a number within [min, max]."""

    field: str
    values: list[str | int | float | bool] = Field(default_factory=list)
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.values) == (self.min is not None or self.max is not None):
            raise ValueError("give either values, or min and max")
        return self


class Mapping(_Data):
    """All that is needed to read foreign records. See the module's text and docs for examples."""

    format: Format | None = None
    rows: str = ""
    preamble: str = ""
    encoding: str = "utf-8"
    id: str = ""
    prompt: str | list[str] = ""
    response: str = ""
    messages: str | Messages = ""
    labels: dict[Side, Annotated[LabelRule, BeforeValidator(_label_shorthand)]]
    categories: Value | None = None
    category_map: dict[str, str | list[str]] = Field(default_factory=dict)
    source: Value | None = None
    language: Value | None = None
    group: Value | None = None
    split: Value | None = None
    split_values: dict[str, Split] = Field(default_factory=dict)
    keep: list[Filter] = Field(default_factory=list)
    drop: list[Filter] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("give either prompt or messages")
        if not self.labels:
            raise ValueError("labels must name at least one side")
        if self.messages and self.response:
            raise ValueError("response goes with prompt; messages hold their own replies")
        if self.prompt and "response" in self.labels and not self.response:
            raise ValueError("labels.response needs a response field")
        return self


@dataclass(frozen=True, slots=True)
class Mapped:
    """An example and the split that its record declares, if any."""

    example: Example
    split: Split | None


def apply(mapping: Mapping, row: RawRow, *, prefix: str = "") -> Mapped | None:
    """The example of one record; None when a filter drops it or no side gets a label.

    Args:
        mapping: the declaration.
        row: the record.
        prefix: put before the id, so that the ids of several files do not collide.

    Raises:
        DataError: a field is missing or a value cannot be used; names place, field, value and remedy.
    """
    try:
        return _apply(mapping, row, prefix)
    except DataError as e:
        raise DataError(f"{row.where}: {e.problem}", remedy=e.remedy) from e


def _apply(mapping: Mapping, row: RawRow, prefix: str) -> Mapped | None:
    fields = row.fields
    if not all(_passes(f, fields) for f in mapping.keep) or any(_passes(f, fields) for f in mapping.drop):
        return None
    labels = {side: label for side, rule in mapping.labels.items() if (label := _label(rule, side, fields))}
    if not labels:
        return None
    identity = _identity(lookup(fields, mapping.id), mapping.id) if mapping.id else str(row.number)
    categories = _categories(mapping, fields) if "unsafe" in labels.values() else ()
    return Mapped(
        Example(
            id=prefix + identity,
            conversation=_conversation(mapping, fields),
            labels=labels,
            categories=categories,
            source=_text(mapping.source, fields, "source"),
            language=_text(mapping.language, fields, "language"),
            group=_text(mapping.group, fields, "group"),
        ),
        _split(mapping, fields),
    )


def lookup(fields: MappingType[str, Any], path: str) -> Any:
    """The value at a field name or dotted path; raises DataError naming what there is instead."""
    if path in fields:
        return fields[path]
    value: Any = fields
    for key in path.split("."):
        if isinstance(value, MappingType) and key in value:
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


def _passes(test: Filter, fields: MappingType[str, Any]) -> bool:
    value = lookup(fields, test.field)
    if test.values:
        return value_key(value) in {value_key(v) for v in test.values}
    number = _number(value, test.field)
    low = -float("inf") if test.min is None else test.min
    high = float("inf") if test.max is None else test.max
    return low <= number <= high


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) or isinstance(value, bool):
        raise DataError(
            f"field {name!r} must be a number, not {value!r:.80}", remedy="repair or drop the row"
        )
    return number


def _label(rule: LabelRule, side: Side, fields: MappingType[str, Any]) -> Label | None:
    if rule.constant is not None:
        return rule.constant
    if rule.safe_up_to is not None and rule.unsafe_from is not None:
        return _graded(rule, fields, rule.safe_up_to, rule.unsafe_from)
    name = str(rule.field)
    value = lookup(fields, name)
    known = {value_key(k): v for k, v in (rule.values or {label: label for label in LABELS}).items()}
    key = value_key(value)
    if key in known:
        return known[key]
    if key in map(value_key, rule.skip):
        return None
    raise DataError(
        f"unknown label {value!r:.80} in field {name!r}",
        remedy=f"known values are {', '.join(known)}; add it to labels.{side}.values, "
        f"or to labels.{side}.skip to leave such rows out",
    )


def _graded(rule: LabelRule, fields: MappingType[str, Any], low: float, high: float) -> Label | None:
    names = rule.field if isinstance(rule.field, list) else [rule.field]
    skipped = set(map(value_key, rule.skip))
    values = [(name, lookup(fields, name)) for name in names]
    numbers = [_number(v, name) for name, v in values if value_key(v) not in skipped]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    if mean <= low:
        return "safe"
    return "unsafe" if mean >= high else None


def _identity(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"field {name!r} must be a non-empty id, not {value!r:.80}",
            remedy="map another field as id, or none: rows are then numbered",
        )
    return str(value).strip()


def _conversation(mapping: Mapping, fields: MappingType[str, Any]) -> Conversation:
    if mapping.messages:
        return _from_messages(mapping.messages, fields)
    names = [mapping.prompt] if isinstance(mapping.prompt, str) else mapping.prompt
    parts = [_content(lookup(fields, name), name) for name in names]
    prompt = "\n\n".join(p for p in parts if p.strip())
    _require_text(prompt, " + ".join(names))
    if not mapping.response:
        return Conversation.of(prompt)
    response = _content(lookup(fields, mapping.response), mapping.response)
    _require_text(response, mapping.response)
    return Conversation.of(prompt, response)


def _content(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"field {name!r} must be text, not {value!r:.80}", remedy="map a text field, or drop the row"
        )
    return value


def _require_text(text: str, name: str) -> None:
    if not text.strip():
        raise DataError(
            f"field {name!r} holds no text",
            remedy="fill it, or leave such rows out by [[mapping.drop]] with values = ['', 'null']",
        )


def _from_messages(messages: str | Messages, fields: MappingType[str, Any]) -> Conversation:
    name = messages if isinstance(messages, str) else messages.field
    value = lookup(fields, name)
    if isinstance(value, str):  # tables keep lists as JSON text
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as e:
            raise DataError(
                f"field {name!r} is neither a list of messages nor its JSON text", remedy="map another field"
            ) from e
    if isinstance(messages, str):
        return Conversation.from_messages(value)
    if not isinstance(value, list):
        raise DataError(f"field {name!r} must be a list of messages, not {value!r:.80}")
    return Conversation.from_messages([_message(messages, m, f"{name}.{i}") for i, m in enumerate(value)])


def _message(names: Messages, message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, MappingType):
        raise DataError(f"field {where!r} must be an object, not {message!r:.80}")
    role = lookup(message, names.role)
    keys = [names.content] if isinstance(names.content, str) else names.content
    found = [_content(message[k], f"{where}.{k}") for k in keys if k in message]
    if not found:
        raise DataError(
            f"field {where!r} has none of {', '.join(keys)}", remedy=f"it has {', '.join(message)}"[:300]
        )
    role = names.roles.get(role, role) if isinstance(role, str) else role
    return {"role": role, "content": "\n".join(t for t in found if t.strip())}


def _text(value: Value | None, fields: MappingType[str, Any], what: str) -> str:
    if value is None:
        return ""
    found = value.constant if isinstance(value, Constant) else lookup(fields, value)
    if found is None:
        return ""
    if isinstance(found, list | dict):
        raise DataError(f"{what} must be one value, not {found!r:.80}", remedy=f"map another field as {what}")
    return str(found)


def _categories(mapping: Mapping, fields: MappingType[str, Any]) -> tuple[str, ...]:
    declared = mapping.categories
    if declared is None:
        return ()
    found = declared.constant if isinstance(declared, Constant) else lookup(fields, declared)
    if isinstance(found, MappingType):  # {"name": true, …}
        found = [name for name, is_there in found.items() if is_there]
    names = [found] if isinstance(found, str) else found or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(f"categories must be names, not {found!r:.80}", remedy="map a field that holds names")
    mapped: dict[str, None] = {}
    for name in filter(None, (n.strip() for n in names)):
        target = mapping.category_map.get(name, mapping.category_map.get("*", name))
        mapped.update(dict.fromkeys(home(t) for t in ([target] if isinstance(target, str) else target)))
    return tuple(mapped)


def _split(mapping: Mapping, fields: MappingType[str, Any]) -> Split | None:
    if mapping.split is None:
        return None
    value = _text(mapping.split, fields, "split")
    known: dict[str, Split] = dict(mapping.split_values) or {s: s for s in SPLITS}
    if value not in known:
        raise DataError(
            f"unknown split {value!r:.80}", remedy=f"known are {', '.join(known)}; name it in split_values"
        )
    return known[value]
