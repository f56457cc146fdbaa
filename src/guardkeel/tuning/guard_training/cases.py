"""Rows → cases: what of the policy an item violates, and how much it counts.

    weight = source weight · class weight, scaled so that the mean over all cases is 1

A source's weight is looked up by who gave the label: the whole name ("synthesis:m"), else what stands before its first
":", "," or space ("synthesis", "human"), else "*". With balanced classes the safe and the unsafe cases of a side weigh
the same in sum.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from guardkeel.conversation import Label
from guardkeel.errors import ConfigError
from guardkeel.guards.guard_policy import GuardPolicy, Strictness
from guardkeel.guards.keel_policy import CAUTION
from guardkeel.taxonomy import home
from guardkeel.tuning.guard_training.config import ANY
from guardkeel.tuning.guard_training.policies import OTHER
from guardkeel.tuning.guard_training.rows import GuardRow


@dataclass(frozen=True, slots=True)
class Case:
    """A row to learn. `named` are the categories of the policy that it violates; an unsafe case without any can only
    be shown under the whole policy, and one with a policy of its own only under that."""

    row: GuardRow
    named: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def unsafe(self) -> bool:
        """Whether it is unsafe under the whole policy."""
        return self.row.label == "unsafe"

    @property
    def topic(self) -> GuardPolicy | None:
        """The policy of its own."""
        return self.row.policy

    @property
    def cautious(self) -> bool:
        """Whether nothing but "Needs Caution" makes it unsafe."""
        return self.named == (CAUTION,)


def violated(row: GuardRow, policy: GuardPolicy) -> tuple[str, ...] | None:
    """The categories of a policy that a row violates, in the policy's order; None where all of its are elsewhere."""
    if row.label == "safe":
        return ()
    own = row.policy or policy
    names = {*row.categories, *map(home, row.categories)}
    found = tuple(c.name for c in own.categories if c.name in names)
    told = names - {OTHER}
    return found if found or not told else None


def cases_of(
    rows: Sequence[GuardRow],
    policy: GuardPolicy,
    hold_out: Sequence[str],
    counts: Counter[str],
    *,
    shown: bool = True,
) -> list[Case]:
    """The cases of some rows.

    Left out and counted: rows of a category that is held out, and unsafe rows all of whose categories are no part of
    the policy, for they may be unsafe by it or not. To a guard that is not `shown` its policy, unsafe is unsafe.
    """
    held = set(hold_out)
    found = []
    for row in rows:
        if row.policy is None and held & {*row.categories, *map(home, row.categories)}:
            counts["items of categories that are held out"] += 1
            continue
        named = violated(row, policy)
        if named is None and not shown:
            named = ()
        if named is None:
            counts["unsafe items of categories that the policy has not"] += 1
            continue
        found.append(Case(row, named))
    return found


def read_as(cases: Sequence[Case], strictness: Strictness) -> list[Case]:
    """The cases for a guard that is not shown its policy: "Needs Caution" alone is unsafe, or safe, for good."""
    label: Label = "unsafe" if strictness == "strict" else "safe"
    return [replace(c, row=replace(c.row, label=label), named=()) if c.cautious else c for c in cases]


def weighted(cases: Sequence[Case], sources: Mapping[str, float], balanced: bool) -> list[Case]:
    """The cases with their weights.

    Raises:
        ConfigError: nothing weighs anything, or a weight is of a source that no case has.
    """
    named = {key for c in cases for key in _keys(c.row.by)}
    unknown = next((s for s in sources if s not in named), None)
    if unknown is not None:
        given = ", ".join(sorted({c.row.by for c in cases}))
        raise ConfigError(
            f"source_weights names {unknown!r}, who gave no label", remedy=f"labels are by {given}"
        )
    weights = np.array([source_weight(c.row.by, sources) for c in cases])
    if balanced:
        sums: defaultdict[tuple[str, Label], float] = defaultdict(float)
        for c, w in zip(cases, weights, strict=True):
            sums[c.row.side, c.row.label] += float(w)
        totals: defaultdict[str, float] = defaultdict(float)
        for (side, _), s in sums.items():
            totals[side] += s
        both = {side for side in totals if sums[side, "safe"] and sums[side, "unsafe"]}
        for i, c in enumerate(cases):
            if c.row.side in both:
                weights[i] *= totals[c.row.side] / (2 * sums[c.row.side, c.row.label])
    if cases and not weights.any():
        raise ConfigError("every label has weight 0", remedy="give a source a weight above 0")
    mean = float(weights[weights > 0].mean()) if cases else 1.0
    return [replace(c, weight=float(w) / mean) for c, w in zip(cases, weights, strict=True) if w > 0]


def source_weight(by: str, sources: Mapping[str, float]) -> float:
    """The weight of a label by who gave it."""
    return next((sources[key] for key in _keys(by) if key in sources), 1.0)


def _keys(by: str) -> tuple[str, str, str]:
    return by, re.split(r"[:,\s]", by, maxsplit=1)[0], ANY
