"""From stored rows to fused rows: what a run that writes and one in memory have in common."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.fusion.methods.base import Method, Tensors
from guardkeel.fusion.plan import KEPT, Item
from guardkeel.fusion.randomness import generator
from guardkeel.fusion.sources import Source, Sources


class Observer(Protocol):
    """Sees every fused piece beside its inputs, to measure it while it is in memory."""

    def piece(self, tensors: Tensors, fused: Tensor) -> Any:
        """Called from several threads at once; what it returns is handed to `tensor`."""

    def tensor(self, name: str, pieces: list[Any]) -> None:
        """All of a tensor, in the order of its rows; one tensor at a time, before it counts as finished."""


class Pieces:
    """Makes fused rows; every worker thread has its own.

    Args:
        sources: what is read.
        method: what the rows go through.
        seed: of the run.
        device: where the method computes.
        observer: sees each piece.
    """

    def __init__(
        self, sources: Sources, method: Method, seed: int, device: str, observer: Observer | None = None
    ) -> None:
        self.sources, self.method, self.seed, self.device, self.observer = (
            sources,
            method,
            seed,
            device,
            observer,
        )
        self._space: dict[int, Tensor] = {}

    def unchanged(self, name: str) -> bool:
        """Whether all models store a tensor alike, so that there is nothing to fuse."""
        reference, *others = self.sources.models
        alike = all(reference.same_bytes(other, name) for other in others)
        return alike and not self.sources.extras_of(name)

    def taken(self, source: Source, item: Item, first: int, last: int) -> Tensor:
        """Rows of one model, in float32; gone when the next rows are taken."""
        rows = self._rows(0, item, first, last)
        source.fill(item.name, first, rows)
        return rows

    def fused(self, item: Item, first: int, last: int) -> tuple[Tensor, Any]:
        """Rows that went through the method, float32 on the CPU, and what the observer said.

        Raises:
            ModelError: an input is not finite, or the result is not.
        """
        models, whole = self.sources.models, last - first == item.spec.rows
        given = []
        for i, model in enumerate(models):
            rows = self._rows(i, item, first, last)
            model.fill(item.name, first, rows)
            given.append((rows.view(item.spec.shape) if whole else rows).to(self.device))
        candidates = len(self.sources.candidates)
        tensors = Tensors(
            item.name,
            given[0],
            tuple(given[1 : 1 + candidates]),
            given[-1] if self.sources.unaligned else None,
            self._extras(item, first, last),
        )
        result = self.method.fuse(
            tensors, generator(self.seed, item.name) if self.method.drawing() else None
        ).contiguous()
        if result.shape != given[0].shape or result.dtype != torch.float32:
            raise ModelError(
                f"{self.method.name} made {item.name!r} {result.dtype} of shape {tuple(result.shape)} "
                f"from float32 of shape {tuple(given[0].shape)}",
                remedy="a method returns float32 of its inputs' shape; correct it",
            )
        if any(result.data_ptr() == rows.data_ptr() for rows in given):
            result = result.clone()  # the room that it is in will be used again
        said = self.observer.piece(tensors, result) if self.observer else None
        return result.cpu(), said

    def _rows(self, slot: int, item: Item, first: int, last: int) -> Tensor:
        """Room for rows of one model; all but large room is used again, as the system has given out its pages."""
        count = (last - first) * item.spec.width
        shape = (last - first, item.spec.width) if len(item.spec.shape) > 1 else (last - first,)
        if count > KEPT:
            return torch.empty(shape)
        space = self._space.get(slot)
        if space is None or space.numel() < count:
            space = self._space[slot] = torch.empty(min(KEPT, max(count, item.rows * item.spec.width)))
        return space[:count].view(shape)

    def _extras(self, item: Item, first: int, last: int) -> dict[str, Tensor]:
        """An extra with the tensor's leading dimensions is cut with its rows; any other is given whole."""
        found, cut = {}, last - first != item.spec.rows
        for extra, files in self.sources.extras_of(item.name).items():
            spec, shape = files.specs[item.name], item.spec.shape
            along = spec.shape[:-1] == shape[:-1] if len(shape) > 1 else spec.shape == shape
            value = files.read(item.name, first, last) if cut and along else files.read(item.name)
            if value.is_floating_point():
                value = value.float()
                if not bool(value.isfinite().all()):
                    raise ModelError(
                        f"{files.files[0]}: {extra} of {item.name!r} is not finite", remedy="measure it again"
                    )
            found[extra] = value.to(self.device)
        return found
