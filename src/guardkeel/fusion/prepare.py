"""What a fuse is once all that can be checked before it runs has been checked, and what it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from guardkeel.errors import ConfigError
from guardkeel.fusion import stream
from guardkeel.fusion.config import FuseConfig
from guardkeel.fusion.inputs import Watch, check_patterns, method_of, opened
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.outfiles import beside
from guardkeel.fusion.plan import Plan, make_plan
from guardkeel.fusion.preflight import preflight
from guardkeel.fusion.results import FusePlan
from guardkeel.fusion.sources import Sources
from guardkeel.fusion.tensorfile import FLOATS
from guardkeel.guards.embedded import SETTINGS
from guardkeel.models.adapters import is_adapter
from guardkeel.models.devices import DTYPES, pick_device

_DECOMPOSING = 8
"""Float32 tensors of a weight's size that decomposing it holds: change, factors, LAPACK's work, product, difference."""
_LEFT_OVER = 64 * 2**20  # what small tensors and the allocator take beside them


@dataclass(frozen=True)
class Prepared:
    """A fuse that has passed all that can be checked before it runs."""

    config: FuseConfig
    method: Method
    sources: Sources
    plan: Plan
    warnings: tuple[str, ...]
    device: str


def prepare(config: FuseConfig, method: Method, sources: Sources) -> Prepared:
    """Check models, method and patterns against each other, and plan."""
    if config.output == "adapter" and is_adapter(sources.reference.folder):
        raise ConfigError(
            f"{config.reference}: is an adapter itself, so no adapter can be written on it",
            remedy="write a checkpoint (--output checkpoint), or give the reference merged into its base",
        )
    warnings = preflight(sources, method)
    check_patterns(config, list(sources.reference.specs))
    plan = make_plan(
        sources,
        method,
        dtype=None if config.output == "adapter" else config.dtype,
        shard_bytes=config.shard_bytes,
        chosen=config.chosen,
        rest=config.rest,
        processes=config.processes,
    )
    return Prepared(config, method, sources, plan, warnings, pick_device(config.device))


def planned(config: FuseConfig, watch: Watch = lambda what, done, total: None) -> FusePlan:
    """What the fuse would read, hold and write; what would stop it at once stops here too."""
    method = method_of(config)
    with opened(config, method, watch) as sources:
        p = prepare(config, method, sources)
        copies, contents = beside(sources.reference, p.plan.dtype)
        adapter = config.output == "adapter"
        seconds = stream.estimate(p.plan, method, seed=config.seed, device=p.device)
        memory, more = _decomposing(p) if adapter else (p.plan.peak_bytes, 0.0)
        return FusePlan(
            method=method.name,
            output=config.output,
            candidates=len(sources.candidates),
            tensors=len(p.plan.items),
            fused=len(p.plan.fused),
            copied=len(p.plan.items) - len(p.plan.fused),
            bytes_read=p.plan.bytes_read,
            bytes_written=_most_of_adapter(p) if adapter else p.plan.bytes_written,
            shards=1 if adapter else len(p.plan.shards),
            dtype=stored(p),
            memory=memory,
            largest=p.plan.largest.name,
            seconds=seconds + more,
            files=[] if adapter else sorted(({path.name for path in copies} | set(contents)) - {SETTINGS}),
            warnings=list(p.warnings),
        )


def stored(p: Prepared) -> str:
    """What most values of the output are stored as."""
    if p.config.output == "adapter":
        return p.config.dtype or "float32"
    values: dict[str, int] = {}
    for item in p.plan.items:
        values[item.spec.dtype] = values.get(item.spec.dtype, 0) + item.spec.values
    most = max(values, key=lambda dtype: values[dtype])
    return str(FLOATS[most]).removeprefix("torch.") if most in FLOATS else most


def _most_of_adapter(p: Prepared) -> int:
    """Bytes of the factors at their rank, or at one that makes them as large as their weights."""
    changed = [i.spec for i in p.plan.items if i.way != "reference"]
    rank = p.config.rank
    values = (
        min(s.values, rank * (s.rows + s.width)) if rank and len(s.shape) == 2 else s.values for s in changed
    )
    return sum(values) * DTYPES[p.config.dtype or "float32"]


def _decomposing(p: Prepared) -> tuple[int, float]:
    """Memory of the process and further seconds of a fuse whose result is decomposed, one tensor at a time."""
    import psutil
    import torch

    import guardkeel.tuning.run  # noqa: F401 - loaded in the run too, and then part of its memory
    from guardkeel.fusion.adapter_output import places

    places(p.sources.reference.folder)
    models = len(p.sources.models) + p.method.work + 2
    largest = max(p.plan.fused, key=lambda item: item.spec.values)
    held = 4 * (models + _DECOMPOSING) * largest.spec.values
    work = sum(i.spec.values * min(i.spec.rows, i.spec.width) for i in p.plan.fused if len(i.spec.shape) == 2)
    square = torch.rand(256, 256)
    started = time.perf_counter()
    torch.linalg.svd(square, full_matrices=False)
    now = int(psutil.Process().memory_info().rss)
    return now + held + _LEFT_OVER, (time.perf_counter() - started) * work / 256**3
