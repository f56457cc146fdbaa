"""How judgements are cut into batches, and how a batch that does not fit in memory is halved once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from guardkeel.errors import RunError
from guardkeel.models.devices import is_out_of_memory

T = TypeVar("T")

MEMORY_REMEDY = "lower --token-budget or --max-tokens, use a smaller dtype, or free memory"


def plan(lengths: Sequence[int], budget: int, most: int = 256) -> list[list[int]]:
    """Indices in batches of similar length, longest first, at most `budget` padded tokens each.

    Depends on the lengths alone, so a resumed run meets the same batches. Longest first: what will not fit
    in memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and len(batches[-1]) < most and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def halving(run: Callable[[list[int]], list[T]], rows: list[int]) -> list[T]:
    """`run(rows)`; out of memory, the two halves; out of memory again, a RunError."""
    try:
        return run(rows)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
    try:
        middle = (len(rows) + 1) // 2
        return run(rows[:middle]) + (run(rows[middle:]) if rows[middle:] else [])
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise RunError(
            f"out of memory on a batch of {len(rows)} items, and again on half of it", remedy=MEMORY_REMEDY
        ) from e
