"""Where a model keeps its attention heads, and how its blocks are put together.

All supported architectures are one scheme with parts present or absent:

    q, k, v = rope(q_norm(W_q n)), rope(k_norm(W_k n)), W_v n          n = before_attention(x)
    z_h     = softmax(cap(scaling · q_h kᵀ) + mask) v                  cap(s) = c · tanh(s / c), or s
    x      ← x + r · after_attention(W_o z)                            r = Granite's residual multiplier, else 1
    x      ← x + r · after_mlp(mlp(before_mlp(x)))

The parts are the model's own modules and are called as they are. So a LoRA adapter that is not merged, or a quantised
projection, needs nothing more: its module gives the sum. (Prompt-learning adapters change the input and are refused.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ModelError

SUPPORTED = ("Llama", "Mistral", "Granite", "Gemma", "Gemma2", "Gemma3", "Qwen2", "Qwen3")
"""Architectures whose attention is known here: MHA, GQA and MQA of each."""

PLAIN = ("eager", "sdpa")  # attention implementations that an ablation can stand in front of
_GROWING = ("dynamic", "longrope")  # rotary embeddings that change with the length of the prompt

Head = tuple[int, int]
"""(layer, head), both counted from 0; in kv-group mode (layer, key/value head)."""


@dataclass(frozen=True)
class Block:
    """One block's parts; absent ones are None. `window`: tokens that a query sees, itself included, or all."""

    index: int
    attention: Any
    before_attention: Any
    after_attention: Any
    before_mlp: Any
    after_mlp: Any
    mlp: Any
    window: int | None
    kind: str


@dataclass(frozen=True)
class Layout:
    """A causal language model by its heads.

    Attributes:
        model: the …ForCausalLM, without a peft wrapper.
        blocks: in order.
        heads, groups: query heads and key/value heads of each block; heads / groups queries share a key.
        width: of a head.
        residual: factor on what a block adds.
        softcap: c of the attention logits' cap, or None.
        notes: what a reader of results must be told, such as a fused kernel that is not used.
    """

    model: Any
    blocks: tuple[Block, ...]
    heads: int
    groups: int
    width: int
    residual: float
    softcap: float | None
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @cached_property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the residual stream."""
        return self.model.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]

    def slices(self, head: int) -> dict[str, tuple[int, slice]]:
        """Where a query head's weights are: projection → (axis of its weight, slice).

        Keys and values are those of its group, which other heads may share.
        """
        own = slice(head * self.width, (head + 1) * self.width)
        group = head * self.groups // self.heads
        shared = slice(group * self.width, (group + 1) * self.width)
        return {"q_proj": (0, own), "k_proj": (0, shared), "v_proj": (0, shared), "o_proj": (1, own)}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The first residual stream (tokens, hidden); Gemma's scale is in its embedding, Granite's is not."""
        return self.model.get_input_embeddings()(ids) * getattr(self.config, "embedding_multiplier", 1.0)  # type: ignore[no-any-return]

    def rotary(self, positions: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cosines and sines, (tokens, 1, width) each, by the kind of block."""
        table, like = self._body.rotary_emb, torch.empty(0, device=self.device, dtype=self.dtype)
        found = {}
        for kind in {block.kind for block in self.blocks}:
            named = {"layer_type": kind} if isinstance(getattr(table, "rope_type", ""), dict) else {}
            cos, sin = table(like, positions[None], **named)
            found[kind] = (cos[0, :, None], sin[0, :, None])
        return found

    def final(self, x: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        return self._body.norm(x)  # type: ignore[no-any-return]

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 logits from the head's output: Granite divides them, Gemma 2 and 3 cap them."""
        logits = logits.float() / getattr(self.config, "logits_scaling", 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    @property
    def _body(self) -> Any:
        return self.model.base_model


def layout_of(model: Any) -> Layout:
    """How a loaded model keeps its heads. A peft model is looked at through its wrapper.

    Raises:
        ModelError: its attention is none of SUPPORTED, it has no language-model head, its rotary embedding changes
            with the length of the prompt, it sees later tokens, or lies on several devices.
    """
    bare = _unwrapped(model)
    name = type(bare).__name__
    if bare.get_output_embeddings() is None:
        raise ModelError(f"{name} has no language-model head", remedy="give a …ForCausalLM checkpoint")
    found = list(blocks(bare))
    attention = getattr(found[0], "self_attn", None)
    kind = type(attention).__name__
    if kind.removesuffix("Attention") not in SUPPORTED or not kind.endswith("Attention"):
        raise ModelError(
            f"{name}: its attention ({kind}) cannot be ablated head by head",
            remedy=f"supported are {', '.join(SUPPORTED)} and models built of their attention",
        )
    assert attention is not None
    config = bare.config.get_text_config(decoder=True)
    _check(bare, name, config, attention)
    ways = getattr(config, "_attn_implementation", "eager")
    notes: tuple[str, ...] = ()
    if ways not in PLAIN:
        notes = (f"the model's fused attention ({ways}) hides its heads: it was run unfused",)
    return Layout(
        model=bare,
        blocks=tuple(_block(i, module, config) for i, module in enumerate(found)),
        heads=int(config.num_attention_heads),
        groups=int(config.num_key_value_heads),
        width=int(attention.head_dim),
        residual=float(getattr(config, "residual_multiplier", 1.0)),
        softcap=attention.attn_logit_softcapping if kind == "Gemma2Attention" else None,
        notes=notes,
    )


def _unwrapped(model: Any) -> Any:
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model
    if any(getattr(c, "is_prompt_learning", False) for c in model.peft_config.values()):
        raise ModelError(
            "a prompt-learning adapter changes the model's input, not its heads",
            remedy="give the model without it, or a LoRA adapter",
        )
    return model.get_base_model()


def _check(model: Any, name: str, config: Any, attention: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    named = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    growing = [r["rope_type"] for r in named if r.get("rope_type") in _GROWING]
    if growing:
        raise ModelError(
            f"{name}: its rotary embedding ({growing[0]}) changes with the length of the prompt",
            remedy="give a checkpoint whose rope_type is default, linear, llama3 or yarn",
        )
    if not getattr(attention, "is_causal", True):
        raise ModelError(f"{name}: its tokens see later ones", remedy="give a causal checkpoint")
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1:
        raise ModelError(f"{name} lies on {', '.join(devices)}", remedy="load it on one device")


def _block(index: int, module: Any, config: Any) -> Block:
    attention = module.self_attn
    sandwich = hasattr(module, "pre_feedforward_layernorm")  # Gemma 2 and 3 have a norm on either side
    kind = type(attention).__name__
    everywhere = getattr(config, "sliding_window", None) if kind == "MistralAttention" else None
    return Block(
        index=index,
        attention=attention,
        before_attention=module.input_layernorm,
        after_attention=module.post_attention_layernorm if sandwich else None,
        before_mlp=module.pre_feedforward_layernorm if sandwich else module.post_attention_layernorm,
        after_mlp=module.post_feedforward_layernorm if sandwich else None,
        mlp=module.mlp,
        window=getattr(attention, "sliding_window", None) or everywhere,
        kind=getattr(attention, "layer_type", None) or "full_attention",
    )


def checked_heads(heads: Collection[Head], shape: tuple[int, int]) -> tuple[Head, ...]:
    """The heads, each once, in order.

    Raises:
        ModelError: one is not in a model of this many layers and heads.
    """
    layers, count = shape
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise ModelError(
                f"there is no head {layer}-{head}",
                remedy=f"layers are 0 to {layers - 1}, heads 0 to {count - 1}",
            )
    return tuple(sorted(set(heads)))
