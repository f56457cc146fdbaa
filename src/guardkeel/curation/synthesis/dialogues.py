"""Dialogues with turns on and off their topic → rows, from a model that writes them or from a file.

Written and recorded alike are {"topic", "rule", "turns": [{"role", "content", "on_topic"}]}; a file may also be of
CantTalkAboutThis (arXiv:2404.03820): `system_instruction`, `conversation` and `distractors`, each of which follows a
named turn of the assistant. Every user turn becomes a row: all that came before it on topic, and the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from guardkeel.conversation import Role, Turn
from guardkeel.curation.rows import Row
from guardkeel.curation.synthesis.rules import OFF, judged_row, rule
from guardkeel.curation.synthesis.topics import DOMAINS
from guardkeel.curation.synthesis.writing import Question, question
from guardkeel.errors import DataError

_FORM = (
    '{"topic": "…", "rule": "…", "turns": [{"role": "user", "content": "…", "on_topic": true}, '
    '{"role": "assistant", "content": "…"}, …]}'
)
_TASK = (
    "You write dialogues that teach a classifier whether a user stays on the topic that an assistant was built for. "
    "Answer with one JSON object and nothing else, in this form:\n" + _FORM + "\n"
    "rule: one or two sentences that say what the assistant is there for and what it does not talk about. turns: six "
    "to ten, user and assistant in turn, the user first and last. Most user turns are on topic. Two or three are "
    "distractors (on_topic false): friendly, harmless, and near enough to the topic to be tempting. The assistant "
    "answers turns on topic and leads back after distractors."
)


@dataclass(frozen=True, slots=True)
class Said:
    """A turn, and for the user's whether it is on topic."""

    turn: Turn
    on_topic: bool = True


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A rule, the turns of a talk in order, and distractors: each with how many turns come before it."""

    topic: str
    rule: str
    turns: tuple[Said, ...]
    distractors: tuple[tuple[int, str], ...] = ()


def asked_for(count: int, seed: int) -> list[Question]:
    """Questions for so many dialogues, spread over the domains; the same seed asks the same."""
    found = []
    for n in range(count):
        domain = DOMAINS[n % len(DOMAINS)]
        told = (
            f"Domain: {domain}. Choose a narrow service within it. This is dialogue {n // len(DOMAINS) + 1}"
        )
        told += f" of the domain (seed {seed}): choose another service than the obvious one."
        found.append(question([{"role": "system", "content": _TASK}, {"role": "user", "content": told}]))
    return found


def written_dialogue(text: str) -> Dialogue:
    """The dialogue that a model wrote; raises DataError saying what of it is not as asked."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        value = json.loads(found[0]) if found else None
    except (ValueError, RecursionError) as e:
        raise DataError(f"not JSON ({e})", remedy="ask another model") from e
    if not isinstance(value, dict):
        raise DataError("no JSON object", remedy="ask another model")
    return dialogue_from(value)


def dialogue_from(fields: Mapping[str, Any]) -> Dialogue:
    """Of a record in either form; raises DataError naming the field."""
    if "system_instruction" in fields:
        return _released(fields)
    listed = fields.get("turns")
    if not isinstance(listed, list) or not listed:
        raise DataError(f"turns must be a list, not {listed!r:.60}", remedy=f"write {_FORM}")
    turns = tuple(_said(t, n) for n, t in enumerate(listed))
    users = [t.on_topic for t in turns if t.turn.role == "user"]
    if True not in users or False not in users:
        raise DataError("user turns are all on or all off the topic", remedy="give turns of both kinds")
    return Dialogue(_text(fields, "topic"), _text(fields, "rule"), turns)


def rows_of(
    dialogue: Dialogue, name: str, source: str, *, origin: str = "", licence: str = ""
) -> Iterator[Row]:
    """A row for each user turn; distractors are left out of what comes before other turns."""
    policy = rule(dialogue.topic[:80] or "topic", (OFF, f"Whatever this rule leaves out: {dialogue.rule}"))
    for number, (turns, off) in enumerate(_judged(dialogue), 1):
        violated = (OFF,) if off else ()
        yield judged_row(
            f"{name}.{number}", turns, policy, violated, source, group=name, origin=origin, licence=licence
        )


def _judged(dialogue: Dialogue) -> Iterator[tuple[list[Turn], bool]]:
    """The turns up to each user turn and whether that is off topic; before it, only what is on topic."""
    before: list[Turn] = []
    off = False
    for n, said in enumerate((*dialogue.turns, None)):
        for text in (t for place, t in dialogue.distractors if place == n):
            yield [*before, Turn("user", text)], True
        if said is None:
            return
        if said.turn.role == "user":
            off = not said.on_topic
            yield [*before, said.turn], off
        if not off:
            before.append(said.turn)


def _released(fields: Mapping[str, Any]) -> Dialogue:
    turns = tuple(_said(t, n) for n, t in enumerate(_listed(fields, "conversation")))
    distractors = []
    for one in _listed(fields, "distractors"):
        bot, text = (str(one.get(k) or "").strip() for k in ("bot turn", "distractor"))
        at = next((n for n, t in enumerate(turns) if t.turn.content.strip() == bot), None)
        if not text or at is None:
            raise DataError(
                "a distractor follows no turn of the conversation",
                remedy="repair the record, or leave it out",
            )
        distractors.append((at + 1, text))
    return Dialogue(_text(fields, "domain"), _text(fields, "system_instruction"), turns, tuple(distractors))


def _listed(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = fields.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise DataError(f"field {name!r} must be a list of objects", remedy="see the released set")
    return value


def _said(value: Any, number: int) -> Said:
    roles: dict[Any, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
    role = roles.get(value.get("role")) if isinstance(value, Mapping) else None
    content = value.get("content") if isinstance(value, Mapping) else None
    if role is None or not isinstance(content, str) or not content.strip():
        raise DataError(f"turn {number} has no role and content", remedy=f"write {_FORM}")
    on_topic = value.get("on_topic", True)
    if not isinstance(on_topic, bool):
        raise DataError(f"turn {number}: on_topic is {on_topic!r:.40}", remedy="true or false")
    return Said(Turn(role, content.strip()), on_topic)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {name!r} must be a text, not {value!r:.60}", remedy=f"write {_FORM}")
    return " ".join(value.split())
