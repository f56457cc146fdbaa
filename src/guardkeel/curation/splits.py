"""fit / calibrate / test without leaks: over groups, texts and near-duplicates, and against suites.

The rule is that of suites (evaluation/suites/splits.py), for a million rows: rows that share a group, a judged text or
a near-duplicate of one form a cluster, which lies in one split by the hash of its smallest key; a cluster with a
declared split goes to the strictest declared. A row that resembles an item of a suite that it is held against takes
its whole cluster out of the set, or into `test`, as `overlaps` says: what is evaluated on must not be trained on.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.conversation import Example
from guardkeel.curation.config import SplitConfig
from guardkeel.curation.minhash import NearIndex, Sets
from guardkeel.curation.rows import Row
from guardkeel.errors import DataError, GuardkeelError
from guardkeel.evaluation.suites import Suite, available, load_suite, present, split_many
from guardkeel.evaluation.suites.splits import SPLITS, Proportions, Split, comparable, position
from guardkeel.evaluation.suites.suite import judged_texts, sides_present

ALL = "all"
Watch = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a row goes: a split, or out, because it resembles an item of a suite."""

    split: Split | None
    resembles: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """The suites that rows are held against, and those of `all` that could not be read, with why."""

    suites: tuple[Suite, ...]
    unread: Mapping[str, str]


def held_against(
    names: Sequence[str], *, data: str | None = None, offline: bool | None = None, watch: Watch | None = None
) -> Held:
    """Load suites; `all` stands for every registered one, from its own source or else from the data folder.

    Raises:
        DataError, ConfigError, ResourceError: a suite that was named cannot be read. One of `all` becomes `unread`.
    """
    suites: dict[str, Suite] = {}
    unread: dict[str, str] = {}
    for name in names:
        if name != ALL:
            suite = load_suite(name, data=data, offline=offline, progress=watch)
            suites[suite.name] = suite
    if ALL in names:
        cards = available()
        for number, card in enumerate(cards, 1):
            if watch:
                watch("split: suites", number, len(cards))
            if card.name in suites:
                continue
            for way in dict.fromkeys((card.name, *present(card, data))):
                try:
                    suites[card.name] = load_suite(way, data=data, offline=offline)
                    unread.pop(card.name, None)
                    break
                except GuardkeelError as e:
                    unread.setdefault(card.name, e.problem.splitlines()[0])
    if not suites and unread:
        raise DataError(
            "none of the registered suites can be read", remedy="name those that matter in split.against"
        )
    return Held(tuple(suites.values()), unread)


def place(
    rows: Iterable[Row],
    config: SplitConfig,
    folder: Path,
    *,
    held: Held | None = None,
    total: int | None = None,
    watch: Watch = lambda what, done, total: None,
    counts: Counter[str] | None = None,
) -> Iterator[Placed]:
    """Where each row goes, in order.

    Args:
        rows: read once.
        config: proportions, and what becomes of overlaps.
        folder: an existing folder for files that are needed meanwhile.
        held: the suites to hold against.
        total: number of rows, for `watch`.
        watch: called with (what, done, total).
        counts: filled with clusters and overlaps.
    """
    counts = Counter() if counts is None else counts
    with NearIndex(folder) as index:
        keys: list[bytes] = []
        declared, owners = array("b"), array("q")
        first: dict[str, int] = {}
        links: list[tuple[int, int]] = []
        for number, row in enumerate(rows):
            texts = [comparable(t) for t in judged_texts(_whole(row))]
            keys.append(_key(row, texts))
            declared.append(SPLITS.index(row.split) if row.split else -1)
            if row.group:
                links.append((first.setdefault(row.group, number), number))
            for text in texts:
                index.add(text)
                owners.append(number)
            if number % 1000 == 999:
                watch("split: read", number + 1, total)
        names = _add_suites(index, held, config)
        sets = _clusters(index, owners, links, len(keys), len(names), watch)
    roots = sets.roots()
    resembled = _resembled(roots, len(keys), names)
    chosen = _chosen(roots, keys, declared, config.proportions)
    counts["clusters"] += len(chosen)
    for number in range(len(keys)):
        root = int(roots[number])
        name = resembled.get(root, "")
        if name:
            counts[f"rows that resemble {name.partition('/')[0]}"] += 1
        dropped = name and config.overlaps == "drop"
        yield Placed(None if dropped else "test" if name else chosen[root], name)


def _whole(row: Row) -> Example:
    """The row as if every side of it were judged: one without a label may get one later."""
    sides = sides_present(row.conversation)
    if len(sides) > 1 and "trajectory" not in row.labels:
        sides.discard("trajectory")
    return Example(row.id, row.conversation, dict.fromkeys(sides, "safe"))


def _key(row: Row, texts: Sequence[str]) -> bytes:
    """The smallest of a cluster's keys decides where it goes; a digest keeps a million of them small."""
    said = f"group {row.group}" if row.group else "text " + "\n".join(texts)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()


def _add_suites(index: NearIndex, held: Held | None, config: SplitConfig) -> list[str]:
    """Put the texts of the suites behind those of the rows; returns the item that each is of."""
    names: list[str] = []
    for suite in split_many(list(held.suites)) if held else ():
        for example in suite.examples:
            if suite.splits[example.id] in config.against_splits:
                for text in judged_texts(example):
                    index.add(comparable(text))
                    names.append(f"{suite.name}/{example.id}")
    return names


def _clusters(
    index: NearIndex,
    owners: array[int],
    links: list[tuple[int, int]],
    rows: int,
    suite_texts: int,
    watch: Watch,
) -> Sets:
    """Sets over rows, followed by the suites' texts."""
    texts = index.sets(lambda d, t: watch("split: compare", d, t)).roots()
    member = np.concatenate([np.array(owners, dtype=np.int64), rows + np.arange(suite_texts)])
    sets = Sets(rows + suite_texts)
    for text in np.flatnonzero(texts != np.arange(len(texts))):
        sets.union(int(member[text]), int(member[texts[text]]))
    # several texts of one row are one member, so its texts' sets are joined through it
    for a, b in links:
        sets.union(a, b)
    return sets


def _resembled(roots: Any, rows: int, names: Sequence[str]) -> dict[int, str]:
    """For each cluster that has an item of a suite, the first of them. A cluster's root is a row, if it has one."""
    found: dict[int, str] = {}
    for at, name in enumerate(names):
        found.setdefault(int(roots[rows + at]), name)
    return found


def _chosen(
    roots: Any, keys: Sequence[bytes], declared: array[int], proportions: Proportions
) -> dict[int, Split]:
    smallest: dict[int, bytes] = {}
    strictest: dict[int, int] = {}
    for number, key in enumerate(keys):
        root = int(roots[number])
        smallest[root] = min(smallest.get(root, key), key)
        strictest[root] = max(strictest.get(root, -1), declared[number])
    fit, calibrate, _ = proportions
    chosen: dict[int, Split] = {}
    for root, key in smallest.items():
        u = position(key.hex())
        by_chance: Split = "fit" if u < fit else "calibrate" if u < fit + calibrate else "test"
        chosen[root] = SPLITS[strictest[root]] if strictest[root] >= 0 else by_chance
    return chosen
