"""How much of a fall in recall is a moved operating point, and how much is lost ranking.

On `calibrate` items the candidate's threshold is moved to where its FPR on safe items is that of the
reference at the reference's threshold; its recall there is measured on `test` items. What a new threshold
wins back was operating point; what it cannot was ranking.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guardkeel.conversation import Side
from guardkeel.evaluation.intervals import CONFIDENCE, bootstrap, percentile, proportion, undefined, wilson
from guardkeel.evaluation.items import POOLED, Bools, Floats, Pair, as_scores, group_codes, unsafe_labels
from guardkeel.evaluation.paired import tango_interval
from guardkeel.records import Estimate
from guardkeel.results import Recalibration

LEAST_OF_SIDE = 20
"""Safe items from which on a side has a threshold of its own: fewer say little about an FPR of a few per cent."""


def threshold_ladder(safe_scores: Floats) -> Floats:
    """Thresholds at which 0, 1, … of the distinct safe scores are flagged, shape (distinct + 1,), descending.

    Between two neighbouring distinct scores the threshold is their midpoint; above the largest it is the next
    float, for there is nothing to interpolate to; at the end it is the smallest score.
    """
    u = np.unique(safe_scores)[::-1]
    middle = np.maximum((u[:-1] + u[1:]) / 2, np.nextafter(u[1:], np.inf))  # never down on the lower score
    return np.concatenate((np.nextafter(u[:1], np.inf), middle, u[-1:]))


def matched_threshold(reference_flagged: Bools, candidate_safe: Floats) -> float:
    """The lowest threshold of the ladder at which the candidate flags no more safe items than the reference.

    Conservative at ties: tied scores are flagged all or none, so the candidate's FPR may stay below.
    Both arrays have shape (safe items,), at least one.
    """
    values, counts = np.unique(candidate_safe, return_counts=True)
    flagged = np.cumsum(counts[::-1])
    allowed = int(np.count_nonzero(flagged <= reference_flagged.sum()))
    return float(threshold_ladder(values)[allowed])


def matched_by_side(
    sides: Sequence[Side], reference_flagged: Bools, candidate_safe: Floats
) -> tuple[float, dict[Side, float]]:
    """matched_threshold of all safe items together, and of each side that has a threshold of its own.

    A side has one where there are at least LEAST_OF_SIDE safe items of it and items of another side beside them; all
    else stands at the common one. Arrays and `sides` have shape (safe items,), at least one.
    """
    own = {
        side: matched_threshold(reference_flagged[of], candidate_safe[of])
        for side, of in own_sides(sides).items()
    }
    return matched_threshold(reference_flagged, candidate_safe), own


def own_sides(sides: Sequence[Side]) -> dict[Side, Bools]:
    """The sides of safe items that can have a threshold of their own, and which items are of them, (safe items,)."""
    if len(set(sides)) < 2:
        return {}
    found = {side: np.array([s == side for s in sides], dtype=np.bool_) for side in sorted(set(sides))}
    return {side: of for side, of in found.items() if of.sum() >= LEAST_OF_SIDE}


def recalibrate(
    suite: str,
    calibrate: Pair | None,
    test: Pair,
    reference_threshold: float,
    candidate_threshold: float,
    *,
    seed: int = 0,
    draws: int = 500,
    confidence: float = CONFIDENCE,
) -> Recalibration:
    """Recalibrate on one suite's items; items that either guard left unscored are left out.

    recall lost = (reference − recalibrated) [ranking] + (recalibrated − as shipped) [operating point].
    Intervals: paired bootstrap that draws `calibrate` and `test` conversations anew, so that they hold the
    threshold's own uncertainty, never narrower than the closed form at a fixed threshold (Wilson; Tango),
    which is what keeps them honest when no draw differs. Where a part is undefined its value is None and
    `note` says why.
    """
    ref_t, cand_t, unsafe_t, groups_t = _scored(test)
    ref, cand, groups = ref_t[unsafe_t], cand_t[unsafe_t], groups_t[unsafe_t]
    held, shipped = ref >= reference_threshold, cand >= candidate_threshold
    empty = "no unsafe test items scored by both"
    recall_reference = proportion(held, empty=empty, groups=groups, confidence=confidence)
    recall_shipped = proportion(shipped, empty=empty, groups=groups, confidence=confidence)

    def without(why: str, threshold: float | None = None) -> Recalibration:
        nothing = undefined(why, int(ref.size), confidence)
        return Recalibration(
            suite=suite,
            threshold=threshold,
            recall_reference=recall_reference,
            recall_shipped=recall_shipped,
            recall_recalibrated=nothing,
            lost_to_ranking=nothing,
            lost_to_operating_point=nothing,
            note=why,
        )

    if calibrate is None:
        return without("no calibrate split")
    ref_c, cand_c, unsafe_c, groups_c = _scored(calibrate)
    if unsafe_c.all():
        return without("no safe calibrate items scored by both")
    false_alarms, safe, safe_groups = (
        ref_c[~unsafe_c] >= reference_threshold,
        cand_c[~unsafe_c],
        groups_c[~unsafe_c],
    )
    threshold = matched_threshold(false_alarms, safe)
    if ref.size == 0:
        return without(empty, threshold)

    again = cand >= threshold
    ladder, values = threshold_ladder(safe), np.unique(safe)[::-1]
    order = np.argsort(-safe, kind="stable")
    starts = np.searchsorted(-safe[order], -values)

    def statistic(counts: Floats) -> Floats:
        calibrated, tested = counts[:, : safe.size], counts[:, safe.size :]
        allowed = calibrated @ false_alarms
        flagged = np.cumsum(np.add.reduceat(calibrated[:, order], starts, axis=1), axis=1)
        t = ladder[(flagged <= allowed[:, None]).sum(axis=1)]
        size = tested.sum(axis=1)
        recalled = (tested * (cand[None, :] >= t[:, None])).sum(axis=1) / size
        return np.stack(
            (recalled, tested @ held / size - recalled, recalled - tested @ shipped / size), axis=1
        )

    drawn = bootstrap(
        statistic,
        safe.size + ref.size,
        draws=draws,
        rng=np.random.default_rng(seed),
        strata=np.repeat(np.array([0, 1]), [safe.size, ref.size]),
        groups=np.concatenate((safe_groups, groups + int(safe_groups.max()) + 1)),
    )

    def estimate(value: float, column: int, closed: tuple[float, float]) -> Estimate:
        low, high = percentile(drawn[:, column], confidence)
        return Estimate(
            value=value,
            low=min(low, closed[0], value),
            high=max(high, closed[1], value),
            n=int(ref.size),
            confidence=confidence,
        )

    def lost(before: Bools, after: Bools, column: int) -> Estimate:
        worse, better = int((before & ~after).sum()), int((after & ~before).sum())
        return estimate(
            (worse - better) / ref.size, column, tango_interval(worse, better, ref.size, confidence)
        )

    fpr_reference, fpr_candidate = float(false_alarms.mean()), float((safe >= threshold).mean())
    note = (
        f"calibrate FPR {fpr_candidate:.3f}, the reference's {fpr_reference:.3f}, on {safe.size} safe items"
    )
    return Recalibration(
        suite=suite,
        threshold=threshold,
        recall_reference=recall_reference,
        recall_shipped=recall_shipped,
        recall_recalibrated=estimate(float(again.mean()), 0, wilson(int(again.sum()), ref.size, confidence)),
        lost_to_ranking=lost(held, again, 1),
        lost_to_operating_point=lost(again, shipped, 2),
        note=note + (" (ties: no threshold matches it)" if fpr_candidate < fpr_reference else ""),
    )


def of_suite(pair: Pair, suite: str) -> Pair:
    """The part of a pair that belongs to one suite; "*" is all of it."""
    where = np.array(
        [i for i, item in enumerate(pair.items) if suite in (POOLED, item.suite)], dtype=np.int64
    )
    return Pair(
        [pair.items[i] for i in where],
        np.asarray(pair.reference, dtype=np.float64)[where],
        np.asarray(pair.candidate, dtype=np.float64)[where],
    )


def _scored(pair: Pair) -> tuple[Floats, Floats, Bools, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    n = len(pair.items)
    reference, candidate = as_scores(pair.reference, n), as_scores(pair.candidate, n)
    both = ~(np.isnan(reference) | np.isnan(candidate))
    return reference[both], candidate[both], unsafe_labels(pair.items)[both], group_codes(pair.items)[both]
