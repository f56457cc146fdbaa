"""The same linear maps, faster where the processor's default is slow.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN,
which PyTorch ships as well, does not, and keeps weights in the layout of its kernels (2.3 times as fast on a Zen 5).
Both are float32 throughout; sums are in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

Maps = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def fused(modules: Sequence[Any], *, pack: bool) -> Maps:
    """Several modules that read the same input as one function of it.

    Args:
        modules: linear maps. Those that are not plain (adapters, quantised) are called as they are.
        pack: copy their weights into oneDNN's layout, where that is faster; gradients are lost.
    """
    if not (pack and all(map(_packable, modules))):
        return lambda x: tuple(m(x) for m in modules)
    weight = torch.cat([m.weight for m in modules]) if len(modules) > 1 else modules[0].weight
    biases = [m.bias for m in modules]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                m.weight.new_zeros(m.out_features) if b is None else b
                for m, b in zip(modules, biases, strict=True)
            ]
        )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    sizes = [m.out_features for m in modules]

    def product(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out.split(sizes, -1) if len(sizes) > 1 else (out,)  # type: ignore[no-untyped-call]

    return product


def _packable(module: Any) -> bool:
    return (
        type(module) is torch.nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and worthwhile()
    )


@cache
def worthwhile() -> bool:
    """Whether oneDNN is there and the processor is an AMD one."""
    there = torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    with contextlib.suppress(OSError):
        return there and "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    return False
