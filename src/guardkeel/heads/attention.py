"""Attention over a trie, in pieces: a stretch of queries against the keys that any of them can see.

In depth-first order these are the ancestors of the stretch's first token and the stretch itself. So of the
(U, U) table only a band is computed, and a prompt alone costs half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from guardkeel.heads.trie import Trie


@dataclass(frozen=True)
class Stretch:
    """Queries `start` to `stop` of those that are asked for, against `keys`.

    `mask` (queries, keys) is 0 where a query sees a key, else −∞.
    """

    start: int
    stop: int
    keys: slice | torch.Tensor
    mask: torch.Tensor


def stretches(
    trie: Trie,
    queries: Sequence[int],
    window: int | None,
    *,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Stretch]:
    """The pieces for these queries, token indices in ascending order, none spanning more than `longest` tokens.

    Args:
        trie: the prompts.
        queries: tokens whose outputs are wanted.
        window: how many tokens a query sees, itself included; None is all.
        longest: tokens from a piece's first query to its last.
        dtype, device: of the masks.
    """
    pieces = []
    start = 0
    while start < len(queries):
        stop = start + 1
        while stop < len(queries) and queries[stop] - queries[start] < longest:
            stop += 1
        first, after = queries[start], queries[stop - 1] + 1
        keys = torch.tensor([*trie.ancestors(first), *range(first, after)])
        asked = torch.tensor(queries[start:stop])[:, None]
        seen = (keys <= asked) & (asked < trie.end[keys])
        if window is not None:
            seen &= trie.depth[asked] - trie.depth[keys] < window
            near = seen.any(0)
            keys, seen = keys[near], seen[:, near]
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        whole = int(keys[-1]) - int(keys[0]) + 1 == len(keys)
        where = slice(int(keys[0]), int(keys[-1]) + 1) if whole else keys.to(device)
        pieces.append(Stretch(start, stop, where, mask.to(device)))
        start = stop
    return pieces


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pieces: Sequence[Stretch],
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Outputs (rows, queries, heads, width).

    Args:
        q: (rows, queries, heads, width); heads that share a key stand together.
        k, v: (rows, tokens, groups, width).
        pieces: see `stretches`.
        scaling: factor on the products.
        softcap: c of c·tanh(s/c), or None.
    """
    rows, _, heads, width = q.shape
    groups = k.shape[2]
    each = heads // groups
    found = []
    for piece in pieces:
        n = piece.stop - piece.start
        # Heads that share a key are one long sequence against it: nothing is repeated.
        asked = q[:, piece.start : piece.stop].reshape(rows, n, groups, each, width).permute(0, 2, 3, 1, 4)
        asked = asked.reshape(rows, groups, each * n, width)
        keys, values = (t[:, piece.keys].transpose(1, 2) for t in (k, v))
        out = _product(asked, keys, values, piece.mask.repeat(each, 1), scaling, softcap)
        found.append(
            out.view(rows, groups, each, n, width).permute(0, 3, 1, 2, 4).reshape(rows, n, heads, width)
        )
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scaling / softcap))
    exact = torch.promote_types(q.dtype, torch.float32)
    return (scores + mask).softmax(-1, dtype=exact).to(q.dtype) @ v


def rotated(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of (…, tokens, heads, width), the first half of a head paired with its second."""
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
