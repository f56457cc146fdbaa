"""Records of what happens afterwards: monitoring, incidents, reports, which regimes apply."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from guardkeel.dossier.kinds.base import Digest, Id, Part, Private, Record, Ref, When

Source = Literal["verdicts", "feedback", "audits"]


class Stream(Part):
    """One thing that is watched."""

    name: Id
    measure: Literal["unsafe rate", "unscored rate", "recall", "geometry"]
    source: Source = "verdicts"
    baseline: Annotated[float, Field(ge=0, le=1)]
    """What it was when the model was released."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A change of up to this much is none."""
    direction: Literal["rise", "fall", "both"] = "both"
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Chance of a false alarm, ever, however often one looks."""
    least_propensity: Annotated[float, Field(ge=0.001, le=1)] = 0.01
    """Of recall: the smallest chance with which the service draws a verdict for review, as its configuration has it."""
    opens: Literal["finding", "incident"] = "finding"
    level: Literal["alert", "launch", "critical"] = "alert"


class MonitorPlan(Record):
    """How a released model is watched."""

    kind: ClassVar[str] = "monitor-plan"
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    cadence_hours: Annotated[float, Field(gt=0)] = 24.0
    streams: list[Stream]
    since: When


class Observation(Record):
    """One look at a stream: all that there was since the plan began, and what the sequential test says of it."""

    kind: ClassVar[str] = "observation"
    plan: Annotated[Id, Ref("monitor-plan")]
    stream: str
    at: When
    n: Annotated[int, Field(ge=0)]
    hits: float
    """Of the n; a sum of weights where rows were drawn unequally."""
    estimate: float | None
    low: float | None = None
    high: float | None = None
    log_e: float
    """Log of the largest e-value so far; beyond log 1/alpha the stream has changed."""
    changed: bool
    unscored: int = 0
    cursor: str = ""
    """Digest of the rows that were read."""
    why: str = ""


class Incident(Record):
    """Something happened. Clocks run from `aware_at`."""

    kind: ClassVar[str] = "incident"
    title: str
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    occurred_at: When | None = None
    ended_at: When | None = None
    aware_at: When
    determined_at: When | None = None
    """When it was established that it is an incident of a regime's kind."""
    resolved_at: When | None = None
    source: str = ""
    harm: Literal[
        "none", "near-miss", "property-or-environment", "fundamental-rights", "health", "death",
        "critical-infrastructure", "cybersecurity", "loss-of-control", "catastrophic", "unknown",
    ] = "unknown"  # fmt: skip
    imminent: bool = False
    """Whether death or serious injury is imminent."""
    internal_use: bool = False
    status: Literal["draft", "open", "contained", "resolved", "not-an-incident"] = "open"
    description: Annotated[str, Private()] = ""
    harmed: Annotated[str, Private()] = ""
    chain_of_events: Annotated[str, Private()] = ""
    involvement: Annotated[str, Private()] = ""
    """What shows that the model was involved."""
    containment: Annotated[str, Private()] = ""
    root_cause: Annotated[str, Private()] = ""
    recommendations: Annotated[str, Private()] = ""
    post_market: Annotated[str, Private()] = ""
    observations: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        at = [self.occurred_at, self.aware_at, self.determined_at, self.resolved_at]
        said = [t for t in at if t is not None]
        if said != sorted(said):
            raise ValueError(
                "occurred_at, aware_at, determined_at, resolved_at must follow each other in time"
            )
        return self


class Report(Record):
    """A report on an incident, or a model, was sent to somebody."""

    kind: ClassVar[str] = "report"
    regime: str
    form: str
    """initial, intermediate, final, model-report, transparency-report."""
    incident: Annotated[Id | Literal[""], Ref("incident")] = ""
    model: Annotated[Id | Literal[""], Ref("model")] = ""
    recipient: Annotated[str, Private()] = ""
    sent_at: When
    sha256: Digest | Literal[""] = ""


class Applicability(Record):
    """Whether a regime seems to apply, with reasons, from the facts as they were."""

    kind: ClassVar[str] = "applicability"
    regime: str
    regime_digest: Digest
    model: Annotated[Id | Literal[""], Ref("model")] = ""
    verdict: Literal["seems to apply", "does not seem to apply", "not known", "voluntary"]
    reasons: list[str]
