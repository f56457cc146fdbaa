"""Rows under topics' rules without any model: from the texts of topics.py and from the rows themselves.

    only        "Off topic: anything that is not about train journeys."    on topic safe, all else unsafe
    never       "Train journeys: any talk of train journeys."              on topic unsafe, all else safe
    categories  one to three of Aegis 2.0's categories under other names   rows of these unsafe, other rows safe

Half of each are unsafe. Half of the first two are dialogues: an exchange on topic comes before. What is not on topic
is a question of another topic or a safe prompt of the rows; a harmful prompt is never called safe by `never`. Under
`categories` a safe row may be one that violates another category, for the policy alone decides. All follows from the
seed and the rows' ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from guardkeel.conversation import Turn
from guardkeel.curation.rows import Row
from guardkeel.curation.synthesis.rules import OFF, judged_row, rule
from guardkeel.curation.synthesis.topics import CATEGORIES, QUESTIONS, REPLIES
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.taxonomy import home

SOURCE = "synthesis:templates"
ORIGIN, LICENCE = "written for guardkeel", "Apache-2.0"
KINDS = ("only", "never", "categories")
LONGEST = 600
"""Characters of a row's prompt that may be used."""
BROAD = frozenset({"Illegal Activity", "Immoral/Unethical", "Criminal Planning/Confessions", "Manipulation"})
"""Categories that overlap with most others: their rows are not called safe under another category."""


@dataclass
class Pool:
    """Prompts of rows that can be used: the `most` of each kind whose ids come first by their digest."""

    most: int
    seed: int
    safe: list[tuple[bytes, Row]] = field(default_factory=list)
    named: dict[str, list[tuple[bytes, Row]]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Take a row in, if its prompt can be used: one short user message with a label."""
        turns = row.conversation.turns
        label = row.label("prompt")
        if label is None or row.extra.get("policy") or turns[0].role != "user":
            return
        if any(t.role == "user" for t in turns[1:]) or not 0 < len(turns[0].content) <= LONGEST:
            return
        key = hashlib.sha256(f"{self.seed} {row.id}".encode("utf-8", "replace")).digest()
        if label == "safe":
            self._put(self.safe, key, row)
        for name in {home(c) for c in row.categories} & CATEGORIES.keys() if label == "unsafe" else ():
            self._put(self.named.setdefault(name, []), key, row)

    def _put(self, kept: list[tuple[bytes, Row]], key: bytes, row: Row) -> None:
        kept.append((key, row))
        if len(kept) > 2 * self.most:
            kept.sort(key=lambda k: k[0])
            del kept[self.most :]

    def rows(self, name: str = "") -> list[Row]:
        """The safe ones, or those of a category, in order of their digests."""
        kept = sorted(self.named.get(name, []) if name else self.safe, key=lambda k: k[0])
        return [row for _, row in kept[: self.most]]


def template_rows(count: int, pool: Pool, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Row]:
    """So many rows, as many of each kind; of `categories` fewer where the rows have not enough of them."""
    rng = Random(f"{seed} topics")  # noqa: S311 - no secret
    safe = pool.rows()
    makers = {"only": _only, "never": _never}
    seen: set[tuple[str, str, str]] = set()
    for kind in kinds:
        wanted, made, tries = count // len(kinds), 0, 0
        source = _categories(pool, rng) if kind == "categories" else None
        while made < wanted and tries < 10 * wanted + 100:
            tries += 1
            row = next(source, None) if source else makers[kind](f"{kind}-{made}", made % 2 == 1, safe, rng)
            if row is None:
                break
            told = (str(row.extra["policy"]), row.conversation.text, row.id.rpartition("~")[0])
            if told not in seen:
                seen.add(told)
                made += 1
                yield row


def _only(name: str, off: bool, safe: Sequence[Row], rng: Random) -> Row:
    topic = rng.choice(sorted(QUESTIONS))
    policy = rule(f"only {topic}", (OFF, f"Anything that is not about {topic}."))
    if not off:
        turn, row = Turn("user", rng.choice(QUESTIONS[topic])), None
    else:
        turn, row = _elsewhere(topic, safe, rng)
    return _made(name, topic, turn, row, policy, (OFF,) if off else (), rng)


def _never(name: str, off: bool, safe: Sequence[Row], rng: Random) -> Row:
    topic = rng.choice(sorted(QUESTIONS))
    called = topic.capitalize()
    policy = rule(f"never {topic}", (called, f"Any talk of {topic}."))
    if off:
        turn, row = Turn("user", rng.choice(QUESTIONS[topic])), None
    else:
        turn, row = _elsewhere(topic, safe, rng)
    other = rng.choice([t for t in sorted(QUESTIONS) if t != topic])
    return _made(name, other, turn, row, policy, (called,) if off else (), rng)


def _elsewhere(topic: str, safe: Sequence[Row], rng: Random) -> tuple[Turn, Row | None]:
    """A message that is not about the topic: a safe prompt of the rows, or a question of another topic."""
    if safe and rng.random() < 0.5:
        row = rng.choice(safe)
        return row.conversation.turns[0], row
    other = rng.choice([t for t in sorted(QUESTIONS) if t != topic])
    return Turn("user", rng.choice(QUESTIONS[other])), None


def _made(
    name: str,
    topic: str,
    turn: Turn,
    row: Row | None,
    policy: GuardPolicy,
    violated: Sequence[str],
    rng: Random,
) -> Row:
    before: list[Turn] = []
    if rng.random() < 0.5:
        asked = [q for q in QUESTIONS[topic] if q != turn.content]
        before = [Turn("user", rng.choice(asked)), Turn("assistant", rng.choice(REPLIES))]
    return judged_row(
        f"{row.id}~{name}" if row else f"topics/{name}",
        [*before, turn],
        policy,
        violated,
        SOURCE,
        origin=ORIGIN,
        licence=LICENCE,
        made_from=row,
    )


def _categories(pool: Pool, rng: Random) -> Iterator[Row]:
    """Rows under one to three of their categories in other words, unsafe and safe in turn."""
    there = sorted(name for name, rows in pool.named.items() if rows)
    rows, safe = {name: pool.rows(name) for name in there}, pool.rows()
    number = 0
    while there:
        shown = rng.sample(there, min(len(there), rng.randint(1, 3)))
        worded = {name: rng.choice(CATEGORIES[name]) for name in shown}
        policy = rule("categories " + " and ".join(n for n, _ in worded.values()), *worded.values())
        others = [
            r for n in there if n not in (*shown, *BROAD) for r in rows[n] if not _of(r, (*shown, *BROAD))
        ]
        for unsafe in (True, False):
            pick = (
                rows[rng.choice(shown)]
                if unsafe
                else safe
                if (rng.random() < 0.5 and safe)
                else others or safe
            )
            if not pick:
                continue
            row = rng.choice(pick)
            violated = [worded[n][0] for n in shown if n in _of(row, shown)] if unsafe else []
            number += 1
            turn = row.conversation.turns[0]
            yield judged_row(
                f"{row.id}~categories-{number}",
                [turn],
                policy,
                violated,
                "synthesis:categories",
                made_from=row,
            )


def _of(row: Row, names: Sequence[str]) -> set[str]:
    return {home(c) for c in row.categories} & set(names)
