"""What a sweep will need, said before it starts: its points, and time and memory on this machine."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.estimate import SHARE, estimate, matmul_rate
from guardkeel.evaluation.selection import select
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.engine import keeps
from guardkeel.fusion.sweep.material import Material, material
from guardkeel.fusion.sweep.results import Failed
from guardkeel.guards.load import describe
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.devices import DTYPES
from guardkeel.tuning.targets import Target


class PlannedPoint(BaseModel):
    """A point and what it is for."""

    model_config = ConfigDict(extra="forbid")

    name: str
    control: str


class SweepPlan(BaseModel):
    """A sweep in numbers. Memory in bytes, time in seconds."""

    model_config = ConfigDict(extra="forbid")

    points: list[PlannedPoint]
    skipped: list[Failed]
    items: int
    task_rows: int
    audits: int
    parameters: int
    dtype: str
    device: str
    memory: int
    kept: int
    """Of it, tensors held between points; 0 where they are read again for each."""
    point_seconds: float
    audit_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.point_seconds * len(self.points) + self.audit_seconds


def plan(config: SweepConfig, watch: Watch = lambda what, done, total: None) -> SweepPlan:
    """The plan of a sweep; what would stop it at once stops here too."""
    read = material(config, watch)
    encoder, folder = describe(
        read.path, config.reference, family=config.family, max_tokens=config.max_tokens
    )
    once = estimate(
        folder,
        read.items,
        guards=1,
        loaded=1,
        encoder=encoder,
        dtype=config.dtype,
        device=config.device,
        token_budget=config.token_budget or 2048,
    )
    every = select(read.suites, limit=config.limit)
    audits = 1 + len(read.candidates) if config.confirm else 0
    rate = SHARE * matmul_rate(once.dtype, once.device)
    kept = read.bytes if keeps(config, read.bytes) else 0
    weights = check_checkpoint(folder, finite=False).parameters * DTYPES[once.dtype]
    return SweepPlan(
        points=[PlannedPoint(name=a.name, control=a.control) for a in read.asked],
        skipped=list(read.skipped),
        items=len(read.items),
        task_rows=sum(len(t.rows) for t in read.tasks),
        audits=audits,
        parameters=once.parameters,
        dtype=once.dtype,
        device=once.device,
        memory=once.memory + weights + kept,  # the model, a copy of its weights to put back, what is kept
        kept=kept,
        point_seconds=once.seconds + 2.0 * once.parameters * _task_tokens(read) / rate,
        audit_seconds=once.seconds * len(every) / len(read.items) * (audits + 1 if audits else 0),
    )


def _task_tokens(read: Material) -> float:
    """Characters / 4 stand for tokens."""
    rows = [row for task in read.tasks for row in task.rows]
    return sum(len((r.judgement if isinstance(r, Target) else r).conversation.text) / 4 for r in rows)
