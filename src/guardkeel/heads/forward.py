"""One block over many variants of a run: the parts of layout.py put together, without a cache and without hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from guardkeel.heads.ablation import ablate_all
from guardkeel.heads.attention import Stretch, attend, rotated, stretches
from guardkeel.heads.layout import Block, Layout
from guardkeel.heads.linear import fused
from guardkeel.heads.trie import Trie

_STRETCH = 64  # tokens whose queries share their keys
NEAR = 512  # tokens that go through a feed-forward part at once on a CPU
Rope = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Asked:
    """A trie on the model's device, with what every block needs of it.

    `rows` are the tokens whose outputs the last block gives: the last of each prompt, ascending; `of` says which of
    them is a prompt's.
    """

    trie: Trie
    ids: torch.Tensor
    rope: Rope
    rows: torch.Tensor
    of: torch.Tensor
    pieces: dict[tuple[int | None, bool], list[Stretch]]

    @classmethod
    def by(cls, layout: Layout, trie: Trie) -> Asked:
        """For this model."""
        last = sorted(set(trie.last))
        where = {token: i for i, token in enumerate(last)}
        like: dict[str, Any] = {"longest": _STRETCH, "dtype": layout.dtype, "device": layout.device}
        pieces: dict[tuple[int | None, bool], list[Stretch]] = {}
        for window in {block.window for block in layout.blocks}:
            pieces[window, False] = stretches(trie, range(len(trie)), window, **like)
            pieces[window, True] = stretches(trie, last, window, **like)
        return cls(
            trie=trie,
            ids=trie.tokens.to(layout.device),
            rope=layout.rotary(trie.depth.to(layout.device)),
            rows=torch.tensor(last, device=layout.device),
            of=torch.tensor([where[token] for token in trie.last], device=layout.device),
            pieces=pieces,
        )


@dataclass(frozen=True)
class Heads:
    """What the heads of one block do: q (rows, queries, heads, width), k and v (rows, tokens, groups, width), and z."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    z: torch.Tensor


class Step:
    """One block, its weights ready. `ends`: only the last tokens of the prompts go on."""

    def __init__(
        self, layout: Layout, block: Block, asked: Asked, *, ends: bool = False, pack: bool = True
    ) -> None:
        self.layout, self.block, self.asked, self.ends = layout, block, asked, ends
        at, mlp = block.attention, block.mlp
        self._query = fused([at.q_proj], pack=pack)
        self._shared = fused([at.k_proj, at.v_proj], pack=pack)
        self._out = fused([at.o_proj], pack=pack)
        self._wide = fused([mlp.gate_proj, mlp.up_proj], pack=pack)
        self._narrow = fused([mlp.down_proj], pack=pack)
        self._rope = asked.rope[block.kind]
        self._pieces = asked.pieces[block.window, ends]

    def heads(self, x: torch.Tensor) -> Heads:
        """The heads over residual streams (rows, tokens, hidden)."""
        at, layout = self.block.attention, self.layout
        n = self.block.before_attention(x)
        k, v = (t.reshape(*t.shape[:2], layout.groups, layout.width) for t in self._shared(n))
        (q,) = self._query(n[:, self.asked.rows] if self.ends else n)
        q = q.reshape(*q.shape[:2], layout.heads, layout.width)
        cos, sin = self._rope
        here = (cos[self.asked.rows], sin[self.asked.rows]) if self.ends else self._rope
        q = rotated(at.q_norm(q) if hasattr(at, "q_norm") else q, here)
        k = rotated(at.k_norm(k) if hasattr(at, "k_norm") else k, (cos, sin))
        return Heads(q, k, v, self.attend(q, k, v))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """z of these."""
        return attend(q, k, v, self._pieces, self.block.attention.scaling, self.layout.softcap)

    def ablated(self, heads: Heads, mode: str, epsilon: float) -> torch.Tensor:
        """What each head would give were it ablated, of the shape of z."""

        def attend(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return self.attend(q, k, heads.v)

        return ablate_all(mode, epsilon, heads.q, heads.k, heads.z, attend, axis=-2)

    def after(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The residual stream (rows, queries, hidden) after heads that gave z. `x` may have one row for all."""
        (out,) = self._out(z.flatten(-2))
        if self.block.after_attention is not None:
            out = self.block.after_attention(out)
        return self._feed((x[:, self.asked.rows] if self.ends else x) + self.layout.residual * out)

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and x.shape[:-1].numel() > NEAR:  # keeps the wide part in the cache
            flat = x.flatten(0, -2)
            parts = [self._fed(flat[i : i + NEAR]) for i in range(0, len(flat), NEAR)]
            return torch.cat(parts).view(x.shape)
        return self._fed(x)

    def _fed(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self.block.mlp
        gate, up = self._wide(self.block.before_mlp(x))
        (out,) = self._narrow(mlp.act_fn(gate) * up)
        if self.block.after_mlp is not None:
            out = self.block.after_mlp(out)
        return x + self.layout.residual * out


def replaced(z: torch.Tensor, by: torch.Tensor, heads: Sequence[int]) -> torch.Tensor:
    """z with these heads' outputs (…, heads, width) taken from `by`."""
    if not heads:
        return z
    z = z.clone()
    z[..., heads, :] = by[..., heads, :]
    return z
