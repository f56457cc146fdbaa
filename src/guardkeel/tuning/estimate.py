"""What a fine-tune will need, said before it starts. What would stop it at once stops here too.

The model is built without its weights (on torch's meta device) and the rows are encoded as in the run, so counts of
rows, steps, tokens and trainable parameters are exact. Memory and time are not.

    time   = multiply-adds / (SHARE · rate), rate that of a short matrix multiplication, measured here and now
    memory = weights + 16 bytes a trained parameter (itself, gradient, two moments) + activations kept for the backward
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from guardkeel.errors import ConfigError
from guardkeel.evaluation.estimate import SHARE, matmul_rate
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.embedded import NAME
from guardkeel.guards.load import AnyGuard, describe, guard_path, guard_settings, unknown_family
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.devices import DTYPES, pick_device, pick_dtype
from guardkeel.models.loading import load_tokenizer, task_of
from guardkeel.models.quiet import quiet
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.gather import Gathered, encoded, gather
from guardkeel.tuning.learner import learner
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.asft import AsFT
from guardkeel.tuning.regularisers.base import Regulariser
from guardkeel.tuning.regularisers.registry import build
from guardkeel.tuning.regularisers.several import Several
from guardkeel.tuning.weights import trainable

LIBRARIES = 6e8
"""Bytes of a process that has torch and transformers loaded and does nothing."""


class TunePlan(BaseModel):
    """A fine-tune in numbers: memory in bytes, time in seconds, `tokens` those that a step reads."""

    method: str
    adapter: str
    rows: int
    kept_aside: int
    guard_data: int
    monitor_items: int
    looks: int
    steps: int
    passes: float
    tokens: int
    parameters: int
    trained: int
    dtype: str
    device: str
    memory: int
    seconds: float


def check(config: TuneConfig) -> Regulariser:
    """The method of a configuration that can be run.

    Raises:
        ConfigError: the method, its options, or what goes with them cannot be used.
    """
    regulariser = build(config.method, config.options)
    parts = list(regulariser.parts.values()) if isinstance(regulariser, Several) else [regulariser]
    for part in parts:
        if config.adapter != "lora" and isinstance(part, PostHoc):
            raise ConfigError(
                f"method {part.name!r} repairs a LoRA, and adapter is {config.adapter!r}",
                remedy='choose adapter = "lora", or another method',
            )
        if config.adapter == "dora" and isinstance(part, AsFT):
            raise ConfigError(
                f"method {part.name!r} cannot follow the updates of DoRA",
                remedy='choose adapter = "lora" or "full", or another method',
            )
    if getattr(regulariser, "needs", ()) and config.unaligned is None and config.guard not in (NAME, "keel"):
        raise ConfigError(
            f"method {config.method!r} compares the guard with the model that it was made from",
            remedy="name that checkpoint with --unaligned",
        )
    if config.dtype in ("float16", "fp16"):
        raise ConfigError(
            "dtype float16 is too coarse to train in: gradients and optimiser steps vanish or overflow",
            remedy="use bfloat16 or float32",
        )
    _check_reports(config.report_to)
    return regulariser


def _check_reports(names: list[str]) -> None:
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in names:
        if name not in (*available, "none", "all"):
            raise ConfigError(
                f"cannot report to {name!r}: it is unknown or not installed",
                remedy=f"pip install {name}"
                + (f", or use {', '.join(available)}" if available else ", or leave --report-to out"),
            )


def estimate(
    config: TuneConfig, watch: Callable[[str, int, int | None], None] = lambda what, done, total: None
) -> TunePlan:
    """The plan of a fine-tune; loads no weights, writes nothing.

    Raises:
        GuardkeelError: whatever would stop the run before its first step.
    """
    regulariser = check(config)
    path = guard_path(config.guard, progress=watch, offline=config.offline)
    if is_adapter(path):
        raise ConfigError(
            f"{path}: is an adapter, not a whole checkpoint",
            remedy="merge it into its base first (peft's merge_and_unload), and tune the result",
        )
    gathered = gather(config, watch)
    guard = _weightless(path, config)
    parameters = sum(p.numel() for p in guard.model.parameters())
    model: Any = trainable(
        guard.model,
        adapter=config.adapter,
        rank=config.rank,
        alpha=config.alpha,
        first_layer=config.first_layer,
        seed=config.seed,
        task="classifier" if isinstance(guard, ClassifierGuard) else "causal",
    )
    teacher = learner(guard, max_tokens=config.max_tokens, share=not config.checkpointing)
    lessons, _, anchors = encoded(gathered, teacher, config.max_tokens)
    GuardProbes(model, teacher, anchors, batch=config.guard_batch)  # refuses guard data of one label
    looks = type(regulariser) is not Regulariser and not isinstance(regulariser, PostHoc)
    prefix = 0 if isinstance(guard, ClassifierGuard) else len(teacher.encoder.prefix_ids)  # type: ignore[union-attr]
    ahead = prefix + config.batch * _mean(lessons) + looks * config.guard_batch * _mean(anchors)
    device = pick_device(config.device)
    dtype = "float32" if config.adapter == "full" else pick_dtype(config.dtype, device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = config.steps or max(1, round(config.epochs * len(lessons) / (config.batch * config.accumulation)))
    seen = _looks(config, gathered, steps)
    work = _multiply_adds(config, parameters, steps, config.accumulation * ahead) + (
        2.0 * parameters * seen * len(gathered.monitor) * _mean(anchors)
    )
    return TunePlan(
        method=config.method,
        adapter=config.adapter,
        rows=len(lessons),
        kept_aside=len(gathered.aside),
        guard_data=len(anchors) if looks else 0,
        monitor_items=len(gathered.monitor),
        looks=seen,
        steps=steps,
        passes=steps * config.batch * config.accumulation / len(lessons),
        tokens=round(config.accumulation * ahead),
        parameters=parameters,
        trained=trained,
        dtype=dtype,
        device=device,
        memory=round(
            (LIBRARIES if device == "cpu" else 0)
            + parameters * DTYPES[dtype]
            + 16 * trained
            + _activations(guard.model.config.get_text_config(), ahead, config.checkpointing)
        ),
        seconds=work / (SHARE * matmul_rate(dtype, device)),
    )


def _weightless(path: Path, config: TuneConfig) -> AnyGuard:
    """The guard with all of its shapes and none of its numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    checkpoint = check_checkpoint(path, finite=False)
    task = task_of(checkpoint.config, path / "config.json")
    encoder, _ = describe(path, config.guard, family=config.family)
    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    with quiet(), torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(path, local_files_only=True))
    tokenizer, said = load_tokenizer(path), guard_settings(path, path)
    if task == "classifier":
        return ClassifierGuard(model, tokenizer, name=config.guard, unsafe=said.unsafe_labels)
    if encoder is None:
        raise unknown_family(config.guard)
    return CausalGuard(model, tokenizer, encoder.family, name=config.guard)


def _mean(lessons: list[Lesson]) -> float:
    """Tokens a lesson."""
    return sum(len(a.prompt_ids) + len(a.answer_ids) for a in lessons) / max(1, len(lessons))


def _looks(config: TuneConfig, gathered: Gathered, steps: int) -> int:
    """How often the monitor looks: at the start, every few steps, and at the end."""
    return 1 + -(-steps // config.every) if gathered.monitor else 0


def _multiply_adds(config: TuneConfig, parameters: int, steps: int, tokens: float) -> float:
    """Floating-point operations: a forward is 2 a parameter and token, and so is each of the gradients of activations
    and, in full fine-tuning, of weights; recomputing costs one more forward."""
    passes = (3 if config.adapter == "full" else 2) + config.checkpointing
    return 2.0 * parameters * tokens * steps * passes


def _activations(config: Any, tokens: float, checkpointing: bool) -> float:
    """Bytes kept between forward and backward.

    A block keeps some ten states of its width and six of its inner width for each token, in float32 as adapters read
    them; with checkpointing its input alone, and one block's at a time.
    """
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    block = 4.0 * tokens * (10 * width + 6 * inner)
    return 4.0 * tokens * width * layers + block if checkpointing else block * layers
