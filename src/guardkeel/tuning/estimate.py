"""What a fine-tune will need, said before it starts. What would stop it at once stops here too.

The model is built without its weights (on torch's meta device) and the rows are encoded as in the run, so counts of
rows, steps, tokens and trainable parameters are exact. Memory and time are not.

    time   = operations / (SHARE · rate), rate that of a short matrix multiplication, measured here and now
    memory = frozen weights + 16 bytes a trained parameter (itself, gradient, two moments) + activations

Of W processes each has its share of a batch's activations. With sharding fsdp it also has 1/W of the rest, and whole
the weights that are gathered at a time: what stands outside the blocks, one block, and the next one on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ConfigError
from guardkeel.evaluation.estimate import SHARE, matmul_rate
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.load import AnyGuard, describe, guard_path, guard_settings, unknown_family
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.devices import DTYPES, pick_device, pick_dtype
from guardkeel.models.loading import load_tokenizer, task_of
from guardkeel.models.quiet import quiet
from guardkeel.tuning.check import check
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.gather import Gathered, encoded, gather
from guardkeel.tuning.keeper import acts, parts
from guardkeel.tuning.learner import learner
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.ranks import here
from guardkeel.tuning.weights import trainable

LIBRARIES = 6e8
"""Bytes of a process that has torch and transformers loaded and does nothing."""


class TunePlan(BaseModel):
    """A fine-tune in numbers: memory in bytes, time in seconds, `tokens` those that a step reads in all processes.

    `memory` is that of one process, on its device; with offload `host_memory` is its CPU memory beside it, else 0.
    While a sharded model is loaded, one process of a machine at a time holds all of it in CPU memory.
    """

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
    processes: int = 1
    sharded: bool = False
    host_memory: int = 0


def estimate(
    config: TuneConfig,
    watch: Callable[[str, int, int | None], None] = lambda what, done, total: None,
    gathered: Gathered | None = None,
) -> TunePlan:
    """The plan of a fine-tune; loads no weights, writes nothing. `gathered` are data already read and split.

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
    ranks = here(config.sharding, config.offload, config.device)
    gathered = gathered or gather(config, watch)
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
    teacher = learner(guard, max_tokens=config.max_tokens, share=not (config.checkpointing or ranks.sharded))
    lessons, _, anchors = encoded(gathered, teacher, config.max_tokens)
    looks = acts(regulariser)
    prefix = 0 if isinstance(guard, ClassifierGuard) else len(teacher.encoder.prefix_ids)  # type: ignore[union-attr]
    preparing, widest = 0.0, 0.0
    if looks:
        probes = GuardProbes(
            model, teacher, anchors, batch=config.guard_batch
        )  # refuses guard data of one label
        if regulariser.passes:
            sizes = [prefix + len(c) * max(len(anchors[i].prompt_ids) for i in c) for c in probes.chunks()]
            preparing = regulariser.passes * sum(sizes)
            widest = max(sizes) if any(part.passes > 1 for part in parts(regulariser)) else 0.0

    def ahead(size: int) -> float:
        """Tokens of a forward of task and probes, in each of `size` processes."""
        rows, asked = (-(-n // size) for n in (config.batch, looks * config.guard_batch))
        return prefix + rows * _mean(lessons) + asked * _mean(anchors)

    device = pick_device(ranks.device)
    dtype = "float32" if config.adapter == "full" else pick_dtype(config.dtype, device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = config.steps or max(1, round(config.epochs * len(lessons) / (config.batch * config.accumulation)))
    seen = _looks(config, gathered, steps)
    read = steps * config.accumulation * ahead(ranks.size)
    scored = seen * len(gathered.monitor) * _mean(anchors) / (1 if ranks.sharded else ranks.size)
    work = 2.0 * parameters * (preparing + read * passes(config) + scored)
    frozen = parameters - (trained if config.adapter == "full" else 0)
    held, whole = frozen * DTYPES[dtype] + 16.0 * trained, 0.0
    if ranks.sharded:
        held, whole = held / ranks.size, DTYPES[dtype] * _at_a_time(model, config.adapter == "full")
    away = held if ranks.offload and device != "cpu" else 0.0
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
        tokens=round(config.accumulation * ahead(1)),
        parameters=parameters,
        trained=trained,
        dtype=dtype,
        device=device,
        memory=round(
            (LIBRARIES if device == "cpu" else 0)
            + held
            - away
            + whole
            + activations(
                guard.model.config.get_text_config(), max(ahead(ranks.size), widest), config.checkpointing
            )
        ),
        seconds=work / (SHARE * matmul_rate(dtype, device)),
        processes=ranks.size,
        sharded=ranks.sharded,
        host_memory=round(away and away + LIBRARIES),
    )


def _at_a_time(model: Any, full: bool) -> float:
    """Numbers of a sharded model that are whole at a time; with `full` a block's gradient is one of them."""
    everything, *sizes = (sum(p.numel() for p in m.parameters()) for m in (model, *blocks(model)))
    return float(everything - sum(sizes) + (2 + full) * max(sizes))


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


def passes(config: TuneConfig) -> int:
    """How often a step goes through the weights: forward, gradients of activations, in full fine-tuning those of
    weights, and once more to recompute. Each costs 2 operations a parameter and token."""
    return (3 if config.adapter == "full" else 2) + config.checkpointing


def activations(config: Any, tokens: float, checkpointing: bool) -> float:
    """Bytes kept between forward and backward.

    A block keeps some ten states of its width and six of its inner width for each token, in float32 as adapters read
    them; with checkpointing its input alone, and one block's at a time.
    """
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    block = 4.0 * tokens * (10 * width + 6 * inner)
    return 4.0 * tokens * width * layers + block if checkpointing else block * layers
