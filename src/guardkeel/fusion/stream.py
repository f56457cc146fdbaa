"""The fuse itself: rows are read, fused and written by a few threads that each work on a tensor or a block of one.

Several processes share the tensors out among them, a run of neighbours at a time, and write into the same files.

Every thread reads what it needs, computes in float32, casts once to the output's dtype (round to nearest, ties to even)
and hands the bytes to the system, which brings them to the disk while other rows are read and computed. Each thread
computes alone, so sums and products do not depend on how many there are; blocks are cut where vector arithmetic is
(see plan). A tensor begins only when the plan's memory has room for it.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.outfiles import beside
from guardkeel.fusion.pieces import Observer, Pieces
from guardkeel.fusion.plan import Item, Plan, make_plan
from guardkeel.fusion.processes import shared_out
from guardkeel.fusion.sources import Sources, one_thread
from guardkeel.fusion.tensorfile import FLOATS
from guardkeel.fusion.writer import Shards, Writer
from guardkeel.models.devices import peak_memory
from guardkeel.resources import Progress

_SPAN = 16  # blocks of an element-wise method that a thread takes at once
_CAST = 2**18  # values cast at once
_SAMPLE = 2**21  # values of the piece that tells how fast a method is
_TRIES = 5  # tensors that are tried of each size
_DISK = 1e9  # bytes that the system takes in a second, roughly
_AHEAD = 4  # tensors that the system is asked to read ahead
_TURNS = 16  # runs of tensors for each process: as many as keep all of them busy to the end


@dataclass(frozen=True)
class Streamed:
    """What a run did: `resumed` tensors were there from an earlier try, `unchanged` ones were alike in all models."""

    folder: Path
    fused: int
    taken: int
    unchanged: int
    resumed: int
    bytes_read: int
    bytes_written: int
    seconds: float
    workers: int = 0
    """Peak memory of worker processes, added up."""


def run(
    plan: Plan,
    method: Method,
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    observer: Observer | None = None,
    files: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """Fuse into a new checkpoint folder; it appears whole or not at all.

    Args:
        plan: made for this method.
        method: with its settings.
        out: must not be there. Killed, the run leaves `.NAME.unfinished` beside it and goes on there when repeated.
        seed: of what the method draws.
        device: where the method computes; files are read and written on the CPU.
        observer: sees each fused piece. Tensors that are taken over do not come by. Worker processes have copies of it.
        files: contents to write beside the weights by name, instead of the reference's file of that name.
        progress: called with ("fuse", bytes written, bytes in all).

    Raises:
        ModelError: a tensor is not finite, before or after, or a file is cut short; nothing is left of the output then.
        ConfigError: `out` is there or cannot be written.
        RunError: the disk is full.
        LostWorkerError: a worker process was killed; what it finished is kept, as after a kill of this one.
    """
    assert plan.method == method.name, f"the plan was made for {plan.method}"
    started = perf_counter()
    with Writer(Path(out), plan.shards, plan.identity(method, seed)) as writer:
        resumed = len(writer.done)
        left = [item for item in plan.items if item.name not in writer.done]
        if plan.processes > 1:
            share = _Share(plan, method, writer.folder, seed, device, observer)
            taken, unchanged, workers = _by_processes(share, left, progress)
        else:
            job = _Run(plan, method, writer, seed, device, observer, progress)
            job.all(left)
            taken, unchanged, workers = job.taken, job.unchanged, 0
        writer.publish(*beside(plan.sources.reference, plan.dtype, files))
    return Streamed(
        writer.out,
        len(left) - taken - unchanged,
        taken,
        unchanged,
        resumed,
        plan.bytes_read,
        plan.bytes_written,
        perf_counter() - started,
        workers,
    )


def fused(
    sources: Sources,
    method: Method,
    names: Iterable[str] | None = None,
    seed: int = 0,
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The fused tensors one after the other, in float32: the same numbers as `run` rounds and writes.

    Args:
        sources: what is read; checked by preflight.
        method: with its settings.
        names: of the reference's floating-point tensors; by default all of them.
        seed: of what the method draws.
        device: where the method computes.
        threads: tensors that are made ahead of the one that is wanted; each result is held in memory, beside
            what the plan says.
    """
    plan = make_plan(sources, method, threads=threads)
    wanted = None if names is None else set(names)
    items = [item for item in plan.fused if wanted is None or item.name in wanted]
    workers = _Workers(plan, lambda: Pieces(sources, method, seed, device))
    waiting: deque[tuple[Item, Future[Tensor]]] = deque()
    try:
        for item in items:
            waiting.append((item, workers.submit(_whole, item, cost=item.cost)))
            if len(waiting) >= plan.threads:
                ready, future = waiting.popleft()
                yield ready.name, future.result()
        for ready, future in waiting:
            yield ready.name, future.result()
    finally:
        workers.close()


def estimate(plan: Plan, method: Method, *, seed: int = 0, device: str = "cpu", disk: float = _DISK) -> float:
    """About how many seconds a run takes, where nothing else does.

    Pieces of some middling tensors and of some of the smallest are fused; what they take says what a piece costs,
    however small, and what a value costs. `disk` is how many bytes it takes in a second.
    """
    pieces = Pieces(plan.sources, method, seed, device)
    small = sorted(plan.fused, key=_values)[:_TRIES]
    large = sorted(plan.fused, key=lambda item: abs(_values(item) - _SAMPLE))[:_TRIES]
    with one_thread():
        least, most = (_typical(pieces, items) for items in (small, large))
    more = _values(large[0]) - _values(small[0])
    value = max(0.0, most - least) / more if more > 0 else most / max(1, _values(large[0]))
    piece = least if more > 0 else 0.0
    work = sum(piece * math.ceil(i.spec.rows / i.rows) + value * i.spec.values for i in plan.fused)
    apart = plan.processes * max(1, plan.threads - 1)
    return work / apart + plan.bytes_written / disk


def _values(item: Item) -> int:
    """Of one piece."""
    return item.rows * item.spec.width


def _typical(pieces: Pieces, items: Sequence[Item]) -> float:
    """Seconds of a piece of one of these: the median. On the CPU they are the processor's, so that it does not matter
    what else the machine does."""
    clock = thread_time if pieces.device == "cpu" else perf_counter
    pieces.fused(items[0], 0, items[0].rows)  # files are opened
    took = []
    for item in items:
        started = clock()
        pieces.fused(item, 0, item.rows)
        took.append(clock() - started)
    return statistics.median(took)


def _whole(pieces: Pieces, item: Item) -> Tensor:
    if pieces.unchanged(item.name):
        out = torch.empty(item.spec.shape)
        pieces.sources.reference.fill(item.name, 0, out.view(item.spec.rows, -1) if out.dim() > 1 else out)
        return out
    if item.rows >= item.spec.rows:
        return _finite(pieces.fused(item, 0, item.spec.rows)[0], item)
    out = torch.empty(item.spec.rows, item.spec.width)
    for first, last in item.pieces():
        out[first:last] = _finite(pieces.fused(item, first, last)[0], item).view(last - first, -1)
    return out.view(item.spec.shape)


class _Workers:
    """Threads that each compute alone, and the memory that their work may take together."""

    def __init__(self, plan: Plan, pieces: Callable[[], Pieces]) -> None:
        self._budget, self._held = plan.budget, 0
        self._room = threading.Condition()
        self._own = threading.local()
        self._before = torch.get_num_threads()

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread
            self._own.pieces = pieces()

        self._pool = ThreadPoolExecutor(plan.threads, "fuse", initializer=begin)
        # glibc gives freed memory back, and has to be given zeroed pages for the next block, until it has seen a large
        # allocation come and go.
        torch.empty(2**22)

    def submit(self, work: Callable[..., Any], *args: Any, cost: int) -> Future[Any]:
        """Do `work(pieces, *args)` in a thread, when there is room for what it costs."""
        with self._room:
            self._room.wait_for(lambda: self._held + cost <= self._budget or self._held == 0)
            self._held += cost
        return self._pool.submit(self._do, work, args, cost)

    def _do(self, work: Callable[..., Any], args: tuple[Any, ...], cost: int) -> Any:
        try:
            return work(self._own.pieces, *args)
        finally:
            with self._room:
                self._held -= cost
                self._room.notify()

    def close(self) -> None:
        """Wait for what has begun; what has not is dropped."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)


class _Did(NamedTuple):
    """What a worker process did in one turn; `peak` is its memory so far."""

    names: list[str]
    taken: int
    unchanged: int
    process: int
    peak: int


@dataclass(frozen=True)
class _Share:
    """All that a worker process needs to fuse tensors into shards that are there."""

    plan: Plan
    method: Method
    folder: Path
    seed: int
    device: str
    observer: Observer | None

    def __call__(self) -> Callable[[Sequence[str]], _Did]:
        """In the worker: open the shards, and fuse tensors by their names."""
        items = {item.name: item for item in self.plan.items}
        shards = Shards(self.folder, self.plan.shards)
        shards.open()

        def turn(names: Sequence[str]) -> _Did:
            job = _Run(self.plan, self.method, shards, self.seed, self.device, self.observer, None)
            job.all([items[name] for name in names])
            return _Did(list(names), job.taken, job.unchanged, os.getpid(), peak_memory(self.device))

        return turn


def _by_processes(share: _Share, left: list[Item], progress: Progress | None) -> tuple[int, int, int]:
    """All of `left` by worker processes; how many tensors were taken and unchanged, and the workers' peak memory."""
    plan, taken, unchanged, peaks = share.plan, 0, 0, dict[int, int]()
    sizes = {item.name: item.spec.bytes for item in left}
    done = sum(item.spec.bytes for item in plan.items) - sum(sizes.values())
    turns = _turns(left, sum(sizes.values()) / (_TURNS * plan.processes))
    for did in shared_out(share, turns, plan.processes) if turns else ():
        taken, unchanged = taken + did.taken, unchanged + did.unchanged
        peaks[did.process] = did.peak
        done += sum(sizes[name] for name in did.names)
        if progress:
            progress("fuse", done, plan.bytes_written)
    return taken, unchanged, sum(peaks.values())


def _turns(items: list[Item], least: float) -> list[list[str]]:
    """Neighbours in runs of at least so many bytes: each worker reads its files from front to back."""
    runs: list[list[str]] = []
    filled = math.inf
    for item in items:
        if filled >= least:
            runs.append([])
            filled = 0
        runs[-1].append(item.name)
        filled += item.spec.bytes
    return runs


class _Run:
    def __init__(
        self,
        plan: Plan,
        method: Method,
        writer: Shards,
        seed: int,
        device: str,
        observer: Observer | None,
        progress: Progress | None,
    ) -> None:
        self.plan, self.writer, self.observer, self.progress = plan, writer, observer, progress
        self.taken = self.unchanged = 0
        self._left: dict[str, int] = {}
        self._said: dict[str, dict[int, Any]] = {}
        self._mutex = threading.Lock()
        self._bytes = sum(item.spec.bytes for item in plan.items if item.name in writer.done)
        self._method, self._seed, self._device = method, seed, device

    def _pieces(self) -> Pieces:
        return Pieces(self.plan.sources, self._method, self._seed, self._device, self.observer)

    def all(self, left: Sequence[Item]) -> None:
        """These tensors, in order."""
        look, workers = self._pieces(), _Workers(self.plan, self._pieces)
        futures: list[Future[None]] = []
        try:
            for i, item in enumerate(left):
                for later in left[i + 1 : i + 1 + _AHEAD]:
                    self._prefetch(later)
                way = item.way
                if way == "fuse" and look.unchanged(item.name):
                    way, self.unchanged = "reference", self.unchanged + 1
                elif way != "fuse":
                    self.taken += 1
                spans = list(_spans(item))
                self._left[item.name], self._said[item.name] = len(spans), {}
                for first, last in spans:
                    for future in futures:
                        if future.done():
                            future.result()
                    futures = [future for future in futures if not future.done()]
                    futures.append(workers.submit(self._span, item, way, first, last, cost=item.cost))
            for future in futures:
                future.result()
        finally:
            workers.close()

    def _prefetch(self, item: Item) -> None:
        for model in self.plan.sources.models if item.way == "fuse" else self.plan.sources.models[:1]:
            model.prefetch(item.name)

    def _span(self, pieces: Pieces, item: Item, way: str, first: int, last: int) -> None:
        for start in range(first, last, item.rows):
            self._piece(pieces, item, way, start, min(start + item.rows, last))
        with self._mutex:
            self._left[item.name] -= 1
            if self._left[item.name]:
                return
            said = self._said.pop(item.name)
            if self.observer and said:
                self.observer.tensor(item.name, [said[row] for row in sorted(said)])
            self.writer.finished(item.name)
            self._bytes += item.spec.bytes
            if self.progress:
                self.progress("fuse", self._bytes, self.plan.bytes_written)

    def _piece(self, pieces: Pieces, item: Item, way: str, first: int, last: int) -> None:
        sources = self.plan.sources
        if not item.spec.floating:
            at = 0
            for chunk in sources.reference.raw(item.name):
                self.writer.write(item.name, at, chunk)
                at += len(chunk)
            return
        if way == "fuse":
            rows, said = pieces.fused(item, first, last)
            if said is not None:
                with self._mutex:
                    self._said[item.name][first] = said
        else:
            source = sources.reference if way == "reference" else sources.candidates[0]
            rows = pieces.taken(source, item, first, last)
        flat, itemsize = rows.view(-1), item.spec.itemsize
        at = first * item.spec.width * itemsize
        for start in range(0, flat.numel(), _CAST):
            stored = flat[start : start + _CAST].to(FLOATS[item.spec.dtype])
            _finite(stored, item)
            self.writer.write(item.name, at + start * itemsize, stored)


def _spans(item: Item) -> Iterator[tuple[int, int]]:
    """Rows that one thread takes at once."""
    step = item.rows * _SPAN
    for first in range(0, max(1, item.spec.rows), step):
        yield first, min(first + step, item.spec.rows)


def _finite(tensor: Tensor, item: Item) -> Tensor:
    if not math.isfinite(tensor.sum(dtype=torch.float32).item()):  # or the sum alone was too large
        bad = int((~tensor.isfinite()).sum())
        if bad:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"fused, tensor {item.name!r} has {bad:,} values that {kind} cannot hold",
                remedy="choose a dtype with a wider range (bfloat16, float32), or a milder setting of the method",
            )
    return tensor
