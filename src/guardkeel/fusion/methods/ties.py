"""TIES (arXiv:2306.01708): trim, elect a sign for every element, average what agrees with it.

    δ̂_i = the largest ⌊density · n⌋ of δ_i by magnitude, tensor by tensor; the rest 0
    θ = θ₀ + λ · mean {δ̂_i : δ̂_i has the sign of Σ δ̂_i}, for each element; a mean over none is 0

Where the mass above and below zero is the same, no sign is elected and the element stays as in θ₀ (sgn 0 = 0, as the
paper writes it; its code takes the sign of the majority of elements there, PEFT and mergekit take +).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import Delta, added, blocks, change, fresh, toward
from guardkeel.fusion.methods.trimming import trimmed


def agreed(reference: Tensor, deltas: Sequence[Delta], scale: float) -> Tensor:
    """θ₀ + scale · the mean of those δ_i that have the sign of their sum, for each element.

    The order of the deltas changes no more than the rounding of sums of three or more.
    """
    result = fresh(reference)
    made = [delta() for delta in deltas]
    for out, start, *parts in zip(blocks(result), blocks(reference), *made, strict=True):
        sign = sum(parts[1:], parts[0].clone()).sign_()
        out.zero_()
        agreeing = torch.zeros_like(out)
        for part in parts:
            part.mul_(sign).clamp_min_(0)  # its magnitude, 0 where it disagrees
            out.add_(part)
            agreeing.add_(part.sign_())
        out.div_(agreeing.clamp_min_(1)).mul_(sign).mul_(scale).add_(start)
    return result


def ties(reference: Tensor, deltas: Sequence[Delta], density: float, scale: float) -> Tensor:
    """θ₀ + scale · TIES of the deltas; of one delta it is the trimmed delta."""
    kept = [trimmed(delta, reference.numel(), density) for delta in deltas]
    return agreed(reference, kept, scale) if len(kept) > 1 else added(reference, kept, [scale])


class TiesSettings(base.Settings):
    """Settings of TIES."""

    density: float = Field(
        default=0.2, ge=0, le=1, description="share of each candidate's change that is kept, by magnitude"
    )
    scale: float = Field(
        default=1.0, allow_inf_nan=False, description="λ: how much of the merged change is added"
    )


class Ties(base.Method):
    """θ₀ + λ · disjoint mean of the trimmed changes."""

    name = "ties"
    summary = "the largest changes, averaged where they agree in sign"
    Settings = TiesSettings
    settings: TiesSettings
    most = None
    work = 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + λ · TIES; with one candidate and density 1 it is interpolation, exact at its ends."""
        reference, candidates = tensors.reference, tensors.candidates
        density, scale = self.settings.density, self.settings.scale
        if not (density and scale):
            return reference.clone()
        if len(candidates) == 1 and density == 1:
            return toward(reference, candidates[0], scale)
        return ties(reference, [change(reference, c) for c in candidates], density, scale)
