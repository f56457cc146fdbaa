"""Linear: the weighted mean of the candidates (model soups, arXiv:2203.05482)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.task_arithmetic import one_each, task_arithmetic


class LinearSettings(base.Settings):
    """Settings of the weighted mean."""

    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(
        default=None, description="one weight a candidate, in their order; all alike where not given"
    )

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not sum(weights):
            raise ValueError("at least one weight must be above 0")
        return weights


class Linear(base.Method):
    """Σ w_i θ_i / Σ w_i. It is counted from θ₀, so that what no candidate changed stays as it was, to the bit.

    The reference is no part of the mean: to mix it in, name it among the candidates.
    """

    name = "linear"
    summary = "the weighted mean of the candidates"
    Settings = LinearSettings
    settings: LinearSettings
    most = None
    work = 0
    elementwise = True

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """The weighted mean; the candidate itself, bit for bit, where one weight alone is not zero."""
        weights = one_each(self.settings.weights, len(tensors.candidates))
        factors = [weight / sum(weights) for weight in weights]
        return task_arithmetic(tensors.reference, tensors.candidates, factors)
