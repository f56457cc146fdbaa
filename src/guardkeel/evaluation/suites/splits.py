"""Which examples are for fitting, for calibrating and for testing.

Examples that share a group, a text or a near-duplicate text form one cluster (transitively), and a cluster
lies in one split. The split is a pure function of the cluster: u = sha256(key) / 2^256, where the key is the
smallest key of its members (their group, else their normalised text), and

    fit if u < p_fit,  calibrate if u < p_fit + p_calibrate,  else test.

So the order of rows does not matter, a new row moves only the rows that it resembles, and equal ungrouped
texts in two suites fall into one split even when the suites are loaded apart. A cluster that holds examples
with a declared split goes to the strictest of these (test before calibrate before fit): a leak is closed by
moving the example that could leak, never by testing on less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from guardkeel.conversation import normalised
from guardkeel.evaluation.suites.near_duplicates import UnionFind, join

Split = Literal["fit", "calibrate", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Proportions = tuple[float, float, float]
DEFAULT: Proportions = (0.4, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Member:
    """What splitting knows of an example: the texts that are judged, its group, what its card declares."""

    texts: tuple[str, ...]
    group: str = ""
    proportions: Proportions = DEFAULT
    declared: Split | None = None


def clusters(members: Sequence[Member]) -> list[int]:
    """For each member the index of its cluster's first member."""
    sets = UnionFind(len(members))
    first: dict[str, int] = {}
    for i, member in enumerate(members):
        if member.group:
            sets.union(first.setdefault(member.group, i), i)
    texts = [comparable(t) for m in members for t in m.texts]
    join(texts, sets, [i for i, m in enumerate(members) for _ in m.texts])
    return sets.roots()


def assign(members: Sequence[Member]) -> list[Split]:
    """The split of each member, in order."""
    declared = {m.declared for m in members}
    if len(declared) == 1 and (only := declared.pop()):
        return [only] * len(members)  # no need to look for duplicates
    gathered: dict[int, list[Member]] = {}
    roots = clusters(members)
    for root, member in zip(roots, members, strict=True):
        gathered.setdefault(root, []).append(member)
    chosen = {root: _choose(cluster) for root, cluster in gathered.items()}
    return [chosen[root] for root in roots]


def comparable(text: str) -> str:
    """The normalised text, or the bare text where normalising leaves nothing (emoji, punctuation)."""
    return normalised(text) or text.strip()


def position(key: str) -> float:
    """Where a key falls in [0, 1): its sha256 as a fraction, to 53 bits."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _key(member: Member) -> str:
    return f"group {member.group}" if member.group else "text " + "\n".join(map(comparable, member.texts))


def _choose(cluster: Sequence[Member]) -> Split:
    declared = [m.declared for m in cluster if m.declared]
    if declared:
        return max(declared, key=SPLITS.index)
    key, (fit, calibrate, _) = min((_key(m), m.proportions) for m in cluster)
    u = position(key)
    if u < fit:
        return "fit"
    return "calibrate" if u < fit + calibrate else "test"
