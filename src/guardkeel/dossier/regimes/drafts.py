"""Drafts in Markdown, from records: incident reports, Model Report 7.1 to 7.7, transparency report, risk profile.

What the records do not say is marked as missing. Every draft begins by saying what it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from guardkeel.dossier.kinds import (
    KINDS,
    Assessment,
    Deployment,
    EvalSpec,
    Evaluator,
    Finding,
    GateDecision,
    Incident,
    Mitigation,
    Model,
    MonitorPlan,
    Organisation,
    Run,
)
from guardkeel.dossier.regimes.applying import applicability
from guardkeel.dossier.regimes.regime import DISCLAIMER, Regime, load
from guardkeel.dossier.state import State
from guardkeel.errors import ConfigError

MISSING = "**Missing**: nothing in the dossier says it."
FORMS = ("initial", "intermediate", "final")


def _head(title: str, state: State, now: datetime) -> list[str]:
    last = state.all[-1].entry
    return [
        f"# {title}",
        f"> **Draft.** {DISCLAIMER}",
        f"From entry {last.sequence} of the dossier, hash `{last.hash}`, at {now:%Y-%m-%d %H:%M} UTC.",
    ]


def _text(value: object) -> str:
    return str(value).strip() or MISSING


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {i}" for i in items) or MISSING


def _done(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _model(model: Model) -> str:
    parents = "; ".join(f"{p.relation} of `{p.digest[:16]}…`" for p in model.parents)
    return (
        f"{model.id}, sha256 of its weights `{model.digest}`"
        + (f" on base `{model.base}`" if model.base else "")
        + (f", operating point {model.threshold:g}" if model.threshold is not None else "")
        + (f"; {parents}" if parents else "")
    )


def incident(state: State, found: Incident, regime: Regime, form: str, now: datetime) -> str:
    """A report on an incident: initial, intermediate or final."""
    fields = [f for f in regime.field if form in f.reports]
    if not fields:
        raise ConfigError(
            f"regime {regime.id!r} has no {form!r} report",
            remedy=f"forms are {', '.join(FORMS)}, of laws and codes",
        )
    model = state.get(Model, found.model)
    judged = applicability(state, regime, model, now)
    said = {
        "times": f"Occurred {_time(found.occurred_at)}, ended {_time(found.ended_at)}; aware {_time(found.aware_at)}, "
        f"determined {_time(found.determined_at)}, resolved {_time(found.resolved_at)}.",
        "harm": f"Class: {found.harm}{', imminent' if found.imminent else ''}. {_text(found.harmed)}",
        "model": _model(model),
        "internal_use": "Yes." if found.internal_use else "No, as far as is recorded.",
    }
    parts = _head(f"Incident {found.id}: {form} report", state, now)
    parts += [
        f"For: {regime.name}; to {regime.recipient}. As of {regime.as_of}.",
        f"Whether it applies: {judged.verdict}.\n\n" + _list(judged.reasons),
        f"## {found.title}",
        _text(found.description),
    ]
    for field in fields:
        value = said.get(field.source_field, getattr(found, field.source_field, ""))
        parts += [f"## {field.title}", f"*{field.source}*", _text(value)]
    return _done(parts)


def _time(at: datetime | None) -> str:
    return "(not recorded)" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def model_report(state: State, model: Model, now: datetime) -> str:
    """A Model Report under Measures 7.1 to 7.7 of the EU's Code of Practice, Safety and Security chapter."""
    regime = load("eu-gpai-code")
    judged = applicability(state, regime, model, now)
    found = [a for a in state.each(Assessment) if a.model == model.id and a.fingerprint == model.fingerprint]
    assessment = found[-1] if found else None
    decisions = state.decisions(model)
    runs = [s.record for s in state.runs(model)]
    uses = [f"{d.place}: {d.status} on {d.at:%Y-%m-%d}" for d in _deployments(state, model)]
    outside = [r for r in runs if state.get(Evaluator, r.evaluator).party != "first"]
    parts = _head(f"Safety and Security Model Report: {model.id}", state, now)
    parts += [
        f"Headings of Measures 7.1 to 7.7. Whether the chapter applies: {judged.verdict}.\n\n"
        + _list(judged.reasons),
        "## 7.1 Model description and behaviour",
        f"**Model.** {_model(model)}",
        f"**How it was made.** {_text(model.data_summary)}",
        f"**Capabilities.** {_text(assessment.capabilities if assessment else '')}",
        f"**Intended use.** {_text(model.intended_use)}\n\n**In use.**\n\n{_list(uses)}",
        f"**Versions.**\n\n{_list(_model(m) for m in [model, *state.lineage(model)[0]])}",
        "## 7.2 Reasons for proceeding",
        *_reasons(assessment, decisions),
        "## 7.3 Documentation of systemic risk identification, analysis, and mitigation",
        f"**Residual risk.**\n\n{_list(_residual(assessment))}",
        f"**Uncertainty.** {_text(assessment.uncertainty if assessment else '')}",
        f"**Elicitation.** {_text(assessment.elicitation if assessment else '')}",
        f"**Evaluations.**\n\n{_list(_evaluations(state, runs))}",
        f"**Mitigations.**\n\n{_list(_mitigations(state, model))}",
        f"**Guard bypass.** {_text(assessment.guard_bypass if assessment else '')}",
        "**Samples, security mitigations, plans for the next six months.** " + MISSING,
        "## 7.4 External reports",
        _list(f"run {r.id} by {r.evaluator} ({r.spec})" for r in outside),
        _list(
            f"{o.who}, {o.view}: {o.text or '(no text)'}" for o in (assessment.opinions if assessment else [])
        ),
        "## 7.5 Material changes to the systemic risk landscape",
        MISSING,
        "## 7.6 Model Report updates",
        _list(f"{d.decided_at:%Y-%m-%d}: {d.outcome}, {d.reason}" for d in decisions),
        f"**Incidents.**\n\n{_list(f'{i.id}: {i.title} ({i.status})' for i in _incidents(state, model))}",
        "## 7.7 Model Report notifications",
        "The Code asks that the AI Office has the report by the time the model is placed on the market, and updates "
        "within five business days. Record it when it is sent: a `report` of form `model-report`.",
    ]
    return _done(parts)


def _deployments(state: State, model: Model) -> list[Deployment]:
    return [d for d in state.each(Deployment) if d.model == model.id]


def _incidents(state: State, model: Model) -> list[Incident]:
    return [i for i in state.each(Incident) if i.model == model.id]


def _reasons(assessment: Assessment | None, decisions: list[GateDecision]) -> list[str]:
    if not decisions:
        return [MISSING]
    last = decisions[-1]
    ends = (
        f"Until {assessment.expires_at:%Y-%m-%d}, or a change of {', '.join(assessment.triggers)}."
        if assessment
        else ""
    )
    return [
        f"**Decision.** {last.outcome} by policy {last.policy} (`{last.policy_digest[:16]}…`): {last.reason}.",
        f"**Safeguards.**\n\n{_list(last.safeguards)}",
        f"**When it would no longer hold.** {_text(ends)}",
        "**Rule by rule.**\n\n"
        + _list(f"{t.outcome}: {t.rule} – {t.observed}. {t.reason}" for t in last.trace),
    ]


def _residual(assessment: Assessment | None) -> list[str]:
    return [f"{r.domain}: {r.risk}. {r.why}" for r in assessment.residual] if assessment else []


def _evaluations(state: State, runs: list[Run]) -> list[str]:
    made = []
    for run in runs:
        spec, who = state.get(EvalSpec, run.spec), state.get(Evaluator, run.evaluator)
        sets = ", ".join(f"{s.id} {s.version}" for s in run.prompt_sets)
        numbers = "; ".join(
            f"{r.metric} {r.value:.3f}"
            + (f" [{r.low:.3f}, {r.high:.3f}]" if r.low is not None and r.high is not None else "")
            for r in state.results(run.id)
            if r.slice == "*" and r.value is not None
        )
        independent = "independent" if who.independent_of_development else "of development"
        made.append(
            f"{run.id} ({spec.form}, {run.tool} {run.tool_version}, by {who.id}: {who.party} party, {independent}, "
            f"{who.access} box) on {sets}: {numbers or run.status}"
        )
    return made


def _mitigations(state: State, model: Model) -> list[str]:
    lines = [
        f"{m.finding}: {m.description}" + (f", tested again in {m.retest}" if m.retest else "")
        for m in state.each(Mitigation)
    ]
    open_ones = [f for f in state.each(Finding) if f.model == model.id and f.status == "open"]
    plans = [p for p in state.each(MonitorPlan) if p.fingerprint == model.fingerprint]
    lines += [f"open finding {f.id} ({f.level}): {f.what}" for f in open_ones]
    return lines + [f"monitoring {p.id}: {', '.join(s.name for s in p.streams)}" for p in plans]


def transparency(state: State, model: Model, now: datetime, regime: str = "us-ca-sb53") -> str:
    """A transparency report on a model, with the items of California's 22757.12(c) (New York's section 1421 alike)."""
    told = load(regime)
    judged = applicability(state, told, model, now)
    organisations = state.each(Organisation)
    out = [d for d in _deployments(state, model) if d.status in ("deployed", "staged")]
    found = [a for a in state.each(Assessment) if a.model == model.id and a.fingerprint == model.fingerprint]
    languages = sorted({x for s in state.runs(model) for x in state.get(EvalSpec, s.record.spec).language})
    outside = [
        s.record.id for s in state.runs(model) if state.get(Evaluator, s.record.evaluator).party != "first"
    ]
    modes = sorted({state.get(EvalSpec, s.record.spec).modality for s in state.runs(model)})
    parts = _head(f"Transparency report: {model.id}", state, now)
    parts += [
        f"For: {told.name}. Whether it applies: {judged.verdict}.\n\n" + _list(judged.reasons),
        "## Developer, and how to reach it",
        _text(organisations[-1].name if organisations else ""),
        "**Website and a way to write to the developer.** " + MISSING,
        "## Release date",
        _text(f"{out[0].at:%Y-%m-%d} ({out[0].place})" if out else ""),
        "## Languages it was evaluated in",
        _list(languages),
        "## Modalities it was evaluated in",
        _list(modes),
        "## Intended uses",
        _text(model.intended_use),
        "## Restrictions",
        _text(model.licence),
        "## Summary of assessments",
        _text(found[-1].scope if found else ""),
        _list(_residual(found[-1] if found else None)),
        "## Evaluations",
        _list(_evaluations(state, [s.record for s in state.runs(model)])),
        "## Third-party evaluators",
        _list(outside),
    ]
    return _done(parts)


def risk_profile(state: State, now: datetime) -> str:
    """What the dossier holds under the functions of NIST's framework."""
    regime = load("nist-ai-rmf")
    parts = [*_head("Risk management profile", state, now), f"{regime.name}. {regime.summary}"]
    for function in regime.function:
        counts = [f"{len(state.every(KINDS[k]))} {k}" for k in function.kinds if state.every(KINDS[k])]
        empty = [k for k in function.kinds if not state.every(KINDS[k])]
        parts += [
            f"## {function.name}: {function.asks}",
            _list(counts),
            f"Nothing of: {', '.join(empty)}." if empty else "Something of every kind.",
        ]
    return _done(parts)
