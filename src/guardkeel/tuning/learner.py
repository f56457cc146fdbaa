"""How a guard is taught: from lessons to a batch, from a batch to a loss. One class for each kind of guard.

A causal guard learns the tokens of an answer. The policy prefix that all guard lessons share runs once a step and
gradients flow through its key/value cache; lessons that do not begin with it (instruction data) run whole. A
classifier learns its labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.load import AnyGuard
from guardkeel.guards.prefix import KeyValues, encode_prefix, forward, left_padded, reusable
from guardkeel.tuning.lessons import Lesson

Batch = dict[str, Any]

IGNORED = -100
"""The target of a position at which nothing is learned."""


class CausalLearner:
    """Teaches a causal guard.

    Loss of a lesson: Σ_t w_t · (−log p(token_t | what came before)). For a guard's answer the verdict token has weight
    1 and the m tokens after it w/m each (`answer_weight` w); for an instruction every token of the answer has 1/m.
    """

    def __init__(
        self, guard: Any, *, max_tokens: int = 512, answer_weight: float = 0.3, share: bool = True
    ) -> None:
        self.tokenizer = guard.tokenizer
        self.family = guard.grammar
        self.answer_weight = answer_weight
        self.encoder = Encoder(guard.grammar, guard.tokenizer, max_tokens=min(max_tokens, guard.max_tokens))
        self.sharing = share and reusable(guard.model.config)
        steps = [form.only() for s in self.family.sides if len((form := self.encoder.form(s)).blanks) == 1]
        if len({(step.safe, step.unsafe) for step in steps}) != 1:
            raise ConfigError(
                f"family {self.family.name!r} has no verdict that begins alike on all its sides",
                remedy="tune a guard of another family",
            )
        self._verdicts = (list(steps[0].safe), list(steps[0].unsafe))

    def collate(self, lessons: Sequence[Lesson]) -> Batch:
        """Left-padded ids and mask; right-aligned `targets` and their `weights`, both (rows, longest answer)."""
        rows = [lesson.prompt_ids + lesson.answer_ids for lesson in lessons]
        ids, mask = left_padded(rows, self.encoder.pad_id, "cpu")
        longest = max(len(lesson.answer_ids) for lesson in lessons)
        targets = torch.full((len(rows), longest), IGNORED)
        weights = torch.zeros(len(rows), longest)
        for i, lesson in enumerate(lessons):
            said = len(lesson.answer_ids)
            targets[i, longest - said :] = torch.tensor(lesson.answer_ids)
            weights[i, longest - said :] = lesson.weight * torch.tensor(self._weights(lesson))
        shared = [lesson.shared for lesson in lessons]
        if any(shared) != all(shared):
            raise ValueError("a batch holds lessons with and without the shared prefix")
        return {"ids": ids, "mask": mask, "targets": targets, "weights": weights, "shared": shared[0]}

    def prefix(self, model: Any) -> KeyValues | None:
        """Keys and values of the policy, with gradients; None where nothing is shared.

        Raises:
            ConfigError: the model recomputes its activations, and so keeps none.
        """
        if not self.encoder.prefix_ids:
            return None
        pairs = encode_prefix(model, self.encoder.prefix_ids)
        if not pairs:
            raise ConfigError(
                "a model with activation checkpointing cannot share the policy",
                remedy="make the learner with share=False, or switch checkpointing off",
            )
        return pairs

    def loss(self, model: Any, batch: Batch, prefix: KeyValues | None) -> Tensor:
        """Mean over the rows of a batch of the weighted loss of each."""
        return self.row_losses(model, batch, prefix).mean()

    def row_losses(self, model: Any, batch: Batch, prefix: KeyValues | None) -> Tensor:
        """The weighted loss of each row, (rows,)."""
        targets = batch["targets"]
        shared = prefix if batch["shared"] else None
        out = forward(model, shared, batch["ids"], batch["mask"], keep=targets.shape[1] + 1)
        return self.answered(out.logits[:, :-1].float(), targets, batch["weights"])

    @staticmethod
    def answered(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Σ_t w_t · (−log softmax(logits)_t[target_t]) for each row; logits are (rows, answer, vocabulary)."""
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return (weights * each).sum(1)

    def verdict(self, logits: Tensor) -> Tensor:
        """log P(safe), log P(unsafe) over the verdict tokens, (n, 2), from logits at the verdict position."""
        both = torch.stack([logits[:, ids].logsumexp(-1) for ids in self._verdicts], -1)
        return both.log_softmax(-1)

    def _weights(self, lesson: Lesson) -> list[float]:
        said = len(lesson.answer_ids)
        if not lesson.verdict:
            return [1 / said] * said
        return [1.0] + [self.answer_weight / (said - 1)] * (said - 1)


class ClassifierLearner:
    """Teaches a sequence classifier. Loss of a lesson: −log P(its side), with P(unsafe) as the guard computes it:
    the sum of a softmax over the labels that mean unsafe, or the largest of their sigmoids where the model is
    multi-label.
    """

    sharing = False

    def __init__(self, guard: ClassifierGuard) -> None:
        self.guard = guard
        self.causal = guard.causal

    def collate(self, lessons: Sequence[Lesson]) -> Batch:
        """Right-padded ids, segments and mask, and for each row its label and weight."""
        rows = [lesson.prompt_ids for lesson in lessons]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.guard.pad_id)
        segments, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for i, lesson in enumerate(lessons):
            ids[i, : len(rows[i])] = torch.tensor(rows[i])
            segments[i, : len(lesson.segments)] = torch.tensor(lesson.segments)
            mask[i, : len(rows[i])] = 1
        return {
            "ids": ids,
            "mask": mask,
            "segments": segments,
            "unsafe": torch.tensor([lesson.label == "unsafe" for lesson in lessons]),
            "weights": torch.tensor([lesson.weight for lesson in lessons]),
            "shared": False,
        }

    def prefix(self, model: Any) -> None:
        """Classifiers share nothing."""

    def loss(self, model: Any, batch: Batch, prefix: KeyValues | None) -> Tensor:
        """Mean over the rows of a batch of the weighted loss of each."""
        return self.row_losses(model, batch, prefix).mean()

    def row_losses(self, model: Any, batch: Batch, prefix: KeyValues | None) -> Tensor:
        """The weighted loss of each row, (rows,)."""
        chances = self.verdict(self.logits(model, batch))
        losses: Tensor = -batch["weights"] * chances.gather(1, batch["unsafe"].long()[:, None])[:, 0]
        return losses

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Logits of the labels, (rows, labels)."""
        extra = {"token_type_ids": batch["segments"]} if self.guard.takes_segments else {}
        out: Tensor = model(input_ids=batch["ids"], attention_mask=batch["mask"], **extra).logits.float()
        return out

    def verdict(self, logits: Tensor) -> Tensor:
        """log P(safe), log P(unsafe), (n, 2)."""
        if self.guard.multi_label:
            top = logits[:, self.guard.unsafe].amax(-1)
            either: Tensor = torch.nn.functional.logsigmoid(torch.stack([-top, top], -1))
            return either
        safe = [i for i in self.guard.labels if i not in self.guard.unsafe]
        both = [logits[:, ids].logsumexp(-1) for ids in (safe, self.guard.unsafe)]
        return torch.stack(both, -1).log_softmax(-1)


Learner = CausalLearner | ClassifierLearner


def learner(guard: AnyGuard, **options: Any) -> Learner:
    """The learner of a guard's kind; `options` are those of CausalLearner."""
    return ClassifierLearner(guard) if isinstance(guard, ClassifierGuard) else CausalLearner(guard, **options)


@contextlib.contextmanager
def training(model: Any) -> Iterator[None]:
    """The model in training mode, without dropout and with denormals flushed in the block: scores after it are those
    of a fresh process.
    """
    before = bool(torch.tensor(1e-38) * 1e-3 == 0)
    model.train()
    torch.set_flush_denormal(True)  # gradients of a confident guard are full of them, and CPUs crawl on them
    try:
        with undropped(model):
            yield
    finally:
        torch.set_flush_denormal(before)
        model.eval()


@contextlib.contextmanager
def kept(model: Any) -> Iterator[None]:
    """No activation checkpointing in the block: with it a model keeps no keys and values, and before transformers 5
    hooks run inside what is recomputed, which then is not what was run.
    """
    modules = [module for module in model.modules() if vars(module).get("gradient_checkpointing")]
    for module in modules:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True


@contextlib.contextmanager
def undropped(model: Any) -> Iterator[None]:
    """No dropout in the block, in training mode too: what a look at the guard then sees moved, its weights moved."""
    rates = [
        (module, name, rate)
        for module in model.modules()
        for name, rate in vars(module).items()
        if isinstance(rate, float) and rate and ("dropout" in name or isinstance(module, torch.nn.Dropout))
    ]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
