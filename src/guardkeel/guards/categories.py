"""Which categories an unsafe verdict names: the model's own next tokens, restricted to the policy's names.

After the verdict the answer goes on with a separator and a name. The names form a trie of tokens; the
reader walks it greedily, every step restricted to the children of the node, and stops when one name is left.
Another name is reported when the first step gives it at least `SHARE` of the probability.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from guardkeel.guards.base import Family
from guardkeel.guards.prefix import KeyValues

SHARE = 0.3

Path = tuple[int, ...]


class CategoryReader:
    """Reads category names with the key/value cache of a batch that has just been scored."""

    def __init__(self, family: Family, tokenizer: Any) -> None:
        end = tokenizer.eos_token_id
        rows = {
            name: (*tokenizer(family.answer("unsafe", (name,)), add_special_tokens=False)["input_ids"], end)
            for name in family.categories
        }
        shared = 0  # "unsafe" and the separator; at least the end of the answer tells names apart
        while shared < min(map(len, rows.values())) - 1 and _same(ids[shared] for ids in rows.values()):
            shared += 1
        self.opening = list(next(iter(rows.values()))[:shared])
        self.names: dict[str, Path] = {name: ids[shared:] for name, ids in rows.items()}

    def read(
        self, model: Any, cache: Any, mask: torch.Tensor, flagged: torch.Tensor, prefix: KeyValues | None
    ) -> dict[int, tuple[str, ...]]:
        """Names for the flagged rows. `cache` holds prefix and rows; it is consumed."""
        if not len(flagged):
            return {}
        shared = prefix[0][0].shape[2] if prefix else 0
        seen = torch.cat([mask.new_ones(len(mask), shared), mask], dim=1)
        state = _Decoding(model, cache, seen)
        state.select(flagged)
        logits = state.feed([self.opening] * len(flagged))
        # One walker for each name begun: (row, place among the row's names, path so far).
        walkers: list[tuple[int, int, Path]] = [
            (row, place, (first,))
            for row in range(len(flagged))
            for place, first in enumerate(self._starts(logits[row]))
        ]
        rows = [row for row, _, _ in walkers]  # where each walker's past is in the cache
        found: dict[tuple[int, int], str] = {}
        while True:
            undecided = []
            for at, (row, place, path) in zip(rows, walkers, strict=True):
                leaves = self._leaves(path)
                if len(leaves) == 1:
                    found[row, place] = leaves[0]
                else:
                    undecided.append((at, (row, place, path)))
            if not undecided:
                break
            state.select(torch.tensor([at for at, _ in undecided], device=mask.device))
            walkers = [walker for _, walker in undecided]
            logits = state.feed([[path[-1]] for _, _, path in walkers])
            walkers = [
                (row, place, (*path, self._child(path, logits[i])))
                for i, (row, place, path) in enumerate(walkers)
            ]
            rows = list(range(len(walkers)))
        places = {row: sorted(p for r, p in found if r == row) for row in range(len(flagged))}
        return {
            int(flagged[row]): tuple(found[row, place] for place in places[row])
            for row in range(len(flagged))
        }

    def _starts(self, logits: torch.Tensor) -> list[int]:
        """First tokens of the likeliest name and of those with their share, the likeliest first."""
        firsts = sorted({ids[0] for ids in self.names.values()})
        shares = logits[firsts].softmax(-1)
        order = shares.argsort(descending=True).tolist()
        return [firsts[i] for rank, i in enumerate(order) if rank == 0 or float(shares[i]) >= SHARE]

    def _child(self, path: Path, logits: torch.Tensor) -> int:
        children = sorted({self.names[name][len(path)] for name in self._leaves(path)})
        return children[int(logits[children].argmax())]

    def _leaves(self, path: Path) -> list[str]:
        return [name for name, ids in self.names.items() if ids[: len(path)] == path]


class _Decoding:
    """Feeds tokens after a left-padded batch, positions counting real tokens."""

    def __init__(self, model: Any, cache: Any, seen: torch.Tensor) -> None:
        self.model, self.cache, self.seen = model, cache, seen

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only; a row may be taken more than once."""
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]

    def feed(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits after one more piece of equal length for each row."""
        ids = torch.tensor(rows, device=self.seen.device)
        start = self.seen.sum(1, keepdim=True)
        positions = start + torch.arange(ids.shape[1], device=ids.device)
        self.seen = torch.cat([self.seen, self.seen.new_ones(ids.shape)], dim=1)
        out = self.model(
            input_ids=ids,
            attention_mask=self.seen,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()  # type: ignore[no-any-return]


def _same(values: Iterable[int]) -> bool:
    return len(set(values)) == 1
