"""Interpolation: θ₀ + α (θ − θ₀), the plainest repair and the control of all others (WiSE-FT, arXiv:2109.01903)."""

from __future__ import annotations

from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.streams import toward


class InterpolationSettings(base.Settings):
    """Settings of interpolation."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the change that is kept: 0 the reference, 1 the candidate",
    )


class Interpolation(base.Method):
    """θ₀ + α(θ − θ₀), bit for bit θ₀ at α = 0 and θ at α = 1."""

    name = "interpolation"
    summary = "a share α of the change"
    Settings = InterpolationSettings
    settings: InterpolationSettings
    work = 0
    elementwise = True

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ + α(θ − θ₀)."""
        return toward(tensors.reference, tensors.candidates[0], self.settings.alpha)
