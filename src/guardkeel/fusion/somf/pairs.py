"""Preference pairs: JSONL rows with a prompt, the answer to prefer and the one to reject, each a text or messages.

{"prompt": "…", "chosen": "…", "rejected": "…"}
{"prompt": [{"role": "user", "content": "…"}], "chosen": [{"role": "assistant", "content": "…"}], "rejected": […]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.readers import RawRow, plain_stem, read_rows
from guardkeel.records import value_digest
from guardkeel.tuning.lessons import Lesson, instruction_lessons
from guardkeel.tuning.targets import Instruction

FIELDS = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
"""The fields of a row, and who says what is given there as a text."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    chosen: Instruction
    rejected: Instruction

    @property
    def id(self) -> str:
        """The file's name and the row's id or number."""
        return self.chosen.id


def read_pairs(path: str | Path) -> list[Pair]:
    """All rows of a file of preference pairs (any format of suites).

    Raises:
        DataError: naming file, line and field.
    """
    path = Path(path)
    found, seen = [], dict[str, str]()
    for row in read_rows(path):
        try:
            found.append(_pair(row, plain_stem(path)))
        except DataError as e:
            raise DataError(f"{row.where}: {e.problem}", remedy=e.remedy) from e
        before = seen.setdefault(found[-1].id, row.where)
        if before != row.where:
            raise DataError(
                f"{row.where}: the id {row.fields['id']!r} is at {before} too",
                remedy="make ids unique, or leave them out: rows are then numbered",
            )
    if not found:
        raise DataError(f"{path}: no rows", remedy="give at least one preference pair")
    return found


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """sha256 of the pairs in their order."""
    return value_digest(
        [[i.id, i.conversation.to_messages()] for pair in pairs for i in (pair.chosen, pair.rejected)]
    )


def pair_lessons(pairs: Sequence[Pair], tokenizer: Any, max_tokens: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons of the preferred and of the rejected answers, by the checkpoint's chat template.

    Both answers of a pair follow the same prompt: the shorter one, where a long answer made it shorter.
    """
    chosen = instruction_lessons([p.chosen for p in pairs], tokenizer, max_tokens)
    rejected = instruction_lessons([p.rejected for p in pairs], tokenizer, max_tokens)
    for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)):
        if a.dropped > b.dropped:
            rejected[i] = replace(b, prompt_ids=a.prompt_ids, dropped=a.dropped)
        elif b.dropped > a.dropped:
            chosen[i] = replace(a, prompt_ids=b.prompt_ids, dropped=b.dropped)
    return chosen, rejected


def _pair(row: RawRow, stem: str) -> Pair:
    prompt, chosen, rejected = (_turns(row.fields, name) for name in FIELDS)
    if chosen == rejected:
        raise DataError("'chosen' and 'rejected' are the same", remedy="drop the row: it prefers nothing")
    identity = f"{stem}/{row.fields.get('id', row.number)}"
    a, b = (Instruction(identity, Conversation((*prompt, *answer))) for answer in (chosen, rejected))
    return Pair(a, b)


def _turns(fields: dict[str, Any], name: str) -> tuple[Turn, ...]:
    value = fields.get(name)
    if value is None:
        raise DataError(f"field {name!r} is missing", remedy=f"a pair has {', '.join(FIELDS)}")
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"field {name!r} holds no text", remedy="fill it, or drop the row")
        value = [{"role": FIELDS[name], "content": value}]
    try:
        return Conversation.from_messages(value).turns
    except DataError as e:
        raise DataError(f"field {name!r}: {e.problem}", remedy=e.remedy) from e
