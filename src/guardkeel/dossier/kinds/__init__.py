"""The records that a dossier is made of, by kind."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from guardkeel.dossier.kinds.base import Id, Part, Record, When, moment
from guardkeel.dossier.kinds.deciding import (
    RELEASES,
    Approval,
    Assessment,
    GateDecision,
    Opinion,
    Outcome,
    Policy,
    Residual,
    Traced,
    Waiver,
)
from guardkeel.dossier.kinds.evaluating import (
    Comparison,
    EvalSpec,
    Evaluator,
    Exposure,
    File,
    Finding,
    Judge,
    Mitigation,
    PromptSet,
    Result,
    RiskDomain,
    Run,
    Threshold,
    UsedSet,
)
from guardkeel.dossier.kinds.models import (
    IDENTITY,
    Deployment,
    Model,
    Opening,
    Organisation,
    Parent,
    Person,
)
from guardkeel.dossier.kinds.watching import (
    Applicability,
    Incident,
    MonitorPlan,
    Observation,
    Report,
    Stream,
)
from guardkeel.errors import DataError

__all__ = [
    "IDENTITY", "KINDS", "RELEASES", "Applicability", "Approval", "Assessment", "Comparison", "Deployment", "EvalSpec",
    "Evaluator", "Exposure", "File", "Finding", "GateDecision", "Id", "Incident", "Judge", "Mitigation", "Model",
    "MonitorPlan", "Observation", "Opening", "Opinion", "Organisation", "Outcome", "Parent", "Part", "Person", "Policy",
    "PromptSet", "Record", "Report", "Residual", "Result", "RiskDomain", "Run", "Stream", "Threshold", "Traced",
    "UsedSet", "Waiver", "When", "body_of", "moment", "parse",
]  # fmt: skip

KINDS: dict[str, type[Record]] = {
    k.kind: k
    for k in (
        Opening, Organisation, Person, RiskDomain, PromptSet, Exposure, Evaluator, Judge, EvalSpec, Model, Threshold,
        Policy, Run, Result, Comparison, Finding, Mitigation, Assessment, GateDecision, Approval, Waiver, Deployment,
        MonitorPlan, Observation, Incident, Report, Applicability,
    )
}  # fmt: skip


def body_of(record: Record) -> dict[str, Any]:
    """A record as the chain holds it: all fields but id, which the entry has."""
    return record.model_dump(
        mode="json", exclude={"id", "fingerprint"} if isinstance(record, Model) else {"id"}
    )


def parse(kind: str, id: str, body: dict[str, Any], where: str) -> Record:
    """A record from an entry; DataError naming where it stands, the field and the value."""
    if kind not in KINDS:
        raise DataError(f"{where}: unknown kind {kind!r}", remedy=f"kinds are {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate({**body, "id": id})
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(n for n in KINDS[kind].model_fields if n != "by")
            raise DataError(f"{where}: unknown key {name!r}", remedy=f"keys of a {kind} are {known}") from e
        if first["type"] == "timezone_aware":
            raise DataError(
                f"{where}: {name} has no offset, so it names no moment",
                remedy="write it with one, as 2026-01-31T12:00:00Z",
            ) from e
        raise DataError(
            f"{where}: {name} = {first['input']!r:.80}: {first['msg']}", remedy=f"mend {name!r} of the {kind}"
        ) from e
