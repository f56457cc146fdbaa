"""Items in segments, segments in parts, and a part judged by a guard, batch by batch.

A guard cuts the items that it is given into batches by their lengths, for which it has to tokenise them all. So items
are first cut into segments of `SEGMENT`, in order; batches never reach over a segment's end. A segment's batch k has
the number (first item + k), which no other batch has. All of this follows from the items alone: every engine meets the
same batches, and what one has judged the next need not.

Engines with several workers deal a segment's batches out in turn: part t of m has the batches k with k mod m = t. Each
worker tokenises the whole segment for that, which is why segments are not larger.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from guardkeel.errors import ModelError
from guardkeel.guards.base import Guard, Judgement, Verdict

SEGMENT = 4096

Floats32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Part:
    """Batches of one segment: `turn` of every `of`, without those numbered in `known`.

    Hidden states of `layers` are wanted for the items in `sample`. All numbers count from the first item of all.
    """

    start: int
    items: Sequence[Judgement]
    layers: tuple[int, ...] = ()
    sample: frozenset[int] = frozenset()
    known: frozenset[int] = frozenset()
    categories: bool = True
    turn: int = 0
    of: int = 1

    def deal(self, count: int) -> list[Part]:
        """The same batches in at most `count` parts."""
        return [replace(self, turn=turn, of=count) for turn in range(min(count, len(self.items)))]


@dataclass(frozen=True, slots=True)
class Done:
    """One judged batch. `hidden` is (layers, sampled, width), of the items in `sampled` only."""

    number: int
    indices: list[int]
    verdicts: list[Verdict]
    sampled: list[int]
    hidden: Floats32
    seconds: float


@runtime_checkable
class Spreads(Protocol):
    """A guard that has parts judged elsewhere."""

    def judge_parts(self, parts: Sequence[Part]) -> Iterator[Done]:
        """The batches of the parts, each once, in whatever order they are finished."""
        ...


def parts(
    items: Sequence[Judgement],
    *,
    layers: Sequence[int] = (),
    sample: Iterable[int] = (),
    known: Collection[int] = (),
    judged: Collection[int] = (),
    categories: bool = True,
) -> list[Part]:
    """One part for each segment that has items not yet `judged`; `known` are the numbers of finished batches."""
    wanted, found = frozenset(sample) if layers else frozenset(), []
    for start in range(0, len(items), SEGMENT):
        inside = range(start, min(start + SEGMENT, len(items)))
        if all(i in judged for i in inside):
            continue
        found.append(
            Part(
                start,
                items[start : inside.stop],
                tuple(layers),
                frozenset(i for i in inside if i in wanted),
                frozenset(n for n in known if n in inside),
                categories,
            )
        )
    return found


def judge(guard: Guard, given: Sequence[Part]) -> Iterator[Done]:
    """The batches of the parts, each once, by a guard of any engine."""
    if isinstance(guard, Spreads):
        yield from guard.judge_parts(given)
        return
    for part in given:
        yield from judge_here(guard, part)


def judge_here(guard: Guard, part: Part) -> Iterator[Done]:
    """The batches of one part, by a guard in this process."""
    skip = {k for k in range(len(part.items)) if k % part.of != part.turn or part.start + k in part.known}
    begun = time.perf_counter()
    layers = part.layers if part.sample else ()
    for batch in guard.batches(part.items, layers=layers, categories=part.categories, skip=skip):
        now = time.perf_counter()
        indices = [part.start + i for i in batch.indices]
        picked = [j for j, i in enumerate(indices) if i in part.sample] if batch.hidden is not None else []
        kept = batch.hidden[:, picked] if batch.hidden is not None else np.zeros((0, 0, 0), np.float32)
        yield Done(
            part.start + batch.number,
            indices,
            batch.verdicts,
            [indices[j] for j in picked],
            kept,
            now - begun,
        )
        begun = time.perf_counter()


def depth_of(guard: Any) -> tuple[int, str]:
    """How many blocks a guard's model has; 0, and why, where none can be watched."""
    from guardkeel.activations.blocks import blocks

    if (known := getattr(guard, "depth", None)) is not None:
        return known  # type: ignore[no-any-return]
    if not hasattr(guard, "model"):
        return 0, f"{guard.name} shows no activations"
    try:
        return len(blocks(guard.model)), ""
    except ModelError as e:
        return 0, e.problem
