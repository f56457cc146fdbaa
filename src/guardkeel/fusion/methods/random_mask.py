"""The control of every mask that is learned or found: one that knows nothing.

    δ̃_i = δ_i ⊙ b / keep,   b ~ Bernoulli(keep), drawn for each element, each row or the whole tensor

All candidates share b, as they share the mask of SOMF. "Safety subspaces are not linearly distinct"
(arXiv:2505.14185) is the objection that this answers: a mask earns its name by what it does better than this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.dare import under
from guardkeel.fusion.methods.merging import Merging, merged
from guardkeel.fusion.methods.streams import Delta, seeds

Granularity = Literal["element", "row", "tensor"]


def sifted(delta: Delta, keep: float, granularity: Granularity, rescale: bool, seed: int) -> Delta:
    """δ ⊙ b, times 1/keep where it is rescaled (keep > 0); the elements of a vector are its rows."""

    def made() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        whole = under(torch.rand(1, 1, generator=generator), keep)
        for block in delta():
            shape = block.shape if granularity == "element" else (len(block), 1)
            kept = whole if granularity == "tensor" else under(torch.rand(shape, generator=generator), keep)
            block.mul_(kept.to(block.device))
            yield block.mul_(1 / keep) if rescale else block

    return made


class RandomMaskSettings(Merging):
    """Settings of the random mask."""

    keep: float = Field(default=0.5, ge=0, le=1, description="the probability of being kept")
    rescale: bool = Field(default=True, description="divide what is kept by `keep`, so that the mean stays")
    granularity: Granularity = Field(default="element", description="what is kept or dropped as one")


class RandomMask(base.Method):
    """θ₀ + merge of the randomly masked changes."""

    name = "random-mask"
    summary = "control: a random mask over the changes"
    Settings = RandomMaskSettings
    settings: RandomMaskSettings
    most = None
    draws = True
    work = 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + merge of the masked δ_i: θ₀ at keep = 0, and where everything is kept the merge without a mask."""
        s = self.settings
        if not s.keep:
            return tensors.reference.clone()
        if s.keep == 1:
            return merged(tensors.reference, tensors.candidates, None, s, generator)
        (seed,) = seeds(generator, 1)

        def mask(delta: Delta) -> Delta:
            return sifted(delta, s.keep, s.granularity, s.rescale, seed)

        return merged(tensors.reference, tensors.candidates, mask, s, generator)
