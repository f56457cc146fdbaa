"""SafeGrad (arXiv:2508.07172): the task may not step against the guard, and the guard's answers are held by KL.

    g ← g_task − (⟨g_task, g_guard⟩ / ‖g_guard‖²) g_guard   where ⟨g_task, g_guard⟩ < 0, untouched elsewhere
    g ← g + strength · ∇KL(reference ‖ model)               on the same probes

Departure: the paper projects on the gradient of its KL term, which is zero at θ₀ and says nothing of the first steps;
g_guard here is the gradient of the guard's own answers (their labels). KL is taken at the verdict position.
What is added comes after the trainer's clipping.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.tuning.regularisers import base, kl
from guardkeel.tuning.regularisers.factors import whole, wide


class SafeGradSettings(base.Settings):
    """Settings of SafeGrad."""

    strength: float = Field(default=1.0, ge=0, description="weight of the KL term's gradient")
    temperature: float = Field(default=1.0, gt=0, description="T of the KL term")


def dot(a: base.Gradients, b: base.Gradients) -> Tensor:
    """⟨a, b⟩ over all parameters, summed in float64."""
    total: Tensor = whole(
        torch.stack([(wide(a[n]) * wide(g)).sum(dtype=torch.float64) for n, g in b.items()]).sum()
    )
    return total


def project(task: base.Gradients, guard: base.Gradients) -> tuple[float, bool]:
    """Take from `task`, in place, its part against `guard`. Returns (their cosine before, whether they conflicted).

    A zero gradient conflicts with nothing; the cosine is then 0.
    """
    along, task_square, guard_square = torch.stack(
        [dot(task, guard), dot(task, task), dot(guard, guard)]
    ).tolist()
    length = (task_square * guard_square) ** 0.5
    if not length:
        return 0.0, False
    if along < 0:
        for name, gradient in guard.items():
            task[name].sub_(gradient, alpha=along / guard_square)
    return along / length, along < 0


class SafeGrad(base.Regulariser):
    """Projects the task's gradient where it conflicts with the guard's, and adds that of KL to the reference."""

    name = "safegrad"
    looks: base.Looks = "answers"
    sharded = True
    Settings = SafeGradSettings
    settings: SafeGradSettings
    _cosine: float | None = None

    @property
    def passes(self) -> int:
        """The reference's forward."""
        return int(self.settings.strength > 0)

    def prepare(self, probes: base.Probes) -> None:
        """Keep the reference's log-probabilities."""
        if self.settings.strength:
            self.fixed["reference"] = kl.reference(probes, self.settings.temperature)

    def edit(self, probes: base.Probes, step: int, gradients: base.Gradients) -> None:
        """Project, then add strength · ∇KL."""
        picks = probes.draw(step)
        self._cosine, conflict = project(gradients, probes.gradients(probes.answer_loss(picks)))
        counts = self.moving.get("projected", torch.zeros(2, dtype=torch.int64))  # steps projected, steps
        self.moving["projected"] = counts + torch.tensor([int(conflict), 1], device=counts.device)
        if self.settings.strength:
            held = kl.penalty(probes, picks, self.fixed["reference"], self.settings.temperature)
            for name, gradient in probes.gradients(held).items():
                gradients[name].add_(gradient, alpha=self.settings.strength)

    def log(self) -> dict[str, float]:
        """Cosine of task and guard in the last step, and the share of all steps that were projected."""
        if self._cosine is None:
            return {}
        projected, steps = self.moving["projected"].tolist()
        return {"cosine": self._cosine, "projected": projected / steps}
