"""Hidden states at the verdict position, taken in the same forward pass that scores.

Hooks only read: logits with and without capture are the same bits (tests/parity/test_capture.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from guardkeel.activations.blocks import blocks


class Capture:
    """Context manager: after each forward, `take(positions)` gives the chosen blocks' outputs.

    `layers` counts blocks from 1. `take` returns float32 of shape (layers, rows, hidden).
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._modules = [blocks(model)[layer - 1] for layer in self.layers] if self.layers else []
        self._handles: list[Any] = []
        self._held: dict[int, Any] = {}

    def __enter__(self) -> Capture:
        for i, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._hook(i)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()

    def take(self, positions: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Outputs of the last forward at one position a row: an int, or a tensor of shape (rows,)."""
        import torch

        taken = []
        for i in range(len(self._modules)):
            states = self._held.pop(i)
            rows = torch.arange(states.shape[0], device=states.device)
            taken.append(states[rows, positions].detach().float().cpu())
        return torch.stack(taken).numpy() if taken else np.zeros((0, 0, 0), np.float32)

    def _hook(self, index: int) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._held[index] = output[0] if isinstance(output, tuple) else output

        return keep
