"""What the statistics know of a judged item: everything but its text.

Scores come as float arrays beside the items, in the same order: P(unsafe) in [0, 1], NaN where unscored.
A guard flags an item when its score is at or above its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guardkeel.conversation import Label, Side
from guardkeel.errors import DataError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
POOLED = "*"  # the name of all suites together


@dataclass(frozen=True, slots=True)
class ItemMeta:
    """One judged item: a labelled side of a conversation, under its id "<suite>/<example id>#<side>".

    `length` counts the characters that were judged.
    """

    id: str
    suite: str
    side: Side
    label: Label
    categories: tuple[str, ...] = ()
    source: str = ""
    language: str = ""
    length: int = 0

    @property
    def unsafe(self) -> bool:
        """Whether the item is labelled unsafe, the positive class."""
        return self.label == "unsafe"

    @property
    def group(self) -> str:
        """The conversation the item belongs to: its sides are not independent of each other."""
        return self.id.rpartition("#")[0] or self.id


@dataclass(frozen=True, slots=True)
class Pair:
    """Items with the scores of both guards, in the same order."""

    items: Sequence[ItemMeta]
    reference: npt.ArrayLike
    candidate: npt.ArrayLike


def as_scores(scores: npt.ArrayLike, n: int) -> Floats:
    """Scores as float64 of shape (n,); DataError on another shape or values outside [0, 1], NaN apart."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n,):
        raise DataError(
            f"scores of shape {array.shape} for {n} items",
            remedy="give one score an item, NaN where unscored",
        )
    bad = ~(np.isnan(array) | ((array >= 0) & (array <= 1)))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            f"score {at} is {array[at]!r}, which is no probability",
            remedy="give P(unsafe) in [0, 1], NaN where unscored",
        )
    return array


def unsafe_labels(items: Sequence[ItemMeta]) -> Bools:
    """Labels of items as a bool array, True where unsafe."""
    return np.fromiter((i.unsafe for i in items), dtype=np.bool_, count=len(items))


def group_codes(items: Sequence[ItemMeta]) -> npt.NDArray[np.int64]:
    """An integer for each item's conversation, 0 … groups − 1, in order of first appearance."""
    seen: dict[str, int] = {}
    return np.fromiter((seen.setdefault(i.group, len(seen)) for i in items), dtype=np.int64, count=len(items))


def positions(
    items: Sequence[ItemMeta], key: Callable[[ItemMeta], Sequence[str]]
) -> dict[str, npt.NDArray[np.int64]]:
    """Indices of the items under each value of `key`, values sorted; an item may have several or none."""
    found: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        for value in dict.fromkeys(key(item)):
            found.setdefault(value, []).append(index)
    return {value: np.asarray(found[value], dtype=np.int64) for value in sorted(found)}
