"""Binary Concrete masks (arXiv:1611.01144, 1611.00712) as SOMF uses them, as pure functions of their logits.

With a logit l, a temperature T and u uniform on (0, 1), x = log u − log(1 − u), a drawn mask is m̂ = σ((l + x)/T). Of
it

    median        σ(l/T), since x has median 0 and σ is monotone
    P(m̂ > ½)      σ(l): what a binary mask thresholds
    expectation   E m̂ = ∫₀¹ σ((l + log u − log(1 − u))/T) du, which has no closed form for every T; σ(l/T) is *not* it:
                  at T = 0.5 and l = 1 the median is 0.88 and the expectation 0.71

The released code exports one random draw ("soft") or thresholds a fresh draw ("binary"). Here nothing is drawn for the
export: `expectation` (the default), `median` and `binary` are functions of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from guardkeel.fusion.randomness import generator

Granularity = Literal["element", "row", "tensor"]
Export = Literal["expectation", "median", "binary"]
Draw = Callable[[str, Tensor], Tensor]
"""(tensor's name, its logits) → its mask in [0, 1], of the logits' shape."""

_TINY = 1e-12
_REACH, _POINTS, _NODES = 24.0, 4096, 4001


def logits_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """The shape of a tensor's logits, which broadcasts to the tensor's: one for each element, row or the tensor.

    A row is what one output of a weight (…, in) is made of, so that a vector has as many rows as elements.
    """
    if granularity == "tensor":
        return (1,)
    return (*shape[:-1], 1) if granularity == "row" and len(shape) > 1 else tuple(shape)


def drawn(seed: int, step: int, temperature: float) -> Draw:
    """A draw that follows from the seed, the step and the tensor's name alone; differentiable in the logits."""

    def draw(name: str, logits: Tensor) -> Tensor:
        u = torch.rand(logits.shape, generator=generator(seed, f"{name} at step {step}"))
        edge = torch.finfo(u.dtype).eps
        u = u.clamp_(edge, 1 - edge)
        noise = (u.log() - torch.log1p(-u)).to(logits.device)
        return torch.sigmoid((logits + noise) / temperature)

    return draw


def middle(temperature: float) -> Draw:
    """The median σ(l/T); differentiable in the logits."""
    return lambda name, logits: torch.sigmoid(logits / temperature)


def exported(kind: Export, temperature: float, threshold: float = 0.5) -> Draw:
    """The mask that is written: the expectation, the median, or 1 where the median reaches the threshold, else 0."""
    if kind == "expectation":
        return lambda name, logits: moments(logits, temperature)[0]
    if kind == "median":
        return middle(temperature)
    return lambda name, logits: (torch.sigmoid(logits / temperature) >= threshold).to(logits.dtype)


def moments(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """E m̂ and Var m̂ of each mask, within 1e-5: read off a table over the logit, which is clamped at ±24."""
    mean, square = (t.to(logits.device, torch.float64) for t in _table(temperature))
    place = (logits.double().clamp(-_REACH, _REACH) + _REACH) * ((_POINTS - 1) / (2 * _REACH))
    left = place.floor().clamp_(max=_POINTS - 2).long()
    part = place - left
    expectation = torch.lerp(mean[left], mean[left + 1], part)
    variance = torch.lerp(square[left], square[left + 1], part) - expectation.square()
    return expectation.to(logits.dtype), variance.clamp_(min=0).to(logits.dtype)


@cache
def _table(temperature: float) -> tuple[Tensor, Tensor]:
    """E m̂ and E m̂² on a grid of logits, by the trapezium rule over x, whose density is σ(x)σ(−x).

    The integrand is analytic in a strip and falls off exponentially, so that the rule's error is far below the table's.
    """
    x = torch.linspace(-40, 40, _NODES, dtype=torch.float64)
    density = torch.sigmoid(x) * torch.sigmoid(-x)
    density /= density.sum()
    logits = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    first, second = [], []
    for some in torch.split(logits, 256):
        masks = torch.sigmoid((some[:, None] + x) / temperature)
        first.append(masks @ density)
        second.append(masks.square_() @ density)
    return torch.cat(first), torch.cat(second)


def rescaled(mask: Tensor, mean: Tensor | float) -> Tensor:
    """m / mean, 0 where the mean is: a mask that leaves nothing stays one."""
    return mask / (mean.clamp(min=_TINY) if isinstance(mean, Tensor) else max(mean, _TINY))


def count(shape: Sequence[int]) -> int:
    """How many numbers a tensor of this shape has."""
    return math.prod(shape)
