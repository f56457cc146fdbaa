"""Whether a guard names the categories that the labels name, both taken to the home taxonomy (see taxonomy.py)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from guardkeel.evaluation.intervals import proportion, undefined
from guardkeel.evaluation.leaderboard.judged import Items, Judged
from guardkeel.evaluation.leaderboard.macro import macro
from guardkeel.evaluation.leaderboard.results import CategoryAgreement, Confusion
from guardkeel.taxonomy import AEGIS2, home

MOST_PAIRS = 60


def category_agreement(guard: Judged, items: Items, least: int) -> CategoryAgreement | None:
    """Agreement on the test items; None where the guard named no category on any of them.

    A labelled category counts where it has a home, or where it is one that this guard names as well (both may share a
    policy of the user's). Names without a home that a guard gives are kept: they agree with nothing else.
    `macro_recall` is over categories of `least` compared items or more.
    """
    named = [() if v is None else tuple(dict.fromkeys(home(c) for c in v.categories)) for v in guard.verdicts]
    where = [int(k) for k in np.flatnonzero(items.test & guard.judged)]
    vocabulary = {name for k in where for name in named[k]}
    if not vocabulary:
        return None
    known = vocabulary | set(AEGIS2)
    labels = [tuple(c for c in dict.fromkeys(map(home, m.categories)) if c in known) for m in items.metas]
    labelled = [k for k in where if items.metas[k].unsafe and labels[k]]
    flagged = [k for k in labelled if guard.scores[k] >= guard.info.threshold]
    compared = [k for k in flagged if named[k]]
    groups = items.groups[compared]
    exact = np.array([set(labels[k]) == set(named[k]) for k in compared], dtype=np.bool_)
    overlap = np.array([not set(labels[k]).isdisjoint(named[k]) for k in compared], dtype=np.bool_)
    nothing = "no unsafe item has both a labelled and a named category"
    by_category = {}
    for category in sorted({c for k in compared for c in labels[k]}):
        at = [i for i, k in enumerate(compared) if category in labels[k]]
        hits = np.array([category in named[compared[i]] for i in at], dtype=np.bool_)
        by_category[category] = proportion(hits, empty=nothing, groups=groups[at])
    enough = [e for e in by_category.values() if e.n >= least]
    pairs = Counter((a, b) for k in compared for a in labels[k] for b in named[k])
    return CategoryAgreement(
        n_labelled=len(labelled),
        n_flagged=len(flagged),
        n_compared=len(compared),
        exact=proportion(exact, empty=nothing, groups=groups),
        overlap=proportion(overlap, empty=nothing, groups=groups),
        macro_recall=macro(enough) if enough else undefined(f"no category has {least} compared items"),
        by_category=by_category,
        confusion=[
            Confusion(labelled=a, named=b, n=n)
            for (a, b), n in sorted(pairs.items(), key=lambda p: (-p[1], p[0]))[:MOST_PAIRS]
        ],
    )
