"""Makes dossiers for tests: a small life of a model, with a clock that is moved by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from guardkeel.dossier.dossier import Dossier, create
from guardkeel.dossier.kinds import (
    Assessment,
    EvalSpec,
    Evaluator,
    Model,
    PromptSet,
    Result,
    RiskDomain,
    Run,
    Threshold,
    UsedSet,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def later(self, **by: float) -> datetime:
        self.at += timedelta(**by)
        return self.at


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def opened(folder: Path, clock: Clock | None = None, **options: Any) -> Dossier:
    return create(folder, "the guard of the bank", "ada", clock=clock or Clock(), **options)


def model(name: str = "guard", **more: Any) -> Model:
    said: dict[str, Any] = {"digest": digest(name), "threshold": 0.5, "trainers": ["tom"], **more}
    return Model(id=name, **said)


def prompts(version: str = "1", **more: Any) -> PromptSet:
    said: dict[str, Any] = {"held_out": True, "n": 200, **more}
    return PromptSet(id="hidden", version=version, digest=digest(f"hidden {version}"), **said)


def basics(**trainers: Any) -> list[Any]:
    """Everything that a run needs to be registered."""
    return [
        RiskDomain(id="harm", title="Missing harm", severity="high"),
        prompts(),
        Evaluator(id="lab", party="third", independent_of_development=True, people=["eve"]),
        Evaluator(id="team", party="first", independent_of_development=False),
        EvalSpec(id="final", form="assurance", domains=["harm"], prompt_sets=["hidden"]),
        EvalSpec(id="daily", form="development", domains=["harm"], prompt_sets=["hidden"]),
        model(),
    ]


def run(about: Model, id: str = "r1", version: str = "1", **more: Any) -> Run:
    said: dict[str, Any] = {
        "spec": "final", "evaluator": "lab", "tool": "guardkeel audit", "status": "completed",
        "started_at": START + timedelta(days=1), "finished_at": START + timedelta(days=1, hours=1), **more,
    }  # fmt: skip
    used = [UsedSet(id="hidden", version=version, digest=digest(f"hidden {version}"))]
    return Run(id=id, model=about.id, fingerprint=about.fingerprint, prompt_sets=used, **said)


def results(
    of: str = "r1", recall: float = 0.95, unscored: int = 0, n: int = 200, **more: Any
) -> list[Result]:
    half = 0.02
    return [
        Result(id=f"{of}/recall", run=of, metric="recall", value=recall, low=recall - half, high=min(1, recall + half),
               n=n, n_unscored=unscored, **more),
        Result(id=f"{of}/unscored", run=of, metric="unscored", direction="lower", value=unscored / n,
               low=unscored / n, high=min(1.0, unscored / n + 0.005), n=n, n_unscored=unscored),
    ]  # fmt: skip


def threshold(**more: Any) -> Threshold:
    said: dict[str, Any] = {"metric": "recall", "bound": "min", "value": 0.9, **more}
    return Threshold(id=said.pop("id", "release/recall"), **said)


def assessment(about: Model, clock: Clock, **more: Any) -> Assessment:
    said: dict[str, Any] = {
        "scope": "the whole guard", "specs": ["final"], "expires_at": clock() + timedelta(days=90),
        "residual": [{"domain": "harm", "risk": "low"}], **more,
    }  # fmt: skip
    return Assessment(id=said.pop("id", "a1"), model=about.id, fingerprint=about.fingerprint, **said)


def lived(folder: Path, runs: Path, clock: Clock, **options: Any) -> tuple[Dossier, Model]:
    """A dossier of a guard that was audited, allowed, approved and deployed, with all kinds of records in it."""
    from guardkeel.dossier.dossier import open_dossier
    from guardkeel.dossier.gate import decide
    from guardkeel.dossier.imports.common import Under
    from guardkeel.dossier.imports.run_directory import audit
    from guardkeel.dossier.kinds import (
        Approval,
        Deployment,
        Incident,
        MonitorPlan,
        Organisation,
        Stream,
        Waiver,
    )
    from guardkeel.dossier.policy import PolicyFile
    from guardkeel.evaluation.runs import read_audit
    from guardkeel.records import read_record, write_record
    from run_directories import write_run

    write_run(runs, items=240, collapse=0.0, layers=3)
    record = read_record(runs)
    record.results["candidate"]["info"]["digest"] = digest("bank")  # the writer gives both guards one digest
    write_record(runs, record)
    found = read_audit(runs)
    assert found.candidate is not None
    base = Model(id="base", digest=found.reference.info.digest, threshold=found.reference.info.threshold,
                 trainers=["tom"], repository="keel/base", licence="apache-2.0")  # fmt: skip
    guard = Model(
        id="bank", digest=found.candidate.info.digest, threshold=found.candidate.info.threshold, trainers=["tom"],
        parents=[{"digest": base.digest, "relation": "fine-tune"}], intended_use="Screening chats",  # type: ignore[list-item]
        data_summary="Bank data", location="/home/tom/secret-place", licence="apache-2.0", release_mode="internal",
    )  # fmt: skip
    sets = [
        PromptSet(id=s.name, version=s.version, digest=s.digest, n=s.n, held_out=True, licence=s.licence)
        for s in found.suites
    ]
    first = sets[0].model_copy(update={"hub_dataset": "keel/suite", "hub_task": "default"})
    policy = PolicyFile.model_validate(
        {
            "name": "release",
            "threshold": [
                {"metric": "recall", "min": 0.5},
                {"metric": "fpr", "max": 0.4},
                {"metric": "recall", "min": 0.999, "level": "alert", "whole_interval": False},
            ],
            "require": {"audits": False, "max_unscored": 0.5},
            "release": {"safeguards": ["a person reads what it lets through"]},
        }
    )
    opened(folder, clock, purpose="To show what was known.", **options).store.close()
    dossier = open_dossier(folder, clock)
    dossier.record(
        [
            Organisation(id="us", name="The Bank", regions=["eu"]),
            RiskDomain(id="harm", title="Missing harm", severity="high"),
            first, *sets[1:],
            Evaluator(id="lab", name="Eve's lab", party="third", independent_of_development=True, people=["eve"]),
            EvalSpec(id="final", form="assurance", domains=["harm"], prompt_sets=[s.id for s in sets]),
            base, guard, *policy.records(),
        ],
        "ada",
    )  # fmt: skip
    clock.later(days=2)
    dossier.record(audit(dossier.state, runs, Under("final", "lab", "bank", id="audit-1")).records, "eve")
    dossier.record([assessment(guard, clock, specs=["final"])], "ada")
    clock.later(hours=1)
    waived = Waiver(id="w", rule="audit's gate on final", model="bank", fingerprint=guard.fingerprint, granted_by="eve",
                    reason="secret reason", expires_at=clock() + timedelta(days=30))  # fmt: skip
    dossier.record([waived], "eve")
    decision = decide(dossier.state, guard, "release", clock())
    yes = Approval(
        id="yes", decision=decision.id, approver="bob", verdict="approve", reason="fine", at=clock()
    )
    out = Deployment(id="out", model="bank", fingerprint=guard.fingerprint, place="production", status="deployed",
                     at=clock(), decision=decision.id)  # fmt: skip
    dossier.record([decision, yes, out], "bob")
    streams = [
        Stream(name="flagged", measure="unsafe rate", baseline=0.1, tolerance=0.02),
        Stream(name="lost", measure="unscored rate", baseline=0.01, direction="rise", alpha=0.01, level="launch"),
        Stream(name="recall", measure="recall", source="feedback", baseline=0.9, direction="fall",
               least_propensity=0.1, opens="incident"),
        Stream(name="geometry", measure="geometry", source="audits", baseline=0.95, tolerance=0.05, direction="fall"),
    ]  # fmt: skip
    plan = MonitorPlan(id="plan", model="bank", fingerprint=guard.fingerprint, streams=streams, since=clock())
    clock.later(days=1)
    incident = Incident(id="i1", title="It let something through", model="bank", fingerprint=guard.fingerprint,
                        aware_at=clock() - timedelta(hours=2), harm="health", imminent=True, status="contained",
                        description="secret story of Mr Smith")  # fmt: skip
    dossier.record([plan, incident], "eve")
    return dossier, guard
