"""From rankings to what is told of them: tables of the best heads, spreads, and which rankings agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from guardkeel.heads import overlap
from guardkeel.heads.official import label
from guardkeel.heads.ranking import Ranking
from guardkeel.heads.results import Head, Moved, Overlap, Ranked, SharedTop, Spread
from guardkeel.heads.sahara import Measure
from guardkeel.heads.sweep import Floats

Rankings = Mapping[tuple[str, str], Ranking]
"""By (mode, set)."""

KS = (5, 10, 20)
_LEAST = 4  # prompts of a suite that have a ranking of their own
_SUITES = 8
_SPLITS = {"dataset": 4}
"""Cuts for the reliability; each of the data set's takes a decomposition for every head."""


def table(rankings: Rankings, mode: str, measure: Measure, count: int, seed: int = 0) -> list[Head]:
    """The best heads on unsafe items, with what they do on benign ones."""
    unsafe, benign = rankings[mode, "unsafe"], rankings.get((mode, "benign"))
    values = {m: unsafe.values(m) for m in unsafe.measures}
    control = {m: benign.values(m) for m in benign.measures} if benign else {}
    ranks = overlap.ranks(control[measure]) if measure in control else None
    each = unsafe.by_prompt(measure)
    steady = (
        overlap.stability(np.where(np.isnan(each), -np.inf, each), count, seed=seed)
        if each is not None
        else None
    )
    return [
        Head(
            head=label(h),
            unsafe={m: float(v[h]) for m, v in values.items()},
            benign={m: float(v[h]) for m, v in control.items() if np.isfinite(v[h])},
            benign_rank=int(ranks[h]) or None if ranks is not None else None,
            stability=float(steady[h]) if steady is not None else None,
        )
        for h in unsafe.top(measure, count)
    ]


def ranked(found: Ranking, model: str, mode: str, of: str, measure: Measure, seed: int = 0) -> Ranked:
    """One ranking in numbers."""
    exact = found.exact
    estimates = found.estimates
    return Ranked(
        model=model,
        mode=mode,
        set=of,
        n=len(found.sweep.ids),
        exact=int(exact.sum()),
        heads=int(exact.size),
        spreads={m: spread(found.values(m)) for m in found.measures},
        reliability=reliability(found, measure, seed),
        screening=overlap.spearman(np.where(exact, estimates, np.nan), found.values(measure))
        if estimates is not None
        else None,
        seconds=found.sweep.seconds,
    )


def spread(values: Floats) -> Spread:
    """See Spread."""
    known = np.sort(values[np.isfinite(values)])
    total = float(known.sum())
    return Spread(
        quantiles=[float(q) for q in np.quantile(known, np.linspace(0, 1, 11))] if known.size else [],
        mean=float(known.mean()) if known.size else 0.0,
        top_share=float(known[-10:].sum()) / total if known.size and known[0] >= 0 and total > 0 else None,
    )


def reliability(found: Ranking, measure: Measure, seed: int = 0) -> float | None:
    """See overlap.reliability; None where half the prompts are too few for the measure."""
    n = len(found.sweep.ids)
    if measure not in found.measures or (measure == "dataset" and n // 2 <= found.rank):
        return None
    return overlap.reliability(
        lambda rows: found.values(measure, rows), n, splits=_SPLITS.get(measure, 20), seed=seed
    )


def pairs(
    what: Any, a: str, b: str, x: Floats, y: Floats, ceiling: float | None = None, **where: str
) -> Overlap:
    """Two rankings side by side."""
    shared = [overlap.shared(x, y, k) for k in KS if k <= x.size]
    return Overlap(
        what=what,
        a=a,
        b=b,
        spearman=overlap.spearman(x, y),
        ceiling=ceiling,
        top=[SharedTop(k=s.k, count=s.count, chance=s.chance, p=s.p) for s in shared],
        **where,
    )


def within(rankings: Rankings, measure: Measure, suites: Sequence[str]) -> list[Overlap]:
    """Everything that can be compared inside one model. `suites` are those of the unsafe prompts, one each."""
    found: list[Overlap] = []
    modes = list(dict.fromkeys(mode for mode, _ in rankings))
    for mode in modes:
        unsafe, benign = rankings[mode, "unsafe"], rankings.get((mode, "benign"))
        if benign is not None and measure in benign.measures:
            ceiling = attainable(reliability(unsafe, measure), reliability(benign, measure))
            found.append(
                pairs("sets", "unsafe", "benign", unsafe.values(measure), benign.values(measure), ceiling,
                      mode=mode, set="", measure=measure)
            )  # fmt: skip
    first = rankings[modes[0], "unsafe"]
    where: dict[str, Any] = {"mode": modes[0], "set": "unsafe"}
    for one, other in combinations(first.measures, 2):
        found.append(
            pairs("measures", one, other, first.values(one), first.values(other), measure="", **where)
        )
    for a, b in combinations(modes, 2):
        x, y = (rankings[mode, "unsafe"].values(measure) for mode in (a, b))
        if x.shape == y.shape:
            found.append(pairs("modes", a, b, x, y, mode="", set="unsafe", measure=measure))
    least = max(_LEAST, first.rank + 2 if measure == "dataset" else 0)
    own = {s: [i for i, of in enumerate(suites) if of == s] for s in dict.fromkeys(suites)}
    own = dict([(s, rows) for s, rows in own.items() if len(rows) >= least][:_SUITES])
    values = {s: first.values(measure, rows) for s, rows in own.items()}
    for a, b in combinations(values, 2):
        found.append(pairs("suites", a, b, values[a], values[b], measure=measure, **where))
    return found


def between(a: str, b: str, before: Rankings, after: Rankings, measure: Measure) -> list[Overlap]:
    """Two models on the same items."""
    found = []
    for (mode, of), mine in before.items():
        theirs = after[mode, of]
        if measure in theirs.measures and measure in mine.measures:
            ceiling = attainable(reliability(mine, measure), reliability(theirs, measure))
            found.append(
                pairs("models", a, b, mine.values(measure), theirs.values(measure), ceiling,
                      mode=mode, set=of, measure=measure)
            )  # fmt: skip
    return found


def attainable(a: float | None, b: float | None) -> float | None:
    """√(r_a r_b): what the correlation of two rankings of such reliabilities is, were they of the same truth."""
    return None if a is None or b is None else (a * b) ** 0.5


def moved(before: Ranking, after: Ranking, measure: Measure, count: int) -> list[Moved]:
    """The best of either, those that moved most first."""
    return [
        Moved(
            head=label(m.head),
            before=m.before,
            after=m.after,
            rank_before=m.rank_before,
            rank_after=m.rank_after,
        )
        for m in overlap.moves(before.values(measure), after.values(measure), count)
    ]
