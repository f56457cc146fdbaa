"""Rows → the queue: which sides people decide, in which order, and which agreed ones they audit.

An item is one side of one conversation, under the digest of what is shown of it: equal questions in several rows are
asked once, and a decision stands wherever the item comes again.

Contested items (something speaks for asking) come from the most bits on. Of the agreed ones each is drawn with
probability `audit`, by a hash of seed and item: the draw depends on nothing else. Audited items lie between the
contested ones at random places, so that whoever labels cannot tell them apart, and whoever stops early has audited a
fair share.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from guardkeel.conversation import Side
from guardkeel.curation.adjudication.calibration import Calibration
from guardkeel.curation.adjudication.reasons import Looked, contradiction, look
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.curation.jury.items import Item, item
from guardkeel.curation.jury.pooling import JURY
from guardkeel.curation.rows import Row, SideLabel, Vote
from guardkeel.evaluation.suites.suite import sides_present

AGREED = "agreed; drawn for audit"


@dataclass(frozen=True, slots=True)
class Queued:
    """One item of the queue. `given` is what was said of it before; `votes` are the jurors'."""

    key: str
    row: str
    side: Side
    source: str
    messages: list[dict[str, Any]]
    given: SideLabel | None
    votes: tuple[Vote, ...]
    reasons: tuple[str, ...]
    information: float
    audit: bool
    propensity: float
    rank: float = 0.0


@dataclass(slots=True)
class Queue:
    """The items in their order, and of how many: distinct items that are contested, and that are agreed, by side."""

    items: list[Queued]
    contested: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)


def make_queue(
    rows: Iterable[Row],
    config: AdjudicateConfig,
    *,
    jurors: Sequence[str],
    calibration: Calibration,
    seed: int,
) -> Queue:
    """The queue over some rows.

    Args:
        rows: as the jury left them.
        config: [adjudicate].
        jurors: their names; none: every vote counts as a juror's.
        calibration: of the jurors.
        seed: of the draw.
    """
    found = Queue([])
    seen: set[str] = set()
    for row in rows:
        for one, given in sides_of(row, config):
            if one.key in seen:
                continue
            seen.add(one.key)
            side = one.judgement.side
            votes = votes_of(given, jurors)
            looked = _look(given, votes, calibration.of(side, votes), config)
            (found.contested if looked.reasons else found.agreed)[side] += 1
            chance = 1.0 if looked.reasons else config.audit
            if draw(one.key, seed) < chance:
                messages = one.judgement.conversation.to_messages()
                made = Queued(
                    one.key, row.id, side, row.source, messages, given, votes,
                    looked.reasons or (AGREED,), looked.information, not looked.reasons, chance,
                )  # fmt: skip
                found.items.append(made)
    found.items = list(_ranked(found.items, seed))
    return found


def sides_of(row: Row, config: AdjudicateConfig) -> Iterator[tuple[Item, SideLabel | None]]:
    """The sides of a row that people may decide: what the jury labelled, and what has no label."""
    there = sides_present(row.conversation)
    for side in config.sides:
        given = row.labels.get(side)
        open_to = given is None or given.label is None or given.source == JURY
        if side in there and (open_to or (config.labelled and bool(given and given.scores))):
            yield item(f"{row.id}#{side}", row.conversation, side), given


def votes_of(given: SideLabel | None, jurors: Sequence[str]) -> tuple[Vote, ...]:
    """The jurors' votes among those of a label."""
    return tuple(v for v in given.votes if not jurors or v.by in jurors) if given else ()


def draw(key: str, seed: int) -> float:
    """A number in [0, 1) for an item: the same for the same seed."""
    return int.from_bytes(hashlib.sha256(f"audit {seed} {key}".encode()).digest()[:7]) / (1 << 56)


def _look(
    given: SideLabel | None, votes: Sequence[Vote], calibrated: dict[str, float], config: AdjudicateConfig
) -> Looked:
    """Of a side with a label of its own, only a contradiction speaks for asking."""
    looked = look(given, votes, calibrated, config.unsure)
    if given is None or given.label is None or given.source == JURY:
        return looked
    against = contradiction(given.label, given.source, votes)
    return replace(looked, reasons=(against,) if against else ())


def _ranked(items: list[Queued], seed: int) -> Iterator[Queued]:
    """Each with its place in [0, 1): contested ones evenly, from the most bits on; audited ones at random."""
    contested = sorted((i for i in items if not i.audit), key=lambda i: (-i.information, i.key))
    placed = [replace(i, rank=n / len(contested)) for n, i in enumerate(contested)]
    placed += [replace(i, rank=draw(f"place {i.key}", seed)) for i in items if i.audit]
    yield from sorted(placed, key=lambda i: (i.rank, i.key))
