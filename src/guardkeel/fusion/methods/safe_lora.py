"""Safe LoRA (arXiv:2405.16833): project a change onto what alignment changed, where it points elsewhere.

    V = θ₀ − θ_u  (out, in),   Ĉ = V Vᵀ / ‖V‖_F,   ΔW = θ − θ₀
    ΔW ← Ĉ ΔW   where cos(ΔW, Ĉ ΔW) ≤ τ

Ĉ is the paper's stand-in for the projector onto V's columns. It is none: its eigenvalues are σ²/‖V‖_F, σ the singular
values of V, so ‖ĈΔW‖ ≤ ‖V‖_F ‖ΔW‖, and only for V of rank 1 (or with all σ alike) does Ĉ² point as Ĉ does. The paper
has LoRA, where ΔW = BA and B is projected; here it is any ΔW. A matrix product is involved, so the last bits depend on
the device and its libraries.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.fusion.methods import base
from guardkeel.fusion.methods.resta import made_from
from guardkeel.fusion.methods.streams import blocks, cosine, gram


def along(v: Tensor, x: Tensor) -> Tensor:
    """Ĉx = V Vᵀ x / ‖V‖_F for V (out, in), not all zeros, and x (out, k), in the order of fewer multiplications."""
    (rows, columns), k = v.shape, x.shape[1]
    wide = rows * (columns + k) < 2 * columns * k
    product: Tensor = (v @ v.T) @ x if wide else v @ (v.T @ x)
    return product.div_(torch.linalg.matrix_norm(v))


def projected(v: Tensor, delta: Tensor) -> tuple[Tensor, float | None]:
    """ĈΔW and its cosine with ΔW; None where V (never aligned), ΔW or ĈΔW is zero."""
    if float(gram(blocks(v))) < torch.finfo(torch.float32).tiny:
        return torch.zeros_like(delta), None
    kept = along(v, delta)
    return kept, cosine(gram(blocks(delta), blocks(kept)))


class SafeLoraSettings(base.Settings):
    """Settings of Safe LoRA's test."""

    threshold: float = Field(
        default=0.5, ge=0, le=1, description="τ: tensors with a cosine up to this are repaired"
    )
    skip: tuple[str, ...] = Field(
        default=("embed",),
        description="parts of names of tensors that are left alone; token embeddings are (in, out), and the test "
        "is made for (out, in)",
    )


class SafeLora(base.Method):
    """θ₀ + ĈΔW where the test fails.

    Everything else stays as the candidate has it: what passes, is no matrix or is skipped by name, what the alignment
    or the fine-tuning never changed.
    """

    name = "safe-lora"
    summary = "changes that point away from the alignment are projected onto it"
    Settings = SafeLoraSettings
    settings: SafeLoraSettings
    needs_unaligned = True
    work = 3

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """The candidate, or θ₀ + ĈΔW."""
        kept = self.failing(tensors)
        return tensors.candidates[0].clone() if kept is None else kept.add_(tensors.reference)

    def failing(self, tensors: base.Tensors) -> Tensor | None:
        """ĈΔW where the test fails, else None."""
        unaligned, s = made_from(tensors), self.settings
        if tensors.reference.ndim != 2 or any(part in tensors.name for part in s.skip):
            return None
        delta = tensors.candidates[0] - tensors.reference
        kept, cos = projected(tensors.reference - unaligned, delta)
        return kept if cos is not None and cos <= s.threshold else None
