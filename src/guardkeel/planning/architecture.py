"""A transformer by the numbers of its config.json: tensors, operations and bytes, with no weights there.

parameters   the sum over its tensors
forward      2 operations a parameter and token in the blocks (one product, one sum; arXiv 2001.08361, table 1), and
             4 · heads · head_dim a token and key that it attends to (q·k and the weighted sum of v), in each block
keys, values 2 · layers · kv_heads · head_dim values a token
"""

from __future__ import annotations

import math
import tomllib
from functools import cache, cached_property
from importlib import resources as package
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardkeel.errors import ConfigError, ModelError
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import read_json
from guardkeel.resources import resolve

_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
"""Model types whose configuration is tied where it does not say."""
_UNGATED = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2", "gpt_neox", "phi"})
_NORMED = frozenset({"gemma2", "gemma3", "gemma3_text"})
"""Model types with norms after each half of a block too."""


class Architecture(BaseModel):
    """The shape of a model; fields are config.json's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: str = "llama"
    num_hidden_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _unsaid(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What a configuration leaves out because its class says so."""
        found = {key: value for key, value in given.items() if value is not None}
        heads, width = found.get("num_attention_heads"), found.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads:
            found.setdefault("num_key_value_heads", heads)
            found.setdefault("head_dim", width // heads)
            found.setdefault("intermediate_size", 4 * width)
        found.setdefault("tie_word_embeddings", found.get("model_type") in _TIED)
        return found

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names that llama-like checkpoints have."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        feed = ("gate_proj", "up_proj") if self.model_type not in _UNGATED else ("up_proj",)
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            **{f"mlp.{name}": (inner, width) for name in feed},
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        if self.model_type in _NORMED:
            block |= {"pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, width)}
        for i in range(self.num_hidden_layers):
            found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
        found["model.norm.weight"] = (width,)
        if not self.tie_word_embeddings:
            found["lm_head.weight"] = (self.vocab_size, width)
        return found

    @cached_property
    def linears(self) -> list[tuple[int, ...]]:
        """Shapes of all linear layers in the blocks."""
        return [s for name, s in self.tensors.items() if ".layers." in name and len(s) == 2]

    @cached_property
    def parameters(self) -> int:
        """All numbers."""
        return sum(map(math.prod, self.tensors.values()))

    @cached_property
    def blocks(self) -> int:
        """Numbers that every token is multiplied with: those of the blocks' linear layers."""
        return sum(map(math.prod, self.linears))

    @property
    def block_parameters(self) -> int:
        """Of one block."""
        return self.blocks // self.num_hidden_layers

    def forward(self, tokens: float, keys: float, logits: float = 0) -> float:
        """Operations of a forward pass.

        Args:
            tokens: that go through the blocks.
            keys: that a token attends to, on average.
            logits: positions whose logits are made.
        """
        attention = 4.0 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * keys
        return tokens * (2.0 * self.blocks + attention) + 2.0 * logits * self.vocab_size * self.hidden_size

    def key_values(self, itemsize: int) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize

    def lora(self, rank: int) -> int:
        """Parameters of LoRA of this rank on all linear layers of the blocks: rank · (in + out) each."""
        return rank * sum(sum(shape) for shape in self.linears)


@cache
def presets() -> dict[str, Architecture]:
    """Known shapes by name."""
    text = package.files("guardkeel.planning").joinpath("data/models.toml").read_text("utf-8")
    return {name: Architecture.model_validate(table) for name, table in tomllib.loads(text).items()}


def architecture(name: str, offline: bool | None = None) -> Architecture:
    """The shape of a model: a preset, or the config.json of a folder or `hub:` reference.

    Raises:
        ConfigError: it is neither.
        ModelError: there is no config.json, or not the numbers of a dense transformer in it.
        ResourceError: it cannot be had.
    """
    known = {key.lower(): value for key, value in presets().items()}
    if name.lower() in known:
        return known[name.lower()]
    folder = Path(name.removeprefix("path:")).expanduser()
    if folder.exists():
        file = folder / "config.json" if folder.is_dir() else folder
        if folder.is_dir() and is_adapter(folder):
            raise ConfigError(
                f"{folder}: is an adapter, which does not say the shape of its base",
                remedy="name the base, or one of " + ", ".join(presets()),
            )
    elif name.startswith("hub:"):
        bare = name.partition("#")[0]  # a pin would be that of the whole model
        file = resolve(f"{bare}/config.json" if not bare.endswith(".json") else bare, offline=offline)
    else:
        raise ConfigError(
            f"model {name!r} is not known, and there is no such folder",
            remedy=f"take {', '.join(presets())}, a checkpoint's folder, a config.json or hub:org/name",
        )
    said = read_json(file, "a transformers checkpoint has it beside its weights")
    said = said.get("text_config") or said
    if any(key in said for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise ModelError(
            f"{file}: a mixture of experts; its operations do not follow from its parameters",
            remedy="plan with a dense model of as many active parameters",
        )
    try:
        return Architecture.model_validate(said)
    except ValidationError as e:
        first = e.errors()[0]
        raise ModelError(
            f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="it must be the config.json of a dense transformer",
        ) from e
