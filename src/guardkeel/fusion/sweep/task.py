"""What a guard knows of a task, row by row: as `tuning.learned` measures it, with what intervals are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guardkeel.fusion.sweep.candidates import TaskData
from guardkeel.fusion.sweep.measuring import TaskRows
from guardkeel.guards.load import AnyGuard
from guardkeel.guards.offsets import Offsets, shifted
from guardkeel.guards.prefix import forward
from guardkeel.tuning.gather import Gathered, encoded
from guardkeel.tuning.learner import IGNORED, CausalLearner, Learner
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.lessons import Lesson

_ROWS = 8


@dataclass(frozen=True)
class Task:
    """A task's rows as lessons of a guard's model."""

    candidate: str
    learner: Learner
    lessons: Sequence[Lesson]

    @classmethod
    def of(cls, candidate: str, data: TaskData, guard: AnyGuard) -> Task:
        """The rows, encoded for this guard."""
        teacher = learner_of(guard, max_tokens=data.max_tokens, answer_weight=data.answer_weight)
        _, lessons, _ = encoded(Gathered(task=(), aside=data.rows), teacher, data.max_tokens)
        return cls(candidate, teacher, lessons)

    def ask(self, model: Any, threshold: float, offsets: Offsets) -> TaskRows:
        """Loss and accuracy of each row with the model's weights as they are; the model is in evaluation mode.

        Accuracy is of the verdict at the threshold where rows have labels, else the share of the answer's tokens.
        """
        order = sorted(
            range(len(self.lessons)),
            key=lambda i: len(self.lessons[i].prompt_ids) + len(self.lessons[i].answer_ids),
        )
        losses, right = np.zeros(len(order)), np.zeros(len(order))
        device = next(model.parameters()).device
        with torch.no_grad():
            prefix = self.learner.prefix(model) if self.lessons[order[0]].shared else None
            for start in range(0, len(order), _ROWS):
                chosen = order[start : start + _ROWS]
                part = [self.lessons[i] for i in chosen]
                batch = {
                    k: v.to(device) if torch.is_tensor(v) else v
                    for k, v in self.learner.collate(part).items()
                }
                lost, hit = self._asked(model, part, batch, prefix, threshold, offsets)
                losses[chosen], right[chosen] = lost.double().cpu().numpy(), hit
        return TaskRows(losses, right)

    def _asked(
        self,
        model: Any,
        part: Sequence[Lesson],
        batch: dict[str, Any],
        prefix: Any,
        threshold: float,
        offsets: Offsets,
    ) -> tuple[torch.Tensor, list[float]]:
        if isinstance(self.learner, CausalLearner):
            targets = batch["targets"]
            out = forward(model, prefix, batch["ids"], batch["mask"], keep=targets.shape[1] + 1)
            logits = out.logits[:, :-1].float()
            losses = self.learner.answered(logits, targets, batch["weights"])
            if not part[0].label:
                said = targets != IGNORED
                hit = (logits.argmax(-1) == targets) & said
                return losses, (hit.sum(1) / said.sum(1)).tolist()
            begins = torch.tensor([targets.shape[1] - len(lesson.answer_ids) for lesson in part])
            verdicts = self.learner.verdict(logits[torch.arange(len(part)), begins])
        else:
            verdicts = self.learner.verdict(self.learner.logits(model, batch))
            losses = -batch["weights"] * verdicts.gather(1, batch["unsafe"].long()[:, None])[:, 0]
        chances = zip(verdicts[:, 1].exp().tolist(), part, strict=True)
        flagged = [shifted(p, offsets.get(lesson.side, 0.0)) >= threshold for p, lesson in chances]
        return losses, [float(f == (x.label == "unsafe")) for f, x in zip(flagged, part, strict=True)]
