"""What there is to review, and what is sent of it.

Two lists. Items *drawn* at random with a logged probability teach the learner, and are shown oldest first: an order
that does not depend on what they are, so that a list that is never finished stays a random sample. *Disagreements*
were not drawn; they are looked at because they look interesting, so their feedback is kept and by default teaches
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guardkeel.moderation.keys import ApiKey
from guardkeel.moderation.page.texts import Piece, pieces
from guardkeel.moderation.schemas import FeedbackBody
from guardkeel.moderation.store import Row

Which = Literal["drawn", "disagreements"]
SHOWN = 50
MOST = 500
CHARACTERS = 6000
"""Of a text on the page; the whole of it has a page of its own."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of what was judged."""

    role: str
    pieces: tuple[Piece, ...]
    characters: int


@dataclass(frozen=True, slots=True)
class Said:
    """What one expert said, and with what weight."""

    name: str
    unsafe: float | None
    weight: float
    categories: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """One item.

    Args:
        row: of the verdict log.
        turns: None where texts are not kept.
        cut: characters that are left out of them.
        experts: what they said.
    """

    row: Row
    turns: tuple[Turn, ...] | None
    cut: int
    experts: tuple[Said, ...]


def case_of(row: Row, limit: int = CHARACTERS) -> Case:
    """A row of the verdict log as it is shown."""
    turns, cut = (None, 0) if row["text"] is None else _turns(json.loads(row["text"]), limit)
    experts = tuple(
        Said(
            name,
            o["unsafe"],
            row["weights"].get(name, 0.0),
            tuple(o["categories"]),
            o["reason"] or o["outcome"],
        )
        for name, o in row["opinions"].items()
    )
    return Case(row, turns, cut, experts)


def feedback_of(verdict: str, unsafe: bool, key: ApiKey) -> FeedbackBody:
    """What a reviewer says of a verdict.

    Its id follows from verdict and key: said twice, from two tabs or after a lost answer, it counts once. The store
    adds the probability with which the verdict was drawn.

    Raises:
        ValidationError: the verdict's id is none.
    """
    who = key.name.encode("ascii", "replace").decode()
    return FeedbackBody(id=f"page.{verdict}.{key.id}", verdict=verdict, unsafe=unsafe, reviewer=who)


def _turns(messages: Sequence[dict[str, Any]], limit: int) -> tuple[tuple[Turn, ...], int]:
    """Messages with at most `limit` characters in all; the latest, which are judged, have the first claim."""
    found: list[Turn] = []
    cut = 0
    for message in reversed(messages):
        text = _text(message)
        shown = text[:limit]
        cut, limit = cut + len(text) - len(shown), limit - len(shown)
        found.append(Turn(str(message.get("role", "")), tuple(pieces(shown)), len(text)))
    return tuple(reversed(found)), cut


def _text(message: dict[str, Any]) -> str:
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()
    ]
    return "\n".join([str(message.get("content") or ""), *calls]).strip("\n")
