"""The page of a dossier: one HTML file, made from its records alone, in the look of the audit report.

Every rule of a decision links to the records that it was read from, every run to its files by digest: so a reader goes
from the decision to the rows. A redacted copy has the same page, made from the records as redacted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

from markupsafe import Markup

import guardkeel
from guardkeel.dossier.kinds import (
    Applicability,
    Finding,
    GateDecision,
    Incident,
    Model,
    Observation,
    Result,
    Run,
    Waiver,
    body_of,
)
from guardkeel.dossier.regimes import DISCLAIMER, applicability, regimes
from guardkeel.dossier.regimes.clocks import Running, clocks
from guardkeel.dossier.standing import Standing, standing
from guardkeel.dossier.state import WITHHELD, Stamped, State
from guardkeel.report.dossier_lineage import lineage
from guardkeel.report.render import asset, environment, source

LOOKS = 60
"""Looks of the monitor that are shown."""
MOST = 3000
"""Entries that are shown whole; of results beyond them only those that a decision rests on."""
MOMENT = re.compile(r" \d{4}-\d\d-\d\dT[\d:.]+Z")
EVENTS = {
    "model": "registered", "policy": "policy", "run": "run", "assessment": "assessed", "gate-decision": "gate",
    "approval": "approval", "waiver": "waiver", "deployment": "in use", "finding": "finding", "incident": "incident",
    "exposure": "exposure", "report": "report", "mitigation": "mitigation", "monitor-plan": "monitoring",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """A moment on the timeline."""

    at: str
    sequence: int
    what: str
    id: str
    text: str
    tone: str


@dataclass(frozen=True, slots=True)
class Told:
    """An incident, and what is said of it in words, as far as that goes out."""

    record: Incident
    said: list[tuple[str, str]]


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    title: str
    purpose: str
    now: datetime
    redacted: bool
    head: str
    entries: int
    stands: list[Standing]
    places: dict[str, list[str]]
    lineage: Markup | None
    decisions: list[GateDecision]
    approvals: dict[str, list[str]]
    findings: list[Stamped]
    waivers: list[tuple[Waiver, bool]]
    incidents: list[Told]
    clocks: list[Running]
    looks: list[Stamped]
    looked: int
    regimes: list[Applicability]
    runs: list[tuple[Stamped, list[Result]]]
    timeline: list[Event]
    blocks: list[tuple[str, list[Stamped]]]
    left_out: int
    numbers: dict[str, int] = field(default_factory=dict)

    def at(self, name: str) -> int | None:
        """The entry of kind:id as it was last, for links."""
        return self.numbers.get(name)

    def fields(self, stamped: Stamped) -> list[tuple[str, str]]:
        """A record's fields as text; withheld ones by their leaf."""
        hidden = stamped.entry.withheld
        made = [
            (n, _words(v))
            for n, v in body_of(stamped.record).items()
            if n not in hidden and v not in ("", [], {}, None)
        ]
        return made + [(n, f"withheld, leaf {sha[:16]}…") for n, sha in sorted(hidden.items())]

    def strength(self, seen: Observation) -> str:
        """An e-value to read: the alarm is at 1/alpha."""
        return f"{math.exp(min(seen.log_e, 700)):.3g}"


def gather(state: State, now: datetime, redacted: bool = False) -> Page:
    """Everything that the page shows, from the records."""
    opening = state.all[0].record
    models = state.each(Model)
    used = {name for d in state.each(GateDecision) for name in d.inputs}
    shown = [s for s in state.all if len(state.all) <= MOST or s.entry.kind != Result.kind or s.name in used]
    numbers = {s.name: s.entry.sequence for s in state.all}
    return Page(
        title=opening.title,
        purpose=opening.purpose,
        now=now,
        redacted=redacted,
        head=state.all[-1].entry.hash,
        entries=state.last,
        stands=[standing(state, m, now) for m in models],
        places={m.id: [p for p, d in state.deployed().items() if d.model == m.id] for m in models},
        lineage=lineage(state) if models else None,
        decisions=state.each(GateDecision)[::-1],
        approvals={d.id: [_approval(a) for a in state.approvals(d.id)] for d in state.each(GateDecision)},
        findings=[s for s in state.every(Finding) if s.record.status == "open"],
        waivers=[(w, w.expires_at > now and not w.revoked) for w in state.each(Waiver)],
        incidents=[_incident(s) for s in state.every(Incident)][::-1],
        clocks=clocks(state, now),
        looks=state.every(Observation)[: -LOOKS - 1 : -1],
        looked=len(state.every(Observation)),
        regimes=[applicability(state, r, models[-1], now) for r in regimes()] if models else [],
        runs=[(s, _first(state.results(s.record.id))) for s in state.every(Run)][::-1],
        timeline=[_event(s) for s in state.all if s.entry.kind in EVENTS][::-1],
        blocks=[(run, list(of)) for run, of in groupby(shown, _run_of)],
        left_out=len(state.all) - len(shown),
        numbers=numbers,
    )


def page(state: State, now: datetime, redacted: bool = False, form: Markup | None = None) -> str:
    """The dossier as one HTML page. `form` is what the served page adds: how to approve."""
    style = "\n".join(asset(name) for name in ("report.css", "collapse.css", "dossier.css"))
    action = "'self'" if form is not None else "'none'"
    policy = f"default-src 'none'; style-src '{source(style)}'; img-src data:; base-uri 'none'; form-action {action}"
    found = gather(state, now, redacted)
    return (
        environment()
        .get_template("dossier.html")
        .render(
            d=found,
            r=None,
            tones=TONES,
            headline=headline(found),
            form=form,
            disclaimer=DISCLAIMER,
            version=guardkeel.__version__,
            style=Markup(style),  # noqa: S704 - our own files
            policy=policy,
        )
        + "\n"
    )


TONES = {
    "allow": "good", "allow-with-safeguards": "good", "staged": "wait", "hold": "wait", "deny": "bad",
    "roll-back": "bad", "pass": "good", "fail": "bad", "safeguard": "wait", "waived": "wait", "advice": "none",
    "reported": "good", "reported late": "bad", "due": "wait", "overdue": "bad", "critical": "bad", "launch": "bad",
    "alert": "wait",
}  # fmt: skip
"""How words are coloured; the words themselves say the same."""


def headline(found: Page) -> tuple[str, str, str]:
    """(icon, word, sentence) of what stands at the top."""
    late = [c for c in found.clocks if c.state == "overdue" and c.applies == "seems to apply"]
    running = [s for s in found.stands if s.may_run]
    if late:
        return "deny", "OVERDUE", f"{len(late)} clocks of incidents have run out."
    if running:
        names = ", ".join(s.model for s in running)
        ends = [s.until for s in running if s.until is not None]
        until = f" The first thing that this rests on ends on {min(ends):%Y-%m-%d}." if ends else ""
        return "allow", "IN FORCE", f"May be in use: {names}.{until}"
    if found.stands:
        return "hold", "NOTHING MAY RUN", "No model has an approved decision in force."
    return "none", "EMPTY", "No model is registered."


def _approval(said: Any) -> str:
    who = "somebody (withheld)" if said.approver == WITHHELD else said.approver
    word = "approved" if said.verdict == "approve" else "rejected"
    signed = ", signed" if said.signature else ""
    return f"{word} by {who} on {said.at:%Y-%m-%d %H:%M} UTC{signed}"


def _run_of(s: Stamped) -> str:
    """The run of a result: of those there are dozens in a row, which are folded."""
    return s.record.run if isinstance(s.record, Result) else ""


def _incident(s: Stamped) -> Told:
    words = ("description", "harmed", "chain_of_events", "containment", "root_cause", "recommendations")
    told = [(n.replace("_", " "), getattr(s.record, n)) for n in words if n not in s.entry.withheld]
    return Told(s.record, [(name, text) for name, text in told if text])


def _first(results: Sequence[Result]) -> list[Result]:
    """Results of all items, and by suite, before slices of other kinds."""
    return [r for r in results if "=" not in r.slice][:60]


def _event(s: Stamped) -> Event:
    record = s.record
    text, tone = "", "none"
    if s.entry.kind == "gate-decision":
        text, tone = f"{record.outcome}: {record.reason}", TONES[record.outcome]
    elif s.entry.kind == "approval":
        text, tone = _approval(record), "good" if record.verdict == "approve" else "bad"
    elif s.entry.kind == "finding":
        text, tone = (
            f"{record.what} ({record.status})",
            TONES[record.level] if record.status == "open" else "none",
        )
    elif s.entry.kind == "incident":
        over = record.status in ("resolved", "not-an-incident")
        text, tone = f"{record.title} ({record.status})", "none" if over else "bad"
    elif s.entry.kind == "run":
        text, tone = (
            f"{record.spec} on {record.model}, {record.status}",
            "none" if record.status == "completed" else "wait",
        )
    elif s.entry.kind == "deployment":
        text = f"{record.model} {record.status} at {record.place}"
    elif s.entry.kind == "waiver":
        text, tone = f"{record.rule}, until {record.expires_at:%Y-%m-%d}", "wait"
    elif s.entry.kind == "exposure":
        text, tone = f"{record.prompt_set} to {record.to}", "wait"
    elif s.entry.kind == "model":
        text = ", ".join(f"{p.relation} of {p.digest[:12]}…" for p in record.parents)
    elif s.entry.kind == "mitigation":
        text = record.description
    name = MOMENT.sub("", s.entry.id)  # when it was is said beside it
    return Event(s.entry.at[:16].replace("T", " "), s.entry.sequence, EVENTS[s.entry.kind], name, text, tone)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_words(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(_words(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
