"""Fine-tunes of tiny guards put together piece by piece, as `tuning.run` does it, for tests that look inside."""

from __future__ import annotations

import copy
import gc
import random
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from guard_doubles import EveryToken
from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.keel import Keel
from guardkeel.tuning.keeper import acts
from guardkeel.tuning.learner import learner
from guardkeel.tuning.lessons import classifier_lessons, guard_lessons
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.registry import build
from guardkeel.tuning.targets import Target
from guardkeel.tuning.trainer import GuardTrainer, arguments
from guardkeel.tuning.weights import trainable
from trained_guards import sentence


@cache
def settle() -> None:
    """Every Trainer collects garbage as it starts, half a second each; what is imported by now need not be searched."""
    gc.collect()
    gc.freeze()


class Brief(Keel):
    """keel with a policy of one line, which costs a tiny model a tenth."""

    name = "brief"

    def render(self, conversation, side, tokenizer):  # type: ignore[no-untyped-def]
        policy = "<|im_start|>system\nIs it safe or unsafe?<|im_end|>\n<|im_start|>user\n"
        return replace(super().render(conversation, side, tokenizer), prefix=policy)


class BriefEveryToken(Brief):
    """The same, and every token is a verdict: everything is scored."""

    name = "brief-every-token"
    blanks = EveryToken.blanks


@dataclass
class Bench:
    """A guard whose weights can be trained, what it is taught, and what it is looked at on."""

    guard: Any
    teacher: Any
    task: list[Target]
    anchors: list[Target]
    lessons: list[Any]
    probes: GuardProbes

    @property
    def model(self) -> Any:
        return self.guard.model

    def trained(self) -> dict[str, torch.Tensor]:
        """Copies of the trainable weights."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}


def rows(count: int, seed: int, labels: tuple[str, ...] = ("unsafe", "safe")) -> list[Target]:
    """Short prompts, as many of each label."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        label = labels[i % len(labels)]
        judgement = Judgement(f"r{seed}-{i}", Conversation.of(sentence(rng, label)), "prompt")
        made.append(Target(judgement, label, ("Violence",) if label == "unsafe" else ()))
    return made


def bench(
    loaded: tuple[Any, Any],
    *,
    adapter: str = "lora",
    family: Any = None,
    share: bool = True,
    task: int | list[Target] = 8,
    anchors: int = 8,
    batch: int = 2,
    moved: float = 0.0,
) -> Bench:
    """A bench on a copy of a loaded model; with `moved` its trainable weights are no longer those of θ₀."""
    settle()
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    classifier = type(model).__name__.endswith("ForSequenceClassification")
    if classifier:
        guard: Any = ClassifierGuard(model, tokenizer, name="tiny")
    else:
        guard = CausalGuard(model, tokenizer, family or Brief(), name="tiny", max_tokens=1024)
    kind = "classifier" if classifier else "causal"
    guard.model = trainable(model, adapter=adapter, rank=2, alpha=4, first_layer=0, seed=0, task=kind)
    if moved:
        scatter(guard.model, moved)
    teacher = learner(guard, max_tokens=1024, share=share)
    taught = rows(task, 1) if isinstance(task, int) else task
    watched = rows(anchors, 2)
    if teacher.sharing:
        teacher.encoder.share([t.judgement for t in (*taught, *watched)])

    def lessons(items: list[Target]) -> list[Any]:
        if classifier:
            return classifier_lessons(items, guard)
        return guard_lessons(items, teacher.encoder, tokenizer)

    probes = GuardProbes(guard.model, teacher, lessons(watched), batch=batch)
    return Bench(guard, teacher, taught, watched, lessons(taught), probes)


@torch.no_grad()
def scatter(model: Any, size: float, seed: int = 5) -> None:
    """Move every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))


def trainer(
    made: Bench,
    folder: Any,
    method: str = "plain",
    options: dict[str, dict[str, Any]] | None = None,
    *,
    steps: int = 3,
    batch: int = 4,
    learning_rate: float = 5e-3,
    schedule: Any = lambda step: 1.0,
    callbacks: Any = (),
    **settings: Any,
) -> GuardTrainer:
    """A GuardTrainer on a bench."""
    regulariser = build(method, options)
    return GuardTrainer(
        made.model,
        made.teacher,
        made.lessons,
        args=arguments(folder, steps=steps, batch=batch, learning_rate=learning_rate, **settings),
        regulariser=regulariser,
        probes=made.probes if acts(regulariser) else None,
        schedule=schedule,
        callbacks=callbacks,
    )
