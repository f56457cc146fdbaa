"""Model Stock (arXiv:2403.19522): the mean of the candidates, drawn to θ₀ as far as they disagree.

    θ = θ₀ + t · mean(δ_i),   t = N cos φ / (1 + (N − 1) cos φ),   φ the angle between the δ_i of a tensor

With more than two candidates cos φ is the mean over all pairs (the paper has one angle; mergekit does the same); a δ
of zero is at right angles to all. Below 0 it is taken as 0, so that t is within [0, 1]: candidates that pull apart
give θ₀.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import change, cosine, gram
from guardkeel.fusion.methods.task_arithmetic import task_arithmetic


def ratio(cos: float, count: int) -> float:
    """t = N cos φ / (1 + (N − 1) cos φ), of cos φ from 0 up."""
    cos = max(0.0, cos)
    return count * cos / (1 + (count - 1) * cos)


def agreement(reference: Tensor, candidates: Sequence[Tensor]) -> float:
    """The mean cosine of the δ_i over all pairs; 1 for a single candidate, which agrees with itself."""
    pairs = list(combinations(range(len(candidates)), 2))
    if not pairs:
        return 1.0
    products = gram(*(change(reference, candidate)() for candidate in candidates))
    return sum(cosine(products, i, j) or 0.0 for i, j in pairs) / len(pairs)


class ModelStock(base.Method):
    """θ₀ + t · mean(δ_i). It has no setting; the order of the candidates changes no more than rounding."""

    name = "model-stock"
    summary = "the mean of the candidates, drawn to the reference as far as they disagree"
    least = 2
    most = None
    work = 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + t · mean(δ_i); one candidate alone comes back as it is."""
        count = len(tensors.candidates)
        t = ratio(agreement(tensors.reference, tensors.candidates), count)
        return task_arithmetic(tensors.reference, tensors.candidates, [t / count] * count)
