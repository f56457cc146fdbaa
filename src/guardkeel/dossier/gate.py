"""The gate: what the dossier knows of a model and a registered policy in, a decision with its trace out.

    a rule fails                              deny, or roll-back where the model is in use
    evidence is missing, errored, spoiled     hold; staged where the policy says so and there is only too little
    only alerts, or rules waived until a day  allow-with-safeguards, where the policy names safeguards; else hold
    all pass                                  allow

Nothing unscored, errored or missing ever passes. A waiver sets a failed or held rule aside until its day, unless the
rule is critical. A decision is not a release yet: somebody who did not train the model has to approve it.
"""

from __future__ import annotations

from datetime import datetime

from guardkeel.dossier.evidence import Check, on_disk
from guardkeel.dossier.gate_rules import THIN, Reading, rules
from guardkeel.dossier.kinds import GateDecision, Model, Outcome, Policy, Threshold, Traced, Waiver, moment
from guardkeel.dossier.policy import PolicyFile
from guardkeel.dossier.standing import standing
from guardkeel.dossier.state import State


def decide(state: State, model: Model, policy: str, now: datetime, check: Check = on_disk) -> GateDecision:
    """Judge a model as it is now by a registered policy.

    Args:
        state: of the dossier.
        model: registered.
        policy: id of the registered policy.
        now: the time at which things have or have not expired.
        check: whether a run's files are still what they were.

    Raises:
        DataError: the policy is not registered.
    """
    said = state.get(Policy, policy)
    reading = Reading(
        state,
        model,
        PolicyFile.model_validate(said.body),
        [state.stamped(Threshold, t) for t in said.thresholds],
        now,
        check,
    )
    reading.uses(state.stamped(Policy, policy), state.stamped(Model, model.id))
    trace = [_waived(reading, t) for t in rules(reading)]
    outcome, reason, back = _outcome(reading, trace)
    return GateDecision(
        id=f"{model.id} {moment(now)}",
        model=model.id,
        fingerprint=model.fingerprint,
        policy=policy,
        policy_digest=said.digest,
        decided_at=now,
        outcome=outcome,
        reason=reason,
        trace=trace,
        inputs=reading.inputs,
        safeguards=reading.policy.release.safeguards if outcome == "allow-with-safeguards" else [],
        rollback_to=back,
    )


def _waived(r: Reading, traced: Traced) -> Traced:
    waiver = r.state.waivers(r.model, r.now).get(traced.rule)
    if waiver is None or traced.outcome not in ("fail", "hold"):
        return traced
    if traced.level == "critical":
        return traced.model_copy(update={"reason": f"{traced.reason}; a critical rule cannot be waived"})
    r.uses(r.latest(Waiver, waiver.id))
    return traced.model_copy(
        update={
            "outcome": "waived",
            "reason": f"{traced.reason}; waived by {waiver.id} until {waiver.expires_at:%Y-%m-%d}",
            "evidence": [*traced.evidence, f"waiver:{waiver.id}"],
        }
    )


def _outcome(r: Reading, trace: list[Traced]) -> tuple[Outcome, str, str]:
    by = {o: [t for t in trace if t.outcome == o] for o in ("fail", "hold", "safeguard", "waived")}
    if by["fail"]:
        reason = f"broken: {_names(by['fail'])}"
        if not r.state.in_use(r.model):
            return "deny", reason, ""
        back = _rollback(r)
        to = f"; back to {back}" if back else "; there is nothing released to go back to: withdraw it"
        return "roll-back", reason + to, back
    if by["hold"]:
        thin = all(THIN in t.reason and t.level != "critical" for t in by["hold"])
        if r.policy.release.staged and thin:
            return "staged", f"too little data for a full release: {_names(by['hold'])}", ""
        return "hold", f"not shown: {_names(by['hold'])}", ""
    soft = by["safeguard"] + by["waived"]
    if soft and r.policy.release.safeguards:
        return (
            "allow-with-safeguards",
            f"with safeguards for {_names(soft)}",
            "",
        )
    if soft:
        return "hold", f"the policy names no safeguards for {_names(soft)}", ""
    if not r.thresholds:
        return "hold", "the policy draws no threshold, so nothing was shown", ""
    return "allow", f"{len(trace)} rules passed", ""


def _names(trace: list[Traced]) -> str:
    return ", ".join(t.rule for t in trace)


def _rollback(r: Reading) -> str:
    """The model that was last in use in one of its places and may still run."""
    places = {d.place for d in r.state.in_use(r.model)}
    for s in reversed(r.state.all):
        if s.entry.kind != "deployment" or s.record.place not in places:
            continue
        other = r.state.find(Model, s.record.model)
        if (
            other is None
            or other.fingerprint == r.model.fingerprint
            or other.fingerprint != s.record.fingerprint
        ):
            continue
        if standing(r.state, other, r.now).may_run:
            return str(other.id)
    return ""
