"""Replay: go on answering guard conversations right, next to the task.

Loss: strength · answer_loss(the step's probes). The simplest rival of all, and at the same guard data a hard one.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from guardkeel.tuning.regularisers import base


class ReplaySettings(base.Settings):
    """Settings of replay."""

    strength: float = Field(default=1.0, ge=0, description="weight of the guard conversations' loss")


class Replay(base.Regulariser):
    """Adds the guard's own task on a few labelled conversations a step. It is not zero at θ₀, nor meant to be."""

    name = "replay"
    looks: base.Looks = "answers"
    sharded = True
    Settings = ReplaySettings
    settings: ReplaySettings
    _last: Tensor | None = None

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """strength · mean loss of the right answers to the step's probes."""
        if not self.settings.strength:
            return None
        term = self.settings.strength * probes.answer_loss(probes.draw(step))
        self._last = term.detach()
        return term

    def log(self) -> dict[str, float]:
        """The weighted term of the last step."""
        return {} if self._last is None else {"penalty": float(self._last)}
