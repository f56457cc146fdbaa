"""What a training works with before any weights are loaded: the base, the rows, the policies, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites import Split
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory, read_policy
from guardkeel.guards.keel_policy import CAUTION
from guardkeel.tuning.check import check
from guardkeel.tuning.gather import first
from guardkeel.tuning.guard_training.cases import Case, cases_of, read_as, weighted
from guardkeel.tuning.guard_training.config import TrainConfig
from guardkeel.tuning.guard_training.opening import Place, look_at
from guardkeel.tuning.guard_training.policies import whole_policy
from guardkeel.tuning.guard_training.rows import GuardRow, TrainingData, Watch, read_training
from guardkeel.tuning.keeper import acts, parts
from guardkeel.tuning.posthoc import PostHoc


@dataclass(frozen=True)
class Prepared:
    """`shipped` is the policy that the guard will have, `taught` what varied ones are drawn from, `held` the
    categories that are held out of both. `left_out` counts what is not learned, by why."""

    place: Place
    data: TrainingData
    cases: list[Case]
    shipped: GuardPolicy
    taught: GuardPolicy
    held: tuple[PolicyCategory, ...]
    left_out: dict[str, int]
    notes: list[str]

    @property
    def policy(self) -> GuardPolicy | None:
        """What the guard is shown; None for one that reads no policy."""
        return self.shipped if self.place.reads_policies else None

    @property
    def given(self) -> GuardPolicy:
        """Its policy with the categories that were held out."""
        return self.shipped.model_copy(update={"categories": (*self.shipped.categories, *self.held)})

    def rows(self, split: Split) -> list[GuardRow]:
        """The rows of a split with their labels under the guard's own policy, without categories held out."""
        ordinary = [row for row in self.data.split(split) if row.policy is None]
        held = [c.name for c in self.held]
        found = cases_of(ordinary, self.taught, held, Counter(), shown=self.place.reads_policies)
        return [case.row for case in read_as(found, self.shipped.strictness)]

    def topics(self, split: Split) -> list[GuardRow]:
        """The topic-following rows of a split, if the guard can be shown their policies."""
        return [r for r in self.data.split(split) if r.policy is not None and self.place.reads_policies]


def prepared(config: TrainConfig, watch: Watch) -> Prepared:
    """Look at the base, read the data, decide on policies, and say what is left out.

    Raises:
        GuardkeelError: whatever would stop the run before its first step.
    """
    place = look_at(config, watch)
    regulariser = check(config.tuning())
    if not place.guard and (acts(regulariser) or any(isinstance(p, PostHoc) for p in parts(regulariser))):
        raise ConfigError(
            f"method {config.method!r} keeps what a guard knows, but {config.base} is no guard of this family yet",
            remedy="train it with method plain, or give a guard as base",
        )
    reads, notes = place.reads_policies, list[str]()
    if config.hold_out and not reads:
        raise ConfigError(
            f"hold_out: {config.base} will not read its policy, so that a category cannot be given to it later",
            remedy="train a language model with a family that reads policies, such as keel-policy",
        )
    data = read_training(config.data, data=config.data_folder, offline=config.offline, watch=watch)
    seen = {c for row in data.rows if row.policy is None for c in row.categories}
    own = _own_policy(config, place)
    everything = whole_policy(own, seen, (), "strict")[1]
    shipped, taught = whole_policy(own, seen, config.hold_out, config.strictness)
    counts: Counter[str] = Counter(data.left_out)
    rows = data.split("fit")
    if not reads:
        counts["topic-following items, for the guard reads no policy"] = sum(
            r.policy is not None for r in rows
        )
        rows = [row for row in rows if row.policy is None]
    cases = cases_of(rows, taught, config.hold_out, counts, shown=reads)
    if not reads:
        cases = read_as(cases, config.strictness)
        notes.append("The guard is shown no policy, so that categories were not varied.")
    cases = weighted(_most(cases, config.most), config.source_weights, config.class_weights == "balanced")
    if len({c.row.label for c in cases}) < 2:
        raise DataError(
            f"the {len(cases)} items to learn from do not have both labels",
            remedy="give data with safe and unsafe items in the fit split",
        )
    held = tuple(c for c in everything.categories if c.name in config.hold_out)
    return Prepared(place, data, cases, shipped, taught, held, {k: n for k, n in counts.items() if n}, notes)


def _own_policy(config: TrainConfig, place: Place) -> GuardPolicy | None:
    """The policy that is asked for, or the one that the base has; None for Aegis 2.0's."""
    if config.policy:
        return read_policy(config.policy)
    if place.family is not None and not place.reads_policies:
        names = dict.fromkeys((*place.family.categories, CAUTION))
        return GuardPolicy(name=place.family.name, categories=tuple(PolicyCategory(name=n) for n in names))
    return place.settings.policy if place.guard else None


def _most(cases: list[Case], most: int | None) -> list[Case]:
    """At most so many cases, chosen by their ids."""
    chosen = {row.judgement.id for row in some_rows([c.row for c in cases], most)}
    return [c for c in cases if c.row.judgement.id in chosen]


def some_rows(rows: Sequence[GuardRow], most: int | None) -> list[GuardRow]:
    """At most so many rows, chosen by their ids and kept in their order."""
    chosen = {item.judgement.id for item in first([r.item() for r in rows], most)}
    return [r for r in rows if r.judgement.id in chosen]
