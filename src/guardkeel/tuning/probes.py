"""Guard conversations at which a regulariser looks while the model is tuned (see regularisers.base.Probes).

Within one training step (`step`) the policy prefix is computed once, for the task and the probes alike, and every
draw of probes is run once, however many terms look at it. Of several processes each runs its share of a draw and sees
all of it; in a `frozen` block each runs all, because there hidden states are to lie on the way to the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardkeel.activations.blocks import blocks
from guardkeel.errors import DataError
from guardkeel.guards.load import AnyGuard
from guardkeel.guards.prefix import KeyValues, forward
from guardkeel.tuning import sharding
from guardkeel.tuning.learner import CausalLearner, Learner, kept, undropped
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.lessons import Lesson, classifier_lessons, guard_lessons
from guardkeel.tuning.ranks import ALONE, Ranks
from guardkeel.tuning.regularisers.base import Gradients, Looks, Seen
from guardkeel.tuning.targets import Target

_CHUNK = 8


def guard_probes(
    guard: AnyGuard, targets: Sequence[Target], *, batch: int = 2, seed: int = 0, max_tokens: int = 512
) -> GuardProbes:
    """Probes for a Trainer of your own: labelled conversations, seen by `guard.model` as it is when this is called.

    Put the LoRA on first, and give the Trainer that very model.
    """
    teacher = learner_of(guard, max_tokens=max_tokens)
    if isinstance(teacher, CausalLearner):
        if teacher.sharing:
            teacher.encoder.share([t.judgement for t in targets])
        lessons = guard_lessons(targets, teacher.encoder, teacher.tokenizer)
    else:
        lessons = classifier_lessons(targets, teacher.guard)
    return GuardProbes(guard.model, teacher, lessons, batch=batch, seed=seed)


class GuardProbes:
    """Probes of a guard: lessons with both labels, run through the model that is being tuned.

    Args:
        model: the model in training, adapters on (not a distributed wrapper of it).
        learner: of the guard's kind.
        lessons: labelled guard conversations, at least one of each label.
        batch: probes a step.
        seed: of the draws.
        ranks: the processes of the run; they all look at the same time.
    """

    def __init__(
        self,
        model: Any,
        learner: Learner,
        lessons: Sequence[Lesson],
        *,
        batch: int = 2,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        labels = [lesson.label == "unsafe" for lesson in lessons]
        if all(labels) or not any(labels):
            raise DataError(
                f"guard data need both labels, got {sum(labels)} unsafe of {len(labels)}",
                remedy="give safe and unsafe conversations with --guard-data",
            )
        self.model, self.learner, self.lessons = model, learner, list(lessons)
        self.batch, self.seed, self.ranks = batch, seed, ranks
        self.device = next(model.parameters()).device if not ranks.offload else model.device
        self.unsafe = torch.tensor(labels, device=self.device)
        self.looks: Looks = "hidden"
        """How far every draw is run, because some term needs that much of it in each step."""
        self._blocks = blocks(model)
        self.depth = len(self._blocks)
        self._prefix: KeyValues | None = None
        self._kept = self._frozen = False
        self._runs: dict[tuple[int, ...], _Run] = {}

    def __len__(self) -> int:
        return len(self.lessons)

    def draw(self, step: int) -> list[int]:
        """Half unsafe, half safe (the odd one alternates); every probe comes once before any comes twice."""
        half = self.batch // 2
        odd = self.batch % 2
        counts = {True: half + (odd and step % 2), False: half + (odd and 1 - step % 2)}
        picks = []
        for label, count in counts.items():
            mine = [i for i, unsafe in enumerate(self.unsafe.tolist()) if unsafe == label]
            past = step * half + (odd and (step + (0 if label else 1)) // 2)
            for k in range(past, past + count):
                epoch, place = divmod(k, len(mine))
                order = np.random.default_rng([self.seed, int(label), epoch]).permutation(len(mine))
                picks.append(mine[order[place]])
        return picks

    def chunks(self) -> list[list[int]]:
        """All probes, batches of similar length."""
        order = sorted(range(len(self)), key=lambda i: (len(self.lessons[i].prompt_ids), i))
        return [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]

    @contextlib.contextmanager
    def step(self, prefix: KeyValues | None = None) -> Iterator[None]:
        """Within the block weights do not change: runs are kept, and the prefix too (the task's, where it has one).
        Nothing is dropped out, so that the same weights look the same, and nothing is recomputed.
        """
        self._prefix, self._kept = prefix, True
        try:
            with undropped(self.model), kept(self.model):
                yield
        finally:
            self._prefix, self._runs, self._kept = None, {}, False

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """See Probes. The prefix is computed once, and graphs begin at the first block that is watched."""
        weights = list(self.parameters().values())
        with torch.no_grad(), undropped(self.model), kept(self.model):
            prefix = self.learner.prefix(self.model)
        for weight in weights:
            weight.requires_grad_(False)
        before, self._prefix, self._frozen = self._prefix, prefix, True
        try:
            with undropped(self.model), kept(self.model):
                yield
        finally:
            self._prefix, self._frozen = before, False
            for weight in weights:
                weight.requires_grad_(True)

    def look(self, picks: Sequence[int], *, layers: Sequence[int] = (), logits: bool = True) -> Seen:
        """See Probes. With `logits` and gradients on, `hidden` lies on the way to the logits."""
        # A forward of a sharded model is ended by nobody before its end.
        if logits or not layers or self.looks != "hidden" or self.ranks.sharded:
            run = self._run(picks, layers, answers=self.looks == "answers")
            return Seen({k: run.hidden[k] for k in layers}, self.learner.verdict(run.logits), run.logits)
        return Seen(self._stopped(picks, layers))

    def answer_loss(self, picks: Sequence[int]) -> Tensor:
        """See Probes."""
        return self._run(picks, (), answers=True).losses.mean()

    def gradients(self, loss: Tensor) -> Gradients:
        """See Probes. The graph is kept, for other gradients of the same step."""
        named = self.parameters()
        if self.ranks.sharded:
            return sharding.gradients(loss, named)
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)]
        return dict(zip(named, self.ranks.mean(filled), strict=True))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """See Probes."""
        return {name: p for name, p in sorted(self.model.named_parameters()) if p.requires_grad}

    def modules(self) -> dict[str, Any]:
        """See trained_modules."""
        return trained_modules(self.model)

    def _run(self, picks: Sequence[int], layers: Sequence[int], *, answers: bool) -> _Run:
        """A forward to the logits, or one of this step that showed as much."""
        answers = answers and not self._frozen
        # A run without gradients serves no one who wants them.
        key = (int(torch.is_grad_enabled()), *picks)
        known = self._runs.get(key) if self._kept and not self._frozen else None
        if known is not None and set(layers) <= set(known.hidden) and answers <= known.answers:
            return known
        seen, said = (known.hidden, known.answers) if known else ({}, False)
        mine = picks if self._frozen else self.ranks.share(picks)
        run = self._forward(mine, sorted({*layers, *seen}), answers=answers or said)
        if not self._frozen:
            run = run.of_all(self.ranks, len(picks))
        if self._kept and not self._frozen:
            self._runs[key] = run
        return run

    def _forward(self, picks: Sequence[int], layers: Sequence[int], *, answers: bool) -> _Run:
        batch, at = self._batch(picks, answers=answers)
        prefix = self._shared()  # before anything is watched
        with _watching(self._blocks, layers, at, leaves=self._frozen) as hidden:
            if isinstance(self.learner, CausalLearner):
                targets = batch["targets"]
                out = forward(self.model, prefix, batch["ids"], batch["mask"], keep=targets.shape[1] + 1)
                shown = out.logits.float()
                logits = shown[torch.arange(len(picks)), at - batch["ids"].shape[1]]
                losses = self.learner.answered(shown[:, :-1], targets, batch["weights"])
            else:
                logits = self.learner.logits(self.model, batch)
                chances = self.learner.verdict(logits)
                losses = (
                    -batch["weights"].to(logits) * chances.gather(1, batch["unsafe"].long()[:, None])[:, 0]
                )
        return _Run(hidden, logits, losses, answers)

    def _stopped(self, picks: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states from a forward that ends at the highest layer."""
        mine = picks if self._frozen else self.ranks.share(picks)
        batch, at = self._batch(mine, answers=False)
        prefix = self._shared()
        with _watching(self._blocks, layers, at, stop=True) as hidden:
            if isinstance(self.learner, CausalLearner):
                forward(self.model, prefix, batch["ids"], batch["mask"])
            else:
                self.learner.logits(self.model, batch)
        return hidden if self._frozen else {k: self.ranks.rows(h, len(picks)) for k, h in hidden.items()}

    def _shared(self) -> KeyValues | None:
        """The prefix of this step; computed here where the task had none."""
        if self._prefix is not None:
            return self._prefix
        prefix = self.learner.prefix(self.model)
        if self._kept and torch.is_grad_enabled():
            self._prefix = prefix
        return prefix

    def _batch(self, picks: Sequence[int], *, answers: bool) -> tuple[dict[str, Any], Tensor]:
        """The batch of some probes and, for each row, where its verdict position is."""
        lessons = [self.lessons[i] for i in picks]
        if isinstance(self.learner, CausalLearner):
            if not answers:
                lessons = [lesson.asked() for lesson in lessons]
            batch = self.learner.collate(lessons)
            at = torch.tensor([-1 - len(lesson.answer_ids) for lesson in lessons]) + batch["ids"].shape[1]
        else:
            batch = self.learner.collate(lessons)
            at = batch["mask"].sum(1) - 1 if self.learner.causal else torch.zeros(len(picks)).long()
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return moved, at.to(self.device)


class _Run:
    """What one forward of some probes gave."""

    def __init__(self, hidden: dict[int, Tensor], logits: Tensor, losses: Tensor, answers: bool) -> None:
        self.hidden, self.logits, self.losses, self.answers = hidden, logits, losses, answers

    def of_all(self, ranks: Ranks, count: int) -> _Run:
        """The run of all probes, of which each process ran its share."""
        hidden = {layer: ranks.rows(states, count) for layer, states in self.hidden.items()}
        return _Run(hidden, ranks.rows(self.logits, count), ranks.rows(self.losses, count), self.answers)


class _ReachedError(Exception):
    """The highest watched layer has been computed."""


@contextlib.contextmanager
def _watching(
    modules: Any, layers: Sequence[int], at: Tensor, *, stop: bool = False, leaves: bool = False
) -> Iterator[dict[int, Tensor]]:
    """Hidden states (rows, width) of some blocks at one position a row, with gradients, as the block runs.

    Each is put back into the block's output, so that gradients with respect to it are gradients with respect to what
    the next block reads. With `leaves` the graph begins at the first that no weight in training comes before.
    """
    hidden: dict[int, Tensor] = {}
    rows = torch.arange(len(at), device=at.device)
    last = max(layers, default=0)

    def hook(layer: int) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            state = states[rows, at]
            hidden[layer] = state.float()
            if stop and layer == last:
                raise _ReachedError
            if leaves and not stop and torch.is_grad_enabled() and not hidden[layer].requires_grad:
                hidden[layer].requires_grad_()
            if stop or not hidden[layer].requires_grad:
                return None
            # Through float32 and back is the identity on bf16 values.
            states = states.index_put((rows, at), hidden[layer].to(states.dtype))
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return keep

    handles = [modules[layer - 1].register_forward_hook(hook(layer)) for layer in layers]
    try:
        with contextlib.suppress(_ReachedError):
            yield hidden
    finally:
        for handle in handles:
            handle.remove()


def trained_modules(model: Any) -> dict[str, Any]:
    """LoRA layers where there are any, else linear layers with trained weights, by their names in the checkpoint."""
    from peft.tuners.lora import LoraLayer

    named = sorted(model.named_modules())
    adapted = {plain_name(name): m for name, m in named if isinstance(m, LoraLayer)}
    return adapted or {
        plain_name(name): m for name, m in named if isinstance(m, torch.nn.Linear) and m.weight.requires_grad
    }


def plain_name(name: str) -> str:
    """A module's name in the checkpoint, without what peft puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
