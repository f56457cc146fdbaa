"""Inputs for fusion methods, and slow, obvious ways to compute what they compute."""

import torch

from guardkeel.fusion.methods.base import Tensors

EVERY = [
    "interpolation", "linear", "task-arithmetic", "ties", "dare", "slerp", "model-stock", "resta", "safe-lora",
    "safe-merge", "safe-delta", "antidote", "somf", "random-mask", "reference", "candidate",
]  # fmt: skip


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def inputs(shape=(6, 5), count=1, seed=0, *, name="layer.weight", spread=0.3, **extras):
    """Tensors of a reference, `count` candidates near it and what it was made from."""
    one = draw(seed)
    reference = one(*shape)
    candidates = tuple(reference + spread * one(*shape) for _ in range(count))
    return Tensors(name, reference, candidates, reference + spread * one(*shape), extras)


def extras(shape, seed=0):
    """All extras of a matrix."""
    one = draw(seed + 1000)
    x = one(3 * shape[-1], shape[-1])
    return {
        "safe-hessian": 2 * x.T @ x / len(x),
        "harmful-norms": x.norm(dim=0),
        "mask": torch.sigmoid(2 * one(*shape)),
    }


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def trim(delta, density):
    """The ⌊density · n⌋ largest by magnitude, of equal ones the first; by sorting."""
    flat = delta.flatten()
    order = sorted(range(len(flat)), key=lambda i: (-abs(float(flat[i])), i))
    out = torch.zeros_like(flat)
    for i in order[: int(density * len(flat))]:
        out[i] = flat[i]
    return out.view(delta.shape)


def ties(reference, candidates, density, scale):
    """TIES, element by element."""
    kept = [trim(c - reference, density).flatten().tolist() for c in candidates]
    out = []
    for start, column in zip(reference.flatten().tolist(), zip(*kept, strict=True), strict=True):
        up = [d for d in column if d > 0]
        down = [d for d in column if d < 0]
        winner = up if sum(up) > -sum(down) else down if -sum(down) > sum(up) else []
        out.append(start + scale * (sum(winner) / len(winner) if winner else 0))
    return torch.tensor(out).view(reference.shape)


def obs(reference, candidate, keep, hessian):
    """Optimal Brain Surgeon, one element after another, each inverse made anew; float64.

    When element (i, j) is set, the elements of its row before j are fixed and those after it are free to make good.
    """
    w, h = reference.double().clone(), hessian.double()
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            if keep[i, j]:
                inverse = torch.linalg.inv(h[j:, j:])
                w[i, j:] -= (w[i, j] - candidate[i, j].double()) / inverse[0, 0] * inverse[0]
                w[i, j] = candidate[i, j]
    return w


def same_bits(one, other):
    """Equal to the bit: −0 is not 0."""
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))
