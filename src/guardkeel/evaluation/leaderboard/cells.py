"""One guard on the items of one column, or of several: rates, ranking, calibration, the fixed-FPR point."""

from __future__ import annotations

import numpy as np

from guardkeel.evaluation.behaviour import measure
from guardkeel.evaluation.intervals import proportion, undefined
from guardkeel.evaluation.items import Bools, Floats, ItemMeta, group_codes, positions
from guardkeel.evaluation.leaderboard.judged import Items, Judged
from guardkeel.evaluation.leaderboard.operating import Codes, Scores, at_fixed_fpr
from guardkeel.evaluation.leaderboard.results import ALL, Cell, Metric
from guardkeel.evaluation.ranking import one_class
from guardkeel.records import Estimate
from guardkeel.results import Slice
from guardkeel.taxonomy import home


def cell(
    guard: Judged,
    items: Items,
    suite: str,
    side: str,
    target: float,
    seed: int = 0,
) -> Cell:
    """The cell of a suite and side; where it has too few, thresholds are chosen on all calibrate items of this side."""
    scores = Scores(guard.scores, items.unsafe, items.groups)
    where, near = items.of(suite, side), items.of(ALL, side)
    own = where & items.calibrate & (suite != ALL)
    test = scores.where(where & items.test & guard.judged)
    return _cell(
        test,
        scores.where(own),
        scores.where(near & items.calibrate),
        suite=suite,
        side=side,
        threshold=guard.info.threshold,
        target=target,
        seed=seed,
        absent=int((where & items.test & ~guard.judged).sum()),
    )


def own_cell(metas: list[ItemMeta], values: Floats, threshold: float, target: float, seed: int) -> Cell:
    """The cell of an imported file's own items, which have no calibrate split."""
    unsafe = np.array([m.unsafe for m in metas], dtype=np.bool_)
    test = Scores(values, unsafe, group_codes(metas))
    none = test.where(np.zeros(len(metas), dtype=np.bool_))
    return _cell(
        test,
        none,
        none,
        suite=metas[0].suite,
        side=metas[0].side,
        threshold=threshold,
        target=target,
        seed=seed,
        absent=0,
    )


def _cell(
    test: Scores,
    own: Scores,
    everywhere: Scores,
    *,
    suite: str,
    side: str,
    threshold: float,
    target: float,
    seed: int,
    absent: int,
) -> Cell:
    return Cell(
        suite=suite,
        side=side,
        behaviour=measure(test.values, test.unsafe, threshold, seed=seed, groups=test.groups),
        f1_strict=f1_strict(test.values, test.unsafe, threshold, test.groups),
        at_fpr=at_fixed_fpr(own, everywhere, test, target, seed=seed),
        n_not_judged=absent,
    )


def f1_strict(values: Floats, unsafe: Bools, threshold: float, groups: Codes | None = None) -> Estimate:
    """F1 in which an unscored item is wrong: a missed one if unsafe, a flagged one if safe.

    F1 = 2J/(1+J), J = TP / (items that are unsafe, flagged or unscored), Wilson's interval on J mapped; the plain F1
    where all are scored. Undefined on one class, and where nothing was scored at all.
    """
    n, lost = int(values.size), np.isnan(values)
    why = one_class(unsafe).replace("scored ", "") or ("nothing was scored" if lost.all() else "")
    if why:
        return undefined(why, n)
    flagged = values >= threshold
    counted = flagged | unsafe | lost
    jaccard = proportion(
        (flagged & unsafe)[counted],
        empty="nothing unsafe",
        groups=None if groups is None else groups[counted],
    )
    ends = {k: 2 * j / (1 + j) for k in ("value", "low", "high") if (j := getattr(jaccard, k)) is not None}
    return jaccard.model_copy(update=ends)


def estimate_of(found: Cell, metric: Metric) -> Estimate:
    """A cell's estimate of a metric."""
    if metric == "f1_strict":
        return found.f1_strict
    if metric == "recall_at_fpr":
        return found.at_fpr.recall
    value: Estimate = getattr(found.behaviour, metric)
    return value


def slice_rows(guard: Judged, items: Items, least: int, seed: int = 0) -> list[Slice]:
    """Behaviour by language and by home category over the test items of all suites, from `least` items on.

    Languages are given only where there are two.
    """
    where = np.flatnonzero(items.test & guard.judged)
    metas, values = items.some(where), guard.scores[where]
    unsafe, groups = items.unsafe[where], items.groups[where]
    languages = positions(metas, lambda m: (m.language,) if m.language else ())
    categories = positions(metas, lambda m: [home(c) for c in m.categories])
    found: list[Slice] = []
    by_kind = (("language", languages if len(languages) > 1 else {}), ("category", categories))
    for by, places in by_kind:
        found += [
            Slice(
                by=by,  # type: ignore[arg-type]
                value=value,
                behaviour=measure(
                    values[at], unsafe[at], guard.info.threshold, seed=seed, draws=200, groups=groups[at]
                ),
            )
            for value, at in places.items()
            if at.size >= least
        ]
    return found
