"""Weights of a loaded model replaced in place, and put back bit for bit.

A value goes the way that it would take through a file: float32 → the checkpoint's dtype → the model's. Tensors that a
model ties share their memory: the name that the model itself lists for it is the one that counts, as when it loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError

_UNUSED = (".inv_freq",)  # stored by old checkpoints, computed by today's models


class Weights:
    """The parameters and buffers of a model, by the names of its checkpoint.

    Args:
        model: loaded from the reference, without adapters.
        stored: dtype of each tensor of the checkpoints that are put into it, by name.

    Raises:
        ModelError: a tensor of the checkpoint is not one of the model.
    """

    def __init__(self, model: Any, stored: Mapping[str, torch.dtype]) -> None:
        own = dict(model.named_parameters()) | dict(model.named_buffers())  # tied ones under their first name
        every = dict(model.state_dict(keep_vars=True))
        first = {_place(t): name for name, t in reversed(own.items())}
        self._own: dict[str, Tensor] = {}
        for name in stored:
            if name.endswith(_UNUSED):
                continue
            tensor = every.get(name)
            if tensor is None:
                raise ModelError(
                    f"tensor {name!r} of the checkpoint has another name in the loaded {type(model).__name__}",
                    remedy="write points with guardkeel fuse and audit them one by one",
                )
            if first.get(_place(tensor), name) == name or first[_place(tensor)] not in stored:
                self._own[name] = tensor
        self._stored = stored
        self._before: dict[str, Tensor] = {}
        self._changed: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors that can be put in; of tied ones one."""
        return tuple(self._own)

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights to these, and all others to what they were. Names that are tied to another are passed over.

        Raises:
            ModelError: a tensor has another shape than the model's, or is not finite.
        """
        now: set[str] = set()
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in self._own:
                    continue
                target = self._own[name]
                if tensor.shape != target.shape:
                    raise ModelError(
                        f"tensor {name!r} has shape {tuple(tensor.shape)}, the model's {tuple(target.shape)}",
                        remedy="give candidates that were tuned from this reference",
                    )
                value = tensor.to(self._stored[name]).to(target)
                if not torch.isfinite(value).all():
                    raise ModelError(
                        f"fused tensor {name!r} is not finite as {self._stored[name]}",
                        remedy="leave this setting out of the grid",
                    )
                if name not in self._before:
                    self._before[name] = target.detach().clone()
                self._changed.add(name)  # before it is: what fails half-way can be put back too
                target.copy_(value)
                now.add(name)
            self._back(self._changed - now)
        self._changed = now

    def restore(self) -> None:
        """Put everything back as it was loaded."""
        with torch.no_grad():
            self._back(self._changed)
        self._changed = set()

    def _back(self, names: Iterable[str]) -> None:
        for name in names:
            self._own[name].copy_(self._before[name])

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """What tied tensors have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
