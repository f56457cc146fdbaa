"""What the log says: records, what stands, outcomes, progress. Only reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from guardkeel.curation.adjudication.resolving import Outcome, Said, outcome
from guardkeel.curation.adjudication.tables import items, leases, log, rules, standing
from guardkeel.errors import RunError
from guardkeel.records import value_digest

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the queue, as one person sees it.

    `mine` are labels by that person, `skipped` items that wait for a second look, `others` open items that only other
    people can decide, or hold at the moment.
    """

    total: int
    decided: int
    mine: int
    skipped: int
    others: int

    @property
    def open(self) -> int:
        """Items that are not decided."""
        return self.total - self.decided


class Reader:
    """See the module's text. Methods are one transaction each and block."""

    path: Path
    _reader: Engine

    def read(self, query: Any) -> list[Record]:
        """The rows of a query; raises RunError where the file cannot be read."""
        try:
            with self._reader.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as e:
            raise unusable(self.path, e) from e

    def records(self, after: int = 0) -> list[Record]:
        """Records of the log after a number, in order."""
        return self.read(select(log).where(log.c.sequence > after).order_by(log.c.sequence))

    def record(self, identity: str) -> Record | None:
        """One record, by its id."""
        return next(iter(self.read(select(log).where(log.c.id == identity))), None)

    def item(self, key: str) -> Record | None:
        """One item."""
        return next(iter(self.read(select(items).where(items.c.key == key))), None)

    def votes(self, keys: Sequence[str]) -> dict[str, Record]:
        """The jurors' votes and the jury's label of some items, by item."""
        found: dict[str, Record] = {}
        for start in range(0, len(keys), 500):
            some = select(items.c.key, items.c.votes, items.c.label).where(
                items.c.key.in_(keys[start : start + 500])
            )
            found |= {row["key"]: row for row in self.read(some)}
        return found

    def last(self, annotator: str) -> Record | None:
        """What somebody said or skipped last, and has not taken back."""
        mine = select(log).join(standing, standing.c.sequence == log.c.sequence)
        query = mine.where(standing.c.annotator == annotator).order_by(log.c.sequence.desc()).limit(1)
        return next(iter(self.read(query)), None)

    def standing(self) -> list[Record]:
        """The labels that stand, in the order in which they were given."""
        query = select(log).join(standing, standing.c.sequence == log.c.sequence)
        return self.read(query.where(standing.c.kind == "label").order_by(log.c.sequence))

    def outcomes(self, people: int, strictness: Any) -> dict[str, Outcome]:
        """What people made of each item that somebody labelled."""
        return {key: outcome(said, people, strictness) for key, said in self.said().items()}

    def said(self) -> dict[str, list[Said]]:
        """What stands, by item."""
        found: dict[str, list[Said]] = {}
        for row in self.standing():
            found.setdefault(row["item"], []).append(said_of(row))
        return found

    def digest(self) -> str:
        """Of all that stands: equal where the decisions are."""
        return value_digest(
            [
                [r["item"], r["annotator"], r["choice"], r["categories"], r["note"], r["blind"]]
                for r in self.standing()
            ]
        )

    def progress(self, annotator: str, now: float) -> Progress:
        """How far the queue is."""
        query = text(
            """
            SELECT (SELECT COUNT(*) FROM items WHERE queued = 1) AS total,
              (SELECT COUNT(*) FROM items WHERE queued = 1 AND open = 0) AS decided,
              (SELECT COUNT(*) FROM standing WHERE annotator = :me AND kind = 'label') AS mine,
              (SELECT COUNT(*) FROM standing s JOIN items i ON i.key = s.item
                 WHERE s.annotator = :me AND s.kind = 'skip' AND i.open = 1) AS skipped,
              (SELECT COUNT(*) FROM standing s JOIN items i ON i.key = s.item
                 WHERE s.annotator = :me AND s.kind = 'label' AND i.open = 1)
              + (SELECT COUNT(*) FROM (
                   SELECT l.item, COUNT(*) AS held FROM leases l WHERE l.annotator <> :me AND l.expires > :now
                   GROUP BY l.item) h JOIN items i ON i.key = h.item
                 WHERE i.open = 1 AND i.given + h.held >= i.wanted AND NOT EXISTS (
                   SELECT 1 FROM standing s WHERE s.item = i.key AND s.annotator = :me AND s.kind = 'label')
                ) AS others
            """
        )
        return Progress(**self.read(query.bindparams(me=annotator, now=now))[0])

    def people(self) -> int:
        """How many are asked about each item at first; 1 where there is no queue yet."""
        return int(next((r["people"] for r in self.read(select(rules.c.people))), 1))

    def holders(self, now: float) -> int:
        """How many people hold an item now."""
        return int(self.read(select(func.count().label("n")).where(leases.c.expires > now))[0]["n"])


def said_of(record: Mapping[str, Any]) -> Said:
    """What a label's record says."""
    return Said(record["annotator"], record["choice"], tuple(record["categories"]), record["note"])


def standing_of(connection: Connection, key: str) -> Iterator[Said]:
    """What stands of one item, in order."""
    query = select(log).join(standing, standing.c.sequence == log.c.sequence)
    mine = query.where(standing.c.item == key, standing.c.kind == "label").order_by(log.c.sequence)
    for row in connection.execute(mine).mappings():
        yield said_of(dict(row))


def unusable(path: Path, error: SQLAlchemyError) -> RunError:
    """The error for people; the text of SQLAlchemy's may quote what was written."""
    cause = getattr(error, "orig", None) or error
    return RunError(f"{path}: cannot be used ({cause})", remedy="see to the file and its disk, and go on")
