"""What an adaptation comes to: a look before the first step and some along the way, and one for every share α."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.errors import DataError
from guardkeel.records import Estimate, RunRecord, read_record
from guardkeel.results import AuditResults, Behaviour

VERB = "vision adapt"


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Rates(_Result):
    """How a model behaved on labelled items at its threshold; see results.Behaviour."""

    n: int
    recall: Estimate
    fpr: Estimate
    auroc: Estimate
    unscored: Estimate
    recall_matched: Estimate | None = Field(
        default=None, description="recall where FPR is the reference's, on texts alone"
    )


class Layer(_Result):
    """Geometry of one layer against the reference, on texts at the verdict position."""

    layer: int
    separability: float | None = None
    separability_reference: float | None = None
    cka: float | None = None
    overlap: float | None = None
    drift: float | None = None


class Look(_Result):
    """The model at one moment. `text` and `image` hold its audits; folders are relative to the run's."""

    step: int
    alpha: float | None = Field(default=None, description="share of the language part's change that is kept")
    text: Rates
    layers: list[Layer] = Field(default_factory=list)
    image: Rates | None = None
    accuracy: Estimate
    kinds: dict[str, Estimate] = Field(default_factory=dict, description="accuracy by kind of picture")
    text_audit: str = ""
    image_audit: str = ""
    seconds: float = 0.0


class AdaptResults(_Result):
    """`RunRecord.results` of an adaptation."""

    arm: str
    method: str
    subject: str
    steps: int
    reference: Rates = Field(description="the language model before it had eyes")
    chance: float = Field(description="accuracy of guessing")
    looks: list[Look] = Field(description="before the first step, along the way, at the end")
    merged: list[Look] = Field(default_factory=list, description="the end, merged with the reference over α")
    front: list[float] = Field(
        default_factory=list, description="α that no other beats in recall, in FPR and in accuracy"
    )
    trained: int = Field(default=0, description="numbers that were trained")
    step_seconds: float = 0.0
    peak_memory: int = 0
    notes: list[str] = Field(default_factory=list)


def rates(audit: AuditResults, role: str) -> Rates:
    """What is kept of an audit's guard."""
    guard = audit.reference if role == "reference" or audit.candidate is None else audit.candidate
    behaviour: Behaviour = guard.overall
    found = None
    if audit.comparison is not None:
        pooled = (r for r in audit.comparison.recalibration if r.suite == "*")
        found = next((r.recall_recalibrated for r in pooled), None)
    return Rates(
        n=behaviour.n,
        recall=behaviour.recall,
        fpr=behaviour.fpr,
        auroc=behaviour.auroc,
        unscored=behaviour.unscored,
        recall_matched=found if role == "candidate" else None,
    )


def layers(audit: AuditResults) -> list[Layer]:
    """What is kept of an audit's geometry."""
    return [
        Layer(
            layer=g.layer,
            separability=g.separability_candidate.estimate.value if g.separability_candidate else None,
            separability_reference=g.separability_reference.estimate.value,
            cka=g.cka.estimate.value if g.cka else None,
            overlap=g.overlap.estimate.value if g.overlap else None,
            drift=g.drift.value if g.drift else None,
        )
        for g in audit.geometry
    ]


def front(merged: list[Look]) -> list[float]:
    """The α that no other is as good as in text recall, text FPR and accuracy, and better in one of them."""

    def worth(look: Look) -> tuple[float, float, float]:
        missing = float("-inf")
        recall, fpr = look.text.recall.value, look.text.fpr.value
        right = look.accuracy.value
        return (
            missing if recall is None else recall,
            missing if fpr is None else -fpr,
            missing if right is None else right,
        )

    def beats(a: Look, b: Look) -> bool:
        pairs = list(zip(worth(a), worth(b), strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [m.alpha for m in merged if m.alpha is not None and not any(beats(other, m) for other in merged)]


def read_adaptation(folder: str | Path) -> tuple[RunRecord, AdaptResults]:
    """A finished adaptation; raises DataError for an unfinished one, or another verb's run."""
    record = read_record(folder)
    if record.verb != VERB:
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not of {VERB!r}",
            remedy="give an adaptation's run directory",
        )
    try:
        return record, AdaptResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder}/run.json: results.{where}: {first['msg']}", remedy="run the adaptation again"
        ) from e
