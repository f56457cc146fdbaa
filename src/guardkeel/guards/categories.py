"""Which categories an unsafe verdict names: the model's own next tokens, restricted to the policy's names.

After the verdict the answer goes on with a separator and a name. The names form a trie of tokens; the
reader walks it greedily, every step restricted to the children of the node, and stops when one name is left.
A second name is reported when the first step gives it at least `SHARE` of the probability.
"""

from __future__ import annotations

from typing import Any

import torch

from guardkeel.guards.base import Family
from guardkeel.guards.prefix import KeyValues

SHARE = 0.3


class CategoryReader:
    """Reads category names with the key/value cache of a batch that has just been scored."""

    def __init__(self, family: Family, tokenizer: Any) -> None:
        answers = {name: tokenizer(family.answer(name), add_special_tokens=False)["input_ids"] for name in family.categories}
        ends = tokenizer.eos_token_id
        rows = {name: [*ids, ends] for name, ids in answers.items()}
        shared = 0
        while len({tuple(ids[: shared + 1]) for ids in rows.values()}) == 1:
            shared += 1
        first = next(iter(rows.values()))
        self.opening = first[:shared]  # "unsafe" and the separator
        self.names = {name: ids[shared:] for name, ids in rows.items()}

    def read(
        self, model: Any, cache: Any, mask: torch.Tensor, flagged: torch.Tensor, prefix: KeyValues | None
    ) -> dict[int, tuple[str, ...]]:
        """Names for the flagged rows. `cache` holds prefix and rows; it is consumed."""
        if not len(flagged):
            return {}
        cache.batch_select_indices(flagged)
        shared = prefix[0][0].shape[2] if prefix else 0
        seen = torch.cat([mask.new_ones(len(flagged), shared), mask[flagged]], dim=1)
        state = _Decoding(model, cache, seen)
        logits = state.feed(torch.tensor([self.opening], device=mask.device).expand(len(flagged), -1))
        firsts = sorted({ids[0] for ids in self.names.values()})
        shares = logits[:, firsts].softmax(-1)
        found: dict[int, tuple[str, ...]] = {}
        picks = [self._starts(firsts, row) for row in shares]
        undecided = any(len(self._leaves((first,))) > 1 for starts in picks for first in starts[:1])
        second = state.feed(torch.tensor([[starts[0]] for starts in picks], device=mask.device)) if undecided else None
        for row, starts in enumerate(picks):
            names = []
            for k, first in enumerate(starts):
                leaves = self._leaves((first,))
                if len(leaves) > 1 and k == 0 and second is not None:
                    leaves = sorted(leaves, key=lambda name: -float(second[row, self.names[name][1]]))
                names.append(leaves[0])
            found[int(flagged[row])] = tuple(names)
        return found

    def _starts(self, firsts: list[int], shares: torch.Tensor) -> list[int]:
        order = shares.argsort(descending=True).tolist()
        return [firsts[i] for rank, i in enumerate(order) if rank == 0 or float(shares[i]) >= SHARE]

    def _leaves(self, path: tuple[int, ...]) -> list[str]:
        return [name for name, ids in self.names.items() if tuple(ids[: len(path)]) == path]


class _Decoding:
    """Feeds tokens after a left-padded batch, positions counting real tokens."""

    def __init__(self, model: Any, cache: Any, seen: torch.Tensor) -> None:
        self.model, self.cache, self.seen = model, cache, seen

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
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
