"""In which order a run sees its data: a function of the lengths and the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def batches(lengths: Sequence[int], *, size: int, count: int, seed: int) -> list[list[int]]:
    """`count` batches of indices: epoch after epoch in seeded random order, similar lengths together.

    Every example comes once an epoch; what no full batch takes up is a smaller one at its end. Fewer examples than a
    batch are repeated to fill it.
    """
    generator = torch.Generator().manual_seed(seed)
    window = 32 * size
    found: list[list[int]] = []
    while len(found) < count:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        if len(order) < size:
            order = (order * math.ceil(size / len(order)))[:size]
        epoch, rest = [], list[int]()
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda i: (lengths[i], i))
            full = len(near) - len(near) % size
            epoch += [near[i : i + size] for i in range(0, full, size)]
            rest += near[full:]
        found += [epoch[i] for i in torch.randperm(len(epoch), generator=generator).tolist()]
        found += [rest] if rest else []
    return found[:count]


def schedule(step: int, *, steps: int, warmup: float, decay: bool) -> float:
    """The factor of the learning rate at an optimiser step: linear warm-up over a share of the steps, then 1, or with
    `decay` a cosine down to a tenth.
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    if not decay:
        return 1.0
    done = (step - warm) / max(1, steps - warm)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
