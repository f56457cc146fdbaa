"""The processes that `torchrun` or `accelerate launch` has started, and what they say to each other.

A run in W processes is the run of one: each takes its share of the same batches, gradients are averaged, and every
process comes to the same numbers, so that all decide alike. The first one writes.

What makes the sums come out right: a loss is written so that its *mean over the processes* is the loss of one process.
A process with n of N rows weighs them W·n/N (`parts`). Probes are run in shares and put together (`rows`): every
process computes the same term from all of them, and its own rows pull W times in the backward, which the mean undoes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.models.devices import pick_device

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for another, as for the first one while it writes a large checkpoint. A process that ends
is noticed at once."""
_BUCKET = 1 << 25
"""Numbers that are averaged at a time."""
_FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism of other kinds",
}


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run.

    `sharded`: every process holds a shard of each weight (FSDP2), in CPU memory with `offload`; else all of them.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1
    """Processes on this machine."""
    launched: bool = False
    sharded: bool = False
    offload: bool = False
    device: str = "auto"

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the others, once; further calls do nothing."""
        if not self.launched or torch.distributed.is_initialized():
            return
        # What the launcher asks for is done here: neither accelerate nor transformers is to shard the model too.
        _asked()
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        options: dict[str, Any] = {"backend": "gloo"}
        if self.device.startswith("cuda"):
            torch.cuda.set_device(torch.device(self.device))
            options = {"backend": "cpu:gloo,cuda:nccl", "device_id": torch.device(self.device)}
        torch.distributed.init_process_group(timeout=PATIENCE, **options)

    def leave(self) -> None:
        """Part from the others."""
        if self.launched and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The processes of a machine enter the block one after another."""
        for turn in range(self.beside):
            if turn == self.local:
                yield
            self.wait()

    def same(self, value: T) -> T:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, 0)
        return held[0]

    def same_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors, where all have tensors of the same names, shapes and kinds."""
        if self.size == 1:
            return tensors
        found = {}
        for name in sorted(tensors):
            found[name] = held = tensors[name].detach().clone().contiguous()
            torch.distributed.broadcast(held.reshape(-1).view(torch.uint8), 0)
        return found

    def every(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(held, value)
        return held

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over the processes, bit for bit the same in all. Shards are means already, and are left alone."""
        found = list(tensors)
        if self.size == 1:
            return found
        kinds: dict[Any, list[list[int]]] = {}
        for i, tensor in enumerate(found):
            if hasattr(tensor, "full_tensor"):
                continue
            buckets = kinds.setdefault((tensor.dtype, tensor.device), [[]])
            if sum(found[k].numel() for k in buckets[-1]) + tensor.numel() > _BUCKET and buckets[-1]:
                buckets.append([])
            buckets[-1].append(i)
        for bucket in (b for buckets in kinds.values() for b in buckets):
            flat = torch.cat([found[i].detach().reshape(-1) for i in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            parts = torch.split(flat, [found[i].numel() for i in bucket])
            for i, part in zip(bucket, parts, strict=True):
                found[i] = part.view(found[i].shape)
        return found

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's rows of a batch, as many for each; where that does not come out even, some are run twice."""
        each = -(-len(rows) // self.size)
        even = [*rows, *[rows[0]] * (each * self.size - len(rows))]
        return even[self.rank * each : (self.rank + 1) * each]

    def rows(self, mine: Tensor, count: int) -> Tensor:
        """All rows, (count, …), from those that each process computed for its `share`; see the module's docstring."""
        if self.size == 1:
            return mine
        found: Tensor = _Together.apply(mine, self)  # type: ignore[no-untyped-call]
        return found[:count]

    def parts(self, rows: Sequence[T]) -> list[tuple[T, float]]:
        """This process's rows of a batch, and the weight by which the mean over processes is that over all rows.

        Every other row goes to another process, so that lengths, which batches are sorted by, are even. A process that
        would have none has the first one, with weight 0: it must not be missing where the others meet.
        """
        mine = rows[self.rank :: self.size]
        if not mine:
            return [(rows[0], 0.0)]
        return [(row, self.size * len(mine) / len(rows)) for row in mine]

    def deal(self, batches: Sequence[T]) -> list[tuple[T, bool]]:
        """This process's batches, and whether each counts: all have as many, as each may be a meeting of all."""
        mine = list(batches[self.rank :: self.size])
        each = -(-len(batches) // self.size)
        return [(b, True) for b in mine] + [(batches[0], False)] * (each - len(mine))


ALONE = Ranks()


class _Together(torch.autograd.Function):
    """Rows of all processes, one process after another; see Ranks.rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ranks: Ranks) -> Tensor:
        """(n, …) of each process → (W·n, …)."""
        ctx.ranks, ctx.n = ranks, len(mine)
        held = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        torch.distributed.all_gather(held, mine.contiguous())
        return torch.cat(held)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Its own rows' part of the gradient, which is the same in every process, W times."""
        start = ctx.ranks.rank * ctx.n
        return gradients[0][start : start + ctx.n] * ctx.ranks.size, None


@cache
def _asked() -> tuple[bool, bool]:
    """Whether `accelerate launch` was told to shard, and to offload."""
    return _on("ACCELERATE_USE_FSDP"), _on("FSDP_OFFLOAD_PARAMS")


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def here(sharding: str = "none", offload: bool = False, device: str = "auto") -> Ranks:
    """This process, from what the launcher says in the environment; nothing is started.

    Args:
        sharding: none, fsdp, or auto: as `accelerate launch` was configured.
        offload: keep shards in CPU memory.
        device: auto, cpu or cuda.

    Raises:
        ConfigError: what is asked for does not go together, or this machine has too few GPUs.
    """
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    asked, asked_offload = _asked() if launched and sharding == "auto" else (sharding == "fsdp", False)
    offload = offload or (asked and asked_offload)
    if offload and not asked:
        raise ConfigError(
            "offload keeps shards in CPU memory, and nothing is sharded",
            remedy="set sharding to fsdp, or leave offload out",
        )
    if not launched:
        if asked:
            raise ConfigError(
                "sharding is fsdp, but no launcher has started this process",
                remedy="start it as torchrun --nproc-per-node N -m guardkeel tune …, or with accelerate launch",
            )
        return Ranks(device=device)
    for variable, name in _FOREIGN.items():
        if _on(variable):
            raise ConfigError(
                f"accelerate is configured for {name}, which guardkeel cannot be tuned under",
                remedy="launch it without, or with FSDP",
            )
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed != "no":
        raise ConfigError(
            f"accelerate is configured for mixed precision {mixed!r}",
            remedy="launch with --mixed_precision no; `dtype` says what guardkeel computes in",
        )
    rank, size, local = (int(os.environ.get(v, "0")) for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    where = pick_device("cpu" if device == "auto" and _on("ACCELERATE_USE_CPU") else device)
    if where.startswith("cuda"):
        if ":" in where and size > 1:
            raise ConfigError(
                f"device is {where}, but every process has its own", remedy="leave device out, or set cpu"
            )
        count = torch.cuda.device_count()
        if local >= count:
            raise ConfigError(
                f"process {local} of this machine has no GPU: there are {count}",
                remedy=f"start at most {count} a machine (--nproc-per-node), or set device to cpu",
            )
        where = where if ":" in where else f"cuda:{local}"
    return Ranks(rank, size, local, beside, True, asked, offload, where)
