"""A raw record and a mapping → an example."""

from __future__ import annotations

import json
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guardkeel.conversation import Conversation, Example, Turn
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.labelling import label_of
from guardkeel.evaluation.suites.mapping import Constant, Filter, Mapping, Messages, TurnRule, Value
from guardkeel.evaluation.suites.readers import RawRow
from guardkeel.evaluation.suites.splits import SPLITS, Split
from guardkeel.evaluation.suites.values import content, lookup, number, required, text_at, value_key
from guardkeel.taxonomy import home


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
    labels = {s: label for s, rule in mapping.labels.items() if (label := label_of(rule, s, fields))}
    if not labels:
        return None
    reply = text_at(fields, mapping.response) if mapping.response else ""
    if mapping.response_optional and not reply.strip():
        labels = {s: label for s, label in labels.items() if s != "response"}
        if not labels:
            return None
    identity = _identity(lookup(fields, mapping.id), mapping.id) if mapping.id else str(row.number)
    categories = _categories(mapping, fields) if "unsafe" in labels.values() else ()
    return Mapped(
        Example(
            id=prefix + identity,
            conversation=_conversation(mapping, fields, reply),
            labels=labels,
            categories=categories,
            source=_text(mapping.source, fields, "source"),
            language=_text(mapping.language, fields, "language"),
            group=_text(mapping.group, fields, "group"),
        ),
        _split(mapping, fields),
    )


def _passes(test: Filter, fields: MappingType[str, Any]) -> bool:
    value = lookup(fields, test.field)
    if test.values:
        return value_key(value) in {value_key(v) for v in test.values}
    found = number(value, test.field)
    low = -float("inf") if test.min is None else test.min
    high = float("inf") if test.max is None else test.max
    return low <= found <= high


def _identity(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"field {name!r} must be a non-empty id, not {value!r:.80}",
            remedy="map another field as id, or none: rows are then numbered",
        )
    return str(value).strip()


def _conversation(mapping: Mapping, fields: MappingType[str, Any], reply: str) -> Conversation:
    if mapping.turns:
        return _from_turns(mapping.turns, fields)
    if mapping.messages:
        conversation = _from_messages(mapping.messages, fields)
    else:
        names = [mapping.prompt] if isinstance(mapping.prompt, str) else mapping.prompt
        parts = [text_at(fields, name) for name in names]
        conversation = Conversation.of(
            required("\n\n".join(p for p in parts if p.strip()), " + ".join(names))
        )
    if not mapping.response or (mapping.response_optional and not reply.strip()):
        return conversation
    return Conversation((*conversation.turns, Turn("assistant", required(reply, mapping.response))))


def _from_turns(rules: Sequence[TurnRule], fields: MappingType[str, Any]) -> Conversation:
    turns = [Turn(rule.role, text_at(fields, rule.field)) for rule in rules]
    written = tuple(turn for turn in turns if turn.content.strip())
    if not written:
        required("", " + ".join(rule.field for rule in rules))
    return Conversation(written)


def _from_messages(messages: str | Messages, fields: MappingType[str, Any]) -> Conversation:
    name = messages if isinstance(messages, str) else messages.field
    value = lookup(fields, name)
    if isinstance(messages, Messages) and messages.marks:
        return _from_transcript(messages, required(content(value, name), name), name)
    if isinstance(value, str):  # tables keep lists as JSON text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise DataError(
                f"field {name!r} is neither a list of messages nor its JSON text", remedy="map another field"
            ) from e
    if isinstance(value, list) and value and all(isinstance(inner, list) for inner in value):
        value = [message for inner in value for message in inner]  # rounds of one conversation
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
    found = [content(message[k], f"{where}.{k}") for k in keys if k in message]
    if not found:
        raise DataError(
            f"field {where!r} has none of {', '.join(keys)}", remedy=f"it has {', '.join(message)}"[:300]
        )
    role = names.roles.get(role, role) if isinstance(role, str) else role
    return {"role": role, "content": "\n".join(t for t in found if t.strip())}


def _from_transcript(names: Messages, text: str, field: str) -> Conversation:
    """The turns of one text; lines without a mark go on with the turn before them."""
    turns: list[tuple[str, list[str]]] = []
    marks = sorted(names.marks, key=len, reverse=True)
    for line in text.split(names.line_end):
        mark = next((m for m in marks if line.startswith(m)), None)
        if mark is not None:
            turns.append((mark, [line.removeprefix(mark)]))
        elif turns:
            turns[-1][1].append(line)
        elif line.strip():
            raise DataError(
                f"field {field!r} does not begin with {' or '.join(map(repr, names.marks))}",
                remedy="correct marks in the card's [mapping.messages]",
            )
    said = [Turn(names.marks[mark], "\n".join(lines).strip()) for mark, lines in turns]
    return Conversation(tuple(said))


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
    found: Any
    if isinstance(declared, list):  # one field a category: those that are set
        found = [name for name in declared if value_key(fields.get(name)) in ("1", "true")]
    else:
        found = declared.constant if isinstance(declared, Constant) else lookup(fields, declared)
    if isinstance(found, MappingType):  # {"name": true, …}
        found = [name for name, is_there in found.items() if is_there]
    if isinstance(found, str) and mapping.category_separator:
        found = found.split(mapping.category_separator)
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
