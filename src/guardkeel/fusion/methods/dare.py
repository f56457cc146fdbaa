"""DARE (arXiv:2311.03099): drop each element of δ with probability p, divide the rest by 1 − p. E[δ̃] = δ.

What is left of several candidates is merged by task arithmetic, or by the sign election and disjoint mean of TIES
(without its trimming). Draws belong to the places of candidates in their list: other orders draw otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import Delta, added, change, seeds
from guardkeel.fusion.methods.task_arithmetic import task_arithmetic
from guardkeel.fusion.methods.ties import agreed


def under(drawn: Tensor, keep: float) -> Tensor:
    """1 where a number drawn from [0, 1) is below `keep`, else 0; in place. A float mask is faster than a bool one."""
    return drawn.neg_().add_(keep).sign_().clamp_min_(0)


def dropped(delta: Delta, drop: float, seed: int) -> Delta:
    """δ with each element set to 0 with probability `drop` < 1, else times 1/(1 − drop); the seed tells which."""
    keep = 1 - drop

    def made() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for block in delta():
            drawn = torch.rand(block.shape, generator=generator)
            yield block.mul_(under(drawn, keep).to(block.device)).mul_(1 / keep)

    return made if drop else delta


class DareSettings(base.Settings):
    """Settings of DARE."""

    drop: float = Field(default=0.2, ge=0, lt=1, description="p: the probability that an element is dropped")
    merge: Literal["task-arithmetic", "ties"] = Field(
        default="task-arithmetic", description="how what is left of several candidates is merged"
    )
    scale: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="λ: how much of the merged change is added; where not given 1 for one candidate, 0.3 for several",
    )


class Dare(base.Method):
    """θ₀ + λ · merge of δ̃_i, δ̃_i = δ_i ⊙ Bernoulli(1 − p) / (1 − p)."""

    name = "dare"
    summary = "random elements of the changes, scaled up to the same mean"
    Settings = DareSettings
    settings: DareSettings
    most = None
    draws = True
    work = 0

    def drawing(self) -> bool:
        """Where elements are dropped."""
        return self.settings.drop > 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + λ · merge of δ̃_i; nothing is drawn at p = 0."""
        reference, candidates, s = tensors.reference, tensors.candidates, self.settings
        count = len(candidates)
        scale = s.scale if s.scale is not None else 1.0 if count == 1 else 0.3
        together = s.merge == "task-arithmetic" or count == 1
        if not scale or (together and not s.drop):
            return task_arithmetic(reference, candidates, [scale] * count)
        deltas = [change(reference, candidate) for candidate in candidates]
        if s.drop:
            drawn = seeds(generator, count)
            deltas = [dropped(delta, s.drop, seed) for delta, seed in zip(deltas, drawn, strict=True)]
        return added(reference, deltas, [scale] * count) if together else agreed(reference, deltas, scale)
