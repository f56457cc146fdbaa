"""Keep the elements of largest magnitude, exactly, without sorting and without holding δ.

Non-negative float32 numbers are ordered as their bits are. One value of 61 says in which bin of the upper 16 bits of
|δ| the k-th largest is likely to be; a pass over all values counts those above that bin and, by their lower 16 bits,
those in it, which proves the guess and finds the very value. A wrong guess goes on to the next bin; after two of them
all upper bits are counted. So it is three passes that do little, seldom more, and 2 MiB for counting, whatever the
size. Of equal magnitudes at the cut the earlier elements (row-major) are kept, so that it is just k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from guardkeel.fusion.methods.streams import BLOCK, Delta

_STEP = 61  # odd and prime, so that a sample runs through all columns
_GUESSES = 2


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
    bin_, above, lower = _found(delta, keep)
    last, first = _bin(lower, keep - above)
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
            equal = _equal(block.view(-1).abs(), end.least)
            block.view(-1)[equal[left:]] = 0
            left = max(0, left - len(equal))
            yield hardshrink(block, end.below)
        else:
            yield hardshrink(block, end.below if left is None else end.least)


class _Histogram:
    """How often each value occurs. What comes is kept in one place and counted together: many small tensors that stay
    would take the room between large ones that come and go."""

    def __init__(self, bins: int, device: torch.device) -> None:
        self._counts = torch.zeros(bins, dtype=torch.int64)
        self._waiting = torch.empty(BLOCK, dtype=torch.int32, device=device)
        self._filled = 0

    def add(self, values: Tensor) -> None:
        """More values, from 0 to below `bins`."""
        if self._filled + len(values) > BLOCK:
            self._count(self._waiting[: self._filled])
            self._filled = 0
        if len(values) > BLOCK:
            self._count(values)
            return
        self._waiting[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def counts(self) -> Tensor:
        """Of all that was added, int64 on the CPU."""
        self._count(self._waiting[: self._filled])
        self._filled = 0
        return self._counts

    def _count(self, values: Tensor) -> None:
        if len(values):
            self._counts += torch.bincount(values, minlength=len(self._counts)).cpu()


def _found(delta: Delta, keep: int) -> tuple[int, int, Tensor]:
    """The bin of the keep-th largest, how many values are above it, and how many of each lower half are in it."""
    sampled = _uppers(delta, _STEP)
    bin_, _ = _bin(sampled, min(int(sampled.sum()), 1 + keep // _STEP))
    for _ in range(_GUESSES):
        above, lower = _within(delta, bin_)
        if above >= keep:
            bin_ += 1
        elif above + int(lower.sum()) < keep:
            bin_ -= 1
        else:
            return bin_, above, lower
    bin_, _ = _bin(_uppers(delta), keep)
    return bin_, *_within(delta, bin_)


def _uppers(delta: Delta, step: int = 1) -> Tensor:
    """How often each value of the upper bits of |δ| occurs, among one value of so many of each block."""
    found = None
    for block in delta():
        found = found or _Histogram(1 << 15, block.device)
        found.add(block.view(-1)[::step].abs().view(torch.int32) >> 16)
    assert found is not None
    return found.counts()


def _within(delta: Delta, bin_: int) -> tuple[int, Tensor]:
    """How many values are above a bin, and how often each value of the lower bits occurs in it."""
    above, lower = 0, None
    for block in delta():
        lower = lower or _Histogram(1 << 16, block.device)
        over, inside = _split(block.abs_().view(torch.int32).view(-1), bin_ << 16, (bin_ + 1) << 16)
        above += over
        lower.add(inside & 0xFFFF)
    assert lower is not None
    return above, lower.counts()


def _split(bits: Tensor, least: int, most: int) -> tuple[int, Tensor]:
    """How many are at or above `most`, and those from `least` to below it."""
    if bits.device.type != "cpu":
        over = bits >= most
        return int(over.sum()), bits[(bits >= least) ^ over]
    values = bits.numpy()  # numpy compares, counts and picks in a third of torch's time
    beyond, among = values >= most, values >= least
    among ^= beyond
    return int(np.count_nonzero(beyond)), torch.from_numpy(values[among])


def _equal(magnitudes: Tensor, value: float) -> Tensor:
    """Where the magnitudes are that value."""
    if magnitudes.device.type != "cpu":
        return (magnitudes == value).nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(magnitudes.numpy() == np.float32(value)))


def _bin(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bin that holds the keep-th largest, and its place among those of the bin, counted from 1."""
    reached = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(reached, keep))
    bin_ = len(counts) - 1 - at
    return bin_, keep - int(reached[at] - counts[bin_])
