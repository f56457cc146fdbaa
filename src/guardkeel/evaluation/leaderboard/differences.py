"""Every guard against one of them, on the items that both judged, with Holm's correction over what was asked.

Recall, FPR and unscored rate: exact McNemar with Tango's interval (compare.py). AUROC: DeLong. F1, in which unscored
items are wrong: paired percentile bootstrap that draws conversations within suites; for all suites together it is the
difference of the macro means over the columns that the table averages, or where there are none, of all items pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from guardkeel.evaluation.compare import compare
from guardkeel.evaluation.intervals import bootstrap, percentile, z_value
from guardkeel.evaluation.items import POOLED, Bools, Floats
from guardkeel.evaluation.leaderboard.judged import Items, Judged
from guardkeel.evaluation.leaderboard.results import ALL, Column, Difference, Metric
from guardkeel.evaluation.paired import holm
from guardkeel.records import Estimate

ALPHA = 0.05
LESS_IS_BETTER = ("fpr", "unscored")


@dataclass(frozen=True)
class Draws:
    """F1 of two guards on a column: as it is, and in each bootstrap draw (draws,); NaN where it is undefined."""

    n: int
    guard: float
    against: float
    changes: Floats
    better: int
    worse: int


def differences(
    guards: Sequence[Judged],
    against: Judged,
    items: Items,
    columns: Sequence[Column],
    averaged: Sequence[str],
    *,
    draws: int,
    seed: int = 0,
) -> list[Difference]:
    """All differences from `against`; `averaged` names the columns of the macro mean of F1."""
    found: list[Difference] = []
    for guard in guards:
        if guard is not against and (items.test & guard.judged & against.judged).any():
            found += _tests(guard, against, items, columns)
            found += _f1(guard, against, items, columns, averaged, draws=draws, seed=seed)
    return _adjusted(found)


def _tests(guard: Judged, against: Judged, items: Items, columns: Sequence[Column]) -> list[Difference]:
    where = np.flatnonzero(items.test & guard.judged & against.judged)
    names = {f"{c.suite}#{c.side}": c for c in columns}
    compared = compare(
        [replace(m, suite=f"{m.suite}#{m.side}") for m in items.some(where)],
        against.scores[where],
        guard.scores[where],
        against.info.threshold,
        guard.info.threshold,
    )

    def made(key: str, metric: Metric, **values: object) -> Difference:
        at = names.get(key)
        return Difference.model_validate(
            {
                "guard": guard.info.name,
                "against": against.info.name,
                "suite": at.suite if at else ALL,
                "side": at.side if at else ALL,
                "metric": metric,
                **values,
            }
        )

    found = [
        made(
            t.suite,
            t.metric,
            n=t.n,
            value=t.candidate,
            value_against=t.reference,
            difference=t.difference,
            better=t.better,
            worse=t.worse,
            p=t.p_change,
        )
        for t in compared.tests
    ]
    return found + [
        made(
            r.suite,
            "auroc",
            n=r.difference.n,
            value=r.candidate.value,
            value_against=r.reference.value,
            difference=r.difference,
            p=_normal_p(r.difference),
        )
        for r in compared.ranking
    ]


def _normal_p(difference: Estimate) -> float | None:
    """Two-sided p of a normal difference from its interval, which is ± z standard errors before it is cut to ±1."""
    if difference.value is None or difference.low is None or difference.high is None:
        return None
    half = max(difference.value - difference.low, difference.high - difference.value)
    if half == 0:
        return 1.0
    return float(2 * ndtr(-abs(difference.value) * z_value(difference.confidence) / half))


def _f1(
    guard: Judged,
    against: Judged,
    items: Items,
    columns: Sequence[Column],
    averaged: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> list[Difference]:
    both = items.test & guard.judged & against.judged
    by_column: dict[str, Draws] = {}
    suites = list(dict.fromkeys(c.suite for c in columns))
    for number, suite in enumerate(suites):
        masks = {c.name: items.of(suite, c.side) for c in columns if c.suite == suite}
        where = both & items.of(suite, ALL)
        by_column |= _draws(guard, against, items, where, masks, draws, np.random.default_rng([seed, number]))

    def made(suite: str, side: str, parts: Sequence[Draws]) -> Difference:
        value, other = (float(np.mean([getattr(p, k) for p in parts])) for k in ("guard", "against"))
        changes = np.mean([p.changes for p in parts], axis=0)
        changes = changes[~np.isnan(changes)]
        n = sum(p.n for p in parts)
        difference = Estimate(value=value - other, n=n, note="too few draws have both classes")
        p = None
        if changes.size >= draws / 2:
            low, high = percentile(changes)
            difference = Estimate(
                value=value - other,
                low=min(low, value - other),
                high=max(high, value - other),
                n=n,
                note="" if changes.any() else "the two judge every item alike",
            )
            tail = min((changes <= 0).sum(), (changes >= 0).sum())
            p = min(1.0, 2.0 * (1 + int(tail)) / (changes.size + 1))
        return Difference(
            guard=guard.info.name,
            against=against.info.name,
            suite=suite,
            side=side,
            metric="f1_strict",
            n=n,
            value=value,
            value_against=other,
            difference=difference,
            better=sum(p.better for p in parts),
            worse=sum(p.worse for p in parts),
            p=p,
        )

    found = [made(c.suite, c.side, [by_column[c.name]]) for c in columns if c.name in by_column]
    parts = [by_column[name] for name in averaged if name in by_column]
    if not averaged:  # no suite has both classes: all items together may have
        rng = np.random.default_rng([seed, len(suites)])
        parts = list(_draws(guard, against, items, both, {ALL: items.of(ALL, ALL)}, draws, rng).values())
    if parts and len(parts) >= len(averaged):
        found.insert(0, made(ALL, ALL, parts))
    return found


def _draws(
    guard: Judged,
    against: Judged,
    items: Items,
    where: Bools,
    masks: Mapping[str, Bools],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Draws]:
    """The F1 of both guards under each mask, on the items `where`; conversations are drawn whole, within suites."""
    at = np.flatnonzero(where)
    unsafe = items.unsafe[at]
    cells: list[Floats] = []
    usable: list[tuple[str, list[tuple[Bools, Bools]], Bools]] = []
    for name, mask in masks.items():
        here = mask[at]
        if not here.any() or unsafe[here].all() or not unsafe[here].any():
            continue
        counted = []
        for one in (guard, against):
            values = one.scores[at]
            if np.isnan(values[here]).all():
                break
            flagged, lost = values >= one.info.threshold, np.isnan(values)
            counted.append((here & flagged & unsafe, here & (flagged | unsafe | lost)))
        if len(counted) == 2:
            usable.append((name, counted, here))
            cells += [mask.astype(np.float64) for pair in counted for mask in pair]
    if not usable:
        return {}
    table = np.stack(cells, axis=1)

    def f1s(sums: Floats) -> Floats:
        """(…, 4k) sums of hits and counted items → (…, 2k) F1 = 2·hits / (hits + counted)."""
        hits, counted = sums[..., ::2], sums[..., 1::2]
        return np.divide(2 * hits, hits + counted, out=np.full_like(hits, np.nan), where=counted > 0)

    actual = f1s(table.sum(axis=0))
    drawn = bootstrap(
        lambda counts: f1s(counts @ table),
        at.size,
        draws=draws,
        rng=rng,
        groups=items.groups[at],
        strata=np.unique([items.metas[int(k)].suite for k in at], return_inverse=True)[1],
    )
    found = {}
    for k, (name, pairs, here) in enumerate(usable):
        right, right_against = (hits | (here & ~counted) for hits, counted in pairs)
        found[name] = Draws(
            n=int(here.sum()),
            guard=float(actual[2 * k]),
            against=float(actual[2 * k + 1]),
            changes=drawn[:, 2 * k] - drawn[:, 2 * k + 1],
            better=int((right & ~right_against).sum()),
            worse=int((right_against & ~right).sum()),
        )
    return found


def _adjusted(found: Sequence[Difference]) -> list[Difference]:
    """Holm's p-values: for each metric one family over guards for all suites together, one over guards and columns."""
    families: dict[tuple[str, bool], list[int]] = {}
    for index, d in enumerate(found):
        if d.p is not None:
            families.setdefault((d.metric, d.suite == POOLED), []).append(index)
    done = list(found)
    for members in families.values():
        adjusted = holm([p for k in members if (p := found[k].p) is not None])
        for k, p in zip(members, adjusted, strict=True):
            done[k] = found[k].model_copy(update={"p_holm": p, "word": _word(found[k], p)})
    return done


def _word(d: Difference, p_holm: float) -> str:
    if p_holm > ALPHA or not d.difference.value:
        return "not settled"
    gain = -d.difference.value if d.metric in LESS_IS_BETTER else d.difference.value
    return "better" if gain > 0 else "worse"
