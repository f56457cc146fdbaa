"""Prompts as a prefix trie in one row: what several begin with is there once.

Tokens stand in depth-first order, so a token's ancestors come before it and its descendants are the run after it,
up to `end`. Token i may look at token j where j ≤ i < end[j]: causal attention along every prompt, for all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from guardkeel.guards.base import common


@dataclass(frozen=True)
class Trie:
    """Attributes, each over the U tokens of the row unless said otherwise.

    tokens: ids.
    depth: the position of a token in its prompts, from 0.
    parent: index of the token before it, −1 for the first.
    end: one past its last descendant.
    last: over prompts: index of each one's last token.
    """

    tokens: torch.Tensor
    depth: torch.Tensor
    parent: tuple[int, ...]
    end: torch.Tensor
    last: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.parent)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, share: bool = True) -> Trie:
        """The trie of these prompts, in their order; without `share` they stand side by side."""
        order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
        tokens: list[int] = []
        depth: list[int] = []
        parent: list[int] = []
        end: list[int] = []
        last = [0] * len(rows)
        path: list[int] = []  # indices of the tokens of the prompt before
        before: Sequence[int] = ()
        for i in order:
            row = rows[i]
            kept = common([list(before), list(row)]) if share and before else 0
            for gone in path[kept:]:
                end[gone] = len(tokens)
            del path[kept:]
            for at in range(kept, len(row)):
                parent.append(path[-1] if path else -1)
                path.append(len(tokens))
                tokens.append(row[at])
                depth.append(at)
                end.append(0)
            last[i], before = path[-1], row
        for gone in path:
            end[gone] = len(tokens)
        return cls(torch.tensor(tokens), torch.tensor(depth), tuple(parent), torch.tensor(end), tuple(last))

    def ancestors(self, token: int) -> list[int]:
        """Indices of the tokens before it in its prompts, first to last."""
        found = []
        at = self.parent[token]
        while at >= 0:
            found.append(at)
            at = self.parent[at]
        return found[::-1]


def added(rows: Sequence[Sequence[int]], *, share: bool = True) -> list[int]:
    """How many tokens each of these sorted prompts adds to the trie of those before it."""
    counts = [len(row) for row in rows]
    if share:
        for i, (a, b) in enumerate(pairwise(rows), 1):
            counts[i] -= common([list(a), list(b)])
    return counts
