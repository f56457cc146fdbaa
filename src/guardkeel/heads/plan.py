"""What a sweep will do, said before it is done: shards of prompts, sizes of batches, memory, work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from guardkeel.errors import RunError
from guardkeel.heads.ablation import per_layer
from guardkeel.heads.forward import NEAR
from guardkeel.heads.layout import Head, Layout, checked_heads, layout_of
from guardkeel.heads.prompts import Prompt, checked
from guardkeel.heads.trie import added
from guardkeel.models.devices import free_memory

SHARD_TOKENS = 2048
"""Tokens of a shard's trie. More share more of what prompts begin with; less is lost when a run is killed."""

_WAVE_TOKENS = {"cpu": 16_384, "cuda": 131_072}
_CHUNK_TOKENS = {"cpu": 512, "cuda": 32_768}
_LOGIT_ROWS = {"cpu": 128, "cuda": 512}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep in numbers.

    Attributes:
        shards: prompts that run together, by number; each has its own trie, of `shard_tokens`.
        variants: what is ablated: (layer, index), in order.
        tokens: of all prompts.
        wave: variants that are carried at once, of the largest shard.
        chunk: of these, how many go through a block's attention at once.
        logit_rows: rows of logits that are held at once.
        bytes: the most that is allocated beside the model, results included.
        work, naive: floating-point operations, and those of one full forward for every variant and prompt.
        notes: what was chosen because memory is scarce.
    """

    shards: tuple[tuple[int, ...], ...]
    shard_tokens: tuple[int, ...]
    variants: tuple[Head, ...]
    tokens: int
    wave: int
    chunk: int
    logit_rows: int
    bytes: int
    work: float
    naive: float
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """In one sentence, before the run."""
        said = (
            f"{sum(map(len, self.shards))} prompts, {self.tokens} tokens ({sum(self.shard_tokens)} after sharing, "
            f"{len(self.shards)} shards), {len(self.variants)} ablations, {self.wave} carried at once; "
            f"{self.bytes / 1e9:.2f} GB beside the model; {self.work / 1e12:.2f} TFLOP, "
            f"{self.naive / max(self.work, 1.0):.1f} times fewer than one by one"
        )
        return "; ".join([said, *self.notes])


def plan_sweep(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    mode: str = "q",
    heads: Collection[Head] | None = None,
    kl: bool = True,
    hidden: bool = False,
    share: bool = True,
    memory: int | None = None,
) -> SweepPlan:
    """Plan a sweep; arguments as in `sweep_heads`.

    Args:
        model: a loaded model, or its Layout.
        prompts: what is asked.
        mode, heads, kl, hidden, share: see `sweep_heads`.
        memory: bytes that it may take beside the model; by default half of what is free.

    Raises:
        RunError: not even one variant of the longest prompt fits.
    """
    found = model if isinstance(model, Layout) else layout_of(model)
    rows = [p.ids for p in checked(prompts)]
    count = per_layer(found, mode)
    variants = tuple((i, j) for i in range(found.layers) for j in range(count))
    if heads is not None:
        variants = checked_heads(heads, (found.layers, count))
    budget = free_memory(str(found.device)) // 2 if memory is None else memory
    longest = max(map(len, rows))
    size = Sizes(found, kl=kl, hidden=hidden, prompts=len(rows), variants=len(variants))
    notes: list[str] = []
    limit = max(SHARD_TOKENS, longest)
    while True:
        shards, tokens = cut(rows, limit, share=share)
        most, ends = max(tokens), max(map(len, shards))
        wave, chunk, logits = _batches(size, found.device.type, budget, most, ends)
        needed = size.total(most, ends, wave, chunk, logits)
        if needed <= budget or limit == longest:
            break
        limit = max(longest, limit // 2)
    if needed > budget:
        raise RunError(
            f"a sweep over prompts of up to {longest} tokens needs {needed / 1e9:.2f} GB beside the model, "
            f"{budget / 1e9:.2f} GB may be used",
            remedy="give shorter or fewer prompts, a smaller dtype, or a larger memory=",
        )
    if limit < SHARD_TOKENS:
        notes.append(f"shards of at most {limit} tokens, to fit into {budget / 1e9:.2f} GB")
    if wave < min(len(variants), _usual(found.device.type, most)):
        notes.append(f"{wave} variants at once, to fit into {budget / 1e9:.2f} GB")
    layers = sum(found.layers - layer - 0.5 for layer, _ in variants)
    work = sum(tokens) * size.block * layers + kl * size.head * len(rows) * len(variants)
    naive = (sum(map(len, rows)) * (size.block * found.layers + size.head)) * len(variants)
    return SweepPlan(
        shards=tuple(map(tuple, shards)),
        shard_tokens=tuple(tokens),
        variants=variants,
        tokens=sum(map(len, rows)),
        wave=wave,
        chunk=chunk,
        logit_rows=logits,
        bytes=needed,
        work=float(work),
        naive=float(naive),
        notes=tuple(notes),
    )


def cut(rows: Sequence[Sequence[int]], limit: int, *, share: bool) -> tuple[list[list[int]], list[int]]:
    """Prompts into shards whose tries have at most `limit` tokens, those that begin alike together; their tokens."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    more = added([rows[i] for i in order], share=share)
    shards: list[list[int]] = []
    tokens: list[int] = []
    for i, new in zip(order, more, strict=True):
        if shards and tokens[-1] + new <= limit:
            shards[-1].append(i)
            tokens[-1] += new
        else:  # nothing of it is there yet
            shards.append([i])
            tokens.append(len(rows[i]))
    return shards, tokens


def chunk_tokens(device: str) -> int:
    """Tokens that go through a block's attention at once."""
    return _CHUNK_TOKENS.get(device, _CHUNK_TOKENS["cuda"])


def _usual(device: str, tokens: int) -> int:
    """Variants that are carried at once where memory is no matter."""
    return max(1, -(-_WAVE_TOKENS.get(device, _WAVE_TOKENS["cuda"]) // tokens))


def _batches(size: Sizes, device: str, budget: int, tokens: int, ends: int) -> tuple[int, int, int]:
    """The largest (wave, chunk, rows of logits) that fit, else the smallest there are."""
    wave = min(max(1, size.variants), _usual(device, tokens))
    chunk = max(1, chunk_tokens(device) // tokens)
    logits = _LOGIT_ROWS.get(device, _LOGIT_ROWS["cuda"])
    while size.total(tokens, ends, wave, chunk, logits) > budget and (wave, chunk, logits) != (1, 1, 1):
        wave, chunk, logits = max(1, wave // 2), max(1, chunk // 2), max(1, logits // 2)
    return wave, chunk, logits


class Sizes:
    """Bytes and operations of one model's sweep."""

    def __init__(self, found: Layout, *, kl: bool, hidden: bool, prompts: int, variants: int) -> None:
        self.item, self.kl, self.variants = found.dtype.itemsize, kl, variants
        self.fast = found.device.type != "cpu"
        self.width, self.vocabulary = found.hidden, found.vocabulary
        self.inner = int(found.config.intermediate_size)
        self.queries, self.keys = found.heads * found.width, found.groups * found.width
        maps = 2 * self.width * (self.queries + self.keys) + 3 * self.width * self.inner
        self.block, self.head = 2.0 * maps, 2.0 * self.width * self.vocabulary
        self.packed = maps * self.item + kl * self.width * self.vocabulary * self.item
        self.results = 8 * prompts * variants * 2 + hidden * 4 * prompts * (variants + 1) * self.width

    def total(self, tokens: int, ends: int, wave: int, chunk: int, logits: int) -> int:
        """The most that a shard of so many tokens and prompts takes."""
        streams = tokens * (wave + 4) * self.width
        attention = tokens * chunk * (4 * self.queries + 6 * self.keys + 4 * self.width)
        at_once = tokens * chunk if self.fast else min(tokens * chunk, NEAR)
        feed = at_once * (3 * self.inner + 2 * self.width)
        trunk = tokens * (4 * self.queries + 6 * self.keys)
        rows = self.kl * self.vocabulary * (min(logits, wave * ends) * (self.item + 20) + ends * 24)
        return int((streams + attention + feed + trunk) * self.item + rows + self.packed + self.results)
