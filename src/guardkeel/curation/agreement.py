"""How far judges agree, and how good each is. Votes are an (items, judges) array: 0 safe, 1 unsafe, -1 no vote.

Statistics are functions of how often each item was drawn, so that their bootstrap is one matrix product; items of one
group are drawn together. An abstention is a missing value: it counts for nothing but its own rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import chi2_contingency

from guardkeel.conversation import Label
from guardkeel.evaluation.intervals import bootstrap, percentile, proportion, undefined
from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.paired import holm
from guardkeel.records import Estimate

Votes = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int64] | None

MISSING = -1
CODES: dict[Label | None, int] = {"safe": 0, "unsafe": 1, None: MISSING}
DRAWS = 1000


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Result):
    """Cohen's kappa of two judges, and the share of items on which they say the same."""

    first: str
    second: str
    kappa: Estimate
    same: Estimate


class Agreement(_Result):
    """Of one set of items. `alpha` is Krippendorff's, nominal; `votes` counts votes by judge and label."""

    n: int
    judges: list[str]
    alpha: Estimate
    pairs: list[Pair] = Field(default_factory=list)
    votes: dict[str, dict[str, int]] = Field(default_factory=dict)


class Skill(_Result):
    """One judge against labels by people. Rates are over its votes; `abstained` over all items."""

    judge: str
    source: str
    sensitivity: Estimate
    specificity: Estimate
    abstained: Estimate


class BatchRates(_Result):
    """One judge in one batch: unsafe votes, abstentions, agreement with what the other judges' majority says."""

    batch: int
    unsafe: Estimate
    abstained: Estimate
    agrees: Estimate


class Drift(_Result):
    """Whether a judge's votes, and its agreement with the others, are the same in all batches (Holm over all tests)."""

    judge: str
    batches: list[BatchRates]
    p_votes: float | None
    p_agreement: float | None


def alpha(votes: Votes, counts: Floats | None = None) -> Floats:
    """Krippendorff's α for nominal data with missing values (Krippendorff 2011, Computing α-reliability, section C).

    o_ck = Σ_u (pairs of values c, k by different judges in item u) / (m_u − 1) over items with m_u ≥ 2 values,
    n_c = Σ_k o_ck, n = Σ_c n_c, and

        α = 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k.

    Args:
        votes: (items, judges), any integers from 0; -1 is missing.
        counts: (b, items), how often each item was drawn; None is once each.

    Returns:
        (b,); NaN where fewer than two values, or one value alone, were given.
    """
    values = max(int(votes.max(initial=0)) + 1, 2)
    given = np.stack([(votes == c).sum(axis=1) for c in range(values)], axis=1).astype(
        np.float64
    )  # (items, c)
    m = given.sum(axis=1)
    usable = m >= 2
    outer = given[:, :, None] * given[:, None, :] - np.eye(values) * given[:, :, None]
    pairs = np.where(usable[:, None, None], outer / np.maximum(m - 1, 1)[:, None, None], 0.0)
    drawn = np.ones((1, len(votes))) if counts is None else counts
    together = (drawn @ pairs.reshape(len(votes), -1)).reshape(-1, values, values)
    totals = together.sum(axis=2)
    n = totals.sum(axis=1)
    observed = n - np.trace(together, axis1=1, axis2=2)
    expected = n**2 - (totals**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (n - 1) * observed / expected, np.nan)


def kappa(first: Votes, second: Votes, counts: Floats | None = None) -> Floats:
    """Cohen's κ of two judges over the items that both voted on: (p_o − p_e) / (1 − p_e).

    p_o is the share of equal votes, p_e = Σ_c p_c q_c of their margins. Shapes as in `alpha`; NaN where undefined.
    """
    both = (first >= 0) & (second >= 0)
    values = max(int(first.max(initial=0)), int(second.max(initial=0)), 1) + 1
    cells = np.zeros((len(first), values * values))
    cells[np.flatnonzero(both), first[both] * values + second[both]] = 1
    drawn = np.ones((1, len(first))) if counts is None else counts
    table = (drawn @ cells).reshape(-1, values, values)
    n = table.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(table, axis1=1, axis2=2) / n
        expected = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1) / n**2
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def agreement(
    votes: Votes, judges: Sequence[str], *, groups: Groups = None, seed: int = 0, draws: int = DRAWS
) -> Agreement:
    """α over all judges, and κ of each pair, with bootstrap intervals.

    Args:
        votes: (items, judges).
        judges: their names.
        groups: (items,), items of one group are drawn together.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    shared = (votes >= 0).sum(axis=1) >= 2
    found = _interval(
        lambda c: alpha(votes, c),
        len(votes),
        int(shared.sum()),
        groups,
        seed,
        draws,
        "judges gave one label alone",
    )
    pairs = []
    for i in range(len(judges)):
        for j in range(i + 1, len(judges)):
            first, second = votes[:, i], votes[:, j]
            both = (first >= 0) & (second >= 0)

            def of(c: Floats, a: Votes = first, b: Votes = second) -> Floats:
                return kappa(a, b, c)

            k = _interval(of, len(votes), int(both.sum()), groups, seed, draws, "both gave one label alone")
            same = proportion(
                (first == second)[both], empty="no item has votes of both", groups=_some(groups, both)
            )
            pairs.append(Pair(first=judges[i], second=judges[j], kappa=k, same=same))
    names: dict[str, int] = {"safe": 0, "unsafe": 1, "abstained": MISSING}
    counts = {j: {n: int((votes[:, i] == c).sum()) for n, c in names.items()} for i, j in enumerate(judges)}
    return Agreement(n=len(votes), judges=list(judges), alpha=found, pairs=pairs, votes=counts)


def _interval(statistic: Any, n: int, used: int, groups: Groups, seed: int, draws: int, why: str) -> Estimate:
    value = float(statistic(np.ones((1, n)))[0]) if n else float("nan")
    if np.isnan(value):
        return undefined(why if used else "no item has two votes", used)
    found = bootstrap(statistic, n, draws=draws, rng=np.random.default_rng(seed), groups=groups)
    found = found[~np.isnan(found)]
    low, high = percentile(found) if found.size else (value, value)
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=used)


def agreement_by(
    votes: Votes,
    judges: Sequence[str],
    slices: Mapping[str, Sequence[str]],
    *,
    groups: Groups = None,
    seed: int = 0,
) -> dict[str, dict[str, Agreement]]:
    """Agreement by each slice: {slice: {value: agreement}}, for `slices` such as {"source": [source of each item]}."""
    made: dict[str, dict[str, Agreement]] = {}
    for name, values in slices.items():
        held = np.array(values, dtype=object)
        made[name] = {
            str(v): agreement(votes[held == v], judges, groups=_some(groups, held == v), seed=seed)
            for v in sorted(set(values))
        }
    return made


def skill(judge: str, votes: Votes, truth: Votes, source: str, *, groups: Groups = None) -> Skill:
    """Sensitivity and specificity of one judge, with Wilson intervals widened for groups.

    Args:
        judge: its name.
        votes: (items,).
        truth: (items,), labels by people.
        source: whose labels they are.
        groups: (items,).
    """

    def share(of: int) -> Estimate:
        at = (truth == of) & (votes >= 0)
        empty = f"no {'unsafe' if of else 'safe'} item has a vote"
        return proportion(votes[at] == of, empty=empty, groups=_some(groups, at))

    return Skill(
        judge=judge,
        source=source,
        sensitivity=share(1),
        specificity=share(0),
        abstained=proportion(votes < 0, empty="no items", groups=groups),
    )


def drift(votes: Votes, judges: Sequence[str], *, size: int) -> list[Drift]:
    """Each judge batch by batch, in the order of the items, and a χ² test that nothing changes between batches.

    What is voted on differs between batches too, so a change of the unsafe rate may be the items'; a change of the
    agreement with the others is less so. p-values are Holm's over all tests of all judges; None where there are fewer
    than two batches, or nothing varies.

    Args:
        votes: (items, judges), in the order in which they were asked.
        judges: their names.
        size: items of a batch; a rest of less than half of that joins the last.
    """
    count = max(1, round(len(votes) / size))
    batch = np.minimum(np.arange(len(votes)) // size, count - 1)
    raw: list[float | None] = []
    made = []
    for i, judge in enumerate(judges):
        own = votes[:, i]
        others = _majority(np.delete(votes, i, axis=1))
        compared = (own >= 0) & (others >= 0)
        rates = []
        for b in range(count):
            here = batch == b
            rates.append(
                BatchRates(
                    batch=b + 1,
                    unsafe=proportion(own[here & (own >= 0)] == 1, empty="no votes"),
                    abstained=proportion(own[here] < 0, empty="no items"),
                    agrees=proportion((own == others)[here & compared], empty="no items with other votes"),
                )
            )
        table = [[int(((own == c) & (batch == b)).sum()) for c in (0, 1, MISSING)] for b in range(count)]
        same = [
            [int(((own == others) == s)[(batch == b) & compared].sum()) for s in (True, False)]
            for b in range(count)
        ]
        raw += [_chi2(table), _chi2(same)]
        made.append((judge, rates))
    adjusted = iter(holm([p for p in raw if p is not None]))
    ps = [None if p is None else next(adjusted) for p in raw]
    return [
        Drift(judge=judge, batches=rates, p_votes=ps[2 * i], p_agreement=ps[2 * i + 1])
        for i, (judge, rates) in enumerate(made)
    ]


def _majority(votes: Votes) -> Votes:
    unsafe, safe = (votes == 1).sum(axis=1), (votes == 0).sum(axis=1)
    return np.where(unsafe == safe, MISSING, (unsafe > safe).astype(np.int64))


def _chi2(table: list[list[int]]) -> float | None:
    cells = np.array(table)
    cells = cells[cells.sum(axis=1) > 0][:, cells.sum(axis=0) > 0]
    if min(cells.shape, default=0) < 2:
        return None
    return float(chi2_contingency(cells, correction=False).pvalue)


def _some(groups: Groups, where: Any) -> Groups:
    return None if groups is None else groups[where]
