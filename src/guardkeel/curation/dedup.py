"""Rows that say the same become one row, which remembers the others.

Rows are compared turn by turn, in normalised form (conversation.normalised): lower case, words alone.

Equal rows always become one. Where they contradict each other on a side, the row that stays has no label there, and
every label as a vote: a disagreement, to be decided by a jury or a person. Nearly equal rows (minhash.py: every turn
of one is the other's, or its near-duplicate) become one unless their labels contradict: pairs that differ in a word
and in their label are what a guard learns most from, so both stay.

Of rows that become one, that one stays which has a label by people, then the most labels, then came first. A row goes
only where it is itself nearly equal to a row that stays, not because a chain of others leads there.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.conversation import Conversation
from guardkeel.curation.minhash import PART, NearIndex, Texts
from guardkeel.curation.rows import DISAGREEMENT, Row, merged, parse_line
from guardkeel.evaluation.suites.near_duplicates import near_duplicates
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.records import value_digest

MOST_KEPT = 64
"""Rows of one set that stay and are compared with; a set of more different ones is a template, not a copy."""

Watch = Callable[[str, int, int | None], None]


def compared(conversation: Conversation) -> str:
    """What rows are compared by: role and normalised text of each turn."""
    parts = []
    for turn in conversation.turns:
        calls = " ".join(f"{c.name} {c.arguments}" for c in turn.tool_calls)
        said = f"{turn.content} {calls}" if calls else turn.content
        parts.append(f"{turn.role} {comparable(said).replace(PART, ' ')}")
    return PART.join(parts)


def nearly_equal(a: str, b: str) -> bool:
    """Whether two rows, as `compared` has them, are near-duplicates in every turn."""
    first, second = a.split(PART), b.split(PART)
    if len(first) != len(second):
        return False
    for one, two in zip(first, second, strict=True):
        (role, _, text), (other, _, said) = one.partition(" "), two.partition(" ")
        if role != other or not near_duplicates(text, said):
            return False
    return True


class RowFile:
    """Rows of a JSONL file, by number: raw lines and parsed."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("rb")
        self._starts = array("Q")

    def lines(self) -> Iterator[bytes]:
        """All lines, in order; remembers where each begins."""
        self._file.seek(0)
        self._starts = array("Q")
        at = 0
        for raw in self._file:
            self._starts.append(at)
            at += len(raw)
            yield raw

    def __getitem__(self, i: int) -> Row:
        self._file.seek(self._starts[i])
        return parse_line(self._file.readline(), f"{self._path}:{i + 1}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def deduplicated(
    path: Path,
    folder: Path,
    *,
    near: bool = True,
    total: int | None = None,
    watch: Watch = lambda what, done, total: None,
    counts: Counter[str] | None = None,
) -> Iterator[bytes]:
    """The lines of the rows that stay, in order.

    Args:
        path: rows as JSONL.
        folder: an existing folder for files that are needed meanwhile.
        near: also look for nearly equal rows.
        total: number of rows, for `watch`.
        watch: called with (what, done, total).
        counts: filled with what was found.
    """
    counts = Counter() if counts is None else counts
    rows = RowFile(path)
    try:
        with NearIndex(folder, nearly_equal) as index:
            ranks = array("i")
            for number, raw in enumerate(rows.lines(), 1):
                row = parse_line(raw, f"{path}:{number}")
                index.add(_compared(row), near=near)
                ranks.append(_rank(row))
                if number % 1000 == 0:
                    watch("dedup: read", number, total)
            watch("dedup: read", len(ranks), len(ranks))
            equal = index.equal().roots()
            roots = index.sets(lambda d, t: watch("dedup: compare", d, t)).roots() if near else equal
            into = _into(roots, equal, ranks, rows, index.texts, counts)
        absorbed: dict[int, list[int]] = {}
        for gone, kept in into.items():
            absorbed.setdefault(kept, []).append(gone)
        groups = _groups(absorbed, rows)
        counts["rows that stay"] += len(ranks) - len(into)
        with path.open("rb") as handle:
            for number, raw in enumerate(handle):
                if number in into:
                    continue
                if number not in absorbed and not groups:
                    yield raw
                    continue
                if number in absorbed:
                    row = _united(rows, number, absorbed[number], equal, counts)
                else:
                    row = parse_line(raw, f"{path}:{number + 1}")
                yield replace(row, group=groups.get(row.group, row.group)).line()
    finally:
        rows.close()


def _compared(row: Row) -> str:
    """The same text under another policy is another row."""
    text = compared(row.conversation)
    return f"policy {value_digest(row.extra['policy'])}{PART}{text}" if row.own_policy else text


def _groups(absorbed: dict[int, list[int]], rows: RowFile) -> dict[str, str]:
    """What groups are called after rows of several became one: such groups may not be split from one another."""
    names: dict[str, str] = {}

    def find(name: str) -> str:
        while names.get(name, name) != name:
            name = names[name]
        return name

    for kept, gone in absorbed.items():
        found = sorted({find(g) for i in (kept, *gone) if (g := rows[i].group)})
        for other in found[1:]:
            names[other] = found[0]
    return {name: find(name) for name in names}


def _rank(row: Row) -> int:
    """How much a row is worth keeping: labels by people before others, then more of them."""
    known = [given for given in row.labels.values() if given.label is not None]
    return 10 * any(g.source.startswith("human") for g in known) + len(known)


def _into(
    roots: Any, equal: Any, ranks: array[int], rows: RowFile, texts: Texts, counts: Counter[str]
) -> dict[int, int]:
    """For each row that goes, the row that it goes into."""
    into: dict[int, int] = {}
    order = np.argsort(roots, kind="stable")
    bounds = np.flatnonzero(np.r_[True, roots[order][1:] != roots[order][:-1], True])
    for start, end in pairwise(bounds):
        if end - start > 1:
            members = sorted(map(int, order[start:end]), key=lambda i: (-ranks[i], i))
            _settle(members, equal, rows, texts, into, counts)
    return into


def _settle(
    members: list[int],
    equal: Any,
    rows: RowFile,
    texts: Texts,
    into: dict[int, int],
    counts: Counter[str],
) -> None:
    """Which members of one set stay, the best first; one goes into its equal, or into a near-duplicate."""
    kept: list[int] = []
    home: dict[int, int] = {}
    for member in members:
        exact = home.get(int(equal[member]))
        if exact is not None:
            into[member] = exact
            counts["equal rows that went"] += 1
            continue
        found = None
        for other in kept[:MOST_KEPT]:
            if nearly_equal(texts[other], texts[member]):
                if not _contradict(rows[other], rows[member]):
                    found = other
                    break
                counts["nearly equal rows that stay, their labels differ"] += 1
        if found is None:
            kept.append(member)
        else:
            into[member] = found
            counts["nearly equal rows that went"] += 1
        home[int(equal[member])] = member if found is None else found


def _contradict(a: Row, b: Row) -> bool:
    return any(
        None not in (a.label(side), b.label(side)) and a.label(side) != b.label(side) for side in a.labels
    )


def _united(rows: RowFile, number: int, gone: list[int], equal: Any, counts: Counter[str]) -> Row:
    """The row that stays, with what the others knew."""
    row = rows[number]
    labels, names, absorbed, group = dict(row.labels), list(row.categories), list(row.absorbed), row.group
    for other in (rows[i] for i in sorted(gone)):
        for side, given in other.labels.items():
            labels[side] = merged(labels[side], given) if side in labels else given
        names += [c for c in other.categories if c not in names]
        absorbed += [other.id, *other.absorbed]
        group = group or other.group
    contested = sum(labels[s].source == DISAGREEMENT and row.label(s) is not None for s in labels)
    if contested:
        counts["labels that equal rows contradict"] += contested
    exact = sum(int(equal[i]) == int(equal[number]) for i in gone)
    said = f"dedup: absorbed {exact} equal and {len(gone) - exact} nearly equal rows"
    return replace(
        row,
        labels=labels,
        categories=tuple(names),
        absorbed=tuple(dict.fromkeys(absorbed)),
        group=group,
        history=(*row.history, said),
    )
