"""Plans of what scores: an audit, which ends, and a service, which does not.

    time of a batch = max(operations / (share · rate), weights / bandwidth)        (roofline)
    memory = weights + keys and values of a batch and of the policy before it + widest activations of one block + logits

The policy that all items share is computed once and not again; every token attends to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from guardkeel.models.devices import DTYPES
from guardkeel.planning.architecture import Architecture
from guardkeel.planning.hardware import Hardware
from guardkeel.planning.planned import FULL, HOUR, Planned
from guardkeel.tuning.estimate import LIBRARIES

DAY = 86400.0
_REMEDIES = ["take bfloat16", "lower the token budget", "take a smaller model", "take more or larger devices"]


@dataclass(frozen=True)
class Texts:
    """What is judged: tokens of an item beside the policy, and of the policy, on average."""

    tokens: float = 60
    policy: float = 550
    budget: int = 2048
    """Tokens of a batch."""


TYPICAL = Texts()


@dataclass(frozen=True)
class Pace:
    """One copy of a model: devices that it is spread over, bytes on each, items a second."""

    spread: int
    memory: dict[str, float]
    items: float
    batch_seconds: float
    rows: int


def pace(shape: Architecture, hardware: Hardware, dtype: str, texts: Texts) -> Pace:
    """The fewest devices that a copy fits on, and how fast it is there.

    Spread over n devices (tensor parallel) each holds 1/n of weights, keys and values; what they send each other is not
    counted. One that fits on no number is given for all devices.
    """
    size = DTYPES[dtype]
    rows = max(1, min(256, int(texts.budget // max(1.0, texts.tokens))))
    tokens = rows * texts.tokens
    work = shape.forward(tokens, texts.policy + texts.tokens / 2, logits=rows)
    weights = shape.parameters * size
    inner = shape.intermediate_size + shape.num_attention_heads * shape.head_dim
    held = {
        "weights": float(weights),
        # On a CPU the policy's keys and values are not copied for each row.
        "keys and values": shape.key_values(size) * (tokens + texts.policy * (1 if hardware.cpu else rows)),
        "activations": size * tokens * (4.0 * shape.hidden_size + 3.0 * inner),
        "logits": 4.0 * rows * shape.vocab_size,
    }
    for spread in range(1, hardware.devices + 1):
        memory = {what: n / (spread if what != "activations" else 1) for what, n in held.items()}
        if hardware.cpu:
            memory["libraries"] = LIBRARIES
        if sum(memory.values()) <= FULL * hardware.memory and hardware.devices % spread == 0:
            break
    seconds = work / (spread * hardware.rate(dtype))
    if hardware.bandwidth:
        seconds = max(seconds, weights / (spread * hardware.bandwidth))
    return Pace(spread, memory, rows / seconds, seconds, rows)


def audit(
    shape: Architecture,
    hardware: Hardware,
    *,
    name: str,
    dtype: str,
    rows: int,
    guards: int = 2,
    texts: Texts = TYPICAL,
) -> Planned:
    """The plan of judging `rows` items with `guards` guards of one shape, one after the other."""
    found = pace(shape, hardware, dtype, texts)
    copies = hardware.devices // found.spread
    policy = shape.forward(texts.policy, texts.policy / 2) / (found.spread * hardware.rate(dtype))
    return Planned(
        verb="audit",
        model=name,
        parameters=shape.parameters,
        dtype=dtype,
        hardware=hardware,
        memory=found.memory,
        seconds={
            "load": guards * found.memory["weights"] * found.spread / hardware.disk,
            "policy": guards * policy,
            "score": guards * rows / (found.items * copies),
        },
        numbers={
            "items": rows,
            "guards": guards,
            "tokens": guards * (texts.policy + rows * texts.tokens),
            "copies": copies,
            "devices a copy": found.spread,
            "items a second": found.items * copies,
        },
        assumed=[_said(texts), "statistics and reports after the scoring are not counted"],
        remedies=_REMEDIES,
    )


def serve(
    shape: Architecture,
    hardware: Hardware,
    *,
    name: str,
    dtype: str,
    per_second: float,
    busy: float = 0.6,
    texts: Texts = TYPICAL,
) -> Planned:
    """The plan of serving one guard at a rate of verdicts.

    Args:
        shape, hardware, name, dtype: of the guard and of what it runs on.
        per_second: verdicts that are asked for on average.
        busy: share of the time that devices may work: what is left takes peaks, and keeps queues short.
        texts: what is judged.
    """
    found = pace(shape, hardware, dtype, texts)
    copies = max(1, math.ceil(per_second / (found.items * busy)))
    devices = copies * found.spread
    numbers: dict[str, float] = {
        "verdicts a second": per_second,
        "verdicts a day": per_second * DAY,
        "a copy gives, a second": found.items * busy,
        "copies": copies,
        "devices": devices,
        "seconds a full batch": found.batch_seconds,
        "rows written to the log a second": per_second,
    }
    if hardware.price is not None:
        numbers["cost a day"] = devices * hardware.price * DAY / HOUR
        numbers["cost a million verdicts"] = numbers["cost a day"] / (per_second * DAY) * 1e6
    return Planned(
        verb="serve",
        model=name,
        parameters=shape.parameters,
        dtype=dtype,
        hardware=hardware,
        memory=found.memory,
        numbers=numbers,
        assumed=[_said(texts), f"devices work {100 * busy:.0f}% of the time, in full batches"],
        remedies=_REMEDIES,
    )


def _said(texts: Texts) -> str:
    return f"{texts.tokens:g} tokens an item after a policy of {texts.policy:g} that all share"
