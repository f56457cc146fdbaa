"""What every guard is: conversations in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guardkeel.conversation import Conversation, Label, Side


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guard's answer about one side of one conversation.

    `unsafe` is P(unsafe) in [0, 1], or None when the item is *unscored*; `unscored` then says why.
    Unscored is a value of its own and is never counted as safe. `dropped` counts the tokens that were
    left out of an over-long message; `categories` are taxonomy names.
    """

    unsafe: float | None
    unscored: str = ""
    categories: tuple[str, ...] = ()
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.unsafe is None:
            if not self.unscored:
                raise ValueError("an unscored verdict needs its reason")
        elif self.unscored or not 0.0 <= self.unsafe <= 1.0:  # also refuses NaN
            raise ValueError(
                f"P(unsafe) must be in [0, 1] and without a reason, got {self.unsafe}, {self.unscored!r}"
            )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thing to judge: a side of a conversation, under the id that names it in files."""

    id: str
    conversation: Conversation
    side: Side


@dataclass(frozen=True, slots=True)
class Rendered:
    """A family's input text in three parts: what all items share, the conversation, the rest.

    The model reads `prefix + body + suffix`. Only messages inside `body` may be shortened.
    """

    prefix: str
    body: str
    suffix: str

    @property
    def text(self) -> str:
        """The whole input."""
        return self.prefix + self.body + self.suffix


class Family(Protocol):
    r"""The template and verdict grammar that a line of causal-LM guards shares. One file each."""

    name: str
    categories: tuple[str, ...]

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """The input for one judgement. Message texts arrive already free of special-token strings."""
        ...

    def verdict_tokens(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Ids of the tokens that begin a `safe` and an `unsafe` verdict, at the verdict position."""
        ...

    def answer(self, label: Label, categories: Sequence[str] = ()) -> str:
        """The whole answer that gives a label and, if unsafe, its categories, e.g. "unsafe\nThreat".

        Names that the family does not know are left out; `parse` gives the label back.
        """
        ...

    def parse(self, output: str) -> Verdict:
        """A verdict from generated text; anything outside the grammar is unscored, with the reason."""
        ...


class Guard(Protocol):
    """A loaded guard."""

    name: str
    family: str
    threshold: float

    def score(self, items: Sequence[Judgement], **options: Any) -> list[Verdict]:
        """One verdict for each item, in order. A failure of one item is an unscored verdict."""
        ...


def first_token(tokenizer: Any, word: str) -> int:
    """The id of the token with which a word begins at the verdict position."""
    return int(tokenizer(word, add_special_tokens=False)["input_ids"][0])
