"""What one guard said about the items of a leaderboard, whoever ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from guardkeel.evaluation.items import POOLED, Bools, Floats, ItemMeta, group_codes, unsafe_labels
from guardkeel.guards.base import Verdict


@dataclass(frozen=True, slots=True)
class Info:
    """Which guard it was; `origin` is the tool that ran it."""

    name: str
    reference: str
    threshold: float
    family: str = ""
    policy: str = ""
    digest: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    origin: str = "guardkeel"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a guard took: (items, seconds) of each batch, seconds of items judged alone, tokens of all items."""

    batches: list[tuple[int, float]]
    alone: list[float] = field(default_factory=list)
    tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """One guard's verdicts, in the order of the items.

    A verdict is None where an imported file has no row for the item. `own` holds an imported file's rows as items of
    their own where none of them is among the items judged here; `verdicts` is then empty of verdicts.
    """

    info: Info
    verdicts: Sequence[Verdict | None]
    timing: Timing | None = None
    own: tuple[tuple[ItemMeta, Verdict], ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def scores(self) -> Floats:
        """P(unsafe), NaN where unscored or not judged."""
        return scores_of(self.verdicts)

    @cached_property
    def judged(self) -> Bools:
        """Where there is a verdict, unscored ones included."""
        return np.array([v is not None for v in self.verdicts], dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Failed:
    """A guard that could not be asked, and why."""

    name: str
    reference: str
    reason: str


@dataclass(frozen=True, eq=False)
class Items:
    """The judged items without their texts; `test` and `calibrate` say where each may be used."""

    metas: Sequence[ItemMeta]
    test: Bools

    @cached_property
    def calibrate(self) -> Bools:
        """The items that thresholds are chosen on."""
        return ~self.test

    @cached_property
    def unsafe(self) -> Bools:
        """Labels, True where unsafe."""
        return unsafe_labels(self.metas)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """An integer for each item's conversation."""
        return group_codes(self.metas)

    @cached_property
    def _places(self) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
        return np.array([m.suite for m in self.metas]), np.array([m.side for m in self.metas])

    def of(self, suite: str, side: str) -> Bools:
        """The items of a suite and a side; "*" is all of them."""
        suites, sides = self._places
        found: Bools = np.ones(len(self.metas), dtype=np.bool_)
        if suite != POOLED:
            found &= suites == suite
        if side != POOLED:
            found &= sides == side
        return found

    def some(self, where: Sequence[int] | npt.NDArray[np.int64]) -> list[ItemMeta]:
        """The items at these places."""
        return [self.metas[int(k)] for k in where]


def scores_of(verdicts: Sequence[Verdict | None]) -> Floats:
    """P(unsafe) of verdicts, NaN where unscored or absent."""
    return np.array(
        [np.nan if v is None or v.unsafe is None else v.unsafe for v in verdicts], dtype=np.float64
    )


def reasons(verdicts: Sequence[Verdict | None]) -> dict[str, int]:
    """Why items were unscored, commonest first, at most ten reasons."""
    found = Counter(v.unscored for v in verdicts if v is not None and v.unsafe is None)
    return dict(sorted(found.items(), key=lambda r: (-r[1], r[0]))[:10])
