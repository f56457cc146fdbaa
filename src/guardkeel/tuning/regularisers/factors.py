"""What a LoRA layer adds to its weight, as two thin matrices, so that ΔW (out × in) is never formed.

A *pair* is (left, right) of shapes (out, k) and (k, in) with ΔW = left · right; k is the rank, summed over the active
adapters. All of it is at least float32 and differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where that is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def whole(tensor: Any) -> Any:
    """All of a tensor of which every process may hold a shard only."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def adapters(module: Any) -> list[str]:
    """The active adapters (A, B) of a LoRA layer, in order; none for any other module."""
    known = getattr(module, "lora_A", None)
    return [] if known is None else [name for name in module.active_adapters if name in known]


def pair(module: Any) -> Pair | None:
    """ΔW = Σ scaling · B · A of a LoRA layer as (left, right).

    None where ΔW is no such product: DoRA and other variants, embeddings, convolutions, fused experts, plain modules.
    """
    names = adapters(module)
    odd = {*module.lora_magnitude_vector, *getattr(module, "lora_variant", {})} if names else set()
    if not names or odd.intersection(names) or getattr(module, "num_experts", 1) != 1:
        return None
    downs = [module.lora_A[name].weight for name in names]
    ups = [module.lora_B[name].weight for name in names]
    if any(weight.ndim != 2 for weight in (*downs, *ups)):
        return None
    scaled = [wide(up) * module.scaling[name] for up, name in zip(ups, names, strict=True)]
    return torch.cat(scaled, 1), torch.cat([wide(down) for down in downs], 0)


def since(now: Pair, start: Pair | None) -> Pair:
    """The change since `start` (None: it began at zero), as a pair of twice the rank.

    LR − L₀R₀ = (L − L₀)R + L₀(R − R₀): at the start both products are exactly zero, and so are their gradients.
    """
    if start is None:
        return now
    (left, right), (left0, right0) = now, (wide(t.to(now[0].device)) for t in start)
    return torch.cat([left - left0, left0], 1), torch.cat([right, right - right0], 0)


def inner(left: Tensor, other: Tensor, right: Tensor) -> Tensor:
    """⟨left · right, other · right⟩_F = tr((leftᵀ other)(right rightᵀ)), of O((out + in) k²) operations."""
    return ((left.T @ other) * (right @ right.T)).sum()


def squared_norm(left: Tensor, right: Tensor) -> Tensor:
    """‖left · right‖²_F."""
    return inner(left, left, right)
