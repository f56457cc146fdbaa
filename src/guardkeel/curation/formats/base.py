"""What a released data set looks like: its columns, a record → a row's content, a row → a record.

What rows have no place for is kept in `extra`, so that a row that was not changed is written as it was read. The texts
of the conversation are not: there is one place from which personal data have to be taken out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from guardkeel.conversation import Conversation, Label, Side, Turn
from guardkeel.curation.mapping import home_names, taxonomy_table
from guardkeel.curation.rows import Row, SideLabel
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.suite import last_turn
from guardkeel.evaluation.suites.values import content, value_key

_NOTHING = frozenset({"null", "", "nan", "None"})
"""How tables write that there is no value."""

HUMAN, MODEL, AUTHOR = "human", "model", "author"
"""Sources of labels: people; a language model; whoever wrote the text, as what it is meant to be."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one record says. An empty `id` means that records have none; `left_out` says why it cannot be a row."""

    conversation: Conversation | None
    labels: Mapping[Side, SideLabel] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    id: str = ""
    group: str = ""
    language: str = ""
    left_out: str = ""


class Released(ABC):
    """One released format."""

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """All columns, in order. Those in `optional` may be missing."""
    optional: ClassVar[frozenset[str]] = frozenset()
    texts: ClassVar[tuple[str, ...]]
    """Columns that hold what was said."""
    taxonomy: ClassVar[str] = "aegis"
    licence: ClassVar[str] = ""
    upstream: ClassVar[str] = ""

    @abstractmethod
    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """Raises DataError naming field and value."""

    @abstractmethod
    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """The record of a row; `own` has the columns but `texts` as they were read, nothing if it is from elsewhere."""

    def fits(self, names: set[str]) -> bool:
        """Whether a record with these columns is of this format."""
        return set(self.columns) - self.optional <= names <= set(self.columns)

    def kept(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into `extra`."""
        return {"format": self.name} | {k: v for k, v in fields.items() if k not in self.texts}

    def record(self, row: Row) -> dict[str, Any]:
        """The record of a row, columns in the released order."""
        own = dict(row.extra) if row.extra.get("format") == self.name else {}
        own.pop("format", None)
        made = self.write(row, own)
        return {c: made.get(c) for c in self.columns if c in made or c not in self.optional}

    def home(self, names: list[str]) -> tuple[str, ...]:
        """The home names of this format's category names."""
        return home_names(names, taxonomy_table(self.taxonomy))


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text that must be there and not be blank."""
    found = content(fields.get(name), name)
    if not found.strip():
        raise DataError(f"field {name!r} holds no text", remedy="fill it, or read with on_error = 'reject'")
    return found


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A text; None for null and for a column that is not there. An empty text stays one."""
    value = fields.get(name)
    return None if value is None else content(value, name)


def label(fields: Mapping[str, Any], name: str, values: Mapping[str, Label]) -> Label | None:
    """A label by its value's name; null, NaN, "" and a missing column are unknown, other values raise DataError."""
    value = fields.get(name)
    key = value_key(value)
    if key in _NOTHING:
        return None
    if key not in values:
        raise DataError(
            f"field {name!r}: unknown label {value!r:.80}", remedy=f"known are {', '.join(values)}"
        )
    return values[key]


def names(value: Any) -> list[str]:
    """The names in a text with commas between them."""
    if value_key(value) in _NOTHING:
        return []
    return [n for n in (part.strip() for part in str(value).split(",")) if n]


def said(value: Any) -> bool:
    """Whether there is a value at all."""
    return value_key(value) not in _NOTHING


def sides(**given: tuple[Label | None, str]) -> dict[Side, SideLabel]:
    """Labels of sides, leaving out those that are unknown."""
    return {s: SideLabel(v, source) for s, (v, source) in given.items() if v is not None}  # type: ignore[misc]


def exchange(prompt: str, response: str | None) -> Conversation:
    """A prompt and, where there is one, its response, which may be empty."""
    turns = (Turn("user", prompt),)
    return Conversation(turns if response is None else (*turns, Turn("assistant", response)))


def prompt_of(row: Row) -> str:
    """The last user message."""
    turn = last_turn(row.conversation, "user")
    return turn.content if turn else ""


def response_of(row: Row) -> str | None:
    """The last reply; None where there is none."""
    turn = last_turn(row.conversation, "assistant")
    return turn.content if turn else None


def source_of(row: Row, side: Side) -> str | None:
    """Who the label of a side is from; None where there is no label."""
    found = row.labels.get(side)
    return found.source if found and found.label else None
