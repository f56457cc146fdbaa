"""The bootstrap behind a collapse table: one resampling of the items, shared by every cell that judged them.

All cells of a scenario, and all scenarios on the same suites, see the same draws; so a difference of two cells is
paired draw by draw, and means over seeds or scenarios are plain means of arrays. Conversations are drawn whole, and
the size of each suite and split is kept. Row 0 of every array stands for the items as they are: the estimate itself.
Thresholds are found anew in every draw, on that draw's calibrate items, so intervals hold their uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from guardkeel.evaluation.behaviour import ECE_BINS, ece_bins
from guardkeel.evaluation.intervals import bootstrap, design_effect, percentile, wilson
from guardkeel.evaluation.items import Bools, Floats, group_codes, unsafe_labels
from guardkeel.evaluation.paired import tango_interval
from guardkeel.evaluation.recalibration import own_sides, threshold_ladder
from guardkeel.records import value_digest
from guardkeel.tuning.collapse.figures import Figure
from guardkeel.tuning.collapse.reading import Items

Counts = npt.NDArray[np.float32]
RATES = ("shipped", "recalibrated", "own")  # recall at three thresholds
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


@dataclass(frozen=True, eq=False)
class Measured:
    """One guard's numbers under resampling.

    `draws[name]` is (1 + draws, 1 + suites), first column all suites, NaN where undefined; names are RATES, fpr,
    fpr_recalibrated, auroc, ece, unscored. `hits[name]` says of each test item whether it was flagged, NaN where the
    item does not count.
    """

    draws: dict[str, Floats]
    hits: dict[str, Floats]


class Resampling:
    """Draws of one set of items.

    `suites` are those of the test items, by name. Counts are float32: whole numbers, exact far beyond any suite.
    """

    def __init__(self, items: Items, draws: int, seed: int = 0) -> None:
        metas = items.metas
        self.held, self.tested = np.flatnonzero(items.calibrate), np.flatnonzero(~items.calibrate)
        names = np.array([m.suite for m in metas], dtype=object)
        self.unsafe, self.groups = unsafe_labels(metas), group_codes(metas)
        self.sides = np.array([m.side for m in metas], dtype=object)
        self.suites: tuple[str, ...] = tuple(sorted(set(names[self.tested])))
        self.counts = np.empty((1 + draws, len(metas)), dtype=np.float32)
        self.counts[0] = 1
        for suite in sorted(set(names)):
            for split in (False, True):
                where = np.flatnonzero((names == suite) & (items.calibrate == split))
                if not where.size:
                    continue
                # a suite's own generator: scenarios that share a suite share its draws
                key = value_digest([seed, suite, split, [metas[i].id for i in where]])
                self.counts[1:, where] = bootstrap(
                    lambda counts: counts,
                    where.size,
                    draws=draws,
                    rng=np.random.default_rng(int(key[:16], 16)),
                    groups=self.groups[where],
                )
        self.test_counts = np.ascontiguousarray(self.counts[:, self.tested])
        self.test_unsafe, self.test_groups = self.unsafe[self.tested], self.groups[self.tested]
        mine = names[self.tested]
        columns = [np.ones(mine.size, dtype=np.bool_), *(mine == s for s in self.suites)]
        self.member: Bools = np.stack(columns, axis=1)
        cal = names[self.held]
        self._held_of: list[Bools] = [np.ones(cal.size, dtype=np.bool_), *(cal == s for s in self.suites)]

    def measure(
        self, scores: Floats, reference: Floats, thresholds: tuple[float, float], within: Bools | None = None
    ) -> Measured:
        """Measure `scores`, (items,), of a guard with threshold `thresholds[1]`.

        Only test items that it and the reference scored count, and of those the ones in `within`, (test items,).
        """
        both = ~(np.isnan(scores) | np.isnan(reference))
        of = both[self.tested] & (True if within is None else within)
        s = np.where(of, scores[self.tested], 0.0)  # what does not count is never looked at
        unsafe, safe = of & self.test_unsafe, of & ~self.test_unsafe
        shipped = s >= thresholds[1]
        moved = self._by_side(scores, reference, thresholds[0], both)
        draws, hits = {}, {}
        draws["shipped"], draws["fpr"] = self._rate(shipped, unsafe), self._rate(shipped, safe)
        draws["recalibrated"], draws["fpr_recalibrated"] = (self._moved(s, moved, k) for k in (unsafe, safe))
        draws["own"] = np.full_like(draws["shipped"], np.nan)
        own = np.full(s.size, np.nan)
        for k in range(1, len(self.suites) + 1):
            t = self._thresholds(scores, reference, thresholds[0], both, k)
            mine = self.member[:, k] & unsafe
            if t is not None and mine.any():
                draws["own"][:, k] = self._moved(s, t[:, None], mine)[:, k]
                own[mine] = s[mine] >= t[0]
        draws["auroc"] = self._auroc(s, of)
        draws["ece"] = self._ece(s, of)
        gone = np.isnan(scores[self.tested])
        draws["unscored"] = self._rate(gone, np.ones_like(of))
        hits["shipped"] = np.where(of, shipped, np.nan)
        hits["recalibrated"] = (
            np.full(s.size, np.nan) if moved is None else np.where(of, s >= moved[0], np.nan)
        )
        hits["own"] = own
        hits["unscored"] = gone.astype(np.float64)
        return Measured(draws, hits)

    def _by_side(self, scores: Floats, reference: Floats, threshold: float, both: Bools) -> Floats | None:
        """recalibration.matched_by_side on all calibrate items, in every draw: (1 + draws, test items or 1)."""
        common = self._thresholds(scores, reference, threshold, both, 0)
        if common is None:
            return None
        safe = self.held[both[self.held] & ~self.unsafe[self.held]]
        found = common[:, None]
        for side, of in own_sides([self.sides[i] for i in safe]).items():
            own = self._matched(scores, reference, threshold, safe[of])
            found = np.where(self.sides[self.tested] == side, own[:, None], found)
        return found

    def _thresholds(
        self, scores: Floats, reference: Floats, threshold: float, both: Bools, column: int
    ) -> Floats | None:
        """The same on the calibrate items of a column, one threshold a draw; None without safe ones."""
        where = self.held[self._held_of[column]]
        where = where[both[where] & ~self.unsafe[where]]
        return self._matched(scores, reference, threshold, where) if where.size else None

    def _matched(
        self, scores: Floats, reference: Floats, threshold: float, where: npt.NDArray[np.intp]
    ) -> Floats:
        """recalibration.matched_threshold on these items, in every draw."""
        safe = scores[where]
        counts = self.counts[:, where]
        allowed = counts @ (reference[where] >= threshold).astype(np.float32)
        order = np.argsort(-safe, kind="stable")
        starts = np.searchsorted(-safe[order], -np.unique(safe)[::-1])
        flagged = np.cumsum(np.add.reduceat(counts[:, order], starts, axis=1), axis=1)
        found: Floats = threshold_ladder(safe)[(flagged <= allowed[:, None]).sum(axis=1)]
        return found

    def _rate(self, hits: Bools, of: Bools) -> Floats:
        """The share of hits among the items of `of`, by draw and column."""
        weights = (self.member & of[:, None]).astype(np.float32)
        return _ratio(self.test_counts @ (weights * hits[:, None]), self.test_counts @ weights)

    def _moved(self, s: Floats, thresholds: Floats | None, of: Bools) -> Floats:
        """The same for flags at thresholds that move from draw to draw, (1 + draws, test items or 1)."""
        weights = (self.member & of[:, None]).astype(np.float32)
        if thresholds is None:
            return np.full((self.counts.shape[0], weights.shape[1]), np.nan)
        flagged = self.test_counts * (s[None, :] >= thresholds)
        return _ratio(flagged @ weights, self.test_counts @ weights)

    def _auroc(self, s: Floats, of: Bools) -> Floats:
        found = np.full((self.counts.shape[0], self.member.shape[1]), np.nan)
        for k in range(self.member.shape[1]):
            where = np.flatnonzero(self.member[:, k] & of)
            unsafe = self.test_unsafe[where]
            if unsafe.any() and not unsafe.all():
                found[:, k] = weighted_auroc(self.test_counts[:, where], s[where], unsafe)
        return found

    def _ece(self, s: Floats, of: Bools) -> Floats:
        found = np.full((self.counts.shape[0], self.member.shape[1]), np.nan)
        where = np.flatnonzero(of)
        unsafe = self.test_unsafe[where]
        if unsafe.any() and not unsafe.all():
            gap = np.zeros((where.size, ECE_BINS))
            gap[np.arange(where.size), ece_bins(s[where])] = unsafe - s[where]
            counts = self.test_counts[:, where].astype(np.float64)
            found[:, 0] = np.abs(counts @ gap).sum(axis=1) / counts.sum(axis=1)
        return found


def weighted_auroc(counts: Counts, scores: Floats, unsafe: Bools) -> Floats:
    """AUROC with each item counted `counts` times, (b, n) → (b,): Σ_i w_i(N(<s_i) + ½N(s_i)) / (N Σ_i w_i).

    i runs over unsafe items, w_i is how often one counts, N(…) how many safe items with such a score do.
    """
    order = np.argsort(scores[~unsafe], kind="stable")
    safe = scores[~unsafe][order]
    below = np.zeros((counts.shape[0], safe.size + 1), dtype=np.float32)
    np.cumsum(counts[:, np.flatnonzero(~unsafe)[order]], axis=1, out=below[:, 1:])
    first, last = (np.searchsorted(safe, scores[unsafe], side=side) for side in _SIDES)
    drawn = counts[:, unsafe]
    top = np.einsum("bi,bi->b", drawn, below[:, first] + below[:, last], dtype=np.float64) / 2
    return _ratio(top, drawn.sum(axis=1, dtype=np.float64) * below[:, -1])


def mean_over(arrays: Sequence[Floats]) -> Floats:
    """The mean of arrays of one shape, NaN where any is: what is undefined for one seed is so for their mean."""
    total: Floats = np.mean(np.stack(arrays), axis=0)
    return total


def mean_hits(hits: Sequence[Floats]) -> Floats:
    """Each item's mean over the seeds that scored it; NaN where none did."""
    stacked = np.stack(hits)
    seen = (~np.isnan(stacked)).sum(axis=0)
    found: Floats = np.where(seen > 0, np.nansum(stacked, axis=0) / np.maximum(seen, 1), np.nan)
    return found


def ends(draws: Floats) -> tuple[float, float] | None:
    """The percentile interval of draws, where it has any width and most draws are defined."""
    known = draws[~np.isnan(draws)]
    if known.size < 0.9 * draws.size or known.size < 2 or np.ptp(known) < 1e-12:
        return None
    return percentile(known)


def rate_figure(
    draws: Floats, seeds: Sequence[float], values: Floats, groups: npt.NDArray[Any], empty: str = ""
) -> Figure:
    """A rate: its bootstrap interval, never narrower than Wilson's at n / design effect.

    `draws` is (1 + draws,), `seeds` the rate of each seed, `values` each item's mean over seeds, (items,).
    `empty` says why where there is no value.
    """
    n = int(values.size)
    if not n or np.isnan(draws[0]):
        return Figure(n=n, note=empty or "no such items")
    value, effective = float(draws[0]), n / design_effect(values, groups)
    low, high = wilson(float(values.mean()) * effective, effective)
    low, high = _wider((low, high), ends(draws[1:]), value)
    return _over_seeds(seeds, value=value, low=max(0.0, low), high=min(1.0, high), n=n)


def change_figure(
    draws: Floats, seeds: Sequence[float], shifts: Floats, groups: npt.NDArray[Any], empty: str = ""
) -> Figure:
    """A paired difference of rates: its bootstrap interval, never narrower than Tango's.

    `shifts` is each item's difference, (items,), NaN left out: what it adds to better or takes to worse. Tango's
    interval is what keeps ten unchanged items from proving that nothing changed.
    """
    n = int(shifts.size)
    if not n or np.isnan(draws[0]):
        return Figure(n=n, note=empty or "no such items")
    effect = design_effect(shifts, groups)
    worse, better = -float(shifts[shifts < 0].sum()) / effect, float(shifts[shifts > 0].sum()) / effect
    low, high = tango_interval(better, worse, n / effect)
    low, high = _wider((low, high), ends(draws[1:]), float(draws[0]))
    return _over_seeds(seeds, value=float(draws[0]), low=low, high=high, n=n)


def free_figure(draws: Floats, seeds: Sequence[float], n: int, *, same: bool = False) -> Figure:
    """AUROC, ECE, means over scenarios and differences of such: the bootstrap interval alone.

    Without variation there is none, unless the two are the `same` on every item.
    """
    if np.isnan(draws[0]):
        return Figure(n=n, note="needs scored items of both classes")
    value, interval = float(draws[0]), ends(draws[1:])
    if interval is None:
        note = "the same on every item" if same else "too little variation for an interval"
        return _over_seeds(
            seeds, value=value, **({"low": value, "high": value} if same else {}), n=n, note=note
        )
    low, high = _wider(interval, None, value)
    return _over_seeds(seeds, value=value, low=low, high=high, n=n)


def ece_figure(draws: Floats, seeds: Sequence[float], n: int) -> Figure:
    """ECE, whose plug-in value is biased upwards: the bootstrap's own bias b is taken off its ends once more.

    low = q_low − 2b, high = q_high − b, as in evaluation.behaviour.
    """
    found = free_figure(draws, seeds, n)
    interval = ends(draws[1:])
    if found.value is None or interval is None:
        return found
    bias = float(np.nanmean(draws[1:])) - found.value
    low, high = max(0.0, min(interval[0] - 2 * bias, found.value)), max(interval[1] - bias, found.value)
    return found.model_copy(update={"low": low, "high": min(1.0, high)})


def _wider(one: tuple[float, float], other: tuple[float, float] | None, value: float) -> tuple[float, float]:
    found = [one] if other is None else [one, other]
    return min(value, *(e[0] for e in found)), max(value, *(e[1] for e in found))


def _over_seeds(seeds: Sequence[float], **known: Any) -> Figure:
    seen = [s for s in seeds if not np.isnan(s)]
    return Figure(least=min(seen, default=None), most=max(seen, default=None), **known)


def _ratio(top: npt.NDArray[Any], bottom: npt.NDArray[Any]) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(bottom > 0, top.astype(np.float64) / bottom, np.nan)
    return found
