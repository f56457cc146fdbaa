"""What a guard can be taught: the verdict on a judgement, or the answer to an instruction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guardkeel.conversation import Conversation, Example, Label
from guardkeel.errors import DataError
from guardkeel.guards.base import Judgement


@dataclass(frozen=True, slots=True)
class Target:
    """A judgement and its label, which the guard's family puts into words. `weight` scales its loss."""

    judgement: Judgement
    label: Label
    categories: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """A conversation whose last turn, the assistant's, is learned.

    Raises:
        DataError: it has no such turn, nothing before it, or nothing in it.
    """

    id: str
    conversation: Conversation

    def __post_init__(self) -> None:
        *asked, last = self.conversation.turns
        if last.role != "assistant" or not asked:
            roles = ", ".join(t.role for t in self.conversation.turns)
            raise DataError(
                f"messages must end in an answer of the assistant, but their roles are {roles:.80}",
                remedy="end with the assistant's answer to what comes before it",
            )
        if not last.content.strip() and not last.tool_calls:
            raise DataError(
                f"the assistant's last message is {last.content!r:.80}", remedy="fill it, or drop the row"
            )


def targets(examples: Iterable[Example]) -> list[Target]:
    """One target for each labelled side."""
    return [
        target(Judgement(f"{e.id}#{side}", e.conversation, side), label, e.categories)
        for e in examples
        for side, label in e.labels.items()
    ]


def target(judgement: Judgement, label: Label, categories: tuple[str, ...]) -> Target:
    """A target; categories say what is unsafe, so a safe one has none."""
    return Target(judgement, label, categories if label == "unsafe" else ())
