"""Attention heads left as they are while the rest is tuned: those that carry the verdict, or random ones.

A head (l, h) of width w owns rows hw … (h+1)w of W_q, the same columns of W_o, and with the other heads of its group
the rows of W_k and W_v that it reads. Of all these slices S

    how = "freeze"   ΔW_S = 0, exactly
    how = "l2"       ½ · strength · Σ_S ‖ΔW_S‖²_F is added to the loss

Full fine-tuning: gradients of the slices are zero, biases included, so no optimiser without weight decay moves them.
LoRA, ΔW = s B A: for q, k and v the gradient of B's rows is zero, and B begins at zero. For o the gradient of A's
columns is zero, which alone would not do, for A begins at random and ΔW = s B A moves with B: so those columns of A
are zero from the start, ΔW is still zero, and stays so.

(The heads are those that `guardkeel heads` finds, arXiv:2410.13708.)

What is not held: what reaches a head. Blocks before it, norms and other heads go on learning, so a head that computes
the same function may be told something else. On GQA, k and v of a group are held for all of its heads. DoRA normalises
and scales whole rows, so columns of W_o cannot be held apart: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.tuning.regularisers import base
from guardkeel.tuning.regularisers.factors import adapters, pair, squared_norm, wide

_PROJECTION = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.([qkvo])_proj$")
_NAME = re.compile(r"\d{1,5}-\d{1,5}")
_ALL = "all"
Head = tuple[int, int]


class HeadsSettings(base.Settings):
    """Settings of Heads."""

    heads: list[str] = Field(
        default_factory=list,
        description='layer-head, both from 0, as `guardkeel heads` writes them; or ["all"]',
    )
    how: Literal["freeze", "l2"] = Field(
        default="freeze", description="held exactly, or drawn back to where they were"
    )
    strength: float = Field(
        default=1.0, ge=0, description="of l2: weight of half the squared change of the slices"
    )
    parts: str = Field(default="qkvo", description="projections that are held, of q, k, v and o")
    random: int | None = Field(
        default=None, ge=0, description="control: as many other heads instead, drawn from this seed"
    )

    @field_validator("heads")
    @classmethod
    def _named(cls, value: list[str]) -> list[str]:
        if wrong := [h for h in value if not _NAME.fullmatch(h) and value != [_ALL]]:
            raise ValueError(f"{wrong[0]!r:.40} is no head: write layer-head, as in 7-3")
        return value

    @field_validator("parts")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or set(value) - set("qkvo") or len(set(value)) < len(value):
            raise ValueError("write some of the letters q, k, v and o")
        return value


class Heads(base.Regulariser):
    """Holds some heads' slices of the attention projections."""

    name = "heads"
    Settings = HeadsSettings
    settings: HeadsSettings
    _last: Tensor | None = None

    def prepare(self, probes: base.Probes) -> None:
        """Choose the heads, and put what LoRA would add to them to exactly zero.

        Raises:
            ConfigError: no heads are named, one is not in the model, or the adapter cannot hold them.
        """
        shape = _shape(probes)
        chosen = self._chosen(shape)
        self.fixed["heads"] = torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)
        for module, part, where in self._held(probes):
            if not hasattr(module, "lora_A"):
                continue
            if pair(module) is None:
                raise ConfigError(
                    "heads cannot be held under DoRA or another adapter that is no plain product",
                    remedy="set adapter to lora or full",
                )
            for name in adapters(module):
                up, down = module.lora_B[name].weight, module.lora_A[name].weight
                if bool(up.detach().any()):
                    raise ConfigError(
                        "the LoRA to be trained does not begin at zero: what it adds to the heads cannot be held",
                        remedy="merge it into its base first, and tune the result",
                    )
                if part == "o" and self.settings.how == "freeze":
                    with torch.no_grad():
                        down[:, where] = 0.0
        if self.settings.how == "l2":
            for name, parameter, _, where in self._slices(probes):
                self.fixed[f"start/{name}"] = parameter.detach()[where].clone()

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """½ · strength · squared change of the slices, for l2."""
        if self.settings.how != "l2" or not self.settings.strength:
            return None
        terms = []
        for module, part, where in self._held(probes):
            update = pair(module)
            if update is not None:
                left, right = update
                terms.append(
                    squared_norm(
                        left[where] if part != "o" else left, right if part != "o" else right[:, where]
                    )
                )
        for name, parameter, _, where in self._slices(probes):
            terms.append(
                (wide(parameter[where]) - wide(self.fixed[f"start/{name}"].to(parameter.device)))
                .square()
                .sum()
            )
        if not terms:
            return None
        term = 0.5 * self.settings.strength * torch.stack(terms).sum()
        self._last = term.detach()
        return term

    def edit(self, probes: base.Probes, step: int, gradients: base.Gradients) -> None:
        """Zero what would move the slices, for freeze."""
        if self.settings.how != "freeze":
            return
        names = {id(p): name for name, p in probes.parameters().items()}
        for module, part, where in self._held(probes):
            for name in adapters(module):
                factor = module.lora_A[name].weight if part == "o" else module.lora_B[name].weight
                if id(factor) in names:
                    gradient = gradients[names[id(factor)]]
                    if part == "o":
                        gradient[:, where] = 0.0
                    else:
                        gradient[where] = 0.0
        for name, _, _, at in self._slices(probes):
            gradients[name][at] = 0.0

    def log(self) -> dict[str, float]:
        """How many heads are held, and the weighted term of the last step."""
        held = {"heads": float(len(self.fixed["heads"]))} if "heads" in self.fixed else {}
        return held | ({"penalty": float(self._last)} if self._last is not None else {})

    def _chosen(self, shape: tuple[int, int, int]) -> list[Head]:
        layers, heads, _ = shape
        every = [(i, j) for i in range(layers) for j in range(heads)]
        pairs = (h.split("-") for h in self.settings.heads if h != _ALL)
        named = every if self.settings.heads == [_ALL] else sorted({(int(a), int(b)) for a, b in pairs})
        if not named:
            raise ConfigError(
                "method 'heads' names no heads",
                remedy='set options.heads.heads, as in --set options.heads.heads=["12-3","20-1"]',
            )
        for layer, head in named:
            if layer >= layers or head >= heads:
                raise ConfigError(
                    f"there is no head {layer}-{head}",
                    remedy=f"layers are 0 to {layers - 1}, heads 0 to {heads - 1}",
                )
        if self.settings.random is None:
            return named
        others = [head for head in every if head not in set(named)]
        if len(others) < len(named):
            raise ConfigError(
                f"the model has {len(others)} other heads, fewer than {len(named)}", remedy="name fewer heads"
            )
        rng = np.random.default_rng(self.settings.random)
        return sorted(others[i] for i in rng.choice(len(others), len(named), replace=False))

    def _held(self, probes: base.Probes) -> Iterator[tuple[Any, str, Tensor]]:
        """(trained module, its letter, indices of the rows, or columns of o, that are held)."""
        _, heads, groups = _shape(probes)
        chosen = [(int(layer), int(head)) for layer, head in self.fixed["heads"].tolist()]
        for name, module in probes.modules().items():
            found = _PROJECTION.search(name)
            if found is None or found[2] not in self.settings.parts:
                continue
            part, size = found[2], module.in_features if found[2] == "o" else module.out_features
            count = groups if part in "kv" else heads
            mine = {
                h if count == heads else h * groups // heads for layer, h in chosen if layer == int(found[1])
            }
            if mine:
                width = size // count
                yield (
                    module,
                    part,
                    torch.tensor([i for m in sorted(mine) for i in range(m * width, (m + 1) * width)]),
                )

    def _slices(self, probes: base.Probes) -> Iterator[tuple[str, torch.nn.Parameter, str, Any]]:
        """(name, parameter, letter, index) of what is trained as it is: weights, and biases of q, k and v."""
        names = {id(p): name for name, p in probes.parameters().items()}
        for module, part, held in self._held(probes):
            plain = module.get_base_layer() if hasattr(module, "lora_A") else module
            where = held.to(plain.weight.device)
            for parameter, index in (
                (plain.weight, (slice(None), where) if part == "o" else where),
                (plain.bias if part != "o" else None, where),
            ):
                if parameter is not None and id(parameter) in names:
                    yield names[id(parameter)], parameter, part, index


def _shape(probes: base.Probes) -> tuple[int, int, int]:
    """(layers, query heads, key/value heads) of the model that is looked at."""
    config: Any = getattr(getattr(probes, "model", None), "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None)
    names: Sequence[str] = [n for n in probes.modules() if _PROJECTION.search(n)]
    if heads is None or not names:
        raise ConfigError(
            "method 'heads' holds the projections of attention heads, and this model trains none that it knows",
            remedy="tune a causal guard of Llama’s kind, with q_proj, k_proj, v_proj and o_proj among its targets",
        )
    return probes.depth, int(heads), int(getattr(text, "num_key_value_heads", None) or heads)
