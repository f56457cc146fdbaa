"""The store: who has which item, and what everybody said. Every method is one transaction, and blocks.

An item is taken under a lease, so that nobody else is offered the same place while it lasts; it can be renewed, and
ends by itself. What is said carries the lease's token as its id: sent again, after a lost answer or a kill, it counts
once. What `submit` acknowledges has been committed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as put
from sqlalchemy.exc import SQLAlchemyError

from guardkeel.curation.adjudication.reading import Reader, Record, standing_of, unusable
from guardkeel.curation.adjudication.resolving import Choice, outcome
from guardkeel.curation.adjudication.tables import items, leases, log, opened, rules, standing
from guardkeel.curation.mapping import Strictness
from guardkeel.curation.rows import SideLabel, vote_json

if TYPE_CHECKING:
    from guardkeel.curation.adjudication.queue import Queued

Status = Literal["new", "known", "conflict", "late", "unknown"]

_SAME = ("item", "annotator", "kind", "choice", "categories", "note")
_FRESH = text(
    """
    SELECT key FROM items i WHERE open = 1
      AND NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.key AND s.annotator = :me)
      AND given + (SELECT COUNT(*) FROM leases l WHERE l.item = i.key AND l.annotator <> :me AND l.expires > :now)
          < wanted
    ORDER BY rank, key LIMIT 1
    """
)
_SKIPPED = text(
    """
    SELECT i.key FROM standing s JOIN items i ON i.key = s.item
    WHERE s.annotator = :me AND s.kind = 'skip' AND i.open = 1
      AND i.given + (SELECT COUNT(*) FROM leases l WHERE l.item = i.key AND l.annotator <> :me AND l.expires > :now)
          < i.wanted
    ORDER BY s.sequence LIMIT 1
    """
)


@dataclass(frozen=True, slots=True)
class Claim:
    """An item that is somebody's until `expires`. `token` is the id of what will be said of it."""

    item: Record
    token: str
    expires: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody says of an item, or (without a choice) that it is skipped."""

    token: str
    item: str
    annotator: str
    choice: Choice | None
    categories: tuple[str, ...] = ()
    note: str = ""
    blind: bool = True


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of it: `new` and `known` are in the log under `sequence`; of the others nothing was written.

    conflict: something else was said under this id, or of this item by this person. late: the lease ended, and the
    place is somebody else's. unknown: there is no such item, or record to take back.
    """

    status: Status
    sequence: int | None = None


class Store(Reader):
    """See the module's text.

    Args:
        path: the SQLite file.
        create: make it where it is not there.
        clock: seconds since 1970.
    """

    def __init__(
        self, path: str | Path, *, create: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.clock = clock
        self._writer, self._reader = opened(self.path, create=create)

    def close(self) -> None:
        """Let go of the file."""
        self._writer.dispose()
        self._reader.dispose()

    def load(self, queue: Sequence[Queued], people: int, strictness: Strictness) -> None:
        """Make this the queue. Items that are in it no more are offered no more; what was said of them stays."""
        made = [_item(one) for one in queue]
        with self._begin() as connection:
            rule = {"only": 1, "people": people, "strictness": strictness}
            connection.execute(_upsert(rules, rule), [rule])
            connection.execute(update(items).values(queued=False))
            if made:
                connection.execute(_upsert(items, made[0], keep=("given", "wanted", "open")), made)
            connection.execute(update(items).values(given=0, wanted=people, open=items.c.queued))
            labelled = select(standing.c.item).where(standing.c.kind == "label").distinct()
            for (key,) in connection.execute(labelled).all():
                _settle(connection, key, people, strictness)

    def claim(self, annotator: str, seconds: float) -> Claim | None:
        """The next item for somebody: the one that is held already, else a free one; None where nothing is.

        Skipped items come again after all others, the one first that was skipped first.
        """
        now = self.clock()
        with self._begin() as connection:
            held = self._held(connection, annotator, now)
            if held is None:
                who = {"me": annotator, "now": now}
                found = connection.execute(_FRESH, who).scalar() or connection.execute(_SKIPPED, who).scalar()
                if found is None:
                    return None
                held = _lease(connection, annotator, found, now, seconds)
            connection.execute(
                update(leases).where(leases.c.annotator == annotator).values(expires=now + seconds)
            )
            row = connection.execute(select(items).where(items.c.key == held["item"])).mappings().one()
            return Claim(dict(row), held["token"], now + seconds)

    def renew(self, annotator: str, token: str, seconds: float) -> bool:
        """Hold an item for longer; False where it is not held (any more)."""
        with self._begin() as connection:
            mine = (leases.c.annotator == annotator) & (leases.c.token == token)
            done = connection.execute(update(leases).where(mine).values(expires=self.clock() + seconds))
            return bool(done.rowcount)

    def submit(self, answer: Answer) -> Ack:
        """Write down what somebody says; see Ack."""
        now = self.clock()
        kind = "skip" if answer.choice is None else "label"
        with self._begin() as connection:
            there = connection.execute(select(log).where(log.c.id == answer.token)).mappings().first()
            if there is not None:
                said = {**asdict(answer), "kind": kind, "categories": list(answer.categories)}
                same = all(there[k] == said[k] for k in _SAME)
                return Ack("known", there["sequence"]) if same else Ack("conflict")
            row = connection.execute(select(items).where(items.c.key == answer.item)).mappings().first()
            if row is None:
                return Ack("unknown")
            if _standing(connection, answer.item, answer.annotator) == "label":
                return Ack("conflict")
            lease = _lease_of(connection, answer.annotator, answer.token)
            if lease is None and not _free(connection, row, answer.annotator, now):
                return Ack("late")
            record = {
                **_stood(row),
                "id": answer.token,
                "annotator": answer.annotator,
                "kind": kind,
                "choice": answer.choice,
                "categories": list(answer.categories),
                "note": answer.note,
                "created": now,
                "seconds": round(now - lease["taken"], 3) if lease else None,
                "blind": answer.blind,
            }
            connection.execute(delete(leases).where(leases.c.token == answer.token))
            return Ack("new", _write(connection, record))

    def undo(self, annotator: str, identity: str, seconds: float) -> Ack:
        """Take back one's own label or skip: a record of its own. The item is one's again, if its place is free."""
        now = self.clock()
        with self._begin() as connection:
            undone = connection.execute(select(log).where(log.c.undoes == identity)).mappings().first()
            if undone is not None:
                known = undone["annotator"] == annotator
                return Ack("known", undone["sequence"]) if known else Ack("unknown")
            there = connection.execute(select(log).where(log.c.id == identity)).mappings().first()
            if there is None or there["annotator"] != annotator or there["kind"] == "undo":
                return Ack("unknown")
            if _sequence(connection, there["item"], annotator) != there["sequence"]:
                return Ack("conflict")
            record = {**_again(there), "id": f"undo.{identity}", "undoes": identity, "created": now}
            number = _write(connection, record)
            row = connection.execute(select(items).where(items.c.key == there["item"])).mappings().first()
            if row is not None and row["open"] and _free(connection, row, annotator, now):
                _lease(connection, annotator, row["key"], now, seconds)
            return Ack("new", number)

    def bring(self, records: Iterable[Record]) -> dict[Status, int]:
        """Take in records of another log, in their order; what is there already stays as it is."""
        counts: dict[Status, int] = {}
        with self._begin() as connection:
            for record in records:
                status = _brought(connection, record)
                counts[status] = counts.get(status, 0) + 1
        return counts

    def _held(self, connection: Connection, annotator: str, now: float) -> Record | None:
        """The lease of somebody on an item that is still to be decided, and whose place nobody has taken."""
        lease = connection.execute(select(leases).where(leases.c.annotator == annotator)).mappings().first()
        if lease is None:
            return None
        row = connection.execute(select(items).where(items.c.key == lease["item"])).mappings().first()
        said = _standing(connection, lease["item"], annotator)
        if row is None or not row["open"] or said == "label" or not _free(connection, row, annotator, now):
            return None
        return dict(lease)

    def _begin(self) -> _Transaction:
        return _Transaction(self)


class _Transaction:
    """A transaction whose faults are said in our words."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._context = store._writer.begin()

    def __enter__(self) -> Connection:
        try:
            return self._context.__enter__()
        except SQLAlchemyError as e:
            raise unusable(self._store.path, e) from e

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, value, trace)
        except SQLAlchemyError as e:
            raise unusable(self._store.path, e) from e
        if isinstance(value, SQLAlchemyError):
            raise unusable(self._store.path, value) from value


def _write(connection: Connection, record: Record) -> int:
    """Add a record, and what follows from it; its number."""
    number = int(connection.execute(insert(log).values(record).returning(log.c.sequence)).scalar_one())
    key, who, kind = record["item"], record["annotator"], record["kind"]
    if kind == "undo":
        mine = (standing.c.item == key) & (standing.c.annotator == who)
        connection.execute(delete(standing).where(mine))
    else:
        row = {"item": key, "annotator": who, "sequence": number, "kind": kind}
        made = put(standing).values(row)
        # a label replaces a skip, never a label: then the key of the table refuses it
        replaced = made.on_conflict_do_update(
            index_elements=["item", "annotator"],
            set_={"sequence": number, "kind": kind},
            where=standing.c.kind == "skip",
        )
        if not connection.execute(replaced).rowcount:
            raise AssertionError("a label stands already")
    rule = connection.execute(select(rules)).mappings().first()
    if rule is not None:
        _settle(connection, key, rule["people"], rule["strictness"])
    return number


def _settle(connection: Connection, key: str, people: int, strictness: Any) -> None:
    """Count again how many have been heard of an item, and how many must be."""
    made = outcome(list(standing_of(connection, key)), people, strictness)
    values = {"given": len(made.said), "wanted": made.wanted}
    changed = update(items).where(items.c.key == key).values(**values, open=items.c.queued & made.open)
    connection.execute(changed)


def _lease(connection: Connection, annotator: str, key: str, now: float, seconds: float) -> Record:
    """Give an item to somebody. Leases on it that have ended are over for good: their place is taken."""
    connection.execute(delete(leases).where(leases.c.item == key, leases.c.expires <= now))
    connection.execute(delete(leases).where(leases.c.annotator == annotator))
    made = {"annotator": annotator, "item": key, "token": secrets.token_urlsafe(18)}
    connection.execute(insert(leases).values(**made, taken=now, expires=now + seconds))
    return made


def _lease_of(connection: Connection, annotator: str, token: str) -> Record | None:
    query = select(leases).where(leases.c.annotator == annotator, leases.c.token == token)
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None


def _free(connection: Connection, row: Any, annotator: str, now: float) -> bool:
    """Whether an open item has a place that nobody else holds."""
    others = select(leases.c.annotator).where(
        leases.c.item == row["key"], leases.c.annotator != annotator, leases.c.expires > now
    )
    return bool(row["open"]) and row["given"] + len(connection.execute(others).all()) < row["wanted"]


def _standing(connection: Connection, key: str, annotator: str) -> str | None:
    query = select(standing.c.kind).where(standing.c.item == key, standing.c.annotator == annotator)
    return connection.execute(query).scalar()


def _sequence(connection: Connection, key: str, annotator: str) -> int | None:
    query = select(standing.c.sequence).where(standing.c.item == key, standing.c.annotator == annotator)
    return connection.execute(query).scalar()


def _brought(connection: Connection, record: Record) -> Status:
    there = connection.execute(select(log).where(log.c.id == record["id"])).mappings().first()
    if there is not None:
        return "known" if all(there[k] == record[k] for k in _SAME) else "conflict"
    mine = record["item"], record["annotator"]
    if record["kind"] == "undo":
        undone = connection.execute(select(log).where(log.c.id == record["undoes"])).mappings().first()
        if undone is None or _sequence(connection, *mine) != undone["sequence"]:
            return "conflict"
    elif _standing(connection, *mine) == "label":
        return "conflict"
    _write(connection, record)
    return "new"


def _item(one: Queued) -> Record:
    given = one.given or SideLabel(None, "")
    return {
        "key": one.key,
        "row": _text(one.row),
        "side": one.side,
        "source": _text(one.source),
        "messages": one.messages,
        "votes": [vote_json(v) for v in one.votes],
        "label": {"label": given.label, "source": given.source, "scores": dict(given.scores)},
        "reasons": list(one.reasons),
        "information": one.information,
        "audit": one.audit,
        "propensity": one.propensity,
        "rank": one.rank,
        "queued": True,
        "given": 0,
        "wanted": 0,
        "open": False,
    }


def _text(value: str) -> str:
    """As SQLite can keep it: lone surrogates, which UTF-8 does not have, by name. In JSON columns they are escapes."""
    return value.encode("utf-8", "backslashreplace").decode()


def _stood(row: Any) -> Record:
    return {"item": row["key"]} | {k: row[k] for k in ("row", "side", "audit", "propensity", "reasons")}


def _again(record: Any) -> Record:
    """An undo of a record: of the same item by the same person."""
    same = ("item", "annotator", "row", "side", "audit", "propensity", "reasons", "blind")
    return {k: record[k] for k in same} | {"kind": "undo", "choice": None, "categories": [], "note": ""}


def _upsert(table: Any, row: Record, keep: Sequence[str] = ()) -> Any:
    """INSERT, or where the key is there UPDATE all but its key and `keep`."""
    made = put(table).values({k: bindparam(k) for k in row})
    keys = [c.name for c in table.primary_key]
    changed = {k: made.excluded[k] for k in row if k not in (*keys, *keep)}
    return made.on_conflict_do_update(index_elements=keys, set_=changed)
