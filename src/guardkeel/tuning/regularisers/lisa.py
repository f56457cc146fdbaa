"""Lisa (arXiv:2405.18641): turns of task and guard steps, each held near where the other left off.

K2 task steps, then K1 guard steps, and so on. Within a turn the gradient is

    g + rho · (w − w̄),   w̄ = the weights at the last switch (θ₀ in the first turn),

g being the task's in a task turn and that of the guard's answers in a guard turn, computed there only: guard data is
looked at in K1 / (K1 + K2) of the steps. It is the gradient of the paper's loss + (rho / 2) ‖w − w̄‖². Departures: we
begin with the task (θ₀ is aligned already), and the proximal term acts from the first step on, while the released
code leaves it out of the first tenth. Both come after the trainer's clipping.
"""

from __future__ import annotations

import torch
from pydantic import Field

from guardkeel.tuning.regularisers import base


class LisaSettings(base.Settings):
    """Settings of Lisa."""

    align_steps: int = Field(default=2, ge=1, description="K1, guard steps in a turn")
    task_steps: int = Field(default=8, ge=1, description="K2, task steps in a turn")
    rho: float = Field(default=1.0, ge=0, description="pull towards the weights at the last switch")


def aligning(step: int, align_steps: int, task_steps: int) -> bool:
    """Whether this step, counted from 0, is a guard step."""
    return step % (align_steps + task_steps) >= task_steps


class Lisa(base.Regulariser):
    """Alternates between the task and the guard; changes the gradient only, and adds no loss."""

    name = "lisa"
    looks: base.Looks = "answers"
    Settings = LisaSettings
    settings: LisaSettings

    def edit(self, probes: base.Probes, step: int, gradients: base.Gradients) -> None:
        """Put the guard's gradient in the task's place in guard steps, and pull towards the last switch in all."""
        parameters = probes.parameters()
        guard = aligning(step, self.settings.align_steps, self.settings.task_steps)
        turn = self.moving.get("guard")
        if turn is None or bool(turn) is not guard:
            self.moving |= {f"switch/{name}": p.detach().clone() for name, p in parameters.items()}
            self.moving["guard"] = torch.tensor(int(guard))
        if guard:
            found = probes.gradients(probes.answer_loss(probes.draw(step)))
            for name, gradient in found.items():
                gradients[name].copy_(gradient)
        if not self.settings.rho:
            return
        for name, p in parameters.items():
            away = p.detach() - self.moving[f"switch/{name}"].to(p.device)
            gradients[name].add_(away, alpha=self.settings.rho)

    def log(self) -> dict[str, float]:
        """1 in guard steps, 0 in task steps."""
        return {"guard": float(self.moving["guard"])} if self.moving else {}
