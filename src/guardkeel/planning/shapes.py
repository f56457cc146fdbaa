"""A model of which only the shape is known, as something that can be planned to be fused: its weights are noise."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from guardkeel.fusion.sources import Source, Sources
from guardkeel.fusion.tensorfile import Spec
from guardkeel.planning.architecture import Architecture

_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NOISE = 2**24
"""Values: more than a processor's cache has room for, as stored weights are."""
_CHUNK = 2**18


class Shapes:
    """What fusion's plan and estimate ask of a Source."""

    def __init__(self, architecture: Architecture, dtype: str, seed: int) -> None:
        self.specs = {name: Spec(_STORED[dtype], shape) for name, shape in architecture.tensors.items()}
        self.stored = dict.fromkeys(self.specs, _STORED[dtype])
        some = torch.randn(2**16, generator=torch.Generator().manual_seed(seed))
        self._noise = some.to(getattr(torch, dtype)).repeat(_NOISE // 2**16)
        self._at = 0

    def panel(self, name: str) -> int:
        """Rows may be cut anywhere."""
        return 1

    def adds_to(self, name: str) -> bool:
        """It is no adapter."""
        return False

    def fill(self, name: str, row: int, out: Tensor) -> None:
        """Noise, converted as stored weights are."""
        flat = out.view(-1)
        for start in range(0, flat.numel(), _CHUNK):
            part = flat[start : start + _CHUNK]
            self._at = 0 if self._at + part.numel() > _NOISE else self._at
            part.copy_(self._noise[self._at : self._at + part.numel()])
            self._at += part.numel()


def noise(architecture: Architecture, dtype: str, candidates: int, *, unaligned: bool = False) -> Sources:
    """A reference and candidates of one shape."""
    made: list[Any] = [Shapes(architecture, dtype, seed) for seed in range(candidates + 1 + unaligned)]
    models = cast("list[Source]", made)
    return Sources(models[0], tuple(models[1 : candidates + 1]), models[-1] if unaligned else None)
