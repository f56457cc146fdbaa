"""What a regulariser is: a term that keeps a guard's safety while it learns something else.

A regulariser meets the model through `Probes`: labelled guard conversations, rendered with the guard's own template,
at which it may look. Once a training step it may add a differentiable `loss` to the task's, see the task's gradient
(`observe`), or change the whole gradient (`edit`). Both ways into a trainer (guardkeel's own and the callback for any
Hugging Face Trainer) call the same methods in the same order:

    prepare → for every step: loss → [observe where `wants(step)`] → edit → optimiser step
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Gradients = dict[str, Tensor]
"""Gradients by parameter name."""

Looks = Literal["hidden", "verdict", "answers"]
"""How far a forward of probes goes: to the highest watched block, to the verdict, through the right answers."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model showed on n probes at their verdict position. All of it is differentiable, in float32.

    `hidden[layer]` is (n, width), layers counted from 1. `verdict` is (n, 2): log P(safe), log P(unsafe), normalised
    over the two. `logits` is (n, vocabulary or labels). Both are None where the forward was stopped at the highest
    layer that was asked for.
    """

    hidden: dict[int, Tensor]
    verdict: Tensor | None = None
    logits: Tensor | None = None


class Probes(Protocol):
    """Guard conversations on which the model being tuned is looked at."""

    unsafe: Tensor
    """The labels, bool of shape (n,), on the model's device."""
    depth: int
    """How many blocks the model has."""

    def __len__(self) -> int: ...

    def draw(self, step: int) -> list[int]:
        """The probes of a training step, half of them unsafe: a function of the seed and the step alone."""
        ...

    def chunks(self) -> list[list[int]]:
        """All probes, in batches that fit into memory."""
        ...

    def look(self, picks: Sequence[int], *, layers: Sequence[int] = (), logits: bool = True) -> Seen:
        """Run the model as it is now. Without `logits` it stops at the highest of `layers`."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """A block in which weights neither change nor get gradients, only hidden states do: looking is cheap there."""
        ...

    def answer_loss(self, picks: Sequence[int]) -> Tensor:
        """Mean task loss (scalar) of the right answers to these probes, as if they were training examples."""
        ...

    def gradients(self, loss: Tensor) -> Gradients:
        """∂loss/∂(every trainable parameter), zeros where there is none. Nothing is accumulated in `.grad`."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name, in one order for ever."""
        ...

    def modules(self) -> dict[str, Any]:
        """The modules whose weights are trained, by name: LoRA layers (peft) or plain modules."""
        ...


class Settings(BaseModel):
    """Settings of a regulariser; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Settings = Settings  # the class below has an attribute of that name


class Regulariser:
    """Does nothing: the plain arm, and the base of all others.

    `fixed` holds tensors made once at θ₀ (references, bases); they are saved once a run. `moving` holds what changes
    from step to step (λ, running means); it is saved with every checkpoint, so that a resumed run goes on exactly.
    Both are keyed by plain names. A subclass keeps all its state there and nowhere else.
    """

    name: ClassVar[str] = "plain"
    looks: Looks = "hidden"
    """How far it looks in every step; where several do, one forward of the farthest serves them all."""
    sharded: ClassVar[bool] = False
    """Whether it works where every process holds a shard of each weight only: it looks at the model through probes, and
    does with parameters and gradients no more than sum, scale and add them."""
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: _Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.fixed: dict[str, Tensor] = {}
        self.moving: dict[str, Tensor] = {}

    @property
    def passes(self) -> int:
        """How often `prepare` goes through the weights with every probe: once forward, twice with gradients."""
        return 0

    def prepare(self, probes: Probes) -> None:
        """Look at the reference, once, before training. Not called when `fixed` was restored."""

    def loss(self, probes: Probes, step: int) -> Tensor | None:
        """The weighted term of this step, a scalar with a gradient, or None."""
        return None

    def wants(self, step: int) -> bool:
        """Whether `observe` is to be called in this step; it costs one more backward of the task."""
        return False

    def observe(self, probes: Probes, step: int, task: Gradients) -> None:
        """See the task's own gradient, before anything is added to it."""

    def edit(self, probes: Probes, step: int, gradients: Gradients) -> None:
        """Change the step's whole gradient in place (task and loss, after clipping)."""

    def log(self) -> dict[str, float]:
        """Numbers of the last step for the run's log."""
        return {}
