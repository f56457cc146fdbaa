"""The Pareto front: what no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points are on the front, where more is better in every coordinate; (points, coordinates).

    p beats q where p is no less in any coordinate and more in one. Equal points do not beat each other. A point with
    a NaN is not on the front and beats nothing.
    """
    known = [not any(map(math.isnan, p)) for p in points]
    rivals = {tuple(p) for p, k in zip(points, known, strict=True) if k}
    return [k and not any(_beats(r, p) for r in rivals) for p, k in zip(points, known, strict=True)]


def _beats(p: Sequence[float], q: Sequence[float]) -> bool:
    return tuple(p) != tuple(q) and all(a >= b for a, b in zip(p, q, strict=True))
