"""From conversations to token ids: nothing in a message can pose as the template, and long messages fit.

The ids of an item are those of its whole rendered text. Where the shared prefix ends in a special token the
rest is tokenised alone, which gives the same ids because special tokens cut the text before anything else
does; elsewhere the shared part is found by comparing ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardkeel.conversation import Conversation, ToolCall, Turn
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family, Judgement

GAP = " […] "
_SPECIAL_LIKE = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?(?:INST|SYS)\]|<</?SYS>>|</?s>")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids after the shared prefix, and how many message tokens were left out to fit."""

    ids: list[int]
    dropped: int


class Encoder:
    """Renders and tokenises judgements of one family with one tokenizer.

    `prefix_ids` is what all items share (empty until `share`); `encode` gives the ids after it.
    """

    def __init__(self, family: Family, tokenizer: Any, *, max_tokens: int = 2048) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.prefix_ids: list[int] = []
        self._prefix_text = ""
        special = {*tokenizer.all_special_tokens, *getattr(tokenizer, "added_tokens_encoder", {})}
        names = sorted(filter(str.strip, special), key=len, reverse=True)
        self._special = re.compile("|".join([*map(re.escape, names), _SPECIAL_LIKE.pattern]))
        self._added = re.compile("|".join(map(re.escape, names))) if names else None

    @property
    def pad_id(self) -> int:
        """The id that fills rows up; it is masked, so any valid id does."""
        tokenizer = self.tokenizer
        return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def share(self, sample: Sequence[Judgement]) -> Encoder:
        """Find the prefix that the sample's items share. Items without it are still encoded rightly."""
        rendered = [self._render(j.conversation, j.side) for j in sample]
        prefixes = {r.prefix for r in rendered}
        if len(prefixes) == 1:
            text = prefixes.pop()
            ends = [m.end() for m in self._added.finditer(text)] if self._added else []
            if ends:
                self._prefix_text = text[: ends[-1]]
                self.prefix_ids = self._tokenise(self._prefix_text)
            elif text:
                ids = [self._tokenise(r.text) for r in rendered]
                shared = _common(ids)
                self.prefix_ids = ids[0][: min(shared, min(map(len, ids)) - 1)]
        return self

    def encode(self, item: Judgement) -> Encoded:
        """Ids of an item after the shared prefix, its longest messages shortened in the middle if need be."""
        conversation, dropped = item.conversation, 0
        while True:
            ids = self._ids(conversation, item)
            over = len(self.prefix_ids) + len(ids) - self.max_tokens
            if over <= 0:
                return Encoded(ids, dropped)
            conversation, cut = self._shorten(conversation, over)
            dropped += cut

    def _ids(self, conversation: Conversation, item: Judgement) -> list[int]:
        text = self._render(conversation, item.side).text
        if self._prefix_text and text.startswith(self._prefix_text):
            return self._tokenise(text[len(self._prefix_text) :], start=False)
        ids = self._tokenise(text)
        shared = len(self.prefix_ids)
        if ids[:shared] != self.prefix_ids:
            raise ConfigError(f"item {item.id!r} does not share the prefix of its batch")
        return ids[shared:]

    def _tokenise(self, text: str, *, start: bool = True) -> list[int]:
        # Templates write their own beginning-of-sequence token; sequence starts are never added twice.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, conversation: Conversation, side: Any) -> Any:
        return self.family.render(self._disarm(conversation), side, self.tokenizer)

    def _disarm(self, conversation: Conversation) -> Conversation:
        return Conversation(
            tuple(
                Turn(
                    role=t.role,
                    content=self.disarm(t.content),
                    tool_calls=tuple(ToolCall(self.disarm(c.name), self.disarm(c.arguments), c.id) for c in t.tool_calls),
                    name=self.disarm(t.name),
                    tool_call_id=t.tool_call_id,
                )
                for t in conversation.turns
            )
        )

    def disarm(self, text: str) -> str:
        """Break every special-token string in a message by a space after its first character."""
        text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be tokenised
        while self._special.search(text):
            text = self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)
        return text

    def _shorten(self, conversation: Conversation, over: int) -> tuple[Conversation, int]:
        """Cut at least one and about `over` tokens out of the middle of the longest message."""
        lengths = [len(self._offsets(t.content)) for t in conversation.turns]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        offsets = self._offsets(conversation.turns[longest].content)
        gap = len(self._tokenise(GAP)) + 2
        cut = min(over + gap, len(offsets) - 2)
        if cut < 1 or len(offsets) < gap + 4:
            raise ConfigError(
                f"the template alone needs more than max_tokens={self.max_tokens}",
                remedy="raise max_tokens, or shorten tool-call arguments",
            )
        keep = (len(offsets) - cut) // 2
        content = conversation.turns[longest].content
        shorter = content[: offsets[keep][0]] + GAP + content[offsets[keep + cut - 1][1] :]
        turns = list(conversation.turns)
        turns[longest] = replace(turns[longest], content=shorter)
        return Conversation(tuple(turns)), cut

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [tuple(pair) for pair in encoded["offset_mapping"]]


def _common(rows: list[list[int]]) -> int:
    """Length of the longest common prefix."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
