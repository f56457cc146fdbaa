"""From conversations to token ids: nothing in a message can pose as the template, and long messages fit.

The ids of an item are those of its whole rendered text. Where the shared prefix ends in a special token the
rest is tokenised alone, which gives the same ids because special tokens cut the text before anything else
does (`share` checks that they do here); further plain text is shared as far as ids agree.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardkeel.conversation import Conversation, Side, ToolCall, Turn
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family, Judgement, Rendered, common
from guardkeel.guards.disarm import Disarmer
from guardkeel.guards.form import Form
from guardkeel.guards.judged import BLIND
from guardkeel.guards.shorten import GAP, Shortener

__all__ = ["GAP", "PROBES", "Encoded", "Encoder", "NotSharedError"]

_WORTH = 8  # tokens of plain text from which sharing them pays
_NEAR = 64  # characters after the prefix that can still change its last tokens
PROBES = ("a", " a", "\n", "\n\na", "1", ".", ": ", "é", "中", "'s", "")
"""What a message may begin with."""

_JUDGED = {"prompt": "user", "response": "assistant"}


class NotSharedError(ConfigError):
    """An item does not begin with the prefix that was shared; encode its run without sharing."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids after the shared prefix, and how many message tokens were left out to fit.

    The last `opened` ids are not the item's but the guard's own: the opening of its first blank.
    """

    ids: list[int]
    dropped: int
    opened: int = 0
    side: Side = "prompt"


class Encoder:
    """Renders and tokenises judgements of one family with one tokenizer.

    `prefix_ids` is what all items share (empty until `share`); `encode` gives the ids after it.
    """

    sees = False
    """Whether conversations may have images; see vision.py."""

    def __init__(self, family: Family, tokenizer: Any, *, max_tokens: int = 2048) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.disarm = Disarmer(tokenizer)
        self._shortener = Shortener(tokenizer, max_tokens)
        self._forms: dict[Side, Form] = {}
        self._head, self._head_ids, self._plain_ids = "", list[int](), list[int]()

    def under(self, family: Family) -> Encoder:
        """One for another policy with the same tokenizer, of which all is known already; nothing is shared yet."""
        other = copy.copy(self)
        other.family, other._forms = family, {}
        other._head, other._head_ids, other._plain_ids = "", [], []
        return other

    def form(self, side: Side) -> Form:
        """The family's blanks for a side."""
        if side not in self._forms:
            asked = Conversation.of("a", None if side == "prompt" else "b")
            context = self._render(asked, side).suffix
            self._forms[side] = Form(self.family, side, self.tokenizer, context)
        return self._forms[side]

    @property
    def prefix_ids(self) -> list[int]:
        """Ids that every item begins with."""
        return self._head_ids + self._plain_ids

    @property
    def pad_id(self) -> int:
        """The id that fills rows up; it is masked, so any valid id does."""
        tokenizer = self.tokenizer
        return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def share(self, sample: Sequence[Judgement]) -> Encoder:
        """Find the prefix that the sample's items share; nothing is shared where their templates differ."""
        rendered = [self._render(self._disarmed(j.conversation), j.side) for j in sample]
        prefixes = {r.prefix for r in rendered}
        self._head, self._head_ids, self._plain_ids = "", [], []
        if len(prefixes) == 1:
            prefix = prefixes.pop()
            texts = [r.text[: len(prefix) + _NEAR] for r in rendered]
            head = prefix[: self._last_special(prefix)]
            ids = self._tokenise(head)
            if head and all(self._tokenise(t) == ids + self._tokenise(t[len(head) :]) for t in texts):
                self._head, self._head_ids = head, ids
            self._plain_ids = self._agreed(prefix, texts)
        return self

    def encode(self, item: Judgement) -> Encoded:
        """Ids of an item after the shared prefix, its longest message shortened in the middle if need be.

        Raises:
            ConfigError: it does not fit even so (tool calls are never shortened), it has no message to judge, or the
                family does not judge that side.
            NotSharedError: it does not begin with the shared prefix.
        """
        if item.side not in self.family.sides:
            raise ConfigError(
                f"family {self.family.name!r} does not judge the {item.side} side",
                remedy=f"it judges {', '.join(self.family.sides)}",
            )
        judged = _JUDGED.get(item.side)
        if judged and not any(turn.role == judged for turn in item.conversation.turns):
            raise ConfigError(
                f"it has no {judged} message", remedy=f"give one, or take the {item.side} label away"
            )
        if item.conversation.images and not self.sees:
            raise ConfigError(BLIND, remedy="take a guard that sees images, or leave them out")
        form = self.form(item.side)
        opened = 0
        conversation = self._disarmed(item.conversation)

        def text(contents: list[str]) -> str:
            turns = (replace(t, content=c) for t, c in zip(conversation.turns, contents, strict=True))
            return self._render(Conversation(tuple(turns)), item.side).text

        def shown() -> list[bool]:  # some families leave out what follows the message under judgement
            marks = [f"[[turn {i}]]" for i in range(len(conversation.turns))]
            seen = text(marks)
            return [mark in seen for mark in marks]

        def ids(contents: list[str]) -> list[int]:
            nonlocal opened
            row, opened = self._opened(text(contents), form, item)
            return row

        contents = [t.content for t in conversation.turns]
        row, dropped = self._shortener.fit(contents, ids, self.max_tokens - len(self.prefix_ids), shown)
        return Encoded(row, dropped, opened, item.side)

    def _opened(self, text: str, form: Form, item: Judgement) -> tuple[list[int], int]:
        """Ids of an item with the opening of its first blank, and how many of them are the opening's.

        They are those of the one text, but where the opening's end is written otherwise before an answer.
        """
        row, opening = self._ids(text, item), form.opening
        if not opening:
            return row, 0
        joined = self._ids(text + form.blanks[0].opening, item)
        known = common([row, joined])
        if joined[known:] == opening or (known < len(row) and joined[-1:] == opening[-1:]):
            return joined, len(joined) - known
        return [*row, *opening], len(opening)

    def _ids(self, text: str, item: Judgement) -> list[int]:
        plain = self._plain_ids
        if text.startswith(self._head):
            ids = self._tokenise(text[len(self._head) :])
            if ids[: len(plain)] == plain:
                return ids[len(plain) :]
        raise NotSharedError(
            f"item {item.id!r} does not begin with the prefix of its batch",
            remedy="encode it without sharing a prefix",
        )

    def _last_special(self, prefix: str) -> int:
        added = self.disarm.added
        return max((m.end() for m in added.finditer(prefix)), default=0) if added else 0

    def _agreed(self, prefix: str, texts: list[str]) -> list[int]:
        """Ids of the prefix after its last special token, as far as they hold whatever follows."""
        rest = prefix[len(self._head) :]
        if len(self._tokenise(rest)) < _WORTH:
            return []
        continued = [self._tokenise(rest + probe) for probe in PROBES]
        rows = continued + [self._tokenise(t[len(self._head) :]) for t in texts]
        return rows[0][: min(common(rows), min(map(len, rows)) - 1)]

    def _tokenise(self, text: str) -> list[int]:
        # Templates write their own beginning-of-sequence token; it is never added twice.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _render(self, conversation: Conversation, side: Any) -> Rendered:
        return self.family.render(conversation, side, self.tokenizer)

    def _disarmed(self, conversation: Conversation) -> Conversation:
        clean = self.disarm
        return Conversation(
            tuple(
                Turn(
                    role=t.role,
                    content=clean(t.content),
                    tool_calls=tuple(
                        ToolCall(clean(c.name), clean(c.arguments), clean(c.id)) for c in t.tool_calls
                    ),
                    name=clean(t.name),
                    tool_call_id=clean(t.tool_call_id),
                    images=t.images,
                )
                for t in conversation.turns
            )
        )
