"""Antidote (arXiv:2408.09600): prune the weights that matter most on harmful conversations.

    score_ij = |θ_ij| · ‖x_j‖₂   (Wanda, arXiv:2306.11695), x_j the j-th input of the layer on harmful conversations

In each row the ⌊share · in⌋ weights of the highest score are set to 0, as in the paper; `to` "reference" instead gives
them back the value they had before the fine-tuning (ours). Of equal scores the earlier column goes; a weight of score 0
stays. The released code prunes LoRA's A and B, or the q, k, v of a model tuned whole: here it is every tensor for which
norms were measured.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.errors import DataError
from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import blocks


def highest(scores: Tensor, count: int) -> Tensor:
    """Which `count` scores of each row are its highest, bool (rows, columns); none of score 0."""
    least = scores.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = scores > least, scores == least
    open_ = count - above.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > open_).any()):
        equal &= equal.cumsum(1) <= open_
    return (above | equal) & (scores > 0)


class AntidoteSettings(base.Settings):
    """Settings of Antidote."""

    share: float = Field(default=0.1, ge=0, le=1, description="share of each row's weights that is pruned")
    to: Literal["zero", "reference"] = Field(
        default="zero", description="what a pruned weight becomes: 0, or what it was in the reference"
    )


class Antidote(base.Method):
    """The candidate without the weights that speak loudest on harmful conversations.

    A tensor without measured norms stays as the candidate has it.
    """

    name = "antidote"
    summary = "the weights that matter most on harmful conversations, pruned"
    Settings = AntidoteSettings
    settings: AntidoteSettings
    extras = ("harmful-norms",)
    work = 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """The pruned candidate; bit for bit the candidate at share 0. DataError where the norms do not fit."""
        result = tensors.candidates[0].clone(memory_format=torch.contiguous_format)
        norms = tensors.extras.get("harmful-norms")
        if norms is None:
            return result
        if result.ndim != 2 or norms.shape != result.shape[1:]:
            raise DataError(
                f"the input norms of {tensors.name!r} are {tuple(norms.shape)} for a tensor of {tuple(result.shape)}",
                remedy="measure them on this very guard",
            )
        norms = norms.to(result.device, torch.float32)
        count = int(self.settings.share * result.shape[1])
        if not count:
            return result
        for out, start in zip(blocks(result), blocks(tensors.reference), strict=True):
            pruned = highest(out.abs().mul_(norms), count)
            if self.settings.to == "zero":
                out.mul_(pruned.logical_not_())
            else:
                torch.where(pruned, start, out, out=out)
        return result
