"""Ids and draws: from a generator that is seeded by the system once, which is not asked for every request."""

from __future__ import annotations

import random
import secrets

_RANDOM = random.Random(secrets.token_bytes(32))  # noqa: S311 - ids are unique, not secret


def new_id(kind: str) -> str:
    """A new id, "v_" and 96 bits in hex: of a verdict, a request, an answer."""
    return f"{kind}{_RANDOM.getrandbits(96):024x}"


def uniform() -> float:
    """A number that is uniform on [0, 1) and independent of all else."""
    return _RANDOM.random()
