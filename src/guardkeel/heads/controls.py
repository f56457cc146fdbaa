"""Groups of heads to compare a found one with: drawn from all heads, or from the layers of the found ones.

What ablating any heads does is no sign of safety heads. Early layers matter more than late ones whatever is asked, so
the second control draws other heads of the very same layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guardkeel.heads.layout import Head

Kind = Literal["found", "random", "matched"]


@dataclass(frozen=True)
class Trial:
    """Heads to ablate together. A draw's groups grow as the found one does: each is the beginning of the next."""

    kind: Kind
    draw: int
    heads: tuple[Head, ...]

    @property
    def name(self) -> str:
        """Unique in a run, and fit for a file's name."""
        return f"{self.kind}-{self.draw}-{len(self.heads)}"


def trials(group: Sequence[Head], shape: tuple[int, int], draws: int, seed: int = 0) -> list[Trial]:
    """The found group in each size from 1, then `draws` of either control in the same sizes.

    Args:
        group: in the order in which it was found.
        shape: (layers, heads a layer) of what can be ablated.
        draws: of each control.
        seed: of the draws; one is the same whatever the others are.

    Where the model has too few other heads for a size, that control is left out.
    """
    found = [Trial("found", 0, tuple(group[:size])) for size in range(1, len(group) + 1)]
    for draw in range(draws):
        for kind in ("random", "matched"):
            rng = np.random.default_rng([seed, draw, kind == "matched"])
            order = _random(group, shape, rng) if kind == "random" else _matched(group, shape, rng)
            found += [Trial(kind, draw, tuple(order[:size])) for size in range(1, len(order) + 1)]
    return found


def _random(group: Sequence[Head], shape: tuple[int, int], rng: np.random.Generator) -> list[Head]:
    others = [(i, j) for i in range(shape[0]) for j in range(shape[1]) if (i, j) not in set(group)]
    return [others[i] for i in rng.permutation(len(others))[: len(group)]]


def _matched(group: Sequence[Head], shape: tuple[int, int], rng: np.random.Generator) -> list[Head]:
    """Another head of each one's layer; the beginning of the group as long as its layers have others."""
    taken = set(group)
    chosen: list[Head] = []
    for layer, _ in group:
        others = [(layer, j) for j in range(shape[1]) if (layer, j) not in taken]
        if not others:
            break
        chosen.append(others[int(rng.integers(len(others)))])
        taken.add(chosen[-1])
    return chosen
