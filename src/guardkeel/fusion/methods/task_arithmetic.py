"""Task arithmetic (arXiv:2212.04089): θ₀ + λ Σ w_i δ_i, with the safe guard in the place of the pre-trained model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Generator, Tensor

from guardkeel.errors import ConfigError
from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import added, change, toward


def task_arithmetic(reference: Tensor, candidates: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """θ₀ + Σ factor_i (θ_i − θ₀); where one factor alone is not zero, exact at its 0 and 1.

    The order of the candidates changes no more than the rounding of the sum.
    """
    kept = [(c, factor) for c, factor in zip(candidates, factors, strict=True) if factor]
    if len(kept) == 1:
        return toward(reference, *kept[0])
    if not kept:
        return reference.clone()
    return added(reference, [change(reference, c) for c, _ in kept], [factor for _, factor in kept])


def one_each(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, or ones; ConfigError where there are not as many as candidates."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ConfigError(
            f"there are {len(weights)} weights for {count} candidates",
            remedy="give one weight a candidate, in their order",
        )
    return list(weights)


class TaskArithmeticSettings(base.Settings):
    """Settings of task arithmetic."""

    scale: float = Field(
        default=0.3, allow_inf_nan=False, description="λ: how much of the summed change is added"
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="one weight a candidate, in their order; all 1 where not given"
    )


class TaskArithmetic(base.Method):
    """θ₀ + λ Σ w_i δ_i."""

    name = "task-arithmetic"
    summary = "a multiple λ of the summed changes"
    Settings = TaskArithmeticSettings
    settings: TaskArithmeticSettings
    most = None
    work = 0
    elementwise = True

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + λ Σ w_i δ_i."""
        weights = one_each(self.settings.weights, len(tensors.candidates))
        factors = [self.settings.scale * weight for weight in weights]
        return task_arithmetic(tensors.reference, tensors.candidates, factors)
