"""Which case is shown under which policy, in which batch: a function of the seed alone.

An epoch draws its varied policies and gives each case one of them, or, with a chance of 1 − varied, the whole policy.
Safe cases may have any. An unsafe case gets one that has a category of its, or, with a chance of `flipped`, one that
has none, and is safe then. Cases that nothing but "Needs Caution" makes unsafe are flipped every second time: the
guard is to know both readings. Topic-following cases keep their own policy.

The items of a batch share their policy, so that it is read once for all of them; batches hold items of similar length.
What is left of a group when its batches are full goes into mixed batches, in which every item reads its own policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from guardkeel.conversation import Label, Side
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.tuning.guard_training.cases import Case
from guardkeel.tuning.guard_training.config import TrainConfig
from guardkeel.tuning.guard_training.policies import drawn

WINDOW = 32
"""Batches among which items are ordered by length."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A case under a policy: what is right there."""

    case: int
    policy: int
    label: Label
    categories: tuple[str, ...]


@dataclass
class Plan:
    """`batches` are indices of `lessons`; `shared` says of each whether all of it begins with one policy."""

    policies: list[GuardPolicy] = field(default_factory=list)
    lessons: list[Shown] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    shared: list[bool] = field(default_factory=list)
    epoch: int = 0
    """Items of an epoch."""


def made_plan(
    cases: Sequence[Case],
    lengths: Sequence[int],
    config: TrainConfig,
    *,
    shipped: GuardPolicy,
    taught: GuardPolicy,
    varied: bool,
    grouped: Callable[[Side], str] | None,
) -> Plan:
    """The whole run.

    Args:
        cases: what there is to learn.
        lengths: of each, in tokens without its policy.
        config: shares, chances, batch, steps and seed.
        shipped: the policy that the guard will have.
        taught: the policy that varied ones are drawn from.
        varied: whether the guard reads its policy at all.
        grouped: for each side what its items begin with beside the policy; None where nothing can be shared.
    """
    topics = [i for i, c in enumerate(cases) if c.topic is not None]
    ordinary = [i for i, c in enumerate(cases) if c.topic is None]
    blended = _blended(len(ordinary), len(topics), config.topic_share)
    plan = Plan([shipped], epoch=len(ordinary) + blended)
    count = steps_of(config, plan.epoch) * config.accumulation
    own = _own_policies(plan, cases, topics)
    epoch = 0
    while len(plan.batches) < count:
        rng = np.random.default_rng([config.seed, epoch])
        shown = [_under(i, cases[i], k, plan) for i, k in own.items()]
        chosen = [shown[k] for k in sorted(rng.permutation(len(shown))[:blended])]
        first = len(plan.policies)
        if varied and config.varied:
            plan.policies += [
                drawn(taught, rng, config.dropout, config.shuffle) for _ in range(config.variants)
            ]
        sets = [frozenset(c.name for c in p.categories) for p in plan.policies[first:]]
        chosen += [_under(i, cases[i], _policy(cases[i], sets, first, config, rng), plan) for i in ordinary]
        begin = len(plan.lessons)
        plan.lessons += chosen
        for batch, shared in _batches(plan, begin, cases, lengths, config.batch, grouped, rng):
            plan.batches.append(batch)
            plan.shared.append(shared)
        epoch += 1
    del plan.batches[count:], plan.shared[count:]
    return plan


def steps_of(config: TrainConfig, epoch: int) -> int:
    """Optimiser steps of a run whose epoch has this many items."""
    return config.steps or max(1, round(config.epochs * epoch / (config.batch * config.accumulation)))


def _blended(ordinary: int, topics: int, share: float | None) -> int:
    """How many topic-following items an epoch has: none is shown twice in it."""
    if share is None or not ordinary:
        return topics
    return min(topics, round(share * ordinary / (1 - share)))


def _own_policies(plan: Plan, cases: Sequence[Case], topics: Sequence[int]) -> dict[int, int]:
    """The policy of each topic-following case, equal ones once."""
    known: dict[str, int] = {}
    found = {}
    for i in topics:
        policy = cases[i].topic
        assert policy is not None
        key = policy.model_dump_json()
        if key not in known:
            known[key] = len(plan.policies)
            plan.policies.append(policy)
        found[i] = known[key]
    return found


def _policy(
    case: Case, sets: Sequence[frozenset[str]], first: int, config: TrainConfig, rng: np.random.Generator
) -> int:
    """The number of the policy that a case is shown under."""
    vary, turn = rng.random() < config.varied, rng.random()
    if not sets or not vary or (case.unsafe and not case.named):
        return 0
    pool = list(range(len(sets)))
    if case.unsafe:
        flip = turn < (0.5 if case.cautious else config.flipped)
        pool = [k for k in pool if sets[k].isdisjoint(case.named) == flip]
    return first + int(pool[rng.integers(len(pool))]) if pool else 0


def _under(index: int, case: Case, policy: int, plan: Plan) -> Shown:
    """The case under a policy: unsafe where the policy has a category of its, or nobody knows which it violates."""
    there = {c.name for c in plan.policies[policy].categories}
    categories = tuple(c for c in case.named if c in there)
    unsafe = case.unsafe and bool(categories or not case.named)
    return Shown(index, policy, "unsafe" if unsafe else "safe", categories if unsafe else ())


def _batches(
    plan: Plan,
    begin: int,
    cases: Sequence[Case],
    lengths: Sequence[int],
    size: int,
    grouped: Callable[[Side], str] | None,
    rng: np.random.Generator,
) -> Iterator[tuple[list[int], bool]]:
    """The batches of an epoch in random order, each with whether its items share their policy."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    loose: list[int] = []
    for n in range(begin, len(plan.lessons)):
        shown = plan.lessons[n]
        if grouped is None:
            loose.append(n)
        else:
            groups[shown.policy, grouped(cases[shown.case].row.side)].append(n)

    def length(n: int) -> int:
        return lengths[plan.lessons[n].case]

    found: list[tuple[list[int], bool]] = []
    for group in groups.values():
        for batch in _alike(group, length, size, rng):
            if 2 * len(batch) > size:
                found.append((batch, True))
            else:
                loose += batch
    found += [(batch, False) for batch in _alike(loose, length, size, rng)]
    for n in rng.permutation(len(found)):
        yield found[int(n)]


def _alike(
    lessons: Sequence[int], length: Callable[[int], int], size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Batches of similar length, random within windows; the last one is what is left."""
    order = [lessons[int(i)] for i in rng.permutation(len(lessons))]
    odd = len(order) % size
    rest, order = order[:odd], order[odd:]
    for start in range(0, len(order), WINDOW * size):
        near = sorted(order[start : start + WINDOW * size], key=lambda n: (length(n), n))
        yield from (near[i : i + size] for i in range(0, len(near), size))
    if rest:
        yield rest
