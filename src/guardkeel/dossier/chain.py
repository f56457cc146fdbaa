"""The chain: every entry names the digest of the one before it, so that none can be changed, left out or moved.

    leaf(f)  = sha256(canonical([salt_f, f, value_f]))          salt_f = HMAC-SHA256(salt, f)
    hash(n)  = sha256(TAG ‖ canonical({sequence, previous: hash(n−1), kind, id, at, body: {f: leaf(f)}}))

The body goes in field by field, each under a salt of its own. So a field can be withheld from a copy that is given
away: its leaf takes its place and the chain still closes, while the value cannot be guessed from the leaf.

A chain alone does not show that its end was cut off, or that all of it was written anew. Signed heads do
(`guardkeel.dossier.heads`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from guardkeel.dossier.canonical import canonical, digest, loads
from guardkeel.errors import DataError

TAG = b"guardkeel-dossier-entry-v1\0"
GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `salt` is hex; in a copy with withheld fields it is "" and `salts` and `withheld` stand in for it.

    `text` is the body as it was stored, where it was read from somewhere: it has to be the canonical text.
    """

    sequence: int
    previous: str
    kind: str
    id: str
    at: str
    body: Mapping[str, Any]
    hash: str
    salt: str = ""
    salts: Mapping[str, str] = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong, and where."""

    sequence: int
    problem: str
    remedy: str = "compare with a copy from before; nothing from this entry on can be relied on"

    def __str__(self) -> str:
        return f"entry {self.sequence}: {self.problem}"


def field_salt(salt: str, name: str) -> str:
    """The salt of one field, from that of its entry."""
    return hmac.new(bytes.fromhex(salt), name.encode(), hashlib.sha256).hexdigest()


def leaf(salt: str, name: str, value: Any) -> str:
    """What stands for a field in its entry's hash; `salt` is the field's own."""
    return digest([salt, name, value])


def leaves(entry: Entry) -> dict[str, str]:
    """The leaves of all fields, shown and withheld; DataError where a field is both."""
    if entry.body.keys() & entry.withheld.keys():
        raise DataError("a field is both shown and withheld", remedy="take the copy as it was exported")
    shown = {
        name: leaf(field_salt(entry.salt, name) if entry.salt else entry.salts[name], name, value)
        for name, value in entry.body.items()
    }
    return shown | dict(entry.withheld)


def entry_hash(sequence: int, previous: str, kind: str, id: str, at: str, body: Mapping[str, str]) -> str:
    """The hash of an entry whose fields have these leaves."""
    said = {"sequence": sequence, "previous": previous, "kind": kind, "id": id, "at": at, "body": dict(body)}
    return hashlib.sha256(TAG + canonical(said)).hexdigest()


def sealed(
    sequence: int, previous: str, kind: str, id: str, at: str, body: Mapping[str, Any], salt: str
) -> Entry:
    """An entry with its hash."""
    found = {name: leaf(field_salt(salt, name), name, value) for name, value in body.items()}
    return Entry(
        sequence, previous, kind, id, at, body, entry_hash(sequence, previous, kind, id, at, found), salt
    )


def redacted(entry: Entry, private: Iterable[str]) -> Entry:
    """The entry without the values of some fields; its hash stays."""
    hidden = set(private) & set(entry.body)
    salts = {n: field_salt(entry.salt, n) if entry.salt else entry.salts[n] for n in entry.body}
    return Entry(
        entry.sequence,
        entry.previous,
        entry.kind,
        entry.id,
        entry.at,
        {n: v for n, v in entry.body.items() if n not in hidden},
        entry.hash,
        salts={n: s for n, s in salts.items() if n not in hidden},
        withheld=dict(entry.withheld) | {n: leaf(salts[n], n, entry.body[n]) for n in hidden},
    )


def faults(entries: Iterable[Entry]) -> Iterator[Fault]:
    """What is wrong with a chain, entry by entry, from its first; the first fault is the one to name."""
    last, previous, at, seen = 0, GENESIS, "", set[int]()
    for entry in entries:
        n = entry.sequence
        if n in seen:
            yield Fault(n, "there is a second entry of this number: one of them was inserted")
        elif n != last + 1:
            gap = last + 1
            yield (
                Fault(gap, "it is missing here: deleted, or moved")
                if n > gap
                else Fault(n, f"it stands after entry {last}: moved")
            )
        else:
            yield from _own(entry)
            if entry.previous != previous:
                yield Fault(n, "it does not follow from the entry before it: one of the two is forged")
            if entry.at < at:
                yield Fault(n, f"its time {entry.at} is before that of the entry before it")
        seen.add(n)
        last, previous, at = n, entry.hash, max(at, entry.at)


def _own(entry: Entry) -> Iterator[Fault]:
    """What is wrong with an entry by itself."""
    try:
        found = leaves(entry)
        fits = entry_hash(entry.sequence, entry.previous, entry.kind, entry.id, entry.at, found) == entry.hash
        plain = entry.text is None or entry.text.encode("utf-8", "surrogatepass") == canonical(
            dict(entry.body)
        )
    except (DataError, KeyError, ValueError):
        fits = plain = False
    if not (fits and plain):
        yield Fault(
            entry.sequence, f"{entry.kind} {entry.id!r} was changed: its hash does not fit its content"
        )


def first_fault(entries: Iterable[Entry]) -> Fault | None:
    """The first fault, or None."""
    return next(faults(entries), None)


def line(entry: Entry) -> bytes:
    """An entry as a line of records.jsonl."""
    said: dict[str, Any] = {
        name: getattr(entry, name) for name in ("sequence", "previous", "kind", "id", "at", "hash")
    }
    said["body"] = dict(entry.body)
    if entry.salt:
        said["salt"] = entry.salt
    else:
        said |= {"salts": dict(entry.salts), "withheld": dict(entry.withheld)}
    return canonical(said) + b"\n"


def from_line(text: bytes, where: str) -> Entry:
    """An entry from its line; raises DataError naming the place."""
    try:
        said = loads(text)
        if text.rstrip(b"\n") != canonical(said):
            raise DataError("not in canonical form")
        said.setdefault("salt", "")
        return Entry(**{k: said[k] for k in ("sequence", "previous", "kind", "id", "at", "body", "hash", "salt")},
                     salts=said.get("salts", {}), withheld=said.get("withheld", {}))  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, DataError) as e:
        raise DataError(
            f"{where}: not an entry as it was exported", remedy="take the bundle as it was exported"
        ) from e
