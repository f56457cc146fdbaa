"""What a chain says, read from its first entry to its last: the latest record of each id, and all before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from guardkeel.dossier.chain import Entry
from guardkeel.dossier.kinds import (
    KINDS,
    RELEASES,
    Approval,
    Deployment,
    EvalSpec,
    Exposure,
    GateDecision,
    Model,
    Record,
    Result,
    Run,
    Waiver,
    parse,
)
from guardkeel.errors import DataError

R = TypeVar("R", bound=Record)
WITHHELD = "(withheld)"


@dataclass(frozen=True)
class Stamped:
    """A record with its entry."""

    entry: Entry
    record: Any

    @cached_property
    def at(self) -> datetime:
        """When it was written."""
        return datetime.fromisoformat(self.entry.at)

    @property
    def name(self) -> str:
        """kind:id."""
        return f"{self.entry.kind}:{self.entry.id}"


class State:
    """The records of a chain. It is not checked here: see `guardkeel.dossier.verifying`."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.all: list[Stamped] = []
        self._latest: dict[str, dict[str, Stamped]] = {kind: {} for kind in KINDS}
        self._results: dict[str, dict[str, Stamped]] = {}
        self._read_as: dict[str, str] = {}
        for entry in entries:
            self.take(entry)

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self.all[-1].entry.sequence if self.all else 0

    def take(self, entry: Entry, record: Record | None = None) -> None:
        """Read one more entry."""
        if record is None:
            body = dict(entry.body)
            if entry.withheld and entry.kind in KINDS:
                fields = KINDS[entry.kind].model_fields
                body |= {n: WITHHELD for n in entry.withheld if n in fields and fields[n].is_required()}
            record = parse(entry.kind, entry.id, body, f"entry {entry.sequence}")
        stamped = Stamped(entry, record)
        self.all.append(stamped)
        self._latest[entry.kind][entry.id] = stamped
        if isinstance(record, Result):
            self._results.setdefault(record.run, {})[record.id] = stamped

    def find(self, kind: type[R], id: str) -> R | None:
        """The latest record of an id."""
        found = self._latest[kind.kind].get(id)
        return None if found is None else found.record

    def get(self, kind: type[R], id: str) -> R:
        """The latest record of an id; DataError naming it, and what ids there are."""
        found = self.find(kind, id)
        if found is None:
            known = list(self._latest[kind.kind])
            raise DataError(
                f"there is no {kind.kind} {id!r} in the dossier",
                remedy=f"there is {', '.join(known[-8:])}" if known else f"register a {kind.kind} first",
            )
        return found

    def stamped(self, kind: type[Record], id: str) -> Stamped:
        """The latest record of an id with its entry."""
        self.get(kind, id)
        return self._latest[kind.kind][id]

    def each(self, kind: type[R]) -> list[R]:
        """The latest record of every id, in the order in which the ids came."""
        return [s.record for s in self._latest[kind.kind].values()]

    def every(self, kind: type[Record]) -> list[Stamped]:
        """The same, with entries."""
        return list(self._latest[kind.kind].values())

    def has(self, kind: str, id: str) -> bool:
        """Whether a record is there."""
        return id in self._latest.get(kind, {})

    def first(self, kind: type[Record], id: str) -> Stamped:
        """The first entry under an id."""
        return next(s for s in self.all if s.entry.kind == kind.kind and s.entry.id == id)

    def results(self, run: str) -> list[Result]:
        """The results of a run."""
        return [s.record for s in self._results.get(run, {}).values()]

    def model_of(self, digest: str) -> Model | None:
        """The latest model with this digest of weights."""
        return next((m for m in reversed(self.each(Model)) if m.digest == digest), None)

    def lineage(self, model: Model) -> tuple[list[Model], list[str]]:
        """Ancestors that are registered, nearest first, and digests of parents that are not."""
        found: list[Model] = []
        unknown: list[str] = []
        todo = [p.digest for p in model.parents] + ([model.base] if model.base else [])
        while todo:
            digest = todo.pop(0)
            parent = self.model_of(digest)
            if parent is None:
                unknown += [digest] if digest not in unknown else []
            elif parent.id != model.id and all(parent.id != m.id for m in found):
                found.append(parent)
                todo += [p.digest for p in parent.parents] + ([parent.base] if parent.base else [])
        return found, unknown

    def trainers(self, model: Model) -> set[str]:
        """Who made a model or one that it was made from."""
        return {t for m in [model, *self.lineage(model)[0]] for t in m.trainers}

    def exposures(self, digest: str) -> list[Exposure]:
        """Who saw a version of a prompt set, first first. A development run on it is an exposure too."""
        return [e for e in self.each(Exposure) if e.digest == digest] + [
            Exposure(
                id=f"run {r.id}",
                prompt_set=u.id,
                digest=digest,
                to="development",
                at=r.started_at,
                how=r.spec,
            )
            for r in self.each(Run)
            for u in r.prompt_sets
            if u.digest == digest and self.get(EvalSpec, r.spec).form == "development"
        ]

    def runs(self, model: Model) -> list[Stamped]:
        """Runs of a model as it is now: of its fingerprint."""
        return [
            s
            for s in self.every(Run)
            if s.record.model == model.id and s.record.fingerprint == model.fingerprint
        ]

    def decisions(self, model: Model) -> list[GateDecision]:
        """Decisions on a model as it is now, the oldest first."""
        return [
            d for d in self.each(GateDecision) if d.model == model.id and d.fingerprint == model.fingerprint
        ]

    def approvals(self, decision: str) -> list[Approval]:
        """What people said to a decision."""
        return [a for a in self.each(Approval) if a.decision == decision]

    def released(self, decision: GateDecision) -> bool:
        """Whether a decision lets a model out, and somebody approved it and nobody rejected it."""
        said = [a.verdict for a in self.approvals(decision.id)]
        return decision.outcome in RELEASES and "approve" in said and "reject" not in said

    def waivers(self, model: Model, now: datetime) -> dict[str, Waiver]:
        """Waivers in force for a model as it is now, by rule."""
        return {
            w.rule: w
            for w in self.each(Waiver)
            if w.model == model.id
            and w.fingerprint == model.fingerprint
            and not w.revoked
            and w.expires_at > now
        }

    def deployed(self) -> dict[str, Deployment]:
        """What is in use now, by place."""
        found: dict[str, Deployment] = {}
        for one in self.all:
            if isinstance(one.record, Deployment):
                found[one.record.place] = one.record
        return {place: d for place, d in found.items() if d.status in ("deployed", "staged")}

    def in_use(self, model: Model) -> list[Deployment]:
        """Where a model as it is now is in use."""
        return [
            d for d in self.deployed().values() if d.model == model.id and d.fingerprint == model.fingerprint
        ]
