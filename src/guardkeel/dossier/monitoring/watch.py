"""One look at a released model: every stream of its plan from the plan's beginning, tested; triggers open a finding
or the draft of an incident.

Each look reads all rows since the plan began and takes the largest e-value on the way, so it does not matter how often
or when one looks. A null is the baseline widened by the tolerance: what was measured before release is uncertain too,
and that uncertainty belongs in the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from guardkeel.dossier.kinds import Finding, Incident, Model, MonitorPlan, Observation, Record, Stream, moment
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.kinds.evaluating import Level
from guardkeel.dossier.monitoring import sequential
from guardkeel.dossier.monitoring.sequential import Floats
from guardkeel.dossier.monitoring.sources import LEAST, Seen
from guardkeel.dossier.state import State
from guardkeel.errors import DataError
from guardkeel.evaluation.runs import read_audit
from guardkeel.results import GuardResult

EDGE = 1e-6
ANSWERED = "answered by"
"""The observation of whose weights a service had, beside those of the plan's streams."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a stream has seen: values in [0, 1] in order, and how rows were drawn."""

    values: Floats
    weights: Floats | None = None
    ends: list[int] | None = None
    """Of audits: how many rows there were after each. Rows of one have no order, so one looks at its end alone."""
    unscored: int = 0
    why: str = ""


def look(
    state: State, plan: MonitorPlan, seen: Seen | None, audits: Sequence[Path], now: datetime
) -> list[Record]:
    """Observations of every stream of a plan, and what they open.

    Args:
        state: of the dossier.
        plan: the model's.
        seen: the service's log since the plan began; None where there is none.
        audits: run directories of fresh audits of the same model, in the order in which they were made.
        now: when this is.
    """
    made: list[Record] = []
    model = state.get(Model, plan.model)
    for stream in plan.streams:
        rows = _rows(stream, seen, audits, model)
        one = observe(plan, stream, rows, now, "" if seen is None else seen.cursor)
        made.append(one)
        if one.changed:
            made += _opened(state, plan, stream, one, now)
    return made if seen is None else made + _answered(state, plan, model, seen, now)


def _rows(stream: Stream, seen: Seen | None, audits: Sequence[Path], model: Model) -> Rows:
    if stream.source == "audits":
        return _audited(stream, audits, model)
    if seen is None:
        return Rows(np.empty(0), why="no log was given")
    if stream.measure == "recall":
        caught, weights = np.array(seen.caught, dtype=np.float64), np.array(seen.weights, dtype=np.float64)
        least = max(LEAST, stream.least_propensity)
        fit = weights <= 1 / least
        lost = seen.left_out + int((~fit).sum())
        why = f"{lost} rows drawn with a chance below {least:g} left out" if lost else ""
        return Rows(caught[fit], weights[fit], why=why)
    if stream.measure == "geometry":
        raise DataError(
            f"stream {stream.name!r}: geometry is in audits, not in a log", remedy='set source = "audits"'
        )
    lost = sum(seen.unscored)
    values = seen.unscored if stream.measure == "unscored rate" else seen.flagged
    return Rows(np.array(values, dtype=np.float64), unscored=lost)


def _audited(stream: Stream, audits: Sequence[Path], model: Model) -> Rows:
    values: list[float] = []
    ends: list[int] = []
    lost = 0
    for folder in audits:
        ends.append(len(values))  # of the one before
        found = read_audit(folder)
        guards: dict[str, GuardResult | None] = {"candidate": found.candidate, "reference": found.reference}
        role = next((r for r, g in guards.items() if g is not None and g.info.digest == model.digest), None)
        guard = guards[role] if role else None
        if guard is None:
            raise DataError(f"{folder}: did not judge {model.id!r}", remedy="audit the model that is watched")
        behaviour = guard.overall
        lost += behaviour.n_unscored
        if stream.measure == "geometry":
            kept = [
                g.cka.estimate.value for g in found.geometry if g.cka and g.cka.estimate.value is not None
            ]
            values += [min(max(min(kept), 0.0), 1.0)] if kept else []
            continue
        parts = {
            "recall": [behaviour.recall],
            "unscored rate": [behaviour.unscored],
            "unsafe rate": [behaviour.recall, behaviour.fpr],
        }[stream.measure]
        hits = round(sum((e.value or 0.0) * e.n for e in parts))
        values += [1.0] * hits + [0.0] * (sum(e.n for e in parts) - hits)
    looks = [n for n in [*ends, len(values)] if n]
    why = "" if audits else "no fresh audit was given"
    return Rows(np.array(values, dtype=np.float64), ends=looks, unscored=lost, why=why)


def observe(plan: MonitorPlan, stream: Stream, rows: Rows, now: datetime, cursor: str) -> Observation:
    """The sequential test of one stream over all of its rows."""
    n = rows.values.size
    log_e = 0.0
    if n:
        path = _test(stream, rows)
        log_e = float(np.max(path if rows.ends is None else path[np.array(rows.ends) - 1], initial=0.0))
    weights = np.ones(n) if rows.weights is None else rows.weights
    total = float(weights.sum())
    share = float(weights @ rows.values) / total if n else None
    low = high = None
    if n and rows.weights is None and stream.measure != "geometry":
        low, high = sequential.confidence_sequence(float(rows.values.sum()), n, stream.alpha)
    return Observation(
        id=plain_id(f"{plan.id} {stream.name} {moment(now)}"),
        plan=plan.id,
        stream=stream.name,
        at=now,
        n=n,
        hits=float(weights @ rows.values) if n else 0.0,
        estimate=share,
        low=low,
        high=high,
        log_e=log_e,
        changed=log_e >= -math.log(stream.alpha),
        unscored=rows.unscored,
        cursor=cursor,
        why=rows.why or ("" if n else "no rows yet"),
    )


def _test(stream: Stream, rows: Rows) -> Floats:
    """log E after each row, in the stream's direction."""
    above = min(max(stream.baseline + stream.tolerance, EDGE), 1 - EDGE)
    below = min(max(stream.baseline - stream.tolerance, EDGE), 1 - EDGE)
    if rows.ends is None or stream.measure == "geometry":  # rows in the order in which they came
        weights = np.ones(rows.values.size) if rows.weights is None else rows.weights
        most = 1.0 if rows.weights is None else 1 / stream.least_propensity
        up = sequential.betting_above(rows.values, weights, above, most)
        down = sequential.betting(rows.values, weights, below, most)
    else:
        hits = np.cumsum(rows.values)
        misses = np.arange(1, rows.values.size + 1) - hits
        up, down = sequential.rise(hits, misses, above), sequential.fall(hits, misses, below)
    return {"rise": up, "fall": down}.get(stream.direction, sequential.both(up, down))


def _answered(state: State, plan: MonitorPlan, model: Model, seen: Seen, now: datetime) -> list[Record]:
    """Whether the service had the model's weights: what it observed, and a finding where it had not.

    That is no test: one verdict without them is enough.
    """
    total = seen.answered_by.total()
    if not total:
        return []
    others = {digests: n for digests, n in seen.answered_by.items() if model.digest not in digests}
    lost = sum(others.values())
    known = {m.digest: m.id for m in state.each(Model)}
    whose = sorted({known.get(d, f"sha256 {d[:16]}…") for digests in others for d in digests})
    why = f"{lost:,} of {total:,} verdicts are not of its weights but of {', '.join(whose)}" if lost else ""
    look = Observation(
        id=plain_id(f"{plan.id} {ANSWERED} {moment(now)}"),
        plan=plan.id,
        stream=ANSWERED,
        at=now,
        n=total,
        hits=total - lost,
        estimate=1 - lost / total,
        log_e=0.0,
        changed=lost > 0,
        cursor=seen.cursor,
        why=why,
    )
    return [look, *(_finding(state, plan, ANSWERED, "launch", why) if lost else ())]


def _opened(
    state: State, plan: MonitorPlan, stream: Stream, seen: Observation, now: datetime
) -> Sequence[Finding | Incident]:
    """A finding or the draft of an incident, unless the plan has opened it before."""
    what = (
        f"{stream.measure} is {seen.estimate:.3f} over {seen.n} rows, it was {stream.baseline:.3f} "
        f"± {stream.tolerance:g} (e-value {math.exp(min(seen.log_e, 700)):.3g}, alarm at {1 / stream.alpha:g})"
    )
    if stream.opens == "incident":
        identity = _identity(state, plan, Incident, stream.name)
        if not identity:
            return []
        return [
            Incident(
                id=identity,
                title=f"{stream.measure} of {plan.model} has changed",
                model=plan.model,
                fingerprint=plan.fingerprint,
                aware_at=now,
                source=f"monitor plan {plan.id}",
                status="draft",
                description=what,
                observations=[seen.id],
            )
        ]
    return _finding(state, plan, stream.name, stream.level, what)


def _finding(state: State, plan: MonitorPlan, stream: str, level: Level, what: str) -> list[Finding]:
    identity = _identity(state, plan, Finding, stream)
    if not identity:
        return []
    return [Finding(id=identity, model=plan.model, fingerprint=plan.fingerprint, level=level, what=what)]


def _identity(state: State, plan: MonitorPlan, kind: type[Record], stream: str) -> str:
    """Under which id a stream opens something: a number more than last time, "" where that was since the plan began."""
    name, number = plain_id(f"{plan.id} {stream}"), 1
    found = name
    while state.has(kind.kind, found):
        if state.first(kind, found).at >= plan.since:
            return ""
        number += 1
        found = f"{name} {number}"
    return found
