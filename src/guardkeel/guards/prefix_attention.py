"""Attention to a shared prefix that is not copied: two parts, merged by their log-sum-exps.

A row's queries attend to the prefix, whose keys and values all rows share, and to the row's own tokens. Both are
attention in their own right, with o₀, o₁ and the logarithms of their normalisers l₀, l₁; over all keys together

    o = σ(l₀ − l₁)·o₀ + σ(l₁ − l₀)·o₁ .

The first part has no mask and one set of keys, so the queries of all rows, and of all heads that share a key/value
head, are one long sequence against it: nothing is repeated for a row or a head. (The split is that of FlashAttention,
arXiv:2205.14135, over keys; cascade inference in serving engines uses it for shared prompts.)

It is what transformers calls an attention implementation: models ask for it by name while `attending_to` is entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

_NAME = "guardkeel_prefix"
_PREFIX: ContextVar[list[tuple[torch.Tensor, torch.Tensor]]] = ContextVar("prefix")


def supported(model: Any) -> bool:
    """Whether this model's attention may be split: on a CPU, transformers' plain scaled dot product, no gradients."""
    text = model.config.get_text_config(decoder=True)
    return (
        not torch.is_grad_enabled()
        and model.device.type == "cpu"
        and getattr(text, "_attn_implementation", "") == "sdpa"
        and getattr(text, "attn_logit_softcapping", None) is None
    )


@contextlib.contextmanager
def attending_to(model: Any, prefix: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """While entered, tokens attend to this prefix too: keys and values (1, heads, length, width) a layer."""
    _register()
    text = model.config.get_text_config(decoder=True)
    before = text._attn_implementation
    token = _PREFIX.set(prefix)
    text._attn_implementation = _NAME
    try:
        yield
    finally:
        text._attn_implementation = before
        _PREFIX.reset(token)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Queries (rows, heads, n, width) against the prefix and their own keys (rows, key heads, m, width).

    The result is (rows, n, heads, width), as transformers wants it.
    """
    keys, values = _PREFIX.get()[module.layer_idx]  # type: ignore[index]
    rows, heads, n, width = query.shape
    shared = keys.shape[1]
    long = query.view(rows, shared, heads // shared, n, width).permute(1, 0, 2, 3, 4)
    first, l0 = _attend(long.reshape(1, shared, -1, width), keys, values, None, scaling)
    first = first.view(shared, rows, -1, n, width).permute(1, 0, 2, 3, 4).reshape(rows, heads, n, width)
    l0 = l0.view(shared, rows, -1, n).permute(1, 0, 2, 3).reshape(rows, heads, n)
    repeats = heads // shared
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros(attention_mask.shape, dtype=query.dtype).masked_fill_(
            ~attention_mask, -torch.inf
        )
    second, l1 = _attend(
        query,
        key.repeat_interleave(repeats, 1),
        value.repeat_interleave(repeats, 1),
        attention_mask,
        scaling,
        causal=attention_mask is None and n > 1,
    )
    merged = torch.lerp(second.float(), first.float(), (l0 - l1).sigmoid().unsqueeze(-1))
    return merged.to(query.dtype).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp, (rows, heads, n). A query that sees nothing gives zeros."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
