"""The typed results of a fuse: what goes into `RunRecord.results`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Measured(_Result):
    """What a fuse did to some tensors taken together; see fusion/diagnostics.py. Lists go by candidate."""

    name: str
    values: int = Field(description="how many numbers there are")
    reference: float = Field(description="‖θ₀‖")
    change: float = Field(description="‖δ̃‖, of the fused weights")
    changes: list[float] = Field(description="‖δ_i‖")
    shares: list[float | None] = Field(description="‖δ̃‖ / ‖δ_i‖; none where the candidate changed nothing")
    cosines: list[float | None] = Field(description="cos(δ̃, δ_i)")
    between: list[float | None] = Field(description="cos(δ_i, δ_j) of the pairs (1,2), (1,3), …, (2,3), …")
    distance: float | None = Field(description="‖δ̃‖ / ‖θ₀‖")
    rounded: float | None = Field(
        default=None,
        description="⟨round(θ̃) − θ₀, δ̃⟩ / ‖δ̃‖²: what the stored numbers still hold of the change",
    )


class Diagnostics(_Result):
    """What changed, and how much of it was kept."""

    whole: Measured
    layers: list[Measured]
    kinds: list[Measured]
    tensors: list[Measured] = Field(description="those that a candidate or the fuse changed")
    unchanged: int = Field(description="tensors in which neither did")


class Module(_Result):
    """One module of an adapter."""

    name: str
    rank: int
    error: float = Field(description="‖δ̃ − BA‖ / ‖δ̃‖ of the factors as stored")
    change: float = Field(description="‖δ̃‖")


class AdapterFit(_Result):
    """How well the adapter carries the fused change."""

    error: float = Field(description="‖δ̃ − what the adapter adds‖ / ‖δ̃‖ over all modules that it changes")
    modules: list[Module]
    whole: list[str] = Field(
        description="modules that are kept whole, because LoRA cannot carry their change"
    )
    values: int = Field(description="numbers that the adapter stores")


class FusePlan(_Result):
    """What a fuse will read, hold and write: bytes, and seconds on this machine."""

    method: str
    output: str
    candidates: int
    tensors: int
    fused: int = Field(description="tensors that go through the method")
    copied: int = Field(description="tensors that are taken over as they are")
    bytes_read: int
    bytes_written: int = Field(description="of weights; of an adapter the most that it can be")
    shards: int
    dtype: str = Field(description="what most values are stored as")
    memory: int = Field(description="most memory of the process, and of its workers")
    largest: str = Field(description="the tensor that takes most of it")
    seconds: float
    files: list[str] = Field(description="copied from the reference")
    warnings: list[str]


class FuseResults(_Result):
    """`RunRecord.results` of a fuse."""

    method: str
    output: str
    name: str
    tensors: int = Field(description="of the reference")
    fused: int = Field(description="tensors that went through the method")
    copied: int = Field(description="tensors that were taken over as they are")
    bytes_read: int
    bytes_written: int
    peak_memory: int = Field(description="bytes, of the process and its workers, or of the accelerator")
    seconds: float
    diagnostics: Diagnostics | None = None
    adapter: AdapterFit | None = None
    notes: list[str] = Field(default_factory=list)
