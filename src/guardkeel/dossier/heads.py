"""Signed heads: who holds one can show later that nothing up to it was changed or cut off.

A head says: this dossier had n entries, and the last of them has this hash. It is signed as a DSSE envelope and kept
in the store; it does its work best outside of it, in another's hands: who can delete entries from a store can delete
its heads too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardkeel.dossier import dsse
from guardkeel.dossier.canonical import canonical
from guardkeel.dossier.chain import Fault
from guardkeel.errors import DataError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TYPE = "application/vnd.guardkeel.dossier-head+json"


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a chain at its entry `sequence`; `dossier` is the hash of its first entry."""

    dossier: str
    sequence: int
    hash: str
    at: str


def signed(head: Head, key: Ed25519PrivateKey) -> dsse.Envelope:
    """A head in its envelope."""
    said = {"dossier": head.dossier, "sequence": head.sequence, "hash": head.hash, "at": head.at}
    return dsse.sign(TYPE, canonical(said), key)


def read(envelope: Mapping[str, Any], keys: Iterable[Ed25519PublicKey], where: str) -> Head:
    """A head from its envelope, if one of the keys has signed it; errors as `dsse.opened`."""
    payload = dsse.opened(dict(envelope), keys, TYPE, where)
    try:
        return Head(**json.loads(payload))
    except (ValueError, TypeError) as e:
        raise DataError(f"{where}: no head of a dossier", remedy="take the file as it was exported") from e


def fault(hashes: Sequence[str], found: Iterable[Head]) -> Fault | None:
    """Where a chain with these hashes, entry 1 first, does not fit heads that were signed; None where it does."""
    for head in sorted(found, key=lambda h: h.sequence):
        if hashes and hashes[0] != head.dossier:
            return Fault(1, "this is another dossier than the one whose head was signed")
        if head.sequence > len(hashes):
            return Fault(
                len(hashes) + 1,
                f"it is missing: the end was cut off, for a head of {head.sequence} entries was signed on {head.at}",
            )
        if hashes[head.sequence - 1] != head.hash:
            return Fault(
                head.sequence,
                f"it is not the one that was signed on {head.at}: this entry or one before it was written anew",
            )
    return None
