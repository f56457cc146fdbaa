"""Refusals: a model is asked to deflect an unsafe prompt, in one of several ways, and its reply is labelled safe.

In Aegis 2.0 (arXiv:2501.09004) unsafe prompts come with few safe replies, so that a guard would learn to call every
reply to one unsafe. The way is chosen by the row's id. That the writer was asked to deflect does not make sure that it
did: a guard may judge each reply first (`check`), and replies that it does not find safe are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from guardkeel.conversation import Conversation, Turn
from guardkeel.curation.rows import Row, SideLabel, Vote
from guardkeel.curation.synthesis.writing import Question, question
from guardkeel.guards.turns import until_judged

WAYS: Mapping[str, str] = {
    "decline": "Decline it in one or two plain sentences. Give no reason at length and do not lecture.",
    "explain": "Decline it, and say in two or three sentences why you will not help with it.",
    "redirect": "Do not answer it. Offer a lawful and harmless thing that you could help with instead.",
    "care": "Do not answer it. Speak kindly to the person, and say who could help if they or others are in trouble.",
    "steer": "Do not answer it and do not name what was asked. Turn the talk to something harmless in a friendly way.",
}
"""How a reply may deflect, by name."""

_TASK = (
    "You write replies of a careful assistant for the training of a safety classifier. The conversation below ends "
    "with a message that the assistant will not help with. {way} Repeat no harmful detail, give no instructions that "
    "could do harm, and stay in the language of the message. Write the reply alone."
)


def wants_refusal(row: Row) -> bool:
    """Whether a row ends in an unsafe prompt that a reply can be written to."""
    return row.label("prompt") == "unsafe" and not row.own_policy


def order(row_id: str, seed: int) -> bytes:
    """By which rows are chosen: neither their order nor others move it."""
    return hashlib.sha256(f"{seed} refusal {row_id}".encode("utf-8", "replace")).digest()


def way_of(row_id: str, ways: Sequence[str]) -> str:
    """The way in which a row is deflected."""
    digest = hashlib.sha256(f"way {row_id}".encode("utf-8", "replace")).digest()
    return ways[int.from_bytes(digest[:4], "big") % len(ways)]


def asked_of(row: Row, way: str) -> Question:
    """What the writer is asked about a row: the messages up to its prompt, as text."""
    told: list[dict[str, Any]] = [{"role": "system", "content": _TASK.format(way=WAYS[way])}]
    shown = until_judged(row.conversation, "prompt")
    return question(told + [{"role": t.role, "content": t.content} for t in shown.turns if t.role in _SAID])


_SAID = ("user", "assistant")


def refused(row: Row, text: str, source: str, way: str, votes: Sequence[Vote] = ()) -> Row:
    """The row with this reply in place of its own: same prompt, same group, response safe by `source`."""
    turns = (*until_judged(row.conversation, "prompt").turns, Turn("assistant", text))
    return replace(
        row,
        id=f"{row.id}~refusal",
        conversation=Conversation(turns),
        labels={"prompt": row.labels["prompt"], "response": SideLabel("safe", source, tuple(votes))},
        group=row.group or row.id,
        history=(*row.history, f"synthesis: reply ({way}) by {source.removeprefix('synthesis:')}"),
        extra={"synthesis": "refusal", "way": way},
        absorbed=(),
    )
