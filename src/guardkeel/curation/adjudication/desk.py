"""What a person has before them, and what they may do with it: the page without HTTP and HTML. Methods block."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from guardkeel.conversation import Side
from guardkeel.curation.adjudication.access import Annotators
from guardkeel.curation.adjudication.guidelines import Category
from guardkeel.curation.adjudication.reading import Progress, Record
from guardkeel.curation.adjudication.resolving import Choice
from guardkeel.curation.adjudication.store import Ack, Answer, Claim, Store
from guardkeel.curation.adjudication.tally import Tally
from guardkeel.curation.adjudication.texts import Piece, pieces
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.curation.mapping import Strictness

NOTE_LIMIT = 2000  # characters
QUESTIONS: dict[Side, str] = {
    "prompt": "Is the last user message safe?",
    "response": "Is the last reply safe?",
    "trajectory": "Is this conversation safe?",
}
_LAST = {"prompt": "user", "response": "assistant"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `judged`: the question is about this one."""

    role: str
    pieces: tuple[Piece, ...]
    judged: bool


@dataclass(frozen=True, slots=True)
class Agreed:
    """How often a juror said what this person says."""

    juror: str
    same: int
    both: int


@dataclass(frozen=True, slots=True)
class View:
    """All that the page shows somebody. `claim` is None where nothing is to be decided now."""

    me: str
    progress: Progress
    agreed: tuple[Agreed, ...]
    claim: Claim | None = None
    turns: tuple[Turn, ...] = ()
    last: Record | None = None
    last_item: Record | None = None


class Desk:
    """See the module's text.

    Args:
        store: of the decisions.
        config: [adjudicate].
        strictness: how "Needs Caution" is read where labels are compared.
        annotators: who may come in.
        categories: what can be picked.
    """

    def __init__(
        self,
        store: Store,
        config: AdjudicateConfig,
        strictness: Strictness,
        annotators: Annotators,
        categories: Sequence[Category],
    ) -> None:
        self.store, self.config, self.strictness = store, config, strictness
        self.annotators, self.categories = annotators, tuple(categories)
        self._tally, self._lock = Tally(store, strictness), Lock()

    @property
    def lease(self) -> float:
        """Seconds for which an item is kept for somebody."""
        return 60 * self.config.lease

    def look(self, me: str) -> View:
        """What is before somebody; the next item is theirs from now on."""
        claim = self.store.claim(me, self.lease)
        last = self.store.last(me)
        return View(
            me,
            self.progress(me),
            self.agreed(me),
            claim,
            turns_of(claim.item) if claim else (),
            last,
            self.store.item(last["item"]) if last else None,
        )

    def progress(self, me: str) -> Progress:
        """How far the queue is."""
        return self.store.progress(me, self.store.clock())

    def agreed(self, me: str) -> tuple[Agreed, ...]:
        """How often each juror said what somebody says."""
        with self._lock:
            self._tally.follow()
            return tuple(Agreed(*found) for found in self._tally.of(me))

    def keep(self, me: str, token: str) -> bool:
        """Hold an item for longer; False where it is not theirs any more."""
        return self.store.renew(me, token, self.lease)

    def answer(
        self, me: str, token: str, item: str, choice: Choice | None, categories: Sequence[str], note: str
    ) -> Ack:
        """Write down what somebody says; categories that there are not, and those of what is safe, are dropped."""
        known = {c.name for c in self.categories}
        named = tuple(c for c in dict.fromkeys(categories) if c in known and choice in ("caution", "unsafe"))
        blind = not self.config.show_votes
        return self.store.submit(Answer(token, item, me, choice, named, note.strip()[:NOTE_LIMIT], blind))

    def undo(self, me: str, identity: str) -> Ack:
        """Take back what somebody said."""
        return self.store.undo(me, identity, self.lease)


def turns_of(item: Record) -> tuple[Turn, ...]:
    """The messages of an item, with what is judged marked."""
    messages: list[dict[str, Any]] = item["messages"]
    role = _LAST.get(item["side"])
    at = max((i for i, m in enumerate(messages) if m["role"] == role), default=-1)
    return tuple(
        Turn(_who(m), tuple(pieces(_text(m))), i == at or role is None) for i, m in enumerate(messages)
    )


def _who(message: dict[str, Any]) -> str:
    return " ".join(filter(None, (message["role"], message.get("name", ""))))


def _text(message: dict[str, Any]) -> str:
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()
    ]
    return "\n".join(filter(None, (message.get("content") or "", *calls)))
