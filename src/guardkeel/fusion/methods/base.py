"""What every fusion method is: one tensor of every model in, one tensor out, all of it in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor


@dataclass(frozen=True, slots=True)
class Tensors:
    """One tensor of every model, in float32, all of one shape.

    `reference` is θ₀ of the guard to be got back to, `candidates` are θ₁ … θ_N of the damaged ones, `unaligned` is θ_u
    of the model that the reference was made from. `extras` hold what was measured or learned for this tensor, by the
    names in `Method.extras`; a method leaves a tensor that has none as its docstring says. None may be written to.
    """

    name: str
    reference: Tensor
    candidates: tuple[Tensor, ...]
    unaligned: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def deltas(self) -> tuple[Tensor, ...]:
        """δ_i = θ_i − θ₀, new tensors."""
        return tuple(c - self.reference for c in self.candidates)


class Settings(BaseModel):
    """Base of a method's settings: unknown keys are refused, every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Settings = Settings  # the class below has an attribute of that name


class Method(ABC):
    """A fusion method with its settings; `fuse` is pure and the same on any device, thread count and order.

    Attributes:
        name: as in the configuration.
        summary: one line for --list-methods.
        least, most: how many candidates it takes; most None is no bound.
        needs_unaligned: whether it reads the model that the reference was made from.
        extras: what else it needs for a tensor (files of the same names, see fusion/extras.py).
        draws: whether it draws random numbers: then `generator` is this tensor's own, seeded by run seed and name.
        elementwise: whether each value of the result depends on the same value of the inputs alone, and is that value
            where all inputs have it: large tensors then come in blocks of rows, unless the method draws.
        work: the most float32 tensors of this size that `fuse` holds beside its inputs and its result.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Settings: ClassVar[type[Settings]] = Settings
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = 1
    needs_unaligned: ClassVar[bool] = False
    extras: ClassVar[tuple[str, ...]] = ()
    draws: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    work: ClassVar[int] = 1

    def __init__(self, settings: _Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def drawing(self) -> bool:
        """Whether it draws with these settings; only where the class does."""
        return self.draws

    @abstractmethod
    def fuse(self, tensors: Tensors, generator: Generator | None = None) -> Tensor:
        """The fused tensor, in float32, of the inputs' shape; never NaN or Inf where the inputs are finite."""
