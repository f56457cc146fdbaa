"""Which categories a guard is shown: all of them, some of them in another order, or a topic's rule.

As Llama Guard was trained (arXiv:2312.06674, section 3.2): categories that an item does not violate are dropped at
random, sometimes those that it does violate are, and it is then safe, and the order changes. So a guard learns to read
its policy and not to know it by heart, and a category that it never saw can be given to it later. Here policies are
drawn for an epoch and shared by many items, so that a batch reads its policy once.

"Needs Caution" is a category like the others: who shows it is strict, who leaves it out is permissive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory, Strictness
from guardkeel.guards.keel_policy import CAUTION
from guardkeel.taxonomy import AEGIS2, home

OTHER = "Other"
"""The category that says nothing: its items can only be shown under the whole policy."""


def whole_policy(
    own: GuardPolicy | None, seen: Iterable[str], hold_out: Sequence[str], strictness: Strictness
) -> tuple[GuardPolicy, GuardPolicy]:
    """The policy that a guard ships with, and the same with every category that is taught.

    Args:
        own: a policy of yours; None for Aegis 2.0's names, and "Needs Caution" where the data have it.
        seen: categories of the data, under any names of the home taxonomy.
        hold_out: categories to leave out.
        strictness: a permissive one leaves "Needs Caution" out of the first.

    Raises:
        ConfigError: a category to hold out is not there, or nothing is left.
    """
    if own is not None and own.categories:
        name, categories = own.name, own.categories
    else:
        names = [*AEGIS2, *([CAUTION] if CAUTION in set(map(home, seen)) else [])]
        name, categories = "aegis-2", tuple(PolicyCategory(name=n) for n in names)
    known = [c.name for c in categories]
    unknown = next((c for c in hold_out if c not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"hold_out names {unknown!r}, which is no category of the policy",
            remedy=f"categories are {', '.join(known)}",
        )
    taught = tuple(c for c in categories if c.name not in hold_out)
    shipped = tuple(c for c in taught if strictness == "strict" or c.name != CAUTION)
    if not shipped:
        raise ConfigError("no category is left in the policy", remedy="hold fewer out, or give a policy")
    made = GuardPolicy(name=name, strictness=strictness, categories=shipped)
    return made, GuardPolicy(name=name, strictness="strict", categories=taught)


def drawn(policy: GuardPolicy, rng: np.random.Generator, dropout: float, shuffle: bool) -> GuardPolicy:
    """A varied policy: each category stays with a chance of 1 − dropout, at least one does; maybe in another order."""
    kept = np.flatnonzero(rng.random(len(policy.categories)) >= dropout)
    if not len(kept):
        kept = rng.integers(len(policy.categories), size=1)
    if shuffle:
        kept = rng.permutation(kept)
    return policy.model_copy(update={"categories": tuple(policy.categories[int(i)] for i in kept)})


def reads_policies(family: Family) -> bool:
    """Whether a family shows the categories that it is given, several of them at once."""
    asked = GuardPolicy(name="a", categories=(PolicyCategory(name="One"), PolicyCategory(name="Two")))
    try:
        return family.under(asked).categories == ("One", "Two")
    except ConfigError:
        return False
