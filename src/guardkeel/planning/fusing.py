"""The plan of a fuse: fusion's own plan and estimate, of models of which only the shape is known.

A fuse runs on the processor. Its arithmetic is as fast as a piece that is fused here and now, on as many cores as this
machine has; the disk is the hardware's.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from typing import Any

import psutil

from guardkeel.errors import ConfigError
from guardkeel.fusion.methods.registry import make
from guardkeel.fusion.plan import cores, make_plan
from guardkeel.fusion.stream import estimate
from guardkeel.planning.architecture import Architecture
from guardkeel.planning.hardware import Hardware
from guardkeel.planning.planned import Planned
from guardkeel.planning.shapes import noise


def fuse(
    shape: Architecture,
    hardware: Hardware,
    *,
    name: str,
    dtype: str,
    method: str = "interpolation",
    options: dict[str, Any] | None = None,
    candidates: int = 1,
    processes: int = 1,
) -> Planned:
    """The plan of fusing `candidates` checkpoints with a reference, all of one shape.

    Raises:
        ConfigError: the method is not known, or does not take so many.
    """
    chosen = make(method, options)
    if candidates < chosen.least or (chosen.most is not None and candidates > chosen.most):
        least = f"{chosen.least} or more" if chosen.most is None else f"{chosen.least} to {chosen.most}"
        raise ConfigError(f"{method} takes {least} candidates", remedy="set --candidates")
    already = float(psutil.Process().memory_info().rss)
    sources = noise(shape, dtype, candidates, unaligned=chosen.needs_unaligned)
    plan = make_plan(sources, chosen, processes=processes, free=sys.maxsize)
    written = plan.bytes_written / hardware.disk
    cold = plan.bytes_read / hardware.disk
    again = cold if not hardware.cpu or plan.bytes_read > hardware.memory else 0.0
    computed = estimate(plan, chosen, disk=math.inf)
    return Planned(
        verb="fuse",
        model=name,
        parameters=shape.parameters,
        dtype=dtype,
        hardware=hardware,
        memory={"process": already, "tensors": float(plan.needed)},
        seconds={
            "digests of the inputs": max(cold, plan.bytes_read / (_hash_rate() * min(2, cores()))),
            "fuse": max(again, computed),
            "write to the disk": written,
        },
        numbers={
            "tensors": len(plan.items),
            "models": len(sources.models),
            "bytes read": plan.bytes_read,
            "bytes written": plan.bytes_written,
            "processes": processes,
            "threads a process": plan.threads,
        },
        assumed=[
            f"{hardware.disk / 1e9:.2g} GB/s read and written; give --with disk=… for yours",
            f"inputs are read {'twice: for digests, and to fuse' if again else 'once, and stay in memory'}",
            "arithmetic as measured on this machine's processor now",
        ],
        remedies=["take an element-wise method", "take fewer processes"],
    )


def _hash_rate(size: int = 2**24) -> float:
    """Bytes a second that one core hashes; a fuse does so with all its inputs, two at a time, before it begins."""
    data, started = bytes(size), time.perf_counter()
    hashlib.sha256(data)
    return size / (time.perf_counter() - started)
