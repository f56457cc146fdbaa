"""Sums of activations, made in the process that holds the guards: hidden states are neither kept nor sent anywhere.

The items of a sample are run once more for that, through the reference and then the candidate, `CHUNK` at a time. Where
the candidate is an adapter on the reference it is switched on for its turn; two checkpoints are both held. What leaves
the process are moments (geometry/streaming.py): for each layer four of them, by fold and label, of 3d² numbers each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from guardkeel.engines.opening import Opening, opening_of
from guardkeel.engines.parts import Floats32
from guardkeel.engines.settings import EngineSettings
from guardkeel.engines.worker import Actor, Holder
from guardkeel.geometry.streaming import Cells, Moments
from guardkeel.guards.base import Guard, Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.load import AnyGuard, guard_path, with_adapter
from guardkeel.resources import Progress

CHUNK = 512
"""Items whose activations are held at once."""
SHARES = 2
"""Parts for each worker: more would send more sums than they save waiting."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some items of the sample, with fold and label (True = unsafe) of each, and the layers to be watched."""

    number: int
    items: Sequence[Judgement]
    cells: Sequence[tuple[int, bool]]
    layers: tuple[int, ...]


def summed(
    settings: EngineSettings,
    reference: str,
    against: str | None,
    sample: Sample,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Cells]:
    """The moments of each layer over a sample, by an engine; `options` are those of load_guard.

    Raises:
        GuardkeelError: as loading the guards, as judging with them, or as the engine.
    """
    before = opening_of(reference, None, options)
    after = None if against is None else opening_of(reference, against, options, progress)
    if settings.engine == "ray":
        from guardkeel.engines.on_ray import spread, threads

        given = _dealt(sample, SHARES * settings.workers)
        found = spread(settings, Summer, (before, after, threads(settings)), given)
    else:
        given = _dealt(sample, -(-len(sample.items) // CHUNK))
        found = map(Sums(before, after).of, given)
    seen: set[int] = set()
    total: list[Cells] = []
    watch(0, len(given))
    for number, cells in found:
        if number not in seen:
            seen.add(number)
            total = cells if not total else [_merged(a, b) for a, b in zip(total, cells, strict=True)]
            watch(len(seen), len(given))
    return total


class Sums:
    """Two guards, or one, in this process."""

    def __init__(self, reference: Opening, candidate: Opening | None, threads: int = 0) -> None:
        self._reference, self._candidate = reference, candidate
        self._on_top = candidate is not None and candidate.against is not None
        self._before = Holder(reference, threads)
        self._after = Holder(candidate, threads) if candidate is not None and not self._on_top else None

    def of(self, sample: Sample) -> tuple[int, list[Cells]]:
        """The number of a part of the sample, and its moments of each layer."""
        total: list[dict[tuple[int, bool], Moments]] = [{} for _ in sample.layers]
        for start in range(0, len(sample.items), CHUNK):
            items, cells = sample.items[start : start + CHUNK], sample.cells[start : start + CHUNK]
            x = states(self._before.guard(), items, sample.layers)
            y = self._second(items, sample.layers)
            for k, found in enumerate(total):
                for cell in [(f, c) for f in (0, 1) for c in (True, False)]:
                    rows = [i for i, own in enumerate(cells) if own == cell]
                    more = Moments.of(x[k, rows], None if y is None else y[k, rows])
                    found[cell] = found[cell] + more if cell in found else more
        return sample.number, list(total)

    def _second(self, items: Sequence[Judgement], layers: Sequence[int]) -> Floats32 | None:
        if self._after is not None:
            return states(self._after.guard(), items, layers)
        if not self._on_top:
            return None
        with self._switched_on() as guard:
            return states(guard, items, layers)

    @contextlib.contextmanager
    def _switched_on(self) -> Iterator[Guard]:
        """The reference with the adapter on it, under the policy that guards.pair would give it."""
        assert self._candidate is not None and self._candidate.against is not None
        guard = self._before.guard()
        assert isinstance(guard, AnyGuard)
        options = self._candidate.options
        grammar = guard.grammar if isinstance(guard, CausalGuard) else None
        adapter = guard_path(self._candidate.against, offline=options.get("offline"))
        with with_adapter(guard, adapter) as tuned:
            if options.get("policy") is not None and isinstance(tuned, CausalGuard) and grammar is not None:
                tuned.grammar = grammar
            yield tuned


class Summer(Actor):
    """A Ray actor that sums."""

    def __init__(self, reference: Opening, candidate: Opening | None, threads: int) -> None:
        self._sums = Sums(reference, candidate, threads)

    def work(self, part: Any) -> Iterator[Any]:
        """See Actor."""
        yield self._sums.of(part)


def states(guard: Guard, items: Sequence[Judgement], layers: Sequence[int]) -> Floats32:
    """Hidden states at the verdict position, (layers, items, width); NaN where an item could not be run."""
    found: dict[int, Floats32] = {}
    for batch in guard.batches(items, layers=layers, categories=False):
        assert batch.hidden is not None
        found.update((i, batch.hidden[:, j]) for j, i in enumerate(batch.indices))
    return np.stack([found[i] for i in range(len(items))], axis=1)


def _dealt(sample: Sample, count: int) -> list[Sample]:
    """The sample in at most `count` runs of about equal length."""
    ends = np.linspace(0, len(sample.items), min(count, len(sample.items)) + 1).astype(int).tolist()
    return [
        Sample(k, sample.items[a:b], sample.cells[a:b], sample.layers)
        for k, (a, b) in enumerate(pairwise(ends))
    ]


def _merged(a: Cells, b: Cells) -> Cells:
    return {cell: a[cell] + b[cell] for cell in a}
