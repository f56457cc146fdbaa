"""What a training will need, said before it starts. What would stop it at once stops here too.

As in `guardkeel tune`: the model is built without its weights, rows are encoded and planned as in the run, so that
items, policies, steps and tokens are exact. Memory and time are guesses.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import BaseModel

from guardkeel.evaluation.estimate import SHARE, matmul_rate
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.load import AnyGuard
from guardkeel.models.devices import DTYPES, pick_device, pick_dtype
from guardkeel.models.loading import load_tokenizer
from guardkeel.models.quiet import quiet
from guardkeel.tuning.estimate import LIBRARIES, activations, passes
from guardkeel.tuning.guard_training.config import TrainConfig
from guardkeel.tuning.guard_training.opening import LABELS
from guardkeel.tuning.guard_training.planning import steps_of
from guardkeel.tuning.guard_training.preparing import Prepared, prepared
from guardkeel.tuning.guard_training.rows import Watch
from guardkeel.tuning.guard_training.syllabus import Syllabus
from guardkeel.tuning.guard_training.teaching import taught
from guardkeel.tuning.learner import CausalLearner
from guardkeel.tuning.weights import trainable


class TrainPlan(BaseModel):
    """A training in numbers: memory in bytes, time in seconds, `tokens` those that a step reads on average."""

    base: str
    task: str
    family: str
    guard: bool
    method: str
    adapter: str
    items: int
    epoch_items: int
    labels: dict[str, int]
    left_out: dict[str, int]
    categories: int
    held_out: list[str]
    policies: int
    steps: int
    tokens: int
    parameters: int
    trained: int
    dtype: str
    device: str
    memory: int
    seconds: float
    notes: list[str]


def estimate(config: TrainConfig, watch: Watch = lambda what, done, total: None) -> TrainPlan:
    """The plan of a training; loads no weights, writes nothing.

    Raises:
        GuardkeelError: whatever would stop the run before its first step.
    """
    ready = prepared(config, watch)
    guard = _weightless(ready)
    parameters = sum(p.numel() for p in guard.model.parameters())
    learner, lessons, plan, left_out = taught(ready, guard, config, watch)
    model = trainable(
        guard.model,
        adapter=config.adapter,
        rank=config.rank,
        alpha=config.alpha,
        first_layer=config.first_layer,
        seed=config.seed,
        task=ready.place.task,
    )
    steps = steps_of(config, plan.epoch)
    rows = config.batch * config.accumulation
    tokens = rows * _mean(lessons)
    if isinstance(learner, CausalLearner) and learner.encoder.prefix_ids:
        tokens += config.accumulation * len(learner.encoder.prefix_ids)
    device = pick_device(config.device)
    dtype = "float32" if config.adapter == "full" else pick_dtype(config.dtype, device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    scored = min(len(ready.rows("calibrate")), config.calibrate_items)
    scored += min(len(ready.rows("test")), config.test_items)
    looks = -(-steps // config.every) * config.monitor_items
    work = 2.0 * parameters * (steps * tokens * passes(config.tuning()) + (scored + looks) * _mean(lessons))
    kept = activations(
        guard.model.config.get_text_config(), tokens / config.accumulation, config.checkpointing
    )
    return TrainPlan(
        base=config.base,
        task=ready.place.task,
        family=guard.family,
        guard=ready.place.guard,
        method=config.method,
        adapter=config.adapter,
        items=len(ready.cases),
        epoch_items=plan.epoch,
        labels=dict(sorted(Counter(f"{c.row.label}, by {c.row.by}" for c in ready.cases).items())),
        left_out=left_out,
        categories=len(ready.shipped.categories) if ready.place.reads_policies else 0,
        held_out=config.hold_out,
        policies=len(plan.policies),
        steps=steps,
        tokens=round(tokens),
        parameters=parameters,
        trained=trained,
        dtype=dtype,
        device=device,
        memory=round(
            (LIBRARIES if device == "cpu" else 0) + parameters * DTYPES[dtype] + 16 * trained + kept
        ),
        seconds=work / (SHARE * matmul_rate(dtype, device)),
        notes=ready.notes,
    )


def _mean(lessons: Any, most: int = 200) -> float:
    """Tokens a lesson, from some of them."""
    if isinstance(lessons, Syllabus):
        known = [n for batch in lessons.plan.batches for n in batch]
        lessons = [lessons[n] for n in known[:: max(1, len(known) // most)]]
    return sum(len(a.prompt_ids) + len(a.answer_ids) for a in lessons) / max(1, len(lessons))


def _weightless(ready: Prepared) -> AnyGuard:
    """The guard with all of its shapes and none of its numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    place = ready.place
    described = AutoConfig.from_pretrained(place.path, local_files_only=True)
    if place.new_head:
        described.id2label = dict(enumerate(LABELS))
    auto = AutoModelForCausalLM if place.task == "causal" else AutoModelForSequenceClassification
    with quiet(), torch.device("meta"):
        model = auto.from_config(described)
    tokenizer = load_tokenizer(place.path)
    if place.family is None:
        unsafe = [LABELS[1]] if place.new_head else place.settings.unsafe_labels
        return ClassifierGuard(model, tokenizer, name=place.name, unsafe=unsafe)
    grammar = place.family.under(ready.shipped) if ready.policy else place.family
    return CausalGuard(model, tokenizer, grammar, name=place.name)
