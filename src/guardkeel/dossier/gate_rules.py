"""The rules of the gate, one generator each: what they ask for, what they found, and in which records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from guardkeel.dossier import judged
from guardkeel.dossier.evidence import Check
from guardkeel.dossier.kinds import (
    Assessment,
    EvalSpec,
    Finding,
    Incident,
    Judge,
    Model,
    MonitorPlan,
    PromptSet,
    Record,
    Result,
    Run,
    Threshold,
    Traced,
)
from guardkeel.dossier.policy import RISKS, PolicyFile
from guardkeel.dossier.state import Stamped, State

Became = Literal["pass", "fail", "hold", "safeguard"]
THIN = "too little data"


@dataclass
class Reading:
    """What the rules read: the state, the model, the policy, the time; and which records they looked at."""

    state: State
    model: Model
    policy: PolicyFile
    thresholds: list[Stamped]
    now: datetime
    check: Check
    inputs: dict[str, str] = field(default_factory=dict)

    def uses(self, *stamped: Stamped) -> list[str]:
        """Note records as inputs; gives their names."""
        self.inputs.update({s.name: s.entry.hash for s in stamped})
        return [s.name for s in stamped]

    def latest(self, kind: type[Record], id: str) -> Stamped:
        """The latest record of an id."""
        return self.state.stamped(kind, id)


def rules(r: Reading) -> Iterator[Traced]:
    """Every rule that the policy has, with what became of it."""
    yield from _lineage(r)
    yield from _forms(r)
    yield from _runs(r)
    for threshold in r.thresholds:
        yield from _threshold(r, threshold)
    yield from _assessment(r)
    yield from _findings(r)
    yield from _incidents(r)
    yield from _monitored(r)


def _lineage(r: Reading) -> Iterator[Traced]:
    if not r.policy.require.lineage:
        return
    known, unknown = r.state.lineage(r.model)
    yield Traced(
        rule="lineage",
        outcome="hold" if unknown else "pass",
        requirement="every model that it was made from is registered",
        observed=f"{len(known)} known, {len(unknown)} not",
        reason=f"not registered: {', '.join(d[:12] + '…' for d in unknown)}" if unknown else "all are known",
        evidence=r.uses(*(r.latest(Model, m.id) for m in known)),
    )


def _specs(r: Reading, wanted: list[str] | None = None) -> list[EvalSpec]:
    """Specifications that the policy reads: those named, else all of its forms."""
    if wanted:
        return [r.state.get(EvalSpec, s) for s in wanted]
    return [s for s in r.state.each(EvalSpec) if s.form in r.policy.require.forms]


def _last_run(r: Reading, spec: EvalSpec) -> Stamped | None:
    """The last run of a specification on the model as it is now, whatever became of it."""
    return next((s for s in reversed(r.state.runs(r.model)) if s.record.spec == spec.id), None)


def _forms(r: Reading) -> Iterator[Traced]:
    for form in r.policy.require.forms:
        runs = [s for s in r.state.runs(r.model) if r.state.get(EvalSpec, s.record.spec).form == form]
        done = [s for s in runs if s.record.status == "completed"]
        yield Traced(
            rule=f"form {form}",
            outcome="pass" if done else "hold",
            requirement=f"a completed {form} run of this very model",
            observed=f"{len(done)} of {len(runs)} runs completed",
            reason="there is one" if done else _why_none(r, form),
            evidence=r.uses(*done),
        )
    for domain in r.policy.require.domains:
        specs = {s.id for s in _specs(r) if domain in s.domains}
        done = [s for s in r.state.runs(r.model) if s.record.spec in specs and s.record.status == "completed"]
        yield Traced(
            rule=f"domain {domain}",
            outcome="pass" if done else "hold",
            requirement=f"a completed run of a specification that covers {domain}",
            observed=f"{len(specs)} specifications, {len(done)} completed runs",
            reason="there is one" if done else "nothing covers it: missing evidence",
            evidence=r.uses(*done),
        )


def _why_none(r: Reading, form: str) -> str:
    others = [s.record for s in r.state.every(Run) if s.record.model == r.model.id]
    stale = [o for o in others if o.fingerprint != r.model.fingerprint]
    if stale:
        return f"missing evidence: {len(stale)} runs are of an earlier fingerprint of {r.model.id}; the model changed"
    return f"missing evidence: no {form} run of {r.model.id}"


def _unfit(r: Reading, run: Stamped) -> str:
    """Why a run is no evidence; empty where it is."""
    record: Run = run.record
    if record.status == "errored":
        return f"run {record.id} errored ({record.errors or 'it did not say why'}); errors are no scores"
    found = r.check(record)
    if not found.sound:
        return f"the evidence is {found.state}: {found.what}"
    age = r.now - record.started_at
    if age > timedelta(days=r.policy.require.max_age_days):
        return f"run {record.id} is {age.days} days old"
    spec = r.state.get(EvalSpec, record.spec)
    if spec.form == "assurance":
        for used in record.prompt_sets:
            seen = [e for e in r.state.exposures(used.digest) if e.at < record.started_at]
            if seen:
                return (
                    f"prompt-set {used.id} had been exposed to {seen[0].to} on {seen[0].at:%Y-%m-%d}, before the run "
                    f"(exposure {seen[0].id}): the evidence is spoiled"
                )
    if spec.judged:
        judge = r.state.find(Judge, record.judge)
        if (
            judge is None
            or judge.sensitivity is None
            or judge.specificity is None
            or judge.n < r.policy.require.judge_n
        ):
            n, least = 0 if judge is None else judge.n, r.policy.require.judge_n
            return f"judge {record.judge or '(none)'} was measured on {n} human labels, {least} are needed"
        if not judged.measured(judge):
            return f"judge {judge.id} is no better than chance: its sensitivity and specificity add up to at most 1"
    return ""


def _runs(r: Reading) -> Iterator[Traced]:
    for spec in _specs(r):
        run = _last_run(r, spec)
        if run is None:
            continue  # the form's rule and the thresholds say so
        why = _unfit(r, run)
        sets = [s for s in r.state.every(PromptSet) if s.record.id in {u.id for u in run.record.prompt_sets}]
        yield Traced(
            rule=f"evidence of {spec.id}",
            outcome="hold" if why else "pass",
            requirement="completed, files unchanged, not too old, prompt sets unseen, judge measured",
            observed=f"run {run.record.id}, {run.record.status}",
            reason=why or "all of it holds",
            evidence=r.uses(run, *sets, *_judge(r, spec, run)),
        )
        if r.policy.require.audits and run.record.decision:
            said = run.record.decision
            yield Traced(
                rule=f"audit's gate on {spec.id}",
                outcome="pass" if said == "allow" else "fail" if said == "deny" else "hold",
                requirement="the audit's own gate says allow",
                observed=said,
                reason=f"it said {said}; its trace is in the run directory",
                evidence=r.uses(run),
            )
        share = next(
            (x for x in r.state.results(run.record.id) if x.metric == "unscored" and x.slice == "*"), None
        )
        value = None if share is None else share.value
        limit = r.policy.require.max_unscored
        yield Traced(
            rule=f"unscored on {spec.id}",
            outcome="pass" if value is not None and value <= limit else "hold",
            requirement=f"at most {limit:.1%} of items without a verdict",
            observed="absent" if value is None else f"{value:.1%}",
            reason="absent: missing evidence"
            if value is None
            else "kept"
            if value <= limit
            else "too many; unscored is never safe",
            evidence=r.uses(run),
        )


def _judge(r: Reading, spec: EvalSpec, run: Stamped) -> list[Stamped]:
    """The judge whose errors the results of a run are corrected for."""
    name = run.record.judge
    return [r.latest(Judge, name)] if spec.judged and name and r.state.has(Judge.kind, name) else []


def _threshold(r: Reading, stamped: Stamped) -> Iterator[Traced]:
    threshold: Threshold = stamped.record
    sign = "≥" if threshold.bound == "min" else "≤"
    for spec in _specs(r, threshold.specs):
        run = _last_run(r, spec)
        evidence = r.uses(stamped, *([run] if run else []))
        outcome: Became = "hold"
        observed, reason = "absent", "missing evidence: it was not run on this very model"
        if run is not None:
            result = _found(r, run, threshold)
            if result is not None:
                evidence += r.uses(r.latest(Result, result.id))
            outcome, observed, reason = _kept(r, threshold, stamped, run, result)
        yield Traced(
            rule=f"{threshold.id} on {spec.id}",
            outcome=outcome,
            requirement=f"{threshold.metric} {sign} {threshold.value:g}"
            + (f" on {threshold.slice}" if threshold.slice != "*" else "")
            + (", whole interval" if threshold.whole_interval else ""),
            observed=observed,
            reason=reason,
            level=threshold.level,
            evidence=evidence,
        )


def _found(r: Reading, run: Stamped, threshold: Threshold) -> Result | None:
    wanted = (threshold.metric, threshold.slice)
    return next((x for x in judged.results(r.state, run.record) if (x.metric, x.slice) == wanted), None)


def _kept(
    r: Reading, threshold: Threshold, stamped: Stamped, run: Stamped, result: Result | None
) -> tuple[Became, str, str]:
    """(outcome, what was seen, why) of a threshold on a run's result."""
    if result is None:
        return (
            "hold",
            "absent",
            f"missing evidence: run {run.record.id} has no {threshold.metric} of {threshold.slice}",
        )
    if result.value is None:
        return "hold", "undefined", f"undefined: {result.why}"
    interval = (
        f" [{result.low:.3f}, {result.high:.3f}]"
        if result.low is not None and result.high is not None
        else ""
    )
    seen = f"{result.value:.3f}{interval}, n = {result.n}" + (f", {result.why}" if result.why else "")
    began = run.record.started_at
    drawn = stamped.at if began.microsecond else stamped.at.replace(microsecond=0)  # runs count whole seconds
    late = drawn > began or stamped.entry.sequence > run.entry.sequence
    flag = (
        f"flagged: the threshold was set on {stamped.at:%Y-%m-%d %H:%M}, after the run had begun "
        f"({began:%Y-%m-%d %H:%M})"
    )
    sign = 1.0 if threshold.bound == "min" else -1.0
    if sign * (result.value - threshold.value) < 0:
        word = "below" if threshold.bound == "min" else "above"
        broken: Became = "safeguard" if threshold.level == "alert" else "fail"
        return (
            broken,
            seen,
            f"{result.value:.3f} is {word} {threshold.value:g}" + (f"; {flag}" if late else ""),
        )
    if late:
        return "hold", seen, f"{flag}; run again"
    if result.n < r.policy.require.min_n:
        return "hold", seen, f"{THIN}: {result.n} items, {r.policy.require.min_n} are needed"
    if threshold.whole_interval:
        end = result.low if threshold.bound == "min" else result.high
        if end is None:
            return "hold", seen, f"{THIN}: no interval, so chance is not ruled out"
        if sign * (end - threshold.value) < 0:
            return "hold", seen, f"{THIN}: with n = {result.n} it may be {end:.3f}"
    return "pass", seen, "kept" + (" by the whole interval" if threshold.whole_interval else "")


def _assessment(r: Reading) -> Iterator[Traced]:
    if not r.policy.require.assessment:
        return
    mine = [s for s in r.state.every(Assessment) if s.record.model == r.model.id]
    fit = [s for s in mine if s.record.fingerprint == r.model.fingerprint and s.record.expires_at > r.now]
    worst = RISKS.index(r.policy.require.max_residual)
    outcome: Became = "hold"
    observed, reason = "absent", "missing evidence: nobody has assessed it"
    if fit:
        residual = fit[-1].record.residual
        over = [x.domain for x in residual if x.risk == "unknown" or RISKS.index(x.risk) > worst]
        missing = [d for d in r.policy.require.domains if d not in {x.domain for x in residual}]
        dissent = [o.who for o in fit[-1].record.opinions if o.view != "agree"]
        observed = f"{fit[-1].record.id}, until {fit[-1].record.expires_at:%Y-%m-%d}"
        if over:
            outcome, reason = (
                "fail",
                f"residual risk beyond {r.policy.require.max_residual} in {', '.join(over)}",
            )
        elif missing:
            reason = f"missing evidence: it says nothing of {', '.join(missing)}"
        else:
            outcome, reason = (
                "pass",
                "in force" + (f"; dissent by {', '.join(dissent)} is on record" if dissent else ""),
            )
    elif mine:
        last = mine[-1].record
        observed = last.id
        reason = (
            f"it expired on {last.expires_at:%Y-%m-%d}"
            if last.fingerprint == r.model.fingerprint
            else "it is of an earlier fingerprint: the model changed, so the assessment is open again"
        )
    yield Traced(
        rule="assessment",
        outcome=outcome,
        requirement=f"a risk assessment in force, residual risk at most {r.policy.require.max_residual}",
        observed=observed,
        reason=reason,
        evidence=r.uses(*fit[-1:]),
    )


def _findings(r: Reading) -> Iterator[Traced]:
    """Open findings; those that a threshold of the policy made are judged by its newest run above."""
    read = {t.record.id for t in r.thresholds}
    for s in r.state.every(Finding):
        f: Finding = s.record
        if f.fingerprint != r.model.fingerprint or f.status != "open" or f.threshold in read:
            continue
        yield Traced(
            rule=f"finding {f.id}",
            outcome="safeguard" if f.level == "alert" else "fail",
            requirement="no finding is open",
            observed=f.what,
            reason=f"open since {s.at:%Y-%m-%d}; mitigate it and test again, or accept it with a reason",
            level=f.level,
            evidence=r.uses(s),
        )


def _incidents(r: Reading) -> Iterator[Traced]:
    for s in r.state.every(Incident):
        i: Incident = s.record
        if i.fingerprint == r.model.fingerprint and i.status == "open":
            yield Traced(
                rule=f"incident {i.id}",
                outcome="fail",
                requirement="no incident is open",
                observed=i.title,
                reason=f"aware since {i.aware_at:%Y-%m-%d}; not contained",
                level="critical",
                evidence=r.uses(s),
            )


def _monitored(r: Reading) -> Iterator[Traced]:
    if not r.policy.require.monitor_plan:
        return
    plans = [s for s in r.state.every(MonitorPlan) if s.record.fingerprint == r.model.fingerprint]
    yield Traced(
        rule="monitor plan",
        outcome="pass" if plans else "hold",
        requirement="a plan to watch it once it is out",
        observed=plans[-1].record.id if plans else "absent",
        reason="there is one" if plans else "missing: register a monitor-plan",
        evidence=r.uses(*plans[-1:]),
    )
