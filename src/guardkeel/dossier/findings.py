"""Thresholds on results give findings, and results that keep them again close findings."""

from __future__ import annotations

from guardkeel.dossier import judged
from guardkeel.dossier.kinds import Finding, Mitigation, Model, Result, Run, Threshold
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.state import State


def broken(threshold: Threshold, result: Result) -> bool:
    """Whether a result's value is on the wrong side of a threshold."""
    if result.value is None:
        return False
    return result.value < threshold.value if threshold.bound == "min" else result.value > threshold.value


def findings(state: State, model: Model) -> list[Finding]:
    """Findings of a model's last run of each specification that are not in the dossier as such yet."""
    last = {s.record.spec: s.record for s in state.runs(model)}
    made = [
        _finding(model, run, threshold, result)
        for run in last.values()
        for threshold in state.each(Threshold)
        if not threshold.specs or run.spec in threshold.specs
        for result in judged.results(state, run)
        if (result.metric, result.slice) == (threshold.metric, threshold.slice) and broken(threshold, result)
    ]
    return [f for f in made if state.find(Finding, f.id) is None]


def _finding(model: Model, run: Run, threshold: Threshold, result: Result) -> Finding:
    sign = "below" if threshold.bound == "min" else "above"
    part = f" on {threshold.slice}" if threshold.slice != "*" else ""
    return Finding(
        id=plain_id(f"{threshold.id} of {run.id}"),
        model=model.id,
        fingerprint=model.fingerprint,
        run=run.id,
        result=result.id,
        threshold=threshold.id,
        level=threshold.level,
        what=f"{threshold.metric}{part} is {result.value:.3f}, {sign} {threshold.value:g}",
    )


def closed(
    state: State, finding: Finding, by: str, retest: Run, how: str
) -> list[Mitigation | Finding] | None:
    """What closes a finding when a later run keeps its threshold; None where it does not."""
    threshold = state.find(Threshold, finding.threshold) if finding.threshold else None
    if threshold is None:
        return None
    wanted = (threshold.metric, threshold.slice)
    found = next((r for r in judged.results(state, retest) if (r.metric, r.slice) == wanted), None)
    if found is None or found.value is None or broken(threshold, found):
        return None
    why = f"run {retest.id}: {threshold.metric} is {found.value:.3f}"
    mitigation = Mitigation(
        id=plain_id(f"{finding.id} by {retest.model}"),
        finding=finding.id,
        description=how,
        model=retest.model,
        retest=retest.id,
    )
    return [mitigation, finding.model_copy(update={"status": "mitigated", "why": why, "by": by})]


def mended(state: State, broke: Model, mends: Model, by: str, how: str) -> list[Mitigation | Finding]:
    """What closes the open findings of one model that another's last run of the same specification does not have."""
    last = {s.record.spec: s.record for s in state.runs(mends)}
    made: list[Mitigation | Finding] = []
    for finding in state.each(Finding):
        run = state.find(Run, finding.run) if finding.run else None
        retest = last.get(run.spec) if run else None
        if finding.model == broke.id and finding.status == "open" and retest and retest.id != finding.run:
            made += closed(state, finding, by, retest, how) or []
    return made
