"""What it means to ablate a head, and a context manager that does it to a loaded model.

With ε ≥ 0, a head's query q, key k (its own copy where several heads share one) and output z become, by mode:

    q          ε q                        with ε ≈ 1e-5 its weights are the mean over the visible tokens
    k          ε k                        ("undifferentiated attention" of arXiv:2410.13708)
    v          ε z                        ("scaling contribution"; scaling v is scaling z)
    mean-q     ε q + (1 − ε) mean_h q     ("mean mask": replaced by the mean over heads)
    mean-k     ε k + (1 − ε) mean_h k
    mean-v     ε z + (1 − ε) mean_h z
    kv-group   ε k                        for all heads that share this key

q·(εk) = (εq)·k, so q and k are one and the same for single heads; they are both here because papers report both. The
mean of keys is over key/value heads, which is that over the heads' copies. ε = 1 is exactly nothing in all modes.

We depart from the released code in three things. q and k are scaled after bias and q/k-norm (a norm undoes what is
scaled before it). On GQA, k and v of every query head can be ablated, where that code has heads only up to the number
of keys. Means of several heads are those of the heads as they were.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import Any

import torch

from guardkeel.errors import ConfigError
from guardkeel.heads.layout import PLAIN, Head, Layout, checked_heads, layout_of

MODES = ("q", "k", "v", "mean-q", "mean-k", "mean-v", "kv-group")
EPSILON = 1e-5

_NAME = "guardkeel_heads_"
_MARK = "_guardkeel_ablations"  # on an attention module: what is ablated in it now

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check(mode: str, epsilon: float) -> None:
    """Raises ConfigError where the mode is unknown or ε is not in [0, 1]."""
    if mode not in MODES:
        raise ConfigError(f"no ablation mode {mode!r}", remedy=f"use one of {', '.join(MODES)}")
    if not (math.isfinite(epsilon) and 0.0 <= epsilon <= 1.0):
        raise ConfigError(f"ε = {epsilon} is not in [0, 1]", remedy=f"use {EPSILON:g}, or 1 for no ablation")


def per_layer(found: Layout, mode: str) -> int:
    """How many things a layer has to ablate: query heads, or key/value heads in kv-group mode."""
    return found.groups if mode == "kv-group" else found.heads


def members(found: Layout, mode: str, index: int) -> list[int]:
    """The query heads that ablating number `index` changes."""
    each = found.heads // found.groups
    return list(range(index * each, (index + 1) * each)) if mode == "kv-group" else [index]


def ablate_all(
    mode: str,
    epsilon: float,
    q: torch.Tensor,
    k: torch.Tensor,
    z: torch.Tensor,
    attend: Attend,
    *,
    axis: int,
) -> torch.Tensor:
    """What each head would give were it ablated; heads do not see each other, so one call does for all.

    Args:
        mode, epsilon: see above.
        q, k, z: queries, keys and outputs with heads along `axis`.
        attend: gives the outputs for other queries and keys.
        axis: of the heads.
    """
    if mode in ("q", "k", "kv-group"):
        return attend(q * epsilon, k)
    if mode == "v":
        return z * epsilon
    if mode == "mean-q":
        return attend(_towards_mean(q, epsilon, axis), k)
    if mode == "mean-k":
        return attend(q, _towards_mean(k, epsilon, axis))
    return _towards_mean(z, epsilon, axis)


def _towards_mean(x: torch.Tensor, epsilon: float, axis: int) -> torch.Tensor:
    return x * epsilon + x.mean(axis, keepdim=True) * (1.0 - epsilon)


@contextlib.contextmanager
def ablated(
    model: Any, heads: Collection[Head], mode: str = "q", epsilon: float = EPSILON
) -> Iterator[tuple[Head, ...]]:
    """While entered, these heads are ablated in everything the model does: scoring, generation, a guard's verdicts.

    The weights are not touched. On leaving, exceptions included, the model is what it was; contexts may be
    nested (the inner one has the word on a head that both ablate). Yields the heads, each once.

    Args:
        model: a loaded model, peft-wrapped or not; a guard's is `guard.model`.
        heads: (layer, head), from 0; (layer, key/value head) in kv-group mode.
        mode, epsilon: see the module.

    Raises:
        ModelError: the attention is not supported, or there is no such head.
        ConfigError: the mode or ε is no good.
    """
    check(mode, epsilon)
    found = layout_of(model)
    chosen = checked_heads(heads, (found.layers, per_layer(found, mode)))
    if epsilon == 1.0 or not chosen:
        yield chosen
        return
    by_layer: dict[int, list[int]] = {}
    for layer, index in chosen:
        by_layer.setdefault(layer, []).extend(members(found, mode, index))
    edited = {layer: found.blocks[layer].attention for layer in by_layer}
    configs = {id(c): c for c in (found.config, *(a.config for a in edited.values()))}.values()
    with contextlib.ExitStack() as undo:
        for config in configs:
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = _watched(config._attn_implementation)
        for layer, attention in edited.items():
            before = getattr(attention, _MARK, ())
            undo.callback(_mark, attention, before)
            _mark(attention, (*before, (mode, epsilon, by_layer[layer])))
        yield chosen


def is_ablated(found: Layout) -> bool:
    """Whether some `ablated` is entered on this model."""
    return any(getattr(block.attention, _MARK, ()) for block in found.blocks)


def _mark(attention: Any, edits: tuple[Any, ...]) -> None:
    if edits:
        setattr(attention, _MARK, edits)
    else:
        delattr(attention, _MARK)


def _watched(name: str) -> str:
    """The name of our attention in front of this one."""
    if name.startswith(_NAME):
        return name
    if name not in PLAIN:
        warnings.warn(
            f"the model's fused attention ({name}) hides its heads: eager is used while heads are ablated",
            stacklevel=4,
        )
        name = "eager"
    _register()
    return _NAME + name


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    for name in PLAIN:
        AttentionInterface.register(_NAME + name, _attention(name))
        AttentionMaskInterface.register(_NAME + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _attention(name: str) -> Callable[..., tuple[torch.Tensor, None]]:
    """transformers' attention of that name, its outputs (rows, tokens, heads, width) edited by what is marked."""

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        own = sys.modules[type(module).__module__].eager_attention_forward
        under = own if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]

        def attend(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = under(module, q, k, value, *rest, **options)[0].transpose(1, 2)
            return out

        plain = attend(query, key)
        result = plain
        for mode, epsilon, heads in getattr(module, _MARK, ()):
            edited = ablate_all(mode, epsilon, query, key, plain, attend, axis=1)
            result = result.clone()
            result[:, heads] = edited[:, heads]
        return result.transpose(1, 2).contiguous(), None

    return attention
