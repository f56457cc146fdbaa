"""Keep the elements of largest magnitude, exactly, without sorting and without holding δ.

Non-negative float32 numbers are ordered as their bits are. A histogram over the upper 16 bits of |δ| finds the bin of
the k-th largest, a second one over the lower 16 bits of that bin finds its very value: two passes, and 2 MiB for
counting, whatever the size. Of equal magnitudes at the cut the earlier elements (row-major) are kept, so that it is
just k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from guardkeel.fusion.methods.streams import Delta


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the k largest magnitudes end."""

    least: float
    """The k-th largest |δ|."""
    below: float
    """The next smaller float32 number, or 0."""
    first: int
    """How many elements of just that magnitude are among the k."""
    equal: int
    """How many there are."""


def cut(delta: Delta, keep: int) -> Cut:
    """Where the `keep` ≥ 1 largest |δ| end; there are at least that many elements, and none is NaN."""
    bin_, rest = _bin(_counts(delta, None), keep)
    lower = _counts(delta, bin_)
    last, first = _bin(lower, rest)
    bits = torch.tensor([bin_ << 16 | last, max(bin_ << 16 | last, 1) - 1], dtype=torch.int32)
    least, below = bits.view(torch.float32).tolist()
    return Cut(least, below, first, int(lower[last]))


def trimmed(delta: Delta, size: int, density: float) -> Delta:
    """δ of `size` elements with all but its ⌊density · size⌋ largest magnitudes set to zero."""
    keep = int(density * size)
    if keep >= size:
        return delta
    end = cut(delta, keep) if keep else None
    if end and not end.least:
        return delta  # what would go is zero already

    def none() -> Iterator[Tensor]:
        for block in delta():
            yield block.zero_()

    return partial(_kept, delta, end) if end else none


def _kept(delta: Delta, end: Cut) -> Iterator[Tensor]:
    """δ with what is beyond the cut set to zero."""
    left = end.first if end.equal > end.first else None
    for block in delta():
        if left:
            equal = block.view(-1).abs() == end.least
            count = int(equal.sum())
            if count > left:
                block.view(-1)[equal.nonzero()[left:]] = 0
            left = max(0, left - count)
            yield hardshrink(block, end.below)
        else:
            yield hardshrink(block, end.below if left is None else end.least)


def _counts(delta: Delta, bin_: int | None) -> Tensor:
    """How often each value of the upper bits occurs; with a bin, each value of the lower bits within it."""
    total = torch.zeros(1 << (15 if bin_ is None else 16), dtype=torch.int64)
    for block in delta():
        bits = block.abs_().view(torch.int32).view(-1)
        upper = bits >> 16
        picked = upper if bin_ is None else _where(bits, upper == bin_) & 0xFFFF
        total += torch.bincount(picked, minlength=len(total)).cpu()
    return total


def _where(values: Tensor, mask: Tensor) -> Tensor:
    """values[mask]; of a few values numpy's way takes a third of torch's time."""
    on_cpu = values.device.type == "cpu"
    return torch.from_numpy(values.numpy()[mask.numpy()]) if on_cpu else values[mask]


def _bin(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bin that holds the keep-th largest, and its place among those of the bin, counted from 1."""
    reached = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(reached, keep))
    bin_ = len(counts) - 1 - at
    return bin_, keep - int(reached[at] - counts[bin_])
