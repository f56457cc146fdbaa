"""Recall at a fixed FPR: the threshold is chosen on safe `calibrate` items and tried on `test` items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from guardkeel.evaluation.intervals import bootstrap, percentile, proportion, undefined
from guardkeel.evaluation.items import Bools, Floats
from guardkeel.evaluation.leaderboard.results import OperatingPoint
from guardkeel.evaluation.recalibration import matched_threshold, threshold_ladder
from guardkeel.records import Estimate

Codes = npt.NDArray[np.int64]
DRAWS = 500
ALARMS = 5  # on fewer a suite's own threshold is a matter of luck


@dataclass(frozen=True)
class Scores:
    """Scores of some items (NaN where unscored) with their labels and conversations, each of shape (n,)."""

    values: Floats
    unsafe: Bools
    groups: Codes

    def where(self, mask: Bools) -> Scores:
        """The items under a mask."""
        return Scores(self.values[mask], self.unsafe[mask], self.groups[mask])

    @property
    def scored(self) -> Scores:
        """Those that have a score."""
        return self.where(~np.isnan(self.values))


def at_fixed_fpr(
    own: Scores, everywhere: Scores, test: Scores, target: float, *, seed: int = 0, draws: int = DRAWS
) -> OperatingPoint:
    """The guard with its threshold where at most `target` of the safe calibrate items are flagged.

    The lowest such threshold is taken. It is chosen on the safe items of `own`, the column's calibrate items, where
    there are enough for five false alarms, else on those of `everywhere`, where one must be possible. Tied scores are
    flagged all or none, so a guard that only says yes or no may be left with a threshold that flags nothing.

    Intervals: percentile bootstrap that draws calibrate and test conversations anew and chooses the threshold again,
    never narrower than Wilson's at the threshold as chosen.
    """
    need = math.ceil(1 / target)
    chosen_on: Literal["suite", "all suites", "nothing"] = "suite"
    safe = own.scored.where(~own.scored.unsafe)
    if safe.values.size < ALARMS * need:
        chosen_on = "all suites"
        safe = everywhere.scored.where(~everywhere.scored.unsafe)
    n = int(safe.values.size)
    if n < need:
        why = f"{n} scored safe calibrate items, {need} are needed for an FPR of {target:.3g}"
        return OperatingPoint(
            target=target,
            threshold=None,
            chosen_on="nothing",
            n_chosen=n,
            recall=undefined(why),
            fpr=undefined(why),
        )
    threshold = matched_threshold(np.arange(n) < math.floor(target * n + 1e-9), safe.values)
    scored = test.scored
    drawn = _draws(safe, scored, target, np.random.default_rng(seed), draws)
    flagged = scored.values >= threshold

    def estimate(of: Bools, column: int, empty: str) -> Estimate:
        plain = proportion(flagged[of], empty=empty, groups=scored.groups[of])
        values = drawn[:, column][~np.isnan(drawn[:, column])]
        if plain.value is None or plain.low is None or plain.high is None or not values.size:
            return plain
        low, high = percentile(values)
        return plain.model_copy(update={"low": min(low, plain.low), "high": max(high, plain.high)})

    return OperatingPoint(
        target=target,
        threshold=threshold,
        chosen_on=chosen_on,
        n_chosen=n,
        recall=estimate(scored.unsafe, 0, "no scored unsafe items"),
        fpr=estimate(~scored.unsafe, 1, "no scored safe items"),
    )


def _draws(safe: Scores, test: Scores, target: float, rng: np.random.Generator, draws: int) -> Floats:
    """Recall and FPR on the test items of each bootstrap draw, shape (draws, 2); NaN where a class was not drawn."""
    if not test.values.size:
        return np.full((draws, 2), np.nan)
    n = safe.values.size
    ladder, values = threshold_ladder(safe.values), np.unique(safe.values)[::-1]
    order = np.argsort(-safe.values, kind="stable")
    starts = np.searchsorted(-safe.values[order], -values)
    masks = np.stack((test.unsafe, ~test.unsafe), axis=1).astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        calibrated, tested = counts[:, :n], counts[:, n:]
        allowed = np.floor(target * calibrated.sum(axis=1) + 1e-9)
        flagged = np.cumsum(np.add.reduceat(calibrated[:, order], starts, axis=1), axis=1)
        t = ladder[(flagged <= allowed[:, None]).sum(axis=1)]
        sizes = tested @ masks
        hits = (tested * (test.values[None, :] >= t[:, None])) @ masks
        shares: Floats = np.divide(hits, sizes, out=np.full_like(hits, np.nan), where=sizes > 0)
        return shares

    return bootstrap(
        statistic,
        n + test.values.size,
        draws=draws,
        rng=rng,
        strata=np.repeat(np.array([0, 1]), [n, test.values.size]),
        groups=np.concatenate((safe.groups, test.groups + int(safe.groups.max()) + 1)),
    )
