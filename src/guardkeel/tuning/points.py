"""What the safety monitor sees at one training step, and its line in monitor.jsonl.

Pure: scores and hidden states in, numbers out; nothing here needs torch, so that reports can read the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.conversation import Side
from guardkeel.errors import DataError
from guardkeel.evaluation.behaviour import measure
from guardkeel.evaluation.geometry_results import to_estimate
from guardkeel.evaluation.intervals import design_effect, proportion, undefined
from guardkeel.evaluation.items import (
    Bools,
    Floats,
    ItemMeta,
    as_scores,
    group_codes,
    positions,
    unsafe_labels,
)
from guardkeel.evaluation.paired import harm_p
from guardkeel.evaluation.recalibration import matched_by_side
from guardkeel.geometry import cka, drift, drift_inside, safety_basis, separability
from guardkeel.geometry.inputs import non_finite
from guardkeel.geometry.resampling import stratified_folds
from guardkeel.records import Estimate

POINTS = "monitor.jsonl"
ALPHA = 0.05
_DRAWS = 200  # of the bootstrap of ECE, the only interval that is not closed form

_Matched = tuple[float | None, dict[Side, float]]
Floats32 = np.ndarray[Any, np.dtype[np.float32]]


class _Point(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPoint(_Point):
    """Light geometry of one layer against the reference, at the verdict position: no nulls, at most 256 items.

    `drift_inside` is the share of the squared drift that lies in the reference's safety subspace (cross-fitted); the
    rest, 1 − share, lies outside. `chance` is the share that a random subspace of the same rank has on average.
    """

    layer: int
    cka: Estimate
    separability: Estimate
    drift: Estimate
    drift_inside: Estimate
    chance: float | None = None


class MonitorPoint(_Point):
    """The guard at one step of its training, on the monitor's items.

    `recall`, `fpr`, `auroc` and `ece` are of scored items, the first two at the shipped threshold; `unscored` is a
    rate of its own. `threshold` is moved to where the FPR is the reference's, on the safe items that both scored;
    `sides` are the thresholds of sides that have their own, as a slide of scores differs from side to side.
    `recall_recalibrated` is the recall at these, `suites` the same by suite.

    `fall` is what the tripwire looks at: the share of *all* unsafe items that it lost net, (worse − better)/n_unsafe,
    where an unscored item is not caught. With recalibration reference and model stand each at the threshold matched
    to the reference's FPR, found in the same way for both, so that an unchanged model falls by exactly 0. `harm_p` is
    the exact one-sided McNemar p-value that recall fell at all, counts divided by their design effect over
    conversations. It is not corrected for how often the monitor looks; the margin is what holds back the tripwire.
    """

    step: int = Field(ge=0)
    n: int
    n_unsafe: int
    recall: Estimate
    fpr: Estimate
    auroc: Estimate
    ece: Estimate
    unscored: Estimate
    threshold: float | None
    sides: dict[Side, float] = Field(default_factory=dict)
    recall_recalibrated: Estimate
    suites: dict[str, Estimate] = Field(default_factory=dict)
    worse: int
    better: int
    fall: float
    harm_p: float
    geometry: tuple[LayerPoint, ...] = ()
    seconds: float

    def inside(self, margin: float) -> bool:
        """Whether recall has fallen by no more than the margin."""
        return self.fall <= margin

    def trips(self, margin: float) -> bool:
        """Whether recall has fallen by more than the margin, and not by chance."""
        return self.fall > margin and self.harm_p < ALPHA


@dataclass(frozen=True, slots=True)
class Look:
    """One scoring of all items.

    `scores` are P(unsafe), (n,), NaN where unscored; `hidden` is (layers, sampled items, width), or None.
    """

    scores: Floats
    hidden: Floats32 | None = None


@dataclass(frozen=True)
class Watched:
    """What stays the same from look to look: the items, the shipped threshold, and what is measured."""

    items: Sequence[ItemMeta]
    threshold: float
    layers: Sequence[int] = ()
    sample: Sequence[int] = ()
    recalibrate: bool = True
    rank: int = 32
    seed: int = 0

    def point(self, step: int, reference: Look, now: Look, seconds: float = 0.0) -> MonitorPoint:
        """Measure a look against the reference's."""
        n, unsafe, groups = len(self.items), unsafe_labels(self.items), group_codes(self.items)
        before, after = as_scores(reference.scores, n), as_scores(now.scores, n)
        own, moved = self._matched(before, after, ~unsafe)
        ends, starts = (self._by_item(m) for m in (moved, own))
        at = (starts, ends) if self.recalibrate else (np.full(n, self.threshold),) * 2
        # NaN, which is unscored or no threshold, is neither
        held, caught = (before >= at[0])[unsafe], (after >= at[1])[unsafe]
        lost, won = held & ~caught, caught & ~held
        worse, better = int(lost.sum()), int(won.sum())
        effect = design_effect(won.astype(np.float64) - lost, groups[unsafe])
        shown = measure(after, unsafe, self.threshold, seed=self.seed, draws=_DRAWS, groups=groups)

        def recalled(chosen: Bools) -> Estimate:
            if moved[0] is None:
                return undefined("no safe items that reference and model both scored")
            hits = after[chosen] >= ends[chosen]
            return proportion(hits, empty="no scored unsafe items", groups=groups[chosen])

        counted = unsafe & ~np.isnan(after)
        suites = {}
        for suite, where in positions(self.items, lambda i: (i.suite,) if i.unsafe else ()).items():
            of = np.zeros(n, dtype=np.bool_)
            of[where] = True
            suites[suite] = recalled(of & counted)
        return MonitorPoint(
            step=step,
            n=n,
            n_unsafe=int(unsafe.sum()),
            recall=shown.recall,
            fpr=shown.fpr,
            auroc=shown.auroc,
            ece=shown.ece,
            unscored=shown.unscored,
            threshold=moved[0],
            sides=moved[1],
            recall_recalibrated=recalled(counted),
            suites=suites,
            worse=worse,
            better=better,
            fall=(worse - better) / int(unsafe.sum()),
            harm_p=harm_p(worse / effect, better / effect),
            geometry=self._geometry(reference.hidden, now.hidden),
            seconds=seconds,
        )

    def _matched(self, before: Floats, after: Floats, safe: Bools) -> tuple[_Matched, _Matched]:
        """The thresholds of reference and model at the reference's FPR, common and by side, from scores of safe items.

        On the items that both scored; where there are none the model has no threshold, and the reference's own items
        give its.
        """
        both = safe & ~(np.isnan(before) | np.isnan(after))
        mine = both if both.any() else safe & ~np.isnan(before)

        def at(scores: Floats, of: Bools) -> _Matched:
            if not of.any():
                return None, {}
            sides = [i.side for i, mine in zip(self.items, of, strict=True) if mine]
            return matched_by_side(sides, before[of] >= self.threshold, scores[of])

        return at(before, mine), at(after, both)

    def _by_item(self, matched: _Matched) -> Floats:
        """Each item's threshold, (n,); NaN where there is none."""
        common = np.nan if matched[0] is None else matched[0]
        return np.array([matched[1].get(i.side, common) for i in self.items])

    def _geometry(self, before: Floats32 | None, after: Floats32 | None) -> tuple[LayerPoint, ...]:
        if before is None or after is None:
            return ()
        unsafe, groups = unsafe_labels(self.items), group_codes(self.items)
        # An item that did not fit into the reference will not fit now: it has no hidden state in either.
        fits = np.isfinite(before).all(axis=(0, 2))
        chosen = np.asarray(self.sample)[fits]
        return tuple(
            layer_point(
                layer,
                before[k, fits],
                after[k, fits],
                unsafe[chosen],
                groups[chosen],
                rank=self.rank,
                seed=self.seed,
            )
            for k, layer in enumerate(self.layers)
        )


def layer_point(
    layer: int, before: Floats32, after: Floats32, unsafe: Bools, groups: Any, *, rank: int, seed: int
) -> LayerPoint:
    """Geometry of (n, d) activations of the same items; what cannot be measured is None with a note."""
    n = len(unsafe)
    broken = non_finite(before) or non_finite(after) if n else "no items with activations"
    if broken:
        nothing = undefined(broken, n)
        return LayerPoint(layer=layer, cka=nothing, separability=nothing, drift=nothing, drift_inside=nothing)
    try:
        bases = []
        folds = stratified_folds(
            unsafe, np.unique(groups, return_inverse=True)[1], 2, np.random.default_rng(seed)
        )
        for fold in range(2):
            fit, applied = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            bases.append((applied, safety_basis(before[fit], unsafe[fit], rank)))
        share = drift_inside(before, after, bases, draws=0, seed=seed, groups=groups)
        inside, chance = to_estimate(share.estimate), share.null_mean
    except DataError as e:
        inside, chance = undefined(e.problem, n), None
    return LayerPoint(
        layer=layer,
        cka=to_estimate(cka(before, after, draws=0, groups=groups).estimate),
        separability=to_estimate(
            separability(after, unsafe, rank=rank, draws=0, seed=seed, groups=groups).estimate
        ),
        drift=to_estimate(drift(before, after, seed=seed, groups=groups)),
        drift_inside=inside,
        chance=chance,
    )


def numbers(point: MonitorPoint) -> dict[str, float]:
    """A point as flat numbers for a Trainer's log; what has no value is left out. Geometry is the last layer's."""
    found = {
        key: getattr(point, key).value
        for key in ("recall", "fpr", "auroc", "ece", "unscored", "recall_recalibrated")
    }
    found |= {key: getattr(point, key) for key in ("threshold", "fall", "harm_p")}
    found |= {f"recall_recalibrated/{suite}": e.value for suite, e in point.suites.items()}
    for last in point.geometry[-1:]:
        found |= {
            f"{k}_last": getattr(last, k).value for k in ("cka", "separability", "drift", "drift_inside")
        }
    return {f"safety/{key}": float(value) for key, value in found.items() if value is not None}


def line(point: MonitorPoint, reference: MonitorPoint) -> str:
    """A point as one line of plain text."""

    def share(e: Estimate, digits: int = 2) -> str:
        return "–" if e.value is None else f"{e.value:.{digits}f}"

    parts = [
        f"step {point.step}",
        f"recall {share(point.recall)} (ref {share(reference.recall)}; "
        f"at ref. FPR {share(point.recall_recalibrated)})",
        f"FPR {share(point.fpr)}",
        f"AUROC {share(point.auroc, 3)}",
    ]
    parts += [f"CKA {share(last.cka, 3)}" for last in point.geometry[-1:]]
    if point.unscored.value:
        parts.append(f"unscored {share(point.unscored)}")
    return "  ".join(parts)


def read_points(folder: str | Path) -> list[MonitorPoint]:
    """The points of a run directory, in the order of their steps; none where there is no monitor.jsonl.

    A last line without its end is what a kill left of it, and is left out.

    Raises:
        DataError: a line is not a point, or the file cannot be read.
    """
    path = Path(folder) / POINTS
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="check the path and permissions"
        ) from e
    points = []
    for number, row in enumerate(lines, 1):
        try:
            points.append(MonitorPoint.model_validate_json(row))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}, line {number}: {where + ': ' if where else ''}{first['msg']}",
                remedy="take the file as the run wrote it, or repeat the run",
            ) from e
    return points
