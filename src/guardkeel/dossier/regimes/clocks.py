"""Clocks of incidents: what would be due when, under each regime, and whether a report on it is recorded.

A clock runs from `aware_at`, from the initial report, or from `resolved_at`. It is shown whether or not the regime
seems to apply, with the reason why not: that is for people to decide, and a missed day cannot be had again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from guardkeel.dossier.kinds import Incident, Model, Report
from guardkeel.dossier.regimes.applying import applicability
from guardkeel.dossier.regimes.regime import Clock, Regime, regimes
from guardkeel.dossier.state import State

CLOSED = ("not-an-incident",)


@dataclass(frozen=True, slots=True)
class Running:
    """A clock of an incident."""

    incident: str
    regime: str
    what: str
    report: str
    due: datetime
    left: timedelta
    state: Literal["reported", "reported late", "due", "overdue"]
    applies: str
    source: str
    to: str

    @property
    def due_text(self) -> str:
        """When it is due, and how long that is from now."""
        hours = abs(self.left) // timedelta(hours=1)
        span = f"{hours // 24} d {hours % 24} h"
        return f"{self.due:%Y-%m-%d %H:%M} UTC, {span} {'left' if self.left >= timedelta() else 'ago'}"

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"due": self.due.isoformat(), "left": self.left.total_seconds()}


def clocks(state: State, now: datetime) -> list[Running]:
    """All clocks of incidents that are or were, the next one due first."""
    found = []
    for incident in state.each(Incident):
        if incident.status in CLOSED or incident.harm == "none":
            continue
        model = state.get(Model, incident.model)
        for regime in regimes():
            applies = applicability(state, regime, model, now).verdict if regime.clock else ""
            for clock in regime.clock:
                one = _running(state, incident, regime, clock, now, applies)
                if one is not None:
                    found.append(one)
    return sorted(found, key=lambda c: c.due)


def _running(
    state: State, incident: Incident, regime: Regime, clock: Clock, now: datetime, applies: str
) -> Running | None:
    if incident.harm not in clock.harm or (clock.imminent and not incident.imminent):
        return None
    sent = sorted(
        (r for r in state.each(Report) if r.incident == incident.id and r.regime == regime.id),
        key=lambda r: r.sent_at,
    )
    mine = [r for r in sent if r.form == clock.report]
    initial = next((r.sent_at for r in sent if r.form == "initial"), None)
    begins = {"aware": incident.aware_at, "initial": initial, "resolved": incident.resolved_at}[clock.after]
    if begins is None:
        return None
    if clock.repeats:
        if incident.resolved_at is not None:
            return None
        begins, mine = max([begins, *(r.sent_at for r in mine)]), []
    due = begins + clock.within
    first = mine[0].sent_at if mine else None
    if first is not None:
        became: Any = "reported" if first <= due else "reported late"
    else:
        became = "due" if now <= due else "overdue"
    return Running(
        incident.id, regime.id, clock.id, clock.report, due, due - now, became, applies, clock.source,
        clock.to or regime.recipient,
    )  # fmt: skip
