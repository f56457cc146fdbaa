"""What a mask is learned for: losses of the fused guard on rows, and what θ_safe said of the same rows.

    verdict   −log p(answer) of the guard's own family, the verdict token weighted 1 (tuning/learner.py); of a
              classifier −log P(its label)
    kl        KL(p_safe ‖ p) = Σ_v p_safe(v) (log p_safe(v) − log p(v)) over the verdict v ∈ {safe, unsafe}
    dpo       −log σ(β [(log π(c) − log π_safe(c)) − (log π(r) − log π_safe(r))]), log π(y) = Σ_t log π(y_t | before) of
              the preferred c and the rejected r (arXiv:2305.18290)

θ_safe's part is computed once, before the first step, and kept with the run. In the released code DPO's reference is
the masked model itself, drawn anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guardkeel.guards.load import AnyGuard
from guardkeel.guards.prefix import KeyValues, forward
from guardkeel.tuning.learner import IGNORED, Batch, CausalLearner, ClassifierLearner, Learner
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.lessons import Lesson, classifier_lessons, guard_lessons
from guardkeel.tuning.targets import Target

_CHUNK = 8


class Objective(ABC):
    """A loss by row. `reference` is what θ_safe said of the rows, by name; empty until `prepare`."""

    lengths: list[int]
    """Tokens of each row."""

    def __init__(self) -> None:
        self.reference: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def losses(self, model: Any, picks: Sequence[int]) -> Tensor:
        """The loss of each picked row, (rows,), with gradients where they are on."""

    def prepare(self, model: Any, watch: Callable[[int], None] = lambda done: None) -> None:
        """Look at θ_safe, if it is needed; `watch` is told how many rows are done."""
        self.reference = {}


class Verdicts(Objective):
    """The guard's verdict on labelled conversations: cross-entropy, and the KL to θ_safe's with `kl_weight`."""

    def __init__(
        self,
        learner: Learner,
        lessons: Sequence[Lesson],
        *,
        kl_weight: float = 0.0,
        device: Any = "cpu",
    ) -> None:
        super().__init__()
        self.learner, self.lessons, self.kl_weight, self.device = learner, list(lessons), kl_weight, device
        self.lengths = [len(x.prompt_ids) + len(x.answer_ids) for x in self.lessons]

    def losses(self, model: Any, picks: Sequence[int]) -> Tensor:
        """See Objective."""
        losses, verdicts = self._run(model, picks)
        if self.kl_weight:
            before = self.reference["verdicts"][list(picks)].to(verdicts.device)
            losses = losses + self.kl_weight * (before.exp() * (before - verdicts)).sum(-1)
        return losses

    def prepare(self, model: Any, watch: Callable[[int], None] = lambda done: None) -> None:
        """See Objective."""
        if self.kl_weight:
            self.reference = {"verdicts": over(len(self), lambda rows: self._run(model, rows)[1], watch)}

    def _run(self, model: Any, picks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(rows,) losses and (rows, 2) log P(safe), log P(unsafe)."""
        batch = moved(self.learner.collate([self.lessons[i] for i in picks]), self.device)
        if isinstance(self.learner, ClassifierLearner):
            verdicts = self.learner.verdict(self.learner.logits(model, batch))
            return -batch["weights"] * verdicts.gather(1, batch["unsafe"].long()[:, None])[:, 0], verdicts
        shown, said = answers(self.learner, model, batch)
        losses = self.learner.answered(shown[:, :-1], batch["targets"], batch["weights"])
        at = shown.shape[1] - 1 - said  # the place of the first token that is said
        return losses, self.learner.verdict(shown[torch.arange(len(at), device=at.device), at])


class Preferences(Objective):
    """DPO over pairs of answers to one prompt."""

    def __init__(
        self,
        learner: CausalLearner,
        chosen: Sequence[Lesson],
        rejected: Sequence[Lesson],
        *,
        beta: float = 0.1,
        device: Any = "cpu",
    ) -> None:
        super().__init__()
        self.learner, self.beta, self.device = learner, beta, device
        self.chosen, self.rejected = list(chosen), list(rejected)
        self.lengths = [
            max(len(x.prompt_ids) + len(x.answer_ids) for x in pair)
            for pair in zip(chosen, rejected, strict=True)
        ]

    def losses(self, model: Any, picks: Sequence[int]) -> Tensor:
        """See Objective."""
        gains = self._chances(model, picks) - self.reference["chances"][list(picks)].to(self.device)
        return -torch.nn.functional.logsigmoid(self.beta * (gains[:, 0] - gains[:, 1]))

    def prepare(self, model: Any, watch: Callable[[int], None] = lambda done: None) -> None:
        """See Objective."""
        self.reference = {"chances": over(len(self), lambda rows: self._chances(model, rows), watch)}

    def _chances(self, model: Any, picks: Sequence[int]) -> Tensor:
        """log π of the preferred and the rejected answer, (pairs, 2)."""
        lessons = [self.chosen[i] for i in picks] + [self.rejected[i] for i in picks]
        batch = moved(self.learner.collate(lessons), self.device)
        shown, _ = answers(self.learner, model, batch)
        counted = (batch["targets"] != IGNORED).float()
        return -self.learner.answered(shown[:, :-1], batch["targets"], counted).view(2, len(picks)).T


def verdict_objective(
    guard: AnyGuard,
    targets: Sequence[Target],
    *,
    kl_weight: float = 0.0,
    answer_weight: float = 0.3,
    max_tokens: int = 512,
) -> Verdicts:
    """The verdict loss of a guard's own family, or of a classifier, on labelled conversations."""
    options = (
        {} if not hasattr(guard, "grammar") else {"max_tokens": max_tokens, "answer_weight": answer_weight}
    )
    teacher = learner_of(guard, **options)
    if isinstance(teacher, CausalLearner):
        if teacher.sharing:
            teacher.encoder.share([t.judgement for t in targets])
        lessons = guard_lessons(targets, teacher.encoder, teacher.tokenizer)
    else:
        lessons = classifier_lessons(targets, teacher.guard)
    return Verdicts(teacher, lessons, kl_weight=kl_weight, device=guard.model.device)


def answers(learner: CausalLearner, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits in float32 at the last longest-answer + 1 positions, and how many tokens each row says."""
    prefix: KeyValues | None = learner.prefix(model) if batch["shared"] else None
    targets = batch["targets"]
    out = forward(model, prefix, batch["ids"], batch["mask"], keep=targets.shape[1] + 1)
    return out.logits.float(), (targets != IGNORED).sum(1)


def moved(batch: Batch, device: Any) -> Batch:
    """A batch on the model's device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def over(
    rows: int, look: Callable[[list[int]], Tensor], watch: Callable[[int], None] = lambda done: None
) -> Tensor:
    """`look` at all rows in chunks, without gradients; its results in float32, one below the other, on the CPU."""
    found = []
    with torch.no_grad():
        for start in range(0, rows, _CHUNK):
            found.append(look(list(range(start, min(rows, start + _CHUNK)))).float().cpu())
            watch(min(rows, start + _CHUNK))
    return torch.cat(found)
