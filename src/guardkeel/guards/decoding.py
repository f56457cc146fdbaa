"""A batch of rows after a shared prefix, run piece by piece without gradients."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from guardkeel.guards.prefix import KeyValues, left_padded, prefix_length
from guardkeel.guards.prefix_attention import attending_to, supported


class Decoding:
    """Feeds tokens to rows; positions count real tokens. With `more`, further pieces can follow the first.

    Where the attention can be split, the prefix stays what it is; elsewhere every row gets a copy of it.
    """

    def __init__(self, model: Any, prefix: KeyValues | None, *, more: bool) -> None:
        self.model, self.prefix = model, prefix
        self.apart = prefix is not None and supported(model)
        self.more = more or (prefix is not None and not self.apart)
        self.cache: Any = None
        self.seen: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only; a row may be taken more than once."""
        assert self.seen is not None
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]

    def feed(self, rows: list[list[int]], *, keep: int = 1, pad: int = 0) -> torch.Tensor:
        """Logits (rows, keep, vocabulary) after the last `keep` tokens of one more piece for each row."""
        ids, mask = left_padded(rows, pad, self.model.device)
        shared = prefix_length(self.prefix)
        if self.seen is None:
            self.seen = mask.new_zeros(len(rows), 0)
            self.cache = self._cache(len(rows)) if self.more else None
        positions = shared + self.seen.sum(1, keepdim=True) + (mask.cumsum(1) - 1).clamp(min=0)
        self.seen = torch.cat([self.seen, mask], dim=1)
        before = 0 if self.apart else shared
        near = (
            attending_to(self.model, self.prefix) if self.apart and self.prefix else contextlib.nullcontext()
        )
        with near:
            out = self.model(
                input_ids=ids,
                attention_mask=torch.cat([mask.new_ones(len(rows), before), self.seen], dim=1),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=self.cache is not None,
                logits_to_keep=torch.arange(-keep, 0, device=ids.device),  # indices give a cheap product
            )
        return out.logits.float()  # type: ignore[no-any-return]

    def _cache(self, rows: int) -> Any:
        from transformers import DynamicCache

        if self.apart or not self.prefix:
            return DynamicCache()
        return DynamicCache(
            [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.prefix]
        )
