"""Sharing the policy: the common prefix is computed once, its key/value cache serves every batch.

Causal attention makes keys and values of the prefix independent of what follows, so
forward(prefix + rest) = forward(rest | cache(prefix)), exactly up to floating-point order.
Batches are padded on the left, between prefix and rest, and the padding is masked; positions count real
tokens only. Gradients flow through the cache, so training may share the prefix too.
"""

from __future__ import annotations

from typing import Any

import torch

from guardkeel.errors import ModelError

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]


def reusable(config: Any) -> bool:
    """Whether the prefix of a model with this config may be shared (no sliding-window layers)."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(text, "sliding_window", None) is None


def encode_prefix(model: Any, ids: list[int]) -> KeyValues:
    """Keys and values, per layer of shape (1, heads, len(ids), head_dim), of the prefix alone.

    Raises:
        ModelError: the model is not `reusable`; what follows the prefix would be computed wrongly.
    """
    from transformers import DynamicCache

    if not reusable(model.config):
        raise ModelError(
            f"{type(model).__name__} has sliding-window layers: its prefix cannot be shared",
            remedy="encode items without `Encoder.share` for this model",
        )
    cache = DynamicCache()
    tokens = torch.tensor([ids], device=model.device)
    model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def left_padded(rows: list[list[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each of shape (len(rows), longest), real tokens at the right."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def forward(
    model: Any,
    prefix: KeyValues | None,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    keep: int = 1,
) -> Any:
    """Run left-padded rows after the shared prefix (or alone). Logits are of the last `keep` positions.

    Gradients flow into the prefix, whose keys and values are copied for each row. `Decoding` copies nothing on a CPU.
    """
    from transformers import DynamicCache

    shared = prefix_length(prefix)
    rows = ids.shape[0]
    past = None
    if prefix:
        past = DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in prefix])
    return model(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(rows, shared), mask], dim=1),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0) + shared,
        past_key_values=past,
        use_cache=past is not None,
        logits_to_keep=torch.arange(-keep, 0, device=ids.device),  # indices give a contiguous, cheap product
    )


def prefix_length(prefix: KeyValues | None) -> int:
    """How many tokens a prefix has."""
    return prefix[0][0].shape[2] if prefix else 0
