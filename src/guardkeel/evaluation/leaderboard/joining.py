"""Puts another tool's rows beside the items judged here: by item id, text digest or, in the same suite, example id.

Where no row of a suite's results is found among the items, they stand as a suite of their own, not paired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from guardkeel.conversation import Side, text_digest
from guardkeel.errors import DataError
from guardkeel.evaluation.items import ItemMeta
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores
from guardkeel.evaluation.leaderboard.judged import Failed, Info, Judged
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.evaluation.suites.suite import last_turn
from guardkeel.guards.base import Verdict

_ROLES = {"prompt": "user", "response": "assistant"}
Key = tuple[str, Side]


def join(
    parts: Sequence[ImportedScores], items: Sequence[SuiteItem], *, name: str, file: str, threshold: float
) -> Judged | Failed:
    """One guard's verdicts of another tool, in the order of `items`, and those on items that are not judged here.

    `parts` are its results suite by suite. Where no row of a part is an item judged here, the part stands as a suite of
    its own, by the labels of its rows. Elsewhere labels are the suite's own; rows that say otherwise are counted in
    the notes.

    Raises:
        DataError: two rows for one item.
    """
    tool = parts[0].tool
    verdicts: list[Verdict | None] = [None] * len(items)
    own: list[tuple[ItemMeta, Verdict]] = []
    notes: list[str] = []
    for part in parts:
        notes += [f"{part.suite}: {note}" for note in part.notes]
        at = _positions(part, items, file)
        for position, row in at.items():
            if verdicts[position] is not None:
                raise _twice(file, row.id)
            verdicts[position] = _verdict(row)
        if part.rows and not at:
            mine = _own(part, file)
            own += mine
            notes.append(
                f"{part.suite}: none of its {len(part.rows):,} rows is an item judged here; "
                f"{len(mine):,} have a label and stand alone, not paired with any guard"
            )
        elif len(at) < len(part.rows):
            rest = len(part.rows) - len(at)
            notes.append(
                f"{part.suite}: {rest:,} of {len(part.rows):,} rows are no items judged here; left out"
            )
        otherwise = sum(row.label not in (None, items[k].label) for k, row in at.items())
        if otherwise:
            notes.append(
                f"{part.suite}: {otherwise:,} rows have another label than the suite, whose own is used"
            )
    if not own and not any(verdicts):
        why = "; ".join(notes) or "its files hold no scores of items"
        return Failed(name, file, why)
    info = Info(name=name, reference=file, threshold=threshold, origin=tool)
    return Judged(info, verdicts, own=tuple(own), notes=tuple(notes))


def _positions(part: ImportedScores, items: Sequence[SuiteItem], file: str) -> dict[int, ImportedRow]:
    """The rows that are items judged here, by the place of the item."""
    index = _index(items, part.suite)
    at: dict[int, ImportedRow] = {}
    for row in part.rows:
        position = index.get((row.id, row.side))
        if position is None:
            continue
        if position in at:
            raise _twice(file, row.id)
        at[position] = row
    return at


def _twice(file: str, name: str) -> DataError:
    return DataError(
        f"{file}: {name!r:.80} is an item that has a row already", remedy="remove one of the two rows"
    )


def _index(items: Sequence[SuiteItem], suite: str) -> dict[Key, int]:
    """Where the item with this key stands; a key that several answer to names that of the suite, or none."""
    found: dict[Key, list[int]] = {}
    for position, item in enumerate(items):
        for key in _keys(item, suite):
            found.setdefault((key, item.side), []).append(position)
    index: dict[Key, int] = {}
    for named, positions in found.items():
        mine = positions if len(positions) == 1 else [p for p in positions if _alike(items[p].suite, suite)]
        if len(mine) == 1:
            index[named] = mine[0]
    return index


def _keys(item: SuiteItem, suite: str) -> set[str]:
    """What a row may call an item. Bare example ids ("17") are those of the item's own suite alone."""
    conversation = item.example.conversation
    keys = {item.judgement.id, text_digest(conversation.text)}
    turn = last_turn(conversation, _ROLES.get(item.side, ""))
    if turn is not None:
        keys.add(text_digest(turn.content))
    if _alike(item.suite, suite):
        keys.add(item.example.id)
    return keys


def _alike(one: str, other: str) -> bool:
    """toxic_chat and ToxicChat are the same suite."""
    first, second = (re.sub(r"[\W_]+", "", name).casefold() for name in (one, other))
    return first == second


def _verdict(row: ImportedRow) -> Verdict:
    return Verdict(row.score, unscored=row.unscored)


def _own(part: ImportedScores, file: str) -> list[tuple[ItemMeta, Verdict]]:
    """The labelled rows of a part as items of their own."""
    suite = f"{part.suite} ({part.tool})"
    made: dict[str, tuple[ItemMeta, Verdict]] = {}
    for row in part.rows:
        if row.label is None:
            continue
        name = f"{suite}/{row.id}#{row.side}"
        if name in made:
            raise _twice(file, row.id)
        made[name] = ItemMeta(name, suite, row.side, row.label), _verdict(row)
    return list(made.values())
