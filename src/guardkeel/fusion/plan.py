"""What a fuse will read, hold and write, told before it begins: order, shards, bytes, peak memory."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import psutil

from guardkeel.errors import ConfigError, RunError
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.sources import Sources
from guardkeel.fusion.tensorfile import Spec
from guardkeel.models.devices import free_memory
from guardkeel.records import value_digest

SHARD_BYTES = 5_000_000_000
BLOCK = 2**18
"""Values of an element-wise method's block: with its float32 temporaries it stays in a core's share of the cache."""
KEPT = 2**22
"""Values of the largest room that a thread keeps to read the next rows into."""
_ALIGNED = 64
"""Blocks end on multiples of this many rows, so that vector arithmetic falls on the same values however it is cut."""
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_WORKER_BYTES = (
    24 * 2**20
)  # what a thread holds beside its tensors: read buffers, stack, the allocator's leftovers
_INTERPRETER = 250 * 2**20  # a worker process with torch loaded, before its first tensor
_FEW = 256 * 2**20  # small tensors go through beside each other up to this much

Way = Literal["fuse", "reference", "candidate"]
"""A tensor goes through the method, or is taken over from the reference or the first candidate."""


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of the output."""

    name: str
    spec: Spec
    """As it is written."""
    way: Way
    cost: int
    """Bytes of float32 that are held while a piece of it is fused."""
    rows: int
    """Rows of a piece."""

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First row and the one after the last, piece by piece."""
        for first in range(0, self.spec.rows, self.rows):
            yield first, min(first + self.rows, self.spec.rows)


@dataclass(frozen=True)
class Shard:
    """One file of the output; `places` are a tensor's first byte in it."""

    file: str
    header: bytes
    places: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Plan:
    """The whole of a fuse. Two runs of one plan, seed and settings write the same bytes.

    Attributes:
        sources: what is read.
        method: name of the method.
        items: tensors in the order in which the reference keeps them, so that it is read from front to back.
        shards: the files to be written.
        threads: tensors or blocks that a process works on at once.
        budget: bytes that the tensors in work hold together, in one process.
        processes: that share the tensors out among them; 1 is this one alone.
    """

    sources: Sources
    method: str
    items: tuple[Item, ...]
    shards: tuple[Shard, ...]
    threads: int
    budget: int
    processes: int = 1

    @cached_property
    def bytes_written(self) -> int:
        """Of all shards."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def bytes_read(self) -> int:
        """Of weights and extras; twice read bytes count once."""
        total = 0
        for item in self.items:
            models = self.sources.models if item.way == "fuse" else self.sources.models[:1]
            total += sum(Spec(m.specs.get(item.name, item.spec).dtype, item.spec.shape).bytes for m in models)
            total += sum(f.bytes_of(item.name) for f in self.sources.extras_of(item.name).values())
        return total

    @cached_property
    def fused(self) -> tuple[Item, ...]:
        """Tensors that go through the method."""
        return tuple(item for item in self.items if item.way == "fuse")

    @cached_property
    def dtype(self) -> str | None:
        """What most values are written as, where that is not what the reference stores them as."""
        now, before = Counter[str](), Counter[str]()
        for item in self.items:
            now[item.spec.dtype] += item.spec.values
            before[self.sources.reference.stored[item.name]] += item.spec.values
        written = now.most_common(1)[0][0]
        return None if written == before.most_common(1)[0][0] else written

    @property
    def largest(self) -> Item:
        """The tensor whose pieces take most memory."""
        return max(self.items, key=lambda item: (item.cost, item.spec.values))

    @property
    def tensor_bytes(self) -> int:
        """The most memory that tensors take at any time, in all processes."""
        kept = max((n for i in self.items if (n := i.rows * i.spec.width) <= KEPT), default=0)
        each = self.budget + self.threads * (_WORKER_BYTES + 4 * kept * len(self.sources.models))
        return each * self.processes

    @property
    def needed(self) -> int:
        """Bytes that the fuse takes beside what this process has now: the tensors, and workers' interpreters."""
        return self.tensor_bytes + (self.processes * _INTERPRETER if self.processes > 1 else 0)

    @cached_property
    def peak_bytes(self) -> int:
        """The most memory that the process and its workers take: what it has now, and what it needs."""
        return int(psutil.Process().memory_info().rss) + self.needed

    def identity(self, method: Method, seed: int) -> str:
        """Digest of everything that the bytes follow from; files count by path, size and time."""
        import torch

        import guardkeel

        files = [f for m in self.sources.models for f in m.weight_files]
        files += [f for extra in self.sources.extras.values() for f in extra.files]
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return value_digest(
            {
                "versions": [guardkeel.__version__, torch.__version__],
                "files": stats,
                "folders": [str(m.folder.resolve()) for m in self.sources.models],
                "extras": sorted(self.sources.extras),
                "method": [method.name, method.settings.model_dump(mode="json")],
                "seed": seed,
                "ways": [(item.name, item.way) for item in self.items],
                "shards": [shard.header[8:].decode() for shard in self.shards],
            }
        )

    def lines(self) -> list[tuple[str, str]]:
        """The plan in words, for --dry-run: what, how much."""
        taken = len(self.items) - len(self.fused)
        item = self.largest
        by = f"{self.processes} processes, in each " if self.processes > 1 else ""
        cut = "" if item.rows >= item.spec.rows else f", in pieces of {item.rows:,} rows"
        return [
            ("method", self.method),
            ("tensors", f"{len(self.fused):,} fused" + (f", {taken:,} taken over" if taken else "")),
            ("read", f"{size(self.bytes_read)} from {len(self.sources.models)} models"),
            ("write", f"{size(self.bytes_written)} in {len(self.shards)} files"),
            ("at once", f"{by}{self.threads} threads, tensors of up to {size(self.budget)} together"),
            ("largest", f"{item.name} {item.spec.shape}: {size(item.cost)}{cut}"),
            ("peak memory", f"{size(self.peak_bytes)}, {size(self.tensor_bytes)} of it for tensors"),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{what:12} {said}" for what, said in self.lines())


def make_plan(
    sources: Sources,
    method: Method,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    chosen: Callable[[str], bool] = lambda name: True,
    rest: Literal["reference", "candidate"] = "reference",
    threads: int | None = None,
    memory: int | None = None,
    block: int = BLOCK,
    processes: int = 1,
    free: int | None = None,
) -> Plan:
    """Plan a fuse of models that passed the preflight.

    Args:
        sources: what is read.
        method: what they go through.
        dtype: float32, bfloat16 or float16 for all floating-point tensors; default: as the reference stores each.
        shard_bytes: largest file; a tensor larger than that has a file of its own.
        chosen: whether the tensor of this name goes through the method.
        rest: where the others come from.
        threads: tensors or blocks worked on at once in a process; default: its share of the processor's cores, and one
            more to read and write.
        memory: bytes for the tensors in work in a process; default: what the largest takes, and 256 MB where that is
            less.
        block: values of a block of an element-wise method.
        processes: that share the tensors out among them.
        free: bytes that there are; default: what is free now.

    Raises:
        ConfigError: `memory` is less than the largest tensor takes, or no tensor is chosen.
        RunError: there is less free memory than the fuse needs.
    """
    threads = threads or max(1, cores() // processes) + 1
    items = tuple(
        _item(sources, method, name, dtype, chosen, rest, block) for name in sources.reference.specs
    )
    if not any(item.way == "fuse" for item in items):
        raise ConfigError("no tensor is left to fuse", remedy="choose fewer with `skip`, or more with `only`")
    largest = max(items, key=lambda item: item.cost)
    if memory is not None and memory < largest.cost:
        raise ConfigError(
            f"{largest.name!r} takes {size(largest.cost)} to fuse, memory is limited to {size(memory)}",
            remedy=f"allow {size(largest.cost)}, leave the tensor out, or take an element-wise method",
        )
    small = sum(sorted((item.cost for item in items), reverse=True)[: 2 * threads])
    budget = memory or max(largest.cost, min(_FEW, small))
    shards = tuple(_shards(items, shard_bytes))
    plan = Plan(sources, method.name, items, shards, threads, budget, processes)
    free = free_memory() if free is None else free
    if free < plan.needed:
        fewer = f"take fewer processes than {processes}, or " if processes > 1 else ""
        raise RunError(
            f"the fuse needs {size(plan.needed)} of memory, {size(free)} are free",
            remedy=f"{fewer}free some; the largest tensor, {largest.name!r}, needs {size(largest.cost)} by itself",
        )
    return plan


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _item(
    sources: Sources,
    method: Method,
    name: str,
    dtype: str | None,
    chosen: Callable[[str], bool],
    rest: Literal["reference", "candidate"],
    block: int,
) -> Item:
    spec = sources.reference.specs[name]
    stored = sources.reference.stored[name]
    if not spec.floating:
        return Item(name, spec, "reference", 0, max(1, spec.rows))
    way: Way = "fuse" if chosen(name) else rest
    cut = method.elementwise and not method.drawing()
    panel = math.lcm(_ALIGNED, *(m.panel(name) for m in sources.models))
    rows = max(panel, block // max(1, spec.width) // panel * panel) if cut or way != "fuse" else spec.rows
    rows = max(1, min(rows, spec.rows))
    tensors = len(sources.models) + method.work + 1 if way == "fuse" else 2
    whole = [m for m in sources.models if m.adds_to(name)]
    update = max(
        (min(m.panel(name), rows) for m in whole), default=0
    )  # BA of the rows that are merged at once
    extras = sum(f.specs[name].values for f in sources.extras_of(name).values())
    cost = 4 * (rows * spec.width * tensors + update * spec.width + extras)
    return Item(name, Spec(_STORED[dtype] if dtype else stored, spec.shape), way, cost, rows)


def _shards(items: tuple[Item, ...], most: int) -> Iterator[Shard]:
    groups: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        if groups[-1] and filled + item.spec.bytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += item.spec.bytes
    for i, group in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        yield _shard(file, group)


def _shard(file: str, group: list[Item]) -> Shard:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    # Wide dtypes first, or a float32 tensor could begin at an odd byte, which readers refuse.
    for item in sorted(group, key=lambda item: -item.spec.itemsize):
        end = at + item.spec.bytes
        entries[item.name] = {"dtype": item.spec.dtype, "shape": item.spec.shape, "data_offsets": [at, end]}
        places[item.name], at = at, end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(
        file, header, {name: len(header) + place for name, place in places.items()}, len(header) + at
    )


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
