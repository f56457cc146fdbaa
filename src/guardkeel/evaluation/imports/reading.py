"""What the files of another tool leave open, and how its words and numbers become labels and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import SIDES, Label, Side, text_digest
from guardkeel.errors import DataError

UNSAFE_WORDS = ("unsafe", "harmful", "toxic", "malicious", "injection", "jailbreak")
SAFE_WORDS = ("safe", "harmless", "unharmful", "non-toxic", "benign")
UNSAFE_SCORES = ("unsafe", "p_unsafe", "unsafe_score", "unsafe_probability", "prob_unsafe")
"""What a scorer, or a key of its value, is called whose numbers are P(unsafe) without being told."""
TEXT_FIELDS = ("text", "prompt", "input", "question", "instruction", "goal", "message")


class Reading(BaseModel):
    """What to take from a file and how to understand it, where the file does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str | None = Field(
        default=None, description="which suite, where a folder or run holds several: its name"
    )
    scorer: str | None = Field(
        default=None, description="inspect_ai: scorer, or scorer.key of its value; lm-eval: filter"
    )
    numbers: Literal["unsafe", "safe", "correct"] | None = Field(
        default=None,
        description="inspect_ai: what a scorer's number is: P(unsafe), P(safe), or 1 where right",
    )
    side: Side | None = Field(
        default=None, description="side that was judged; default: what an item says, else the prompt"
    )
    unsafe: tuple[str, ...] = Field(default=(), description='words that mean unsafe, such as "yes"')
    safe: tuple[str, ...] = Field(default=(), description='words that mean safe, such as "no"')
    key: Literal["id", "text"] | None = Field(
        default=None, description="know items by the tool's id or by the digest of their text"
    )
    labels: Mapping[str, Label] = Field(
        default_factory=dict, description="gold labels by the tool's id, where its files have none"
    )

    def word(self, text: Any) -> Label | None:
        """The label that a word is; None for anything else. Case and one full stop at the end do not matter."""
        if not isinstance(text, str):
            return None
        plain = text.strip().removesuffix(".").casefold()
        if plain in {w.casefold() for w in (self.unsafe or UNSAFE_WORDS)}:
            return "unsafe"
        if plain in {w.casefold() for w in (self.safe or SAFE_WORDS)}:
            return "safe"
        return None

    def gold(self, text: Any, where: str) -> Label:
        """The gold label that a target is; raises DataError naming it."""
        label = self.word(text)
        if label is None:
            raise DataError(
                f"{where}: target {text!r:.60} is neither safe nor unsafe",
                remedy='say which words mean what: unsafe = ["yes"], safe = ["no"]; or give a log of a guard',
            )
        return label

    def side_of(self, said: Any) -> Side:
        """The side that is asked for, else what an item says, else the prompt."""
        if self.side is not None:
            return self.side
        return next((side for side in SIDES if side == said), "prompt")


def certain(label: Label) -> float:
    """A verdict without a probability as a score."""
    return 1.0 if label == "unsafe" else 0.0


def chance(value: Any, where: str, field: str) -> float | None:
    """A number in [0, 1]; None for NaN or null. Raises DataError for anything else."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise DataError(
        f"{where}: field {field!r} must be a number from 0 to 1, not {value!r:.60}",
        remedy="take the file as the tool wrote it, or choose a scorer that gives probabilities",
    )


def names(found: Sequence[tuple[str, str | None]], reading: Reading, *, own: bool) -> list[str]:
    """What each item is known by: its id in the tool, or the digest of its text.

    `found` holds (id, text or None); `own` says that ids come from the data, not from counting its rows. By default
    ids that were counted are replaced by digests, where these tell all items apart.
    """
    digests = [text_digest(text) for _, text in found if text is not None]
    if reading.key == "text" and len(digests) < len(found):
        raise DataError("key = 'text': an item has no text here", remedy="leave key out, or take key = 'id'")
    apart = len(set(digests)) == len(found)
    if reading.key == "text" or (reading.key is None and not own and apart):
        return digests
    return [id for id, _ in found]


def text_of(messages: Any) -> str | None:
    """A text, or the last user message of a list of messages."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            return content if isinstance(content, str) else None
    return None


def figures(values: Mapping[str, Any]) -> str:
    """The numbers of a mapping in words, for a note: "acc 0.75, f1 0.5"."""
    return ", ".join(
        f"{key} {value:.4g}"
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
