"""RESTA (arXiv:2402.11746): add the direction in which the guard was once made safe.

    θ = θ_ft + β (θ₀ − θ_u),   θ_u the model that the reference was made from

With `drop` the change θ_ft − θ₀ first goes through DARE, as in the paper's second variant.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.errors import ConfigError
from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.dare import dropped
from guardkeel.fusion.methods.streams import added, blocks, change, fresh, seeds


def made_from(tensors: base.Tensors) -> Tensor:
    """θ_u; ConfigError where it was not given."""
    if tensors.unaligned is None:
        raise ConfigError(
            f"there is no unaligned tensor of {tensors.name!r}",
            remedy="name the model that the reference was made from with the option `unaligned`",
        )
    return tensors.unaligned


def resta(reference: Tensor, candidate: Tensor, unaligned: Tensor, strength: float) -> Tensor:
    """θ_ft + β (θ₀ − θ_u); the candidate, bit for bit, at β = 0."""
    if not strength:
        return candidate.clone()
    result = fresh(reference)
    for out, safe, tuned, raw in zip(*map(blocks, (result, reference, candidate, unaligned)), strict=True):
        torch.sub(safe, raw, out=out)
        out.mul_(strength).add_(tuned)
    return result


class RestaSettings(base.Settings):
    """Settings of RESTA."""

    strength: float = Field(
        default=0.5, allow_inf_nan=False, description="β: how much of the safety vector θ₀ − θ_u is added"
    )
    drop: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that an element of the fine-tuning's change is dropped (DARE)",
    )


class Resta(base.Method):
    """θ_ft + β (θ₀ − θ_u)."""

    name = "resta"
    summary = "the candidate plus a multiple of what once made the reference safe"
    Settings = RestaSettings
    settings: RestaSettings
    needs_unaligned = True
    draws = True
    elementwise = True
    work = 1

    def drawing(self) -> bool:
        """Where elements are dropped."""
        return self.settings.drop > 0

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ_ft + β (θ₀ − θ_u); nothing is drawn at drop = 0."""
        reference, candidate, s = tensors.reference, tensors.candidates[0], self.settings
        if s.drop:
            kept = dropped(change(reference, candidate), s.drop, *seeds(generator, 1))
            candidate = added(reference, [kept], [1.0])
        return resta(reference, candidate, made_from(tensors), s.strength)
