"""A trained guard on rows that it did not learn from: by side and by who labelled them, under topics' rules, and on
categories that it never saw, with and without them in its policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from guardkeel.evaluation.behaviour import measure, slices
from guardkeel.evaluation.intervals import proportion, undefined
from guardkeel.evaluation.items import Floats, group_codes
from guardkeel.evaluation.paired import mcnemar_exact, tango_interval
from guardkeel.evaluation.ranking import auroc_change
from guardkeel.evaluation.selection import meta
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.load import AnyGuard
from guardkeel.records import Estimate
from guardkeel.results import Behaviour, Slice
from guardkeel.tuning.guard_training.results import Contrast, Novel
from guardkeel.tuning.guard_training.rows import GuardRow

Told = Callable[[int], None]


@contextlib.contextmanager
def judging(guard: AnyGuard, policy: GuardPolicy | None) -> Iterator[None]:
    """Within the block the guard judges by this policy; None leaves it its own."""
    if policy is None or not isinstance(guard, CausalGuard):
        yield
        return
    before = guard.grammar
    guard.grammar = before.under(policy)
    try:
        yield
    finally:
        guard.grammar = before


def scores_of(
    guard: AnyGuard,
    judgements: Sequence[Judgement],
    policy: GuardPolicy | None = None,
    told: Told = lambda n: None,
) -> Floats:
    """P(unsafe) of each, (n,), NaN where unscored, under a policy."""
    found = np.full(len(judgements), np.nan)
    done = 0
    with judging(guard, policy):
        for batch in guard.batches(judgements, categories=False):
            found[batch.indices] = [np.nan if v.unsafe is None else v.unsafe for v in batch.verdicts]
            done += len(batch.indices)
            told(done)
    return found


def behaviour_of(
    guard: AnyGuard, rows: Sequence[GuardRow], told: Told = lambda n: None
) -> tuple[Behaviour, list[Slice]]:
    """The guard on rows without a policy of their own, and the same by side, category and who labelled."""
    metas = [meta(row.item()) for row in rows]
    scores = scores_of(guard, [row.judgement for row in rows], told=told)
    found = measure(scores, [m.unsafe for m in metas], guard.threshold, groups=group_codes(metas))
    parts = [s for s in slices(metas, scores, guard.threshold) if s.by in ("side", "source", "category")]
    return found, parts


def topics_of(guard: AnyGuard, rows: Sequence[GuardRow], told: Told = lambda n: None) -> Behaviour | None:
    """The guard on topic-following rows, each under its own policy; None where there is none, or it reads none."""
    own = [row for row in rows if row.policy is not None]
    if not own or not isinstance(guard, CausalGuard):
        return None
    scores, done = np.full(len(own), np.nan), 0
    by_policy: dict[str, list[int]] = {}
    for i, row in enumerate(own):
        assert row.policy is not None
        by_policy.setdefault(row.policy.model_dump_json(), []).append(i)
    for places in by_policy.values():
        scores[places] = scores_of(guard, [own[i].judgement for i in places], own[places[0]].policy)
        done += len(places)
        told(done)
    return measure(scores, [row.label == "unsafe" for row in own], guard.threshold)


def novel_categories(
    guard: CausalGuard,
    rows: Sequence[GuardRow],
    hold_out: Sequence[str],
    absent: GuardPolicy,
    given: GuardPolicy,
    told: Told = lambda n: None,
) -> Novel:
    """How a guard judges categories that it never learned, when its policy names them.

    Args:
        guard: trained without these categories, at its threshold.
        rows: unsafe ones that violate them, and safe ones; others are left out.
        hold_out: the categories.
        absent: the policy that it was trained on.
        given: the same with the held-out categories.
        told: called with the number of items scored so far.
    """
    held = set(hold_out)
    unsafe = [r for r in rows if r.label == "unsafe" and held & set(r.categories)]
    safe = [r for r in rows if r.label == "safe"]
    both = [*unsafe, *safe]
    asked = [r.judgement for r in both]
    without = scores_of(guard, asked, absent, told)
    with_them = scores_of(guard, asked, given, lambda n: told(len(asked) + n))
    is_unsafe = np.array([r.label == "unsafe" for r in both], dtype=np.bool_)
    at = guard.threshold

    def contrast(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Contrast:
        return paired(with_them[chosen], without[chosen], at)

    alone: dict[str, tuple[Estimate, Estimate]] = {}
    by_category: dict[str, Contrast] = {}
    for n, name in enumerate(hold_out, 2):
        mine = np.array([name in r.categories and r.label == "unsafe" for r in both], dtype=np.bool_)
        by_category[name] = contrast(mine)
        [only] = [c for c in given.categories if c.name == name]
        policy = given.model_copy(update={"categories": (only,)})
        flagged = scores_of(guard, asked, policy, lambda k, n=n: told(n * len(asked) + k))  # type: ignore[misc]
        alone[name] = (_rate(flagged[mine], at, "no such items"), _rate(flagged[~mine], at, "no others"))
    return Novel(
        categories=list(hold_out),
        recall=contrast(is_unsafe),
        false_alarms=contrast(~is_unsafe),
        ranking=auroc_change("*", without, with_them, is_unsafe),
        by_category=by_category,
        alone=alone,
    )


def paired(given: Floats, absent: Floats, threshold: float) -> Contrast:
    """The share flagged under one policy and under another, over the items that were scored under both."""
    both = ~(np.isnan(given) | np.isnan(absent))
    one, other = given[both] >= threshold, absent[both] >= threshold
    n = int(both.sum())
    if not n:
        nothing = undefined("no items that were scored under both")
        return Contrast(n=0, given=nothing, absent=nothing, gain=nothing, p_change=None)
    more, fewer = int((one & ~other).sum()), int((other & ~one).sum())
    low, high = tango_interval(more, fewer, n)
    return Contrast(
        n=n,
        given=proportion(one, empty=""),
        absent=proportion(other, empty=""),
        gain=Estimate(value=(more - fewer) / n, low=low, high=high, n=n),
        p_change=mcnemar_exact(more, fewer),
    )


def _rate(scores: Floats, threshold: float, empty: str) -> Estimate:
    scored = scores[~np.isnan(scores)]
    return proportion(scored >= threshold, empty=empty)
