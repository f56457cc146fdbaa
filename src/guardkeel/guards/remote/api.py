"""What the four APIs have in common: an item's input, a request's body, and verdicts from the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from guardkeel.conversation import Conversation, Side, ToolCall
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.disarm import Disarmer
from guardkeel.guards.remote.client import Failed


@dataclass(frozen=True, slots=True)
class Asked:
    """One item's part of a request, and how many message tokens were left out of it."""

    value: Any
    side: Side
    dropped: int = 0


class Api(Protocol):
    """One kind of endpoint."""

    def prepare(self, item: Judgement) -> Asked:
        """Raises ConfigError where the item cannot be asked about; its problem is why it is unscored."""
        ...

    def body(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """The JSON of one request."""
        ...

    def read(self, answer: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """One verdict for each input, in order.

        Raises:
            Failed: the answer is not what this API answers.
            ConfigError: the file and the served model do not fit, which would spoil every item.
        """
        ...


class PlainTokens:
    """Stands for the tokenizer of a server, which is not here: the special tokens of guards' templates by name."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - never written to
    all_special_tokens = (
        "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]",
        "[UNK]", "[PAD]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "</think>", "<think>",
    )  # fmt: skip


def disarmer(tokenizer: Any) -> Disarmer:
    """Breaks special tokens in messages: servers read them in text, too."""
    return Disarmer(PlainTokens() if tokenizer is None else tokenizer)


def cleaned(conversation: Conversation, clean: Callable[[str], str]) -> Conversation:
    """The conversation with every text of it put through `clean`."""
    return Conversation(
        tuple(
            replace(
                turn,
                content=clean(turn.content),
                name=clean(turn.name),
                tool_call_id=clean(turn.tool_call_id),
                tool_calls=tuple(
                    ToolCall(clean(c.name), clean(c.arguments), clean(c.id)) for c in turn.tool_calls
                ),
            )
            for turn in conversation.turns
        )
    )


def entries(answer: Any, key: str, count: int) -> list[dict[str, Any]]:
    """The `count` entries of an answer's list, in the order of the inputs: by `index` where they have one."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise Failed(f"the answer has no list {key!r}")
    if len(found) != count:
        raise Failed(f"the answer has {len(found)} {key} for {count} inputs")
    if any("index" in e for e in found):
        by_index = {e.get("index"): e for e in found if type(e.get("index")) is int}
        if by_index.keys() != set(range(count)):
            raise Failed(f"the {key} of the answer are not numbered 0 to {count - 1}")
        return [by_index[i] for i in range(count)]
    return found


def number(value: Any) -> float:
    """A finite JSON number; raises Failed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Failed("the answer has no number where one belongs")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise Failed("the answer has a number that is not finite")
    return found


def probability(value: Any) -> float:
    """A number in [0, 1], rounding forgiven; raises Failed."""
    found = number(value)
    if not -1e-3 <= found <= 1 + 1e-3:
        raise Failed(f"the answer has {found:g} for a probability")
    return min(1.0, max(0.0, found))
