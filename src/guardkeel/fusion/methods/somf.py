"""SOMF (arXiv:2405.09055), the fusion: changes since the safe guard, under one mask that all of them share.

    δ̃_i = δ_i ⊙ m / mean(m),   θ = θ₀ + merge of δ̃_i

m in [0, 1] is the mask's expectation, learned elsewhere and given as the extra "mask"; the paper and its code fuse with
one random draw of it. mean(m) is over the tensor. A tensor without a mask is merged unmasked.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import Generator, Tensor, finfo, float32, float64

from guardkeel.errors import DataError
from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.merging import Merging, merged
from guardkeel.fusion.methods.streams import Delta, blocks


def masked(delta: Delta, mask: Tensor, mean: float) -> Delta:
    """δ ⊙ m / mean; the mask has the shape of δ, or has been expanded to it."""

    def made() -> Iterator[Tensor]:
        for block, kept in zip(delta(), blocks(mask), strict=True):
            yield block.mul_(kept * (1 / mean))

    return made


def checked(mask: Tensor, like: Tensor, name: str) -> Tensor:
    """The mask in float32 on the tensor's device.

    Raises:
        DataError: it is not of that shape, nor one number a row (out, 1), nor one for the tensor (1,); or a number is
            outside [0, 1].
    """
    row = (*like.shape[:-1], 1) if like.ndim > 1 else tuple(like.shape)
    if mask.shape not in (like.shape, row, (1,)):
        raise DataError(
            f"the mask of {name!r} is {tuple(mask.shape)} for a tensor of {tuple(like.shape)}",
            remedy="use the mask that was learned on this reference and these candidates",
        )
    mask = mask.to(like.device, float32)
    if mask.numel() and not (float(mask.min()) >= 0 and float(mask.max()) <= 1):
        raise DataError(
            f"the mask of {name!r} holds numbers outside 0 … 1", remedy="give probabilities, not their logits"
        )
    return mask


class SomfSettings(Merging):
    """Settings of SOMF's fusion."""

    rescale: bool = Field(default=True, description="divide by the mask's mean, tensor by tensor")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="keep what has a mask of at least this, and nothing else; soft if not given",
    )


class Somf(base.Method):
    """θ₀ + merge of δ_i ⊙ m / mean(m)."""

    name = "somf"
    summary = "a learned mask over the changes"
    Settings = SomfSettings
    settings: SomfSettings
    most = None
    extras = ("mask",)
    draws = True
    work = 1

    def drawing(self) -> bool:
        """Where the merge is DARE's."""
        return self.settings.merge == "dare" and self.settings.drop > 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + merge of the masked δ_i: θ₀ for a mask of zeros, and for one of ones the merge without a mask."""
        reference, candidates, s = tensors.reference, tensors.candidates, self.settings
        found = tensors.extras.get("mask")
        if found is None:
            return merged(reference, candidates, None, s, generator)
        mask = checked(found, reference, tensors.name)
        if s.threshold is not None:
            mask = (mask >= s.threshold).to(float32)
        mean = float(mask.mean(dtype=float64)) if mask.numel() else 1.0
        if mean == 1:  # of numbers up to 1: all of them are
            return merged(reference, candidates, None, s, generator)
        if mean < finfo(float32).tiny:
            return reference.clone()
        whole = (
            mask.reshape(reference.shape) if mask.numel() == reference.numel() else mask.expand_as(reference)
        )
        divisor = mean if s.rescale else 1.0
        return merged(reference, candidates, lambda delta: masked(delta, whole, divisor), s, generator)
