"""Changes after a mask, merged: what SOMF does with several candidates, and so the random mask that controls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.dare import dropped
from guardkeel.fusion.methods.streams import Delta, added, change, seeds, toward
from guardkeel.fusion.methods.ties import ties

SCALES = {"task-arithmetic": 0.3, "ties": 0.4, "dare": 0.3, "average": 1.0}  # of SOMF, arXiv:2405.09055


class Merging(base.Settings):
    """How several masked changes become one; that of a single candidate is added as it is."""

    merge: Literal["task-arithmetic", "ties", "dare", "average"] = Field(
        default="task-arithmetic", description="how the masked changes of several candidates are merged"
    )
    scale: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="how much of the merged change is added; where not given 1 for one candidate, for several 0.3 "
        "(task-arithmetic, dare), 0.4 (ties) or 1 (average)",
    )
    density: float = Field(default=0.2, ge=0, le=1, description="of ties: share kept by magnitude")
    drop: float = Field(default=0.2, ge=0, lt=1, description="of dare: the probability of being dropped")


def merged(
    reference: Tensor,
    candidates: Sequence[Tensor],
    mask: Callable[[Delta], Delta] | None,
    settings: Merging,
    generator: Generator | None,
) -> Tensor:
    """θ₀ + scale · merge of the masked δ_i; mask None keeps all: then one candidate at scale 1 is exact.

    For other orders of the candidates the same holds as for the merge: dare draws otherwise, the rest only rounds so.
    """
    how, count = settings.merge, len(candidates)
    scale = settings.scale if settings.scale is not None else 1.0 if count == 1 else SCALES[how]
    if not scale or (mask is None and count == 1):
        return toward(reference, candidates[0], scale)
    deltas = [change(reference, candidate) for candidate in candidates]
    if mask:
        deltas = [mask(delta) for delta in deltas]
    if count > 1 and how == "ties":
        return ties(reference, deltas, settings.density, scale)
    if count > 1 and how == "dare" and settings.drop:
        drawn = seeds(generator, count)
        deltas = [dropped(delta, settings.drop, seed) for delta, seed in zip(deltas, drawn, strict=True)]
    return added(reference, deltas, [scale / count if how == "average" else scale] * count)
