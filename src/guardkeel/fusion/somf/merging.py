"""Merge({δ̃_i}): how the masked changes of several fine-tunes become one, as methods/merging.py does it, differentiably.

    average           s Σ δ̃_i / N,  s = 1
    task-arithmetic   s Σ δ̃_i,  s = 0.3
    ties              s · mean {δ̂_i with the sign of Σ δ̂_i},  δ̂_i the ⌊density · n⌋ largest of δ̃_i,  s = 0.4
    dare              s Σ d_i ⊙ δ̃_i / (1 − drop),  d_i ~ Bernoulli(1 − drop),  s = 0.3

The change of a single candidate is added as it is. The numbers are the paper's; its released code trims for TIES over
the whole model and sums what agrees. What TIES keeps is found anew from the masked changes in each step and is a
constant to the gradient, which is exact almost everywhere. What DARE drops is what `fuse` with the same seed drops, in
every step; the released code draws it anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from guardkeel.fusion.methods.dare import dropped
from guardkeel.fusion.methods.merging import SCALES, Merging
from guardkeel.fusion.methods.streams import blocks, seeds
from guardkeel.fusion.randomness import generator


def merge(tensor: str, deltas: Sequence[Tensor], how: Merging, seed: int) -> Tensor:
    """The merged change of the tensor of this name; the inputs, of one shape, are not written to."""
    count = len(deltas)
    scale = scale_of(how, count)
    if count > 1 and how.merge == "ties":
        deltas = _agreed(deltas, how.density)
    elif count > 1 and how.merge == "dare" and how.drop:
        drawn = seeds(generator(seed, tensor), count)
        deltas = [d * _kept(d, how.drop, s) for d, s in zip(deltas, drawn, strict=True)]
    elif how.merge == "average":
        scale /= count
    total = deltas[0]
    for more in deltas[1:]:
        total = total + more
    return total if scale == 1.0 else scale * total


def scale_of(how: Merging, count: int) -> float:
    """What the merge of so many candidates multiplies by."""
    return how.scale if how.scale is not None else 1.0 if count == 1 else SCALES[how.merge]


def _agreed(deltas: Sequence[Tensor], density: float) -> list[Tensor]:
    """The part of each that TIES keeps, divided by how many are kept in the same place."""
    with torch.no_grad():
        trimmed = [torch.where(_largest(d, density), d, 0) for d in deltas]
        sign = torch.stack(trimmed).sum(0).sign()
        chosen = [((t.sign() == sign) & (t != 0)).to(t.dtype) for t in trimmed]
        many = torch.stack(chosen).sum(0).clamp_(min=1)
    return [d * (c / many) for c, d in zip(chosen, deltas, strict=True)]


def _largest(delta: Tensor, density: float) -> Tensor:
    """Which elements are the ⌊density · n⌋ of largest size; of equal ones those that come first."""
    found = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    order = delta.flatten().abs().sort(descending=True, stable=True).indices
    found[order[: int(density * delta.numel())]] = True
    return found.view(delta.shape)


def _kept(delta: Tensor, drop: float, seed: int) -> Tensor:
    """0 where DARE drops an element, else 1 / (1 − drop)."""

    def ones() -> Iterator[Tensor]:
        for block in blocks(delta.detach()):
            yield torch.ones_like(block)

    return torch.cat([block.reshape(-1) for block in dropped(ones, drop, seed)()]).view(delta.shape)
