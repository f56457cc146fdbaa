"""Checks a chain, its signed heads and the files that its runs rest on; says the first thing that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardkeel.dossier import dsse, heads
from guardkeel.dossier.chain import Entry, Fault, first_fault
from guardkeel.dossier.heads import Head
from guardkeel.dossier.kinds import Approval, GateDecision, Person
from guardkeel.dossier.rules import APPROVAL, approval_payload
from guardkeel.dossier.state import State
from guardkeel.errors import GuardkeelError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check found. `fault` is the first thing that is wrong; `signed` the last entry under a signed head."""

    entries: int
    fault: Fault | None
    signed: int = 0
    head: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None


def verify(
    entries: Iterable[Entry],
    envelopes: Sequence[dsse.Envelope] = (),
    keys: Sequence[Ed25519PublicKey] = (),
    elsewhere: Sequence[Head] = (),
) -> Verified:
    """Check a chain from its first entry to its last.

    Args:
        entries: as they stand.
        envelopes: signed heads that came with it; with `keys`, each must be by one of them.
        keys: whom to trust. Keys that only the chain itself names prove nothing to a stranger.
        elsewhere: heads that were kept somewhere else.
    """
    found = list(entries)
    fault = first_fault(found)
    notes: list[str] = []
    signed: list[Head] = list(elsewhere)
    if fault is None and keys:
        for number, envelope in enumerate(envelopes, 1):
            try:
                signed.append(heads.read(envelope, keys, f"signed head {number}"))
            except GuardkeelError as e:
                fault = Fault(0, e.problem, e.remedy)
                break
    if fault is None:
        fault = heads.fault([e.hash for e in found], signed)
    if fault is None:
        fault = _approvals(found, notes)
    last = max((h.sequence for h in signed), default=0)
    if not found:
        fault = fault or Fault(1, "there are no entries")
    if not signed:
        notes.append(
            "no signed head was checked: an end that was cut off, or a chain written anew, would not show"
        )
    elif last < len(found):
        notes.append(f"entries {last + 1} to {len(found)} came after the last signed head")
    return Verified(len(found), fault, last, found[-1].hash if found else "", notes)


def _approvals(entries: Sequence[Entry], notes: list[str]) -> Fault | None:
    """Approvals by people with a key have to be signed by it, in a copy too."""
    state = State()
    for entry in entries:
        try:
            state.take(entry)
        except GuardkeelError as e:
            return Fault(entry.sequence, e.problem, e.remedy)
        record = state.all[-1].record
        if not isinstance(record, Approval):
            continue
        if entry.withheld:
            notes.append(
                f"entry {entry.sequence}: who approved is withheld, so the signature was not checked"
            )
            continue
        person = state.find(Person, record.approver)
        if person is None or not person.public_key:
            continue
        wanted = approval_payload(state.stamped(GateDecision, record.decision).entry.hash, record)
        try:
            key = dsse.public_key(person.public_key, f"person {person.id!r}")
            said = dsse.opened(record.signature, [key], APPROVAL, f"approval {record.id!r}")
        except GuardkeelError as e:
            return Fault(entry.sequence, e.problem, e.remedy)
        if said != wanted:
            return Fault(entry.sequence, f"approval {record.id!r} is signed for another decision or verdict")
    return None
