"""A matrix as a product of two thin ones: truncated singular value decomposition, with the error measured.

By Eckart–Young the r leading singular triples give the closest matrix of rank r in the Frobenius norm; what is lost is
√(σ²_{r+1} + …). Two short cuts keep that (almost) exact where a whole decomposition would be slow:

- rows known: a change made of LoRA updates B_i A_i by anything that keeps their row space (sums, scalings, projections
  of B) has its rows in the span of the A_i. With an orthonormal basis Q of it, δ = (δQ)Qᵀ, and the decomposition is
  that of the thin δQ. Whether it holds is looked up, not assumed: ‖δ − δQQᵀ‖ must be rounding alone.
- large: randomised range finder with two power iterations (Halko, Martinsson, Tropp, arXiv:0909.4061). The rank that it
  finds for a tolerance can be a little above the least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

_LARGE = 1024  # columns or rows from which a whole decomposition is slow
_FIRST = 64
_SPARE = 16


@dataclass(frozen=True, slots=True)
class Factors:
    """δ ≈ up · down, up (rows, rank) and down (rank, columns), as they are stored."""

    up: Tensor
    down: Tensor
    error: float
    """‖δ − up · down‖ / ‖δ‖ in the Frobenius norm, computed from these very factors."""

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return int(self.up.shape[1])


def factorised(
    delta: Tensor,
    *,
    rank: int | None = None,
    tolerance: float = 0.0,
    rows: Tensor | None = None,
    rounding: float = 0.0,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """The best factors of a rank, or of the least rank within a tolerance.

    Args:
        delta: float32, of two dimensions, not zero.
        rank: of the factors, or the tolerance decides.
        tolerance: relative error in the Frobenius norm.
        rows: (columns, k) orthonormal, a span in which the rows of delta may lie.
        rounding: norm of the rounding errors in delta.
        generator: of the randomised decomposition of large matrices; on the CPU.
        dtype: of the factors.
    """
    total = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    found = _within(delta, rows, rounding) if rows is not None else None
    left, values, right, rest = found or _leading(delta, rank, tolerance, total, generator)
    count = min(rank, len(values)) if rank else least_rank(values, rest, tolerance * total)
    root = values[:count].sqrt()
    up = (left[:, :count] * root).to(dtype).contiguous()
    down = (root[:, None] * right[:count]).to(dtype).contiguous()
    lost = torch.linalg.vector_norm(delta - up.float() @ down.float(), dtype=torch.float64)
    return Factors(up, down, float(lost) / total)


def least_rank(values: Tensor, rest: float, allowed: float) -> int:
    """The least r ≥ 1 with √(rest² + σ²_{r+1} + …) ≤ allowed, or all there are."""
    squares = values.double().square()
    beyond = squares.flip(0).cumsum(0).flip(0) - squares + rest**2  # after the first, second, … of them
    enough = (beyond.clamp(min=0).sqrt() <= allowed).nonzero()
    return int(enough[0]) + 1 if len(enough) else len(values)


def row_basis(factors: list[Tensor]) -> Tensor | None:
    """An orthonormal basis (columns, k) of the rows of all these A (rank, columns); None where they may span it all."""
    if not factors:
        return None
    stacked = torch.cat([a.float() for a in factors]).T
    return None if stacked.shape[1] >= stacked.shape[0] else torch.linalg.qr(stacked).Q


_Decomposition = tuple[Tensor, Tensor, Tensor, float]
"""Left vectors, singular values, right vectors transposed, norm of what they leave out."""


def _within(delta: Tensor, rows: Tensor, rounding: float) -> _Decomposition | None:
    inside = delta @ rows
    outside = float(torch.linalg.vector_norm(delta - inside @ rows.T, dtype=torch.float64))
    if outside > rounding:
        return None
    left, values, right = torch.linalg.svd(inside, full_matrices=False)
    return left, values, right @ rows.T, outside


def _leading(
    delta: Tensor, rank: int | None, tolerance: float, total: float, generator: Generator | None
) -> _Decomposition:
    least = min(delta.shape)
    tries = rank + _SPARE if rank else _FIRST
    while least > _LARGE and tries < least // 4:
        left, values, right = _randomised(delta, tries, generator)
        rest = max(0.0, total**2 - float(values.double().square().sum())) ** 0.5
        if rank or rest <= tolerance * total:
            return left, values, right, rest
        tries *= 2
    return (*torch.linalg.svd(delta, full_matrices=False), 0.0)


def _randomised(delta: Tensor, count: int, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    start = torch.randn(delta.shape[1], count, generator=generator).to(delta.device)
    span = torch.linalg.qr(delta @ start).Q
    for _ in range(2):
        span = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ span).Q).Q
    left, values, right = torch.linalg.svd(span.T @ delta, full_matrices=False)
    return span @ left, values, right
