"""Whether a model may be in use now: a decision from the past, and all that can have ended it since."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from guardkeel.dossier.kinds import RELEASES, Assessment, Finding, GateDecision, Incident, Model
from guardkeel.dossier.state import State


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a model stands. `reasons` say why it may not run; `until` is when the next thing it rests on ends."""

    model: str
    may_run: bool
    decision: GateDecision | None
    reasons: list[str] = field(default_factory=list)
    until: datetime | None = None


def standing(state: State, model: Model, now: datetime) -> Standing:
    """Where a model stands at a time."""
    found = state.decisions(model)
    if not found:
        earlier = [d for d in state.each(GateDecision) if d.model == model.id]
        why = (
            f"its fingerprint is another than that of decision {earlier[-1].id}"
            if earlier
            else "no gate decision"
        )
        return Standing(model.id, False, None, [why])
    decision = found[-1]
    reasons = []
    if decision.outcome not in RELEASES:
        reasons.append(f"decision {decision.id} is {decision.outcome}")
    elif not state.released(decision):
        said = {a.verdict for a in state.approvals(decision.id)}
        reasons.append(
            f"decision {decision.id} was rejected" if "reject" in said else "nobody has approved it"
        )
    ends = []
    waived = [t.rule for t in decision.trace if t.outcome == "waived"]
    valid = state.waivers(model, now)
    for rule in waived:
        if rule in valid:
            ends.append(valid[rule].expires_at)
        else:
            reasons.append(f"the waiver of {rule!r} has expired or was revoked")
    used = {name.partition(":")[2] for name in decision.inputs if name.startswith("assessment:")}
    for assessment in (a for a in state.each(Assessment) if a.id in used):
        if assessment.expires_at <= now:
            reasons.append(f"assessment {assessment.id} expired on {assessment.expires_at:%Y-%m-%d}")
        else:
            ends.append(assessment.expires_at)
    number = state.stamped(GateDecision, decision.id).entry.sequence
    for s in state.every(Finding):
        f = s.record
        late = s.entry.sequence > number and f.status == "open" and f.level in ("launch", "critical")
        if late and f.model == model.id and f.fingerprint == model.fingerprint:
            reasons.append(f"finding {f.id} ({f.level}) was opened since")
    for s in state.every(Incident):
        i = s.record
        if i.fingerprint == model.fingerprint and i.status == "open" and s.entry.sequence > number:
            reasons.append(f"incident {i.id} is open")
    return Standing(model.id, not reasons, decision, reasons, min(ends, default=None))
