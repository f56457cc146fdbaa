"""Several regularisers at once: losses add up, edits follow one another in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from guardkeel.tuning.regularisers.base import Gradients, Looks, Probes, Regulariser


class Several(Regulariser):
    """A regulariser made of named parts.

    Its `fixed` and `moving` are the state of all parts, keyed "0.…", "1.…" in their order; the parts hold shares of it
    only while they work, so it can be saved, replaced and updated like any other's. Numbers in the log are prefixed
    by the part's name.
    """

    name = "several"

    def __init__(self, parts: Mapping[str, Regulariser]) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.looks = max((part.looks for part in self.parts.values()), key=get_args(Looks).index)
        wanted = (need for part in self.parts.values() for need in getattr(part, "needs", ()))
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(wanted))

    @property
    def alignment(self) -> Mapping[str, Tensor] | None:
        """The alignment directions of the parts that need them; setting it sets theirs."""
        return next((part.alignment for part in self._aligned()), None)

    @alignment.setter
    def alignment(self, directions: Mapping[str, Tensor]) -> None:
        for part in self._aligned():
            part.alignment = directions

    def _aligned(self) -> list[Any]:
        return [part for part in self.parts.values() if hasattr(part, "alignment")]

    @contextmanager
    def _shares(self) -> Iterator[list[Regulariser]]:
        """The parts with their shares of the state; what they make of them flows back."""
        parts = list(self.parts.values())
        for i, part in enumerate(parts):
            part.fixed, part.moving = _share(self.fixed, f"{i}."), _share(self.moving, f"{i}.")
        yield parts
        self.fixed = {f"{i}.{key}": t for i, part in enumerate(parts) for key, t in part.fixed.items()}
        self.moving = {f"{i}.{key}": t for i, part in enumerate(parts) for key, t in part.moving.items()}

    @property
    def passes(self) -> int:
        """Those of all parts."""
        return sum(part.passes for part in self.parts.values())

    def prepare(self, probes: Probes) -> None:
        """Prepare every part."""
        with self._shares() as parts:
            for part in parts:
                part.prepare(probes)

    def loss(self, probes: Probes, step: int) -> Tensor | None:
        """The sum of the parts' terms, None where none has one."""
        with self._shares() as parts:
            terms = [term for part in parts if (term := part.loss(probes, step)) is not None]
        return torch.stack(terms).sum() if terms else None

    def wants(self, step: int) -> bool:
        """Whether any part does."""
        with self._shares() as parts:
            return any(part.wants(step) for part in parts)

    def observe(self, probes: Probes, step: int, task: Gradients) -> None:
        """Show the task's gradient to the parts that want it in this step."""
        with self._shares() as parts:
            for part in parts:
                if part.wants(step):
                    part.observe(probes, step, task)

    def edit(self, probes: Probes, step: int, gradients: Gradients) -> None:
        """Let every part change the gradient, in order."""
        with self._shares() as parts:
            for part in parts:
                part.edit(probes, step, gradients)

    def log(self) -> dict[str, float]:
        """The parts' numbers as "part.number"."""
        with self._shares():
            return {
                f"{name}.{key}": value
                for name, part in self.parts.items()
                for key, value in part.log().items()
            }


def _share(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
