"""What making a model a guard changed: V = W_guard − W_before, module by module (Safe LoRA, arXiv:2405.16833)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError


def alignment(
    guard: Path, before: Path, modules: list[str], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """V of shape (out, in) for each named module, from two checkpoints' safetensors, in float32 then bfloat16.

    Raises:
        ModelError: a tensor is missing in one of them, or has another shape.
    """
    found = {}
    with ExitStack() as stack:
        ours, theirs = _opened(guard, stack), _opened(before, stack)
        for module in modules:
            name = f"{module}.weight"
            pair = []
            for where, tensors in ((guard, ours), (before, theirs)):
                if name not in tensors:
                    raise ModelError(
                        f"{where}: no tensor {name!r}",
                        remedy="give the checkpoint that this guard was made from with --unaligned",
                    )
                pair.append(tensors[name].get_tensor(name).float())
            if pair[0].shape != pair[1].shape:
                raise ModelError(
                    f"{before}: {name!r} has shape {tuple(pair[1].shape)}, the guard {tuple(pair[0].shape)}",
                    remedy="give the checkpoint that this guard was made from with --unaligned",
                )
            found[module] = (pair[0] - pair[1]).to(device, torch.bfloat16)
    return found


def _opened(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return dict(_tensors(folder, stack))


def _tensors(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        handle = stack.enter_context(safe_open(file, framework="pt"))
        for name in handle.keys():  # noqa: SIM118 - it is no dict
            yield name, handle
