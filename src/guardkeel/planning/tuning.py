"""The plan of a fine-tune, by the same sums as `guardkeel tune --dry-run`, for devices that share it.

    time   = operations / (devices · share · rate), or what is sent where that takes longer
    memory = weights + 16 bytes a trained parameter (itself, gradient, two moments) + activations kept for the backward

Devices share rows, guard data and, where each has all weights, monitor items. Under --sharding fsdp weights, gradients
and moments are cut up among them too; where nothing is said of it, they are in the plan if all of it does not fit on
one. Each then keeps 1/n, and gathers one block at a time. A step sends weights · (n − 1)/n bytes a device for every
forward and every backward, of the task and of what the method looks at, and as much once more for the gradients of all
weights where all are trained (arXiv 1910.02054, section 7). Sending and computing overlap. The policy is computed once
a step, save with shards or with checkpointing, where every row reads it for itself.

Activations a block and token are those of tuning/estimate. Korthikanti et al. (arXiv 2205.05198) count 34 bytes a value
of the width for a block of inner width 4h with two-byte numbers, and 5 · heads a token and key more where attention
keeps its scores, which torch's does not.
"""

from __future__ import annotations

import math

from guardkeel.models.devices import DTYPES
from guardkeel.planning.architecture import Architecture
from guardkeel.planning.hardware import Hardware
from guardkeel.planning.planned import FULL, Planned
from guardkeel.planning.scoring import TYPICAL, Texts
from guardkeel.tuning.check import check
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.estimate import LIBRARIES, activations, passes
from guardkeel.tuning.keeper import acts, parts

_TRAINED = 16.0
_AUTO_SUITES = 5
_CHUNK = 8
"""Probes that are looked at together before the first step."""


def tune(
    shape: Architecture,
    hardware: Hardware,
    config: TuneConfig,
    *,
    name: str,
    dtype: str,
    rows: int,
    texts: Texts = TYPICAL,
) -> Planned:
    """The plan of a fine-tune on `rows` rows of `texts.tokens` tokens.

    Args:
        shape, hardware, name: of the guard and of what it runs on.
        config: of the fine-tune; its `data` is not looked at.
        dtype: of frozen weights; all trained ones are float32.
        rows: of the task, before `held_out` of them are kept aside.
        texts: tokens of a row and of the policy; guard data are as long.

    Raises:
        ConfigError: the method or its options cannot be used.
    """
    regulariser = check(config)
    n, looks = hardware.devices, acts(regulariser)
    full = config.adapter == "full"
    dtype = "float32" if full else dtype
    learned = max(1, round(rows * (1 - config.held_out)))
    steps = config.steps or max(1, round(config.epochs * learned / (config.batch * config.accumulation)))
    each = math.ceil(config.batch / n) + looks * math.ceil(config.guard_batch / n)
    trained = shape.parameters if full else shape.lora(config.rank)
    size = DTYPES[dtype]

    def ahead(cut: bool) -> tuple[float, float]:
        """Tokens that a device reads in a forward, of a step and of a chunk of probes before the first."""
        chunk = math.ceil(_CHUNK / n)
        if cut or config.checkpointing:  # every row reads the policy for itself
            whole = texts.policy + texts.tokens
            return each * whole, chunk * whole
        return texts.policy + each * texts.tokens, texts.policy + chunk * texts.tokens

    def held(cut: bool) -> dict[str, float]:
        """Bytes of a device."""
        kept = 1.0 if not cut else 0.0 if config.offload else 1.0 / n
        step, chunk = ahead(cut)
        graded = any(part.passes > 1 for part in parts(regulariser))
        found = {
            "weights": 0.0 if full else kept * shape.parameters * size,
            "trained": kept * _TRAINED * trained,
            "activations": activations(shape, max(step, chunk * graded), config.checkpointing),
        }
        if cut:
            found["gathered"] = 2.0 * shape.block_parameters * size
        return found | ({"libraries": LIBRARIES} if hardware.cpu else {})

    fits = sum(held(False).values()) <= FULL * hardware.memory
    cut = n > 1 and (config.sharding == "fsdp" or (config.sharding == "auto" and not fits))
    memory, (tokens, before) = held(cut), ahead(cut)
    alone = cut or config.checkpointing
    keys = texts.policy / (2 if alone else 1) + texts.tokens / 2
    seen = (1 + -(-steps // config.every)) * (len(config.monitor) > 0)
    items = sum(_AUTO_SUITES if suite == "auto" else 1 for suite in config.monitor) * config.monitor_items
    probes = regulariser.passes * math.ceil(config.guard_items / _CHUNK) * before
    work = {
        "prepare": shape.forward(probes, keys),
        "steps": passes(config) * shape.forward(steps * config.accumulation * tokens, keys),
        "monitor": seen * shape.forward(items / (1 if cut else n) * texts.tokens + texts.policy, keys),
    }
    assumed = [
        f"{texts.tokens:g} tokens a row after a policy of {texts.policy:g}; guard data as long",
        f"method {config.method}, {config.adapter}, batch {config.batch} over {n} devices",
    ]
    if cut:
        where = ", shards in CPU memory, their way to the device not counted" if config.offload else ""
        assumed.append(f"started with torchrun and --sharding fsdp{where}")
    rate = hardware.rate(dtype, training=True)
    # Steps are shared by giving each device its rows; `tokens` are one device's.
    seconds = {"load": shape.parameters * size / hardware.disk}
    seconds |= {part: work[part] / rate for part in ("prepare", "steps") if work[part]}
    if seen:
        seconds["monitor"] = work["monitor"] / hardware.rate(dtype)
    if cut and hardware.link:
        gathers = 2 * (1 + looks) + full  # for each forward and each backward; gradients of all weights once
        sent = gathers * shape.parameters * size * (n - 1) / n
        seconds["steps"] = max(seconds["steps"], steps * config.accumulation * sent / hardware.link)
    return Planned(
        verb="tune",
        model=name,
        parameters=shape.parameters,
        dtype=dtype,
        hardware=hardware,
        memory=memory,
        seconds=seconds,
        numbers={
            "rows": learned,
            "steps": steps,
            "tokens a step and device": config.accumulation * tokens,
            "trained": trained,
            "looks of the monitor": seen,
            "cut up among devices": n if cut else 1,
        },
        assumed=assumed,
        remedies=[
            *([] if config.checkpointing else ["set checkpointing=true"]),
            *(["take --adapter lora"] if full else []),
            "lower batch and raise accumulation",
            "lower --tokens (max_tokens)",
            "take more or larger devices: weights are cut up among them",
        ],
    )
