"""A LoRA adapter folder as changes of its base's tensors, merged panel by panel in float32 as peft merges.

    LoRA        W + s·BA         s = α/r, with rsLoRA α/√r; α and r of the module (alpha_pattern, rank_pattern)
    DoRA        m ∘ (W + s·BA) / ‖W + s·BA‖, norms along the inputs (arXiv:2402.09353)
    embedding   W + s·(BA)ᵀ      B is (width, r), A is (r, vocabulary)
    whole       modules_to_save and trained biases take the base's place

A is (r, in), B is (out, r), W is (out, in); a Conv1D keeps Wᵀ (`fan_in_fan_out`) and takes (BA)ᵀ. Panels have a fixed
height, so that the sums of a product do not depend on how many rows are wanted at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.fusion.tensorfile import Spec, TensorFiles
from guardkeel.models.adapters import CONFIG, WEIGHTS, adapter_base, check_adapter
from guardkeel.models.checks import read_json

PANEL = 256
"""Rows that are merged at once."""

_PREFIX = "base_model.model."
_HEAD = "lm_head.weight"
_PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight|\.bias)?"
)
_OTHER_KINDS = (
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices", "megatron_config",
)  # fmt: skip
"""Settings of peft that make more of a LoRA than this file says."""
_LEAVE_THE_BASE = ("gaussian", "eva", "orthogonal")
"""Beginnings of A and B that do not change the base. Others do unless the adapter was converted as it was saved."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What LoRA adds to one tensor, by the names in the adapter's file."""

    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str | None


class Lora:
    """An adapter, checked against the tensors of its base.

    Args:
        folder: of the adapter.
        base: specs of the base's tensors.
        tied: the embedding that the base's config ties to lm_head, where it does.

    Raises:
        UnsafeFileError: its weights are pickles.
        ModelError: it is damaged, does not fit, or is of a kind that is not merged here.
    """

    def __init__(self, folder: Path, base: Mapping[str, Spec], tied: str | None = None) -> None:
        self.folder = folder
        self.config = _config(folder)
        self.file = TensorFiles({name: (folder / WEIGHTS, e) for name, e in check_adapter(folder).items()})
        self.pairs: dict[str, Pair] = {}
        self.biases: dict[str, tuple[str, float]] = {}
        self.whole: dict[str, str] = {}
        said = adapter_base(folder)
        self._remedy = f"put it on the base it was trained on{f' ({said})' if said else ''}"
        modules: dict[str, dict[str, str]] = {}
        for key in self.file.specs:
            name = key.removeprefix(_PREFIX)
            found = _PART.fullmatch(name)
            if found:
                modules.setdefault(found[1], {})[found[2] + (".bias" if found[3] == ".bias" else "")] = key
            else:
                self.whole[name.replace(".base_layer.", ".")] = key
        if tied:
            self._check_tied(tied, {f"{m}.weight" for m in modules} | self.whole.keys())
            if _HEAD not in base:  # the embedding's own change, said twice
                modules.pop(_HEAD.removesuffix(".weight"), None)
                self.whole.pop(_HEAD, None)
        self._check_whole(base)
        turned = self._turned(modules, base)
        for module, parts in sorted(modules.items()):
            self._add(module, parts, base, turned)

    @property
    def changed(self) -> frozenset[str]:
        """Names of the base's tensors that are not the base's own any more."""
        return frozenset((*self.pairs, *self.biases, *self.whole))

    def panel(self, name: str) -> int:
        """Rows of a tensor that are merged together; 1 where any may be taken alone."""
        pair = self.pairs.get(name)
        return 1 if pair is None else 2**62 if pair.transposed else PANEL

    def merge(self, name: str, row: int, weight: Tensor) -> None:
        """Add to `weight` (rows, width), the base's rows from `row` on, what the adapter adds; whole panels."""
        if name in self.biases:
            key, scale = self.biases[name]
            weight.view(-1).add_(self._rows(key, row, weight.numel()), alpha=scale)
        if name not in self.pairs:
            return
        pair = self.pairs[name]
        a = self._rows(pair.a)
        if pair.transposed:
            _merged(weight, (self._rows(pair.b) @ a).mul_(pair.scale).T, self._magnitude(pair), along=0)
            return
        for at in range(0, weight.shape[0], PANEL):
            part = weight[at : at + PANEL]
            update = (self._rows(pair.b, row + at, part.shape[0]) @ a).mul_(pair.scale)
            _merged(part, update, self._magnitude(pair, row + at, part.shape[0]), along=1)

    def _rows(self, key: str, row: int = 0, rows: int | None = None) -> Tensor:
        spec = self.file.specs[key]
        rows = spec.rows if rows is None else rows
        out = torch.empty((rows, spec.width) if len(spec.shape) > 1 else (rows,))
        self.file.fill(key, row, out)
        return out

    def _magnitude(self, pair: Pair, row: int = 0, rows: int | None = None) -> Tensor | None:
        return None if pair.magnitude is None else self._rows(pair.magnitude, row, rows).view(-1)

    def _add(self, module: str, parts: dict[str, str], base: Mapping[str, Spec], turned: bool) -> None:
        kind = "lora_embedding_" if "lora_embedding_A" in parts else "lora_"
        a, b, name = parts.get(f"{kind}A"), parts.get(f"{kind}B"), f"{module}.weight"
        if a is None or b is None:
            raise ModelError(
                f"{self.folder}: module {module!r} has only {', '.join(sorted(parts))}",
                remedy="save the adapter again with peft's save_pretrained",
            )
        if name not in base:
            raise ModelError(f"{self.folder}: the base has no tensor {name!r}", remedy=self._remedy)
        shape, shape_a, shape_b = base[name].shape, self.file.specs[a].shape, self.file.specs[b].shape
        if any(len(s) != 2 for s in (shape, shape_a, shape_b)):
            raise ModelError(
                f"{self.folder}: module {module!r} is no linear layer and no embedding: its weight is {shape}",
                remedy="merge it with peft (merge_and_unload) and give the full checkpoint",
            )
        transposed = kind == "lora_embedding_" or turned
        update = (shape_b[0], shape_a[1])
        if shape != (update[::-1] if transposed else update) or shape_a[0] != shape_b[1]:
            raise ModelError(
                f"{self.folder}: {module!r} has A {shape_a} and B {shape_b}, which do not fit "
                f"the base's {shape}",
                remedy=self._remedy,
            )
        scale = self._scale(module, shape_a[0])
        self.pairs[name] = Pair(a, b, scale, transposed, parts.get("lora_magnitude_vector"))
        if self.config.get("use_dora") and "lora_magnitude_vector" not in parts:
            raise ModelError(
                f"{self.folder}: module {module!r} of a DoRA has no magnitudes",
                remedy="save the adapter again with peft's save_pretrained",
            )
        if "lora_B.bias" in parts:
            bias = f"{module}.bias"
            if bias not in base:
                raise ModelError(
                    f"{self.folder}: it adds a bias to {module!r}, which has none in the base",
                    remedy=self._remedy,
                )
            self.biases[bias] = parts["lora_B.bias"], scale

    def _scale(self, module: str, rank: int) -> float:
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def _turned(self, modules: Mapping[str, Mapping[str, str]], base: Mapping[str, Spec]) -> bool:
        """Whether the linear layers keep (in, out).

        Told by shapes where a layer is not square: peft sets the flag in memory by what it finds, and not always in the
        file.
        """
        votes = set()
        for module, parts in modules.items():
            spec = base.get(f"{module}.weight")
            if spec is None or not {"lora_A", "lora_B"} <= parts.keys():
                continue
            update = (self.file.specs[parts["lora_B"]].shape[0], self.file.specs[parts["lora_A"]].shape[-1])
            if update[0] != update[1]:
                votes.add(spec.shape == update[::-1])
        return True in votes if votes else bool(self.config.get("fan_in_fan_out"))

    def _check_whole(self, base: Mapping[str, Spec]) -> None:
        new = self.config.get("modules_to_save") or []
        for name, key in self.whole.items():
            known = name in base or any(part in new for part in name.split("."))
            if not known or not self.file.specs[key].floating:
                raise ModelError(f"{self.folder}: the base has no tensor {name!r}", remedy=self._remedy)

    def _check_tied(self, tied: str, changed: set[str]) -> None:
        odd = sorted({tied, _HEAD} & changed)
        if odd and not (self.config.get("ensure_weight_tying") and tied in changed):
            raise ModelError(
                f"{self.folder}: it changes {odd[0]!r}; the base ties {tied!r} to {_HEAD!r}, and only one would change",
                remedy="merge it with peft on a base saved with tie_word_embeddings = false, and give that checkpoint",
            )


def _merged(weight: Tensor, update: Tensor, magnitude: Tensor | None, along: int) -> None:
    weight.add_(update)
    if magnitude is not None:
        weight.mul_((magnitude / torch.linalg.norm(weight, dim=along)).unsqueeze(along))


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG, "an adapter folder is what peft's save_pretrained writes")
    odd = [key for key in _OTHER_KINDS if config.get(key)]
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _LEAVE_THE_BASE:
        odd.append(f"init_lora_weights = {start!r}")
    if odd:
        raise ModelError(
            f"{folder / CONFIG}: {odd[0]}: more than a plain LoRA or DoRA",
            remedy="merge it with peft (merge_and_unload) and give the full checkpoint",
        )
    return config
