"""Random numbers that belong to a tensor: the same on any device, thread count and order of tensors."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers follow from the run's seed and the tensor's name, and from nothing else."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
