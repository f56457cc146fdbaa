"""What a guard knows of a task, on rows kept aside: the gain that a fine-tune is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from guardkeel.guards.offsets import NO_OFFSETS, Offsets, shifted
from guardkeel.guards.prefix import KeyValues, forward
from guardkeel.tuning.learner import IGNORED, CausalLearner, Learner
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.ranks import ALONE, Ranks
from guardkeel.tuning.results import Learned

_ROWS = 8


def measure(
    model: Any,
    learner: Learner,
    lessons: Sequence[Lesson],
    threshold: float,
    offsets: Offsets = NO_OFFSETS,
    ranks: Ranks = ALONE,
) -> Learned | None:
    """Mean loss, and accuracy: of verdicts at the threshold where lessons have labels, else of the answers' tokens.

    `offsets` are those that the guard is given with the threshold. None where no row was kept aside. Of several
    processes, each measures its share.
    """
    if not lessons:
        return None
    was_training = model.training
    model.eval()
    losses, right = 0.0, 0.0
    order = sorted(lessons, key=lambda lesson: len(lesson.prompt_ids) + len(lesson.answer_ids))
    with torch.no_grad():
        prefix = learner.prefix(model) if order[0].shared else None
        for part, counts in ranks.deal([order[i : i + _ROWS] for i in range(0, len(order), _ROWS)]):
            lost, hits = _measured(model, learner, prefix, part, threshold, offsets)
            if counts:
                losses, right = losses + lost, right + hits
    model.train(was_training)
    losses, right = (sum(column) for column in zip(*ranks.every((losses, right)), strict=True))
    return Learned(n=len(order), loss=losses / len(order), accuracy=right / len(order))


def _measured(
    model: Any,
    learner: Learner,
    prefix: KeyValues | None,
    part: Sequence[Lesson],
    threshold: float,
    offsets: Offsets,
) -> tuple[float, float]:
    """Sums of the losses and of what is right in a batch."""
    device = model.device
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in learner.collate(part).items()}
    if isinstance(learner, CausalLearner):
        targets = batch["targets"]
        out = forward(model, prefix, batch["ids"], batch["mask"], keep=targets.shape[1] + 1)
        logits = out.logits[:, :-1].float()
        lost = float(learner.answered(logits, targets, batch["weights"]).sum())
        if not part[0].label:
            said = targets != IGNORED
            hit = (logits.argmax(-1) == targets) & said
            return lost, float((hit.sum(1) / said.sum(1)).sum())
        first = torch.tensor([targets.shape[1] - len(lesson.answer_ids) for lesson in part])
        verdicts = learner.verdict(logits[torch.arange(len(part)), first])
    else:
        lost = float(learner.row_losses(model, batch, None).sum())
        verdicts = learner.verdict(learner.logits(model, batch))
    chances = zip(verdicts[:, 1].exp().tolist(), part, strict=True)
    flagged = [shifted(p, offsets.get(lesson.side, 0.0)) >= threshold for p, lesson in chances]
    return lost, sum(f == (lesson.label == "unsafe") for f, lesson in zip(flagged, part, strict=True))
