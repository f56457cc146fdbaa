"""The two ends that every repair lies between: all of the safety, and all of the fine-tuning."""

from __future__ import annotations

from torch import Generator, Tensor

from guardkeel.fusion.methods.base import Method, Tensors


class Reference(Method):
    """θ₀: the repair that undoes the fine-tuning."""

    name = "reference"
    summary = "the reference itself: what a repair must not collapse to"
    most = None
    work = 0
    elementwise = True

    def fuse(self, tensors: Tensors, generator: Generator | None = None) -> Tensor:
        """A copy of θ₀."""
        return tensors.reference.clone()


class Candidate(Method):
    """θ₁: no repair at all."""

    name = "candidate"
    summary = "the candidate itself: no repair"
    work = 0
    elementwise = True

    def fuse(self, tensors: Tensors, generator: Generator | None = None) -> Tensor:
        """A copy of θ₁."""
        return tensors.candidates[0].clone()
