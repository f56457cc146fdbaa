"""SLERP: along the great circle from θ₀ to θ, tensor by tensor (Shoemake 1985; in mergekit under the same name).

    sin((1 − t)φ)/sin φ · θ₀ + sin(tφ)/sin φ · θ,   φ the angle between the two as vectors

Where |cos φ| is above `colinear` (0.9995 as in mergekit, which is nearly always so for a fine-tuned guard and its own
reference), or one of the two is zero, it is plain interpolation.
"""

from __future__ import annotations

from math import acos, sin

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import blocks, cosine, fresh, gram, toward


def slerp(reference: Tensor, candidate: Tensor, t: float, colinear: float) -> Tensor:
    """The point at t on the arc; bit for bit θ₀ at t = 0 and θ at t = 1."""
    if t in (0, 1):
        return toward(reference, candidate, t)
    cos = cosine(gram(blocks(reference), blocks(candidate)))
    if cos is None or abs(cos) > colinear:
        return toward(reference, candidate, t)
    angle = acos(cos)
    first, second = sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
    result = fresh(reference)
    for out, start, end in zip(*map(blocks, (result, reference, candidate)), strict=True):
        torch.mul(start, first, out=out)
        out.add_(end * second)
    return result


class SlerpSettings(base.Settings):
    """Settings of SLERP."""

    t: float = Field(
        default=0.5, ge=0, le=1, description="place on the arc: 0 the reference, 1 the candidate"
    )
    colinear: float = Field(
        default=0.9995, ge=0, lt=1, description="above this |cosine| of the two, plain interpolation is used"
    )


class Slerp(base.Method):
    """Spherical interpolation between the reference and one candidate."""

    name = "slerp"
    summary = "a point on the arc between reference and candidate"
    Settings = SlerpSettings
    settings: SlerpSettings
    work = 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """The point at t."""
        return slerp(tensors.reference, tensors.candidates[0], self.settings.t, self.settings.colinear)
