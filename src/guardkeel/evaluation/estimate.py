"""What a run will need, said before it starts: items, tokens, memory and time.

Time = 2 · parameters · tokens / (SHARE · rate), where rate is a short matrix multiplication measured here and now, and
SHARE is what a forward pass reaches of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from guardkeel.conversation import Conversation
from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Judgement
from guardkeel.guards.encoding import Encoder
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.devices import DTYPES, pick_device, pick_dtype

SHARE = 0.36  # demo: 80 s of scoring on two cores where 0.5 foretold 55 s
_SAMPLE = 200


class Plan(BaseModel):
    """An audit in numbers. Memory in bytes, time in seconds; what images need is in neither."""

    guards: int
    items: int
    tokens: int
    images: int
    parameters: int
    dtype: str
    device: str
    memory: int
    seconds: float


def estimate(
    folder: Path,
    items: Sequence[SuiteItem],
    *,
    guards: int,
    loaded: int,
    encoder: Encoder | None,
    dtype: str = "auto",
    device: str = "auto",
    token_budget: int = 2048,
) -> Plan:
    """The plan of scoring `items` with `guards` guards of which `loaded` are in memory at once.

    `encoder` is None for sequence classifiers; characters / 4 then stand for tokens.
    """
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    checkpoint = check_checkpoint(folder, finite=False)
    config = checkpoint.config.get("text_config") or checkpoint.config
    sample = [i.judgement for i in items[:: max(1, len(items) // _SAMPLE)]]
    if encoder is None:
        each = sum(len(i.conversation.text) / 4 for i in sample) / len(sample)
        prefix = 0
    else:
        encoder.share(sample)
        each = sum(_length(encoder, i) for i in sample) / len(sample)
        prefix = len(encoder.prefix_ids)
    tokens = round(prefix + each * len(items))
    width, vocabulary = int(config.get("hidden_size", 1024)), int(config.get("vocab_size", 32000))
    blocks = max(1, checkpoint.parameters - width * vocabulary)
    weights = checkpoint.parameters * DTYPES[dtype] * loaded
    layers = int(config.get("num_hidden_layers", 24))
    # Keys and values of a batch with its copy of the prefix, and the widest activations of one block.
    rows = max(1, round(token_budget / max(1.0, each)))
    states = DTYPES[dtype] * (2 * layers * width * rows * (prefix + each) + 12 * width * token_budget)
    flops = 2.0 * blocks * tokens * guards
    return Plan(
        guards=guards,
        items=len(items),
        tokens=tokens,
        images=sum(len(i.judgement.conversation.images) for i in items),
        parameters=checkpoint.parameters,
        dtype=dtype,
        device=device,
        memory=round(weights + states),
        seconds=flops / (SHARE * matmul_rate(dtype, device)),
    )


def _length(encoder: Encoder, item: Judgement) -> int:
    turns = tuple(replace(turn, images=()) for turn in item.conversation.turns)
    try:
        return len(encoder.encode(replace(item, conversation=Conversation(turns))).ids)
    except ConfigError:  # it cannot be made to fit, and will be unscored
        return 0


def matmul_rate(dtype: str, device: str, width: int = 1024, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a (512, width) @ (width, width) product, measured for a moment."""
    import torch

    kind: Any = getattr(torch, dtype)
    a, b = (torch.ones(n, width, dtype=kind, device=device) for n in (512, width))
    a @ b
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        count += 4
    return count * 2.0 * 512 * width * width / (time.perf_counter() - started)
