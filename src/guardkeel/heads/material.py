"""Which items a study ranks heads on, and on which others it measures what ablating them does.

Heads are ranked on `calibrate` items, then on those of `fit`; the effect is measured on `test` items. Where a suite has
nothing but `test`, some of it is set aside for the ranking, and said. Which items are taken follows from their ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from guardkeel.conversation import Conversation, Label
from guardkeel.errors import DataError
from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.suites import Suite, SuiteItem, load_suite, split_many
from guardkeel.heads.config import HeadsConfig

SETS: dict[str, Label] = {"unsafe": "unsafe", "benign": "safe"}
"""Sets of prompts that heads are ranked on, and the labels of their items."""


@dataclass(frozen=True)
class Material:
    """Items by what they are for; those of `judged` are in none of `ranked`."""

    suites: Sequence[Suite]
    ranked: dict[str, list[SuiteItem]]
    judged: list[SuiteItem]
    notes: list[str] = field(default_factory=list)


def material(config: HeadsConfig, watch: Watch = lambda what, done, total: None) -> Material:
    """Load the suites and choose.

    Raises:
        DataError: there are no unsafe items to rank heads on, or a suite cannot be read.
    """
    suites = [load_suite(s, data=config.data, offline=config.offline, progress=watch) for s in config.suites]
    parts = split_many(suites)
    found = [i for suite in parts for i in suite.items() if i.side == config.side]
    every = [i for i in found if said(i)]
    ranked: dict[str, list[SuiteItem]] = {}
    judged: list[SuiteItem] = []
    notes: list[str] = []
    if len(every) < len(found):
        notes.append(f"{len(found) - len(every)} items without a text were left out")
    for name, label in SETS.items():
        wanted = config.items if name == "unsafe" else len(ranked["unsafe"])
        mine = {
            split: drawn([i for i in every if i.label == label and i.split == split], seed=config.seed)
            for split in ("calibrate", "fit", "test")
        }
        chosen = (mine["calibrate"] + mine["fit"])[:wanted]
        aside = mine["test"][: min(wanted - len(chosen), len(mine["test"]) // 2 or 1)]
        if aside:
            notes.append(
                f"{len(aside)} {name} test items were set aside to rank heads on: the suites have too few others"
            )
        ranked[name] = chosen + aside
        judged += mine["test"][len(aside) :][: config.effect_items]
    if len(ranked["unsafe"]) < 2:
        raise DataError(
            f"the suites have {len(ranked['unsafe'])} unsafe items on side {config.side!r}: nothing to rank heads on",
            remedy="add a suite with unsafe items, or choose another --side",
        )
    if len(ranked["benign"]) < 2:
        notes.append("no safe items: nothing tells heads of safety from heads that matter for any text")
        ranked["benign"] = []
    return Material(suites, {name: items for name, items in ranked.items() if items}, judged, notes)


def said(item: SuiteItem) -> bool:
    """Whether there is anything to judge."""
    turns = item.example.conversation.turns
    return any(t.content.strip() for t in turns if item.side != "prompt" or t.role == "user")


def drawn(items: Sequence[SuiteItem], *, seed: int) -> list[SuiteItem]:
    """All of them, in an order that follows from their ids, suite by turn with suite."""
    queues: dict[str, list[SuiteItem]] = {}
    for item in sorted(items, key=lambda i: _key(seed, i.judgement.id)):
        queues.setdefault(item.suite, []).append(item)
    return list(_turns([queues[name] for name in sorted(queues)]))


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """What a chat model is to reply to: all turns up to the last of the user."""
    turns = list(conversation.turns)
    while turns and turns[-1].role != "user":
        turns.pop()
    return [{"role": t.role, "content": t.content} for t in turns]


def _turns(queues: list[list[SuiteItem]]) -> Iterator[SuiteItem]:
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if place < len(queue):
                yield queue[place]


def _key(seed: int, identity: str) -> str:
    return hashlib.sha256(f"{seed} {identity}".encode("utf-8", "surrogatepass")).hexdigest()
