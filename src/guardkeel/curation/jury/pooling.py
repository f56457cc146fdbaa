"""Votes → a label: by majority and by Dawid–Skene, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from guardkeel.conversation import Label
from guardkeel.curation.mapping import majority
from guardkeel.curation.rows import Row, SideLabel, Vote

JURY = "jury"
MAJORITY, DAWID_SKENE = "majority", "dawid-skene"


def pooled(
    votes: Sequence[Vote],
    posterior: float,
    *,
    rule: Literal["majority", "dawid-skene"],
    quorum: int,
    certainty: float,
    before: SideLabel | None = None,
) -> SideLabel:
    """The jury's label of one side.

    Args:
        votes: one a juror, abstentions among them.
        posterior: Dawid–Skene's P(unsafe).
        rule: which of the two gives the label.
        quorum: fewer votes than this give none.
        certainty: the posterior probability of a label from which Dawid–Skene gives it.
        before: what was said of this side before. Its votes are kept in front; a label of its own stays.
    """
    given = [v for v in votes if v.label is not None]
    scores: dict[str, float] = {}
    if given:
        scores = {
            MAJORITY: sum(v.label == "unsafe" for v in given) / len(given),
            DAWID_SKENE: round(posterior, 6),
        }
    label: Label | None = None
    if rule == MAJORITY:
        label = majority(votes, quorum)
    elif len(given) >= quorum:
        label = "unsafe" if posterior >= certainty else "safe" if 1 - posterior >= certainty else None
    earlier = before.votes if before else ()
    if before is not None and before.label is not None:
        return replace(before, votes=(*earlier, *votes), scores=scores)
    return SideLabel(label, JURY, (*earlier, *votes), scores)


def contested(label: SideLabel) -> bool:
    """Whether the judges of a side do not all say the same, or no label came of what they said."""
    return label.label is None or len({v.label for v in label.votes if v.label is not None}) > 1


def with_categories(row: Row) -> Row:
    """The row with the categories that at least half of the unsafe votes name, where it has none of its own."""
    if row.categories:
        return row
    votes = [
        v
        for given in row.labels.values()
        if given.label == "unsafe"
        for v in given.votes
        if v.label == "unsafe"
    ]
    named = Counter(c for v in votes for c in v.categories)
    names = tuple(c for c, n in named.items() if 2 * n >= len(votes))
    return replace(row, categories=names) if names else row
