"""SafeMERGE (arXiv:2503.17239): the test of Safe LoRA, and a mix of fine-tuned and safe where it fails.

    θ ← w θ_ft + (1 − w) θ₀ = θ₀ + w ΔW   where cos(ΔW, Ĉ ΔW) ≤ τ

The paper mixes the fine-tuned adapter with one tuned for safety, both on the aligned model; here the safe side is the
reference itself. Defaults are those of its code: w 0.8, τ 0.35.
"""

from __future__ import annotations

from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.safe_lora import SafeLora, SafeLoraSettings
from guardkeel.fusion.methods.streams import toward


class SafeMergeSettings(SafeLoraSettings):
    """Settings of SafeMERGE."""

    threshold: float = Field(
        default=0.35, ge=0, le=1, description="τ: tensors with a cosine up to this are mixed"
    )
    weight: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="w: share of the fine-tuned in the mix; the reference has the rest",
    )


class SafeMerge(SafeLora):
    """θ₀ + w ΔW where the test fails; everything else as Safe LoRA leaves it."""

    name = "safe-merge"
    summary = "changes that point away from the alignment are mixed with the reference"
    Settings = SafeMergeSettings
    settings: SafeMergeSettings

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """The candidate, or the mix."""
        weight = 1.0 if self.failing(tensors) is None else self.settings.weight
        return toward(tensors.reference, tensors.candidates[0], weight)
