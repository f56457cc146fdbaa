"""The threshold of a trained guard: the lowest at which few enough safe calibrate items are flagged, on each side.

A guard has one threshold; a side with enough safe items gets offsets (guards/offsets.py) that bring its own to it.
What is unscored is neither safe nor flagged, and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Label, Side
from guardkeel.evaluation.items import Floats
from guardkeel.evaluation.recalibration import LEAST_OF_SIDE, matched_by_side
from guardkeel.guards.offsets import offsets_to


class Calibration(BaseModel):
    """A threshold, log-odds by side, and the share of safe calibrate items that is flagged there, by side."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = 0.5
    offsets: dict[Side, float] = Field(default_factory=dict)
    target: float
    safe: int
    flagged: dict[Side, float] = Field(default_factory=dict)
    note: str = ""


def calibrated(
    scores: Floats, sides: Sequence[Side], labels: Sequence[Label], false_alarms: float
) -> Calibration:
    """Choose the threshold.

    Args:
        scores: P(unsafe) without offsets, (n,), NaN where unscored.
        sides: of each item.
        labels: of each item.
        false_alarms: most safe items that may be flagged, as a share, of each side.
    """
    used = np.array([label == "safe" for label in labels], dtype=np.bool_) & ~np.isnan(scores)
    mine, values = [s for s, u in zip(sides, used, strict=True) if u], scores[used]
    if len(mine) < LEAST_OF_SIDE:
        why = f"{len(mine)} scored safe calibrate items are too few for a threshold: it is 0.5"
        return Calibration(target=false_alarms, safe=len(mine), note=why)
    common, own = matched_by_side(mine, _allowed(mine, false_alarms), values)
    at = np.array([own.get(side, common) for side in mine])
    flagged = {side: float((values >= at)[[s == side for s in mine]].mean()) for side in sorted(set(mine))}
    threshold = float(min(max(common, 0.0), 1.0))
    return Calibration(
        threshold=threshold,
        offsets=offsets_to(threshold, own),
        target=false_alarms,
        safe=len(mine),
        flagged=flagged,
    )


def _allowed(sides: Sequence[Side], share: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """As many items marked, on each side, as may be flagged there: all that a matched threshold looks at."""
    marked = np.zeros(len(sides), dtype=np.bool_)
    for side in set(sides):
        of = [i for i, s in enumerate(sides) if s == side]
        marked[of[: math.floor(share * len(of) + 1e-9)]] = True
    return marked


def shown(flagged: Mapping[Side, float]) -> str:
    """Rates by side as text."""
    return ", ".join(f"{side} {rate:.3f}" for side, rate in flagged.items())
