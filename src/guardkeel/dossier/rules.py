"""What a dossier refuses to take in. Every refusal names the record, the rule and the remedy.

These are asked under the writers' lock, so that no two writers can get past them together.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from guardkeel.dossier.canonical import canonical
from guardkeel.dossier.kinds import (
    Approval,
    Assessment,
    Comparison,
    Deployment,
    EvalSpec,
    Evaluator,
    Exposure,
    Finding,
    GateDecision,
    Incident,
    Mitigation,
    Model,
    MonitorPlan,
    Observation,
    Opening,
    Person,
    Policy,
    PromptSet,
    Record,
    Report,
    Result,
    Run,
    Waiver,
)
from guardkeel.dossier.standing import standing
from guardkeel.dossier.state import State
from guardkeel.errors import InputError

AHEAD = timedelta(minutes=5)
FACTS = (Opening, Run, Result, Comparison, Exposure, GateDecision, Approval, Observation, Report, Deployment)
"""What happened once and is never replaced."""
APPROVAL = "application/vnd.guardkeel.approval+json"


class RuleError(InputError):
    """The dossier's rules refuse a record."""


def admit(state: State, record: Record, now: datetime) -> None:
    """Nothing, or RuleError: the record may not come into the dossier."""
    opening = isinstance(record, Opening)
    if opening != (state.last == 0):
        raise RuleError(
            "a dossier is opened once" if opening else "the dossier has not been opened",
            remedy="guardkeel dossier init FOLDER makes one",
        )
    for name, kind, id in record.references():
        if not state.has(kind, id):
            raise RuleError(
                f"{_name(record)}: {name} names the {kind} {id!r}, which is not in the dossier",
                remedy=f"register the {kind} first",
            )
    if isinstance(record, FACTS) and state.has(record.kind, record.id):
        raise RuleError(
            f"{_name(record)}: there is one of this id, and it is never replaced", remedy="choose another id"
        )
    if isinstance(
        record, Run | Assessment | GateDecision | Waiver | Deployment | MonitorPlan | Incident | Finding
    ):
        _same_model(state, record)
    check = _CHECKS.get(type(record))
    if check is not None:
        check(state, record, now)


def _name(record: Record) -> str:
    return f"{record.kind} {record.id!r}"


def _same_model(state: State, record: Any) -> None:
    model = state.get(Model, record.model)
    if isinstance(record, Incident | Finding) or (
        isinstance(record, Deployment) and record.status in ("withdrawn", "rolled-back")
    ):
        known = {
            s.record.fingerprint for s in state.all if isinstance(s.record, Model) and s.record.id == model.id
        }
    else:
        known = {model.fingerprint}
    if record.fingerprint not in known:
        raise RuleError(
            f"{_name(record)}: is about another {model.id} than the one in the dossier "
            f"({record.fingerprint[:12]}…, registered is {model.fingerprint[:12]}…)",
            remedy="register the model as it is now, then do this for it",
        )


def _not_ahead(record: Record, name: str, at: datetime | None, now: datetime) -> None:
    if at is not None and at > now + AHEAD:
        raise RuleError(f"{_name(record)}: {name} {at.isoformat()} is in the future", remedy=f"mend {name}")


def _run(state: State, run: Run, now: datetime) -> None:
    spec, evaluator = state.get(EvalSpec, run.spec), state.get(Evaluator, run.evaluator)
    _not_ahead(run, "started_at", run.started_at, now)
    if run.finished_at is not None and run.finished_at < run.started_at:
        raise RuleError(f"{_name(run)}: ended before it began", remedy="mend started_at or finished_at")
    used = {s.id for s in run.prompt_sets}
    missing = [p for p in spec.prompt_sets if p not in used]
    if run.status == "completed" and missing:
        raise RuleError(
            f"{_name(run)}: has not used {', '.join(missing)}, which eval-spec {spec.id!r} asks for",
            remedy="run it on all of them, or record it under another eval-spec",
        )
    for one in run.prompt_sets:
        versions = [s.record for s in state.all if isinstance(s.record, PromptSet) and s.record.id == one.id]
        if all(one.digest != v.digest for v in versions):
            raise RuleError(
                f"{_name(run)}: used a version of prompt-set {one.id!r} that is not registered ({one.digest[:12]}…)",
                remedy="register that version, with what is known of it",
            )
        if spec.form == "assurance":
            _unexposed(state, run, next(v for v in reversed(versions) if v.digest == one.digest))
    if spec.form in ("assurance", "external") and not evaluator.independent_of_development:
        raise RuleError(
            f"{_name(run)}: an {spec.form} run by evaluator {evaluator.id!r}, who is not independent of development",
            remedy="have an independent evaluator run it, or record it under a development spec",
        )
    model = state.get(Model, run.model)
    both = {evaluator.id, *evaluator.people} & state.trainers(model)
    if spec.form in ("assurance", "external") and both:
        raise RuleError(
            f"{_name(run)}: {', '.join(sorted(both))} of evaluator {evaluator.id!r} made model {model.id!r}",
            remedy="have somebody else run it",
        )
    if spec.form == "external" and evaluator.party == "first":
        raise RuleError(
            f"{_name(run)}: an external run by first-party evaluator {evaluator.id!r}",
            remedy="record it as an assurance run, or have a third party run it",
        )
    if spec.judged and not run.judge:
        raise RuleError(
            f"{_name(run)}: eval-spec {spec.id!r} is judged, and the run names no judge",
            remedy="name its judge",
        )


def _unexposed(state: State, run: Run, prompts: PromptSet) -> None:
    if not prompts.held_out:
        raise RuleError(
            f"{_name(run)}: an assurance run on prompt-set {prompts.id!r} {prompts.version}, which is not held out",
            remedy="use a set that was kept from development, or record the run under a development spec",
        )
    seen = state.exposures(prompts.digest)
    if seen:
        one = seen[0]
        raise RuleError(
            f"{_name(run)}: an assurance run on prompt-set {prompts.id!r} {prompts.version}, which was exposed to "
            f"{one.to} on {one.at:%Y-%m-%d} (exposure {one.id!r})",
            remedy="use a set that nobody has seen, or record the run under a development spec",
        )


def _result(state: State, result: Result, now: datetime) -> None:
    last = next(s.record for s in reversed(state.all) if isinstance(s.record, Run))
    if last.id != result.run:
        raise RuleError(
            f"{_name(result)}: results are recorded with their run, and since {result.run!r} there was {last.id!r}",
            remedy="record the run again under a new id, with all of its results",
        )
    if last.status == "errored" and result.value is not None:
        raise RuleError(
            f"{_name(result)}: a value of run {last.id!r}, which errored",
            remedy="repeat the run; errors are no scores",
        )
    if result.value is None and not result.why:
        raise RuleError(f"{_name(result)}: has no value and does not say why", remedy="fill in why")


def comparable(state: State, one: str, other: str) -> None:
    """Nothing, or RuleError: two runs are not on the same versions of the same prompt sets."""
    a = {s.id: s for s in state.get(Run, one).prompt_sets}
    b = {s.id: s for s in state.get(Run, other).prompt_sets}
    for id in sorted(a.keys() | b.keys()):
        if id not in a or id not in b:
            raise RuleError(
                f"run {one!r} and run {other!r} cannot be compared: only one of them used prompt-set {id!r}",
                remedy="run both on the same prompt sets",
            )
        if a[id].digest != b[id].digest:
            raise RuleError(
                f"run {one!r} and run {other!r} cannot be compared: prompt-set {id!r} is {a[id].version} "
                f"({a[id].digest[:12]}…) in one and {b[id].version} ({b[id].digest[:12]}…) in the other",
                remedy="run both on one version",
            )


def _comparison(state: State, record: Comparison, now: datetime) -> None:
    comparable(state, record.reference, record.candidate)


def _mitigation(state: State, record: Mitigation, now: datetime) -> None:
    before = state.get(Finding, record.finding).run
    if record.retest and before:
        comparable(state, before, record.retest)


def _finding(state: State, finding: Finding, now: datetime) -> None:
    if finding.status in ("mitigated", "closed") and not any(
        m.finding == finding.id and m.retest for m in state.each(Mitigation)
    ):
        raise RuleError(
            f"{_name(finding)}: {finding.status} without a mitigation that was tested again",
            remedy="register a mitigation of it with its retest run",
        )
    if finding.status == "accepted":
        if not finding.why:
            raise RuleError(f"{_name(finding)}: accepted without a reason", remedy="fill in why")
        _not_by_trainer(state, finding, finding.by, finding.model, "accepted")


def _not_by_trainer(state: State, record: Record, who: str, model: str, what: str) -> None:
    if not who:
        raise RuleError(f"{_name(record)}: nobody is named who {what} it", remedy="say who: --as NAME")
    if who in state.trainers(state.get(Model, model)):
        raise RuleError(
            f"{_name(record)}: {what} by {who!r}, who made model {model!r} or one that it was made from",
            remedy="somebody who did not train it has to",
        )


def _assessment(state: State, record: Assessment, now: datetime) -> None:
    if record.expires_at <= now:
        raise RuleError(f"{_name(record)}: expires_at is past", remedy="assess again, and set a day to come")


def _decision(state: State, record: GateDecision, now: datetime) -> None:
    policy = state.get(Policy, record.policy)
    if record.policy_digest != policy.digest:
        raise RuleError(
            f"{_name(record)}: by another version of policy {policy.id!r} than the registered one",
            remedy="decide again by the registered policy",
        )


def approval_payload(decision_hash: str, approval: Approval) -> bytes:
    """What an approver signs: which decision, by the hash of its entry, and what they say to it."""
    return canonical({"decision": decision_hash, "approver": approval.approver, "verdict": approval.verdict})


def _approval(state: State, record: Approval, now: datetime) -> None:
    decision = state.get(GateDecision, record.decision)
    if record.verdict == "approve":
        if decision.outcome in ("hold", "deny"):
            raise RuleError(
                f"{_name(record)}: the decision {decision.id!r} is {decision.outcome}, which nobody can approve",
                remedy="bring the evidence that is missing, or waive the rule until a day; then decide again",
            )
        _not_by_trainer(state, record, record.approver, decision.model, "approved")
        newest = state.decisions(state.get(Model, decision.model))
        if not newest or newest[-1].id != decision.id:
            raise RuleError(
                f"{_name(record)}: there is a later decision on {decision.model!r}, or the model has changed since",
                remedy="approve the latest decision",
            )
    person = state.find(Person, record.approver)
    if person is not None and person.public_key:
        from guardkeel.dossier import dsse

        key = dsse.public_key(person.public_key, f"person {person.id!r}")
        said = dsse.opened(record.signature, [key], APPROVAL, _name(record)) if record.signature else b""
        if said != approval_payload(state.stamped(GateDecision, decision.id).entry.hash, record):
            raise RuleError(
                f"{_name(record)}: {person.id!r} has a key, and this is not signed by it",
                remedy="approve with --key FILE, the private half of that key",
            )


def _waiver(state: State, record: Waiver, now: datetime) -> None:
    _not_by_trainer(state, record, record.granted_by, record.model, "granted")
    if not record.reason.strip():
        raise RuleError(f"{_name(record)}: has no reason", remedy="say why the rule may be set aside")
    if not record.revoked and record.expires_at <= now:
        raise RuleError(f"{_name(record)}: has expired before it begins", remedy="give a day to come")


def _deployment(state: State, record: Deployment, now: datetime) -> None:
    _not_ahead(record, "at", record.at, now)
    if record.status not in ("deployed", "staged"):
        return
    model = state.get(Model, record.model)
    found = standing(state, model, now)
    if not found.may_run or (
        record.status == "deployed" and found.decision and found.decision.outcome == "staged"
    ):
        why = "; ".join(found.reasons) or "the gate let it out for a staged release only"
        raise RuleError(
            f"{_name(record)}: {model.id!r} may not be {record.status}: {why}",
            remedy="guardkeel dossier gate, then approve; a staged release has status staged",
        )


def _incident(state: State, record: Incident, now: datetime) -> None:
    _not_ahead(record, "aware_at", record.aware_at, now)
    before = state.find(Incident, record.id)
    if before is not None and record.aware_at > before.aware_at:
        raise RuleError(
            f"{_name(record)}: aware_at was {before.aware_at.isoformat()} and cannot become later: clocks run from it",
            remedy="leave aware_at as it is; say what was learnt later in the description",
        )


def _exposure(state: State, record: Exposure, now: datetime) -> None:
    _not_ahead(record, "at", record.at, now)


def _prompts(state: State, record: PromptSet, now: datetime) -> None:
    before = next((s.record for s in reversed(state.all) if _same_set(s.record, record)), None)
    if record.held_out and before is not None and not before.held_out:
        raise RuleError(
            f"{_name(record)} {record.version}: was not held out before, so it cannot be now",
            remedy="hold out a new version",
        )


def _evaluator(state: State, record: Evaluator, now: datetime) -> None:
    before = state.find(Evaluator, record.id)
    if record.independent_of_development and before is not None and not before.independent_of_development:
        raise RuleError(
            f"{_name(record)}: was not independent of development before, so it cannot be now",
            remedy="register who is independent under another id",
        )


def _spec(state: State, record: EvalSpec, now: datetime) -> None:
    before = state.find(EvalSpec, record.id)
    if (
        before is not None
        and before.form != record.form
        and any(r.spec == record.id for r in state.each(Run))
    ):
        raise RuleError(
            f"{_name(record)}: has runs of form {before.form}, which cannot become runs of form {record.form}",
            remedy="register the other form under another id, and run it",
        )


def _same_set(one: Record, other: PromptSet) -> bool:
    return isinstance(one, PromptSet) and one.digest == other.digest


def _model(state: State, model: Model, now: datetime) -> None:
    gone = {
        t
        for s in state.all
        if isinstance(s.record, Model) and s.record.digest == model.digest
        for t in s.record.trainers
    } - set(model.trainers)
    if gone:
        raise RuleError(
            f"{_name(model)}: {', '.join(sorted(gone))} trained these weights and cannot be left out",
            remedy="name all who trained it",
        )


def _person(state: State, person: Person, now: datetime) -> None:
    before = state.find(Person, person.id)
    if before is not None and before.public_key and person.public_key != before.public_key:
        raise RuleError(
            f"{_name(person)}: has a key, which cannot be replaced",
            remedy="register the new key under a new id",
        )


_CHECKS: dict[type[Record], Callable[[State, Any, datetime], None]] = {
    Run: _run,
    Result: _result,
    Comparison: _comparison,
    Mitigation: _mitigation,
    Finding: _finding,
    Assessment: _assessment,
    GateDecision: _decision,
    Approval: _approval,
    Waiver: _waiver,
    Deployment: _deployment,
    Incident: _incident,
    Exposure: _exposure,
    Model: _model,
    Person: _person,
    PromptSet: _prompts,
    Evaluator: _evaluator,
    EvalSpec: _spec,
}
