"""Deltas a block at a time: what most methods are made of, in memory that does not grow with the tensor.

A `Delta` makes δ anew whenever it is called, in row-major order, as blocks of shape (rows, last axis); every block is
fresh, and whoever takes it may change it. Each step is one correctly rounded float32 operation an element, never a
fused one (and no division by a number, which CUDA makes a product), so that the bytes are the same on any device, with
any number of threads, and for any size of block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor

Delta = Callable[[], Iterator[Tensor]]

BLOCK = 1 << 17
"""Elements of a block: half a mebibyte, so little that it stays in caches, so much that a call costs nothing."""


def blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensor as (rows, last axis), cut between rows into blocks of about BLOCK elements; views where it can be."""
    width = tensor.shape[-1] if tensor.ndim > 1 and tensor.numel() else 1
    return torch.split(tensor.reshape(-1, width), max(1, BLOCK // width))


def fresh(like: Tensor) -> Tensor:
    """An empty contiguous tensor of that shape, to be filled through its `blocks`."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def change(reference: Tensor, candidate: Tensor) -> Delta:
    """δ = θ − θ₀."""

    def made() -> Iterator[Tensor]:
        for start, end in zip(blocks(reference), blocks(candidate), strict=True):
            yield (end - start).contiguous()

    return made


def toward(reference: Tensor, candidate: Tensor, share: float) -> Tensor:
    """θ₀ + share · (θ − θ₀), counted from the nearer end: bit for bit θ₀ at 0 and θ at 1, any share is allowed."""
    if share in (0, 1):
        return (candidate if share else reference).clone()
    near, factor = (reference, share) if share < 0.5 else (candidate, share - 1)
    result = fresh(reference)
    for out, start, end, base in zip(*map(blocks, (result, reference, candidate, near)), strict=True):
        torch.sub(end, start, out=out)
        out.mul_(factor).add_(base)
    return result


def added(reference: Tensor, deltas: Sequence[Delta], factors: Sequence[float]) -> Tensor:
    """θ₀ + Σ factor_i · δ_i, summed in the order given."""
    result = fresh(reference)
    made = [delta() for delta in deltas]
    for out, start, *parts in zip(blocks(result), blocks(reference), *made, strict=True):
        out.zero_()
        for part, factor in zip(parts, factors, strict=True):
            out.add_(part.mul_(factor))
        out.add_(start)
    return result


def gram(*streams: Iterable[Tensor]) -> Tensor:
    """The inner products of tensors that come as blocks, (n, n) in float64 on the CPU."""
    total = torch.zeros(len(streams), len(streams), dtype=torch.float64)
    for parts in zip(*streams, strict=True):
        rows = torch.stack([part.reshape(-1) for part in parts]).double()
        total += (rows @ rows.T).cpu()
    return total


def cosine(products: Tensor, i: int = 0, j: int = 1) -> float | None:
    """The cosine of tensors i and j from their `gram`; None where one of them is zero."""
    size = float(products[i, i]) ** 0.5 * float(products[j, j]) ** 0.5
    return max(-1.0, min(1.0, float(products[i, j]) / size)) if size else None


def seeds(generator: Generator | None, count: int) -> list[int]:
    """Seeds of `count` independent streams of numbers, drawn from a tensor's own generator."""
    if generator is None:
        raise ValueError("a method that draws needs the generator of the tensor")
    found: list[int] = torch.randint(2**63 - 1, (count,), generator=generator).tolist()
    return found
