"""What jurors are asked about: one side of a conversation, under a digest of what is shown of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from guardkeel.conversation import Conversation, Side
from guardkeel.curation.rows import Row
from guardkeel.evaluation.suites.suite import sides_present
from guardkeel.guards.base import Judgement
from guardkeel.guards.turns import until_judged
from guardkeel.records import value_digest

CHUNK = 2048
"""Items that are looked up and asked about together."""
ENGINE_CHUNK = 65536
"""The same for an engine, which loads its guards anew each time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """`key` is equal for equal questions: the same side of the same messages, wherever they come from."""

    key: str
    judgement: Judgement


def item(id: str, conversation: Conversation, side: Side) -> Item:
    """One question. A prompt is judged without what was answered to it."""
    shown = until_judged(conversation, side)
    return Item(value_digest([side, shown.to_messages()])[:40], Judgement(id, shown, side))


def items_of(row: Row, sides: Sequence[Side], *, labelled: bool) -> list[Item]:
    """The questions about a row: the sides that it has, without those that have a label unless `labelled`."""
    there = sides_present(row.conversation)
    return [
        item(f"{row.id}#{side}", row.conversation, side)
        for side in sides
        if side in there and (labelled or row.label(side) is None)
    ]


def chunks(given: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of up to `size`, in order."""
    rest = iter(given)
    while some := list(islice(rest, size)):
        yield some
