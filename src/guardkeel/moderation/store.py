"""The store: verdicts, feedback and policies, in SQLite or PostgreSQL.

Functions here are whole transactions and block; the service calls them from threads. What `acknowledge` returns has
been committed: a reader, or this process after a kill, finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, and_, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from guardkeel.databases import shown
from guardkeel.errors import RunError
from guardkeel.moderation.tables import COUNTERS, counters, engines, feedback, policies, verdicts
from guardkeel.records import value_digest

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6775_6172  # "guar", of the advisory lock under which PostgreSQL is migrated
Row = dict[str, Any]


class StoreDownError(RunError):
    """The database cannot be used. `passing`: it may be again later; else it refuses what is written."""

    def __init__(self, problem: str, *, remedy: str = "", passing: bool = True) -> None:
        super().__init__(problem, remedy=remedy)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of one piece of feedback.

    `new` and `known` have been committed under `sequence`; of the others nothing was written. `first` on its verdict
    teaches, and `audited` feedback, on a verdict drawn for review, with the weight of its propensity.
    """

    id: str
    status: Literal["new", "known", "conflict", "unknown verdict"]
    sequence: int | None = None
    first: bool = False
    audited: bool = False


class Store:
    """See above.

    Args:
        url: SQLAlchemy's.
        clock: seconds since 1970; only written down, never compared.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._writer, self._reader = engines(url)
        self.shown = shown(url)
        self._clock = clock

    def migrate(self) -> None:
        """Bring the schema up to this version; of several processes that start at once one does it.

        Raises:
            StoreDownError: the database cannot be reached, or is of a later version.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self._writer.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SET LOCAL lock_timeout = 0"))  # however long another one takes
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as e:
            raise StoreDownError(
                f"{self.shown}: its schema is not known to this version ({type(e).__name__})",
                remedy="update guardkeel, or name another database in store.url",
            ) from e
        except SQLAlchemyError as e:
            raise _down(self.shown, e) from e

    def close(self) -> None:
        """Give all connections back."""
        self._writer.dispose()
        self._reader.dispose()

    def write(self, rows: Sequence[Row], given: Sequence[Row]) -> list[Ack]:
        """Verdicts and feedback in one transaction; one answer for each piece of feedback.

        Feedback has id, verdict, unsafe, source, reviewer and key. It is idempotent by its id: what is there already,
        with the same content, is acknowledged again under its number. Of several pieces of feedback on one verdict the
        first teaches, the others are kept.

        Raises:
            StoreDownError: nothing was written, or nobody knows: write the same again.
        """
        try:
            with self._writer.begin() as connection:
                if rows:
                    _put_verdicts(connection, rows)
                return self._acknowledge(connection, given) if given else []
        except SQLAlchemyError as e:
            raise _down(self.shown, e) from e

    def _acknowledge(self, connection: Connection, given: Sequence[Row]) -> list[Ack]:
        last = _lock(connection, "feedback")
        ids = list(dict.fromkeys(g["id"] for g in given))
        known = _by(connection, feedback, "id", ids)
        named = list(dict.fromkeys(g["verdict"] for g in given))
        about = _by(connection, verdicts, "id", named)
        spoken = {row["verdict"] for row in _by(connection, feedback, "verdict", named).values()}
        acks, new = [], []
        for one in given:
            there = known.get(one["id"])
            if there is not None:
                same = all(there[k] == one[k] for k in ("verdict", "unsafe", "source", "reviewer"))
                acks.append(
                    Ack(
                        one["id"], "known", there["sequence"], there["first"], there["propensity"] is not None
                    )
                    if same
                    else Ack(one["id"], "conflict")
                )
                continue
            verdict = about.get(one["verdict"])
            if verdict is None:
                acks.append(Ack(one["id"], "unknown verdict"))
                continue
            last += 1
            row = {
                **{k: one[k] for k in ("id", "verdict", "unsafe", "source", "reviewer", "key")},
                "sequence": last,
                "received": self._clock(),
                "first": one["verdict"] not in spoken,
                "propensity": verdict["propensity"] if verdict["audited"] else None,
                "context": verdict["context"],
                "advice": verdict["advice"],
                "served": verdict["unsafe"],
                "vote": verdict["vote"],
                "flagged": verdict["flagged"],
            }
            spoken.add(one["verdict"])
            known[one["id"]] = row
            new.append(row)
            acks.append(Ack(one["id"], "new", last, row["first"], row["propensity"] is not None))
        if new:
            connection.execute(insert(feedback), new)
            connection.execute(update(counters).where(counters.c.name == "feedback").values(value=last))
        return acks

    def feedback_after(self, sequence: int, most: int = 500) -> list[Row]:
        """Rows of the feedback log after a number, in order."""
        query = (
            select(feedback).where(feedback.c.sequence > sequence).order_by(feedback.c.sequence).limit(most)
        )
        return self.read(query)

    def verdict(self, identity: str) -> Row | None:
        """One row of the verdict log."""
        return next(iter(self.read(select(verdicts).where(verdicts.c.id == identity))), None)

    def audits(self, most: int = 100) -> list[Row]:
        """Verdicts that were drawn for review and have no feedback yet, the oldest first."""
        query = (
            select(verdicts)
            .outerjoin(feedback, feedback.c.verdict == verdicts.c.id)
            .where(and_(verdicts.c.audited, feedback.c.id.is_(None)))
            .order_by(verdicts.c.created)
            .limit(most)
        )
        return self.read(query)

    def counts(self) -> dict[str, int]:
        """Verdicts served and audits drawn, those that were deleted since included; pieces of feedback."""
        number = select(func.count())
        drawn = number.select_from(verdicts).where(verdicts.c.audited)
        query = select(
            (number.select_from(verdicts).scalar_subquery() + _counter("deleted")).label("served"),
            (drawn.scalar_subquery() + _counter("deleted drawn")).label("drawn"),
            number.select_from(feedback).scalar_subquery().label("feedback"),
        )
        return {k: int(v) for k, v in self.read(query)[0].items()}

    def forget(
        self, *, texts_before: float | None = None, verdicts_before: float | None = None, most: int = 1000
    ) -> tuple[int, int]:
        """Take texts away, and delete verdicts, that are older than these times: at most so many of each.

        Feedback stays, and with it what the learner needs. Returns how many texts and verdicts went.

        Raises:
            StoreDownError: nothing was changed, or nobody knows.
        """
        try:
            with self._writer.begin() as connection:
                _lock(connection, "deleted")
                texts, drawn = 0, list[bool]()
                if texts_before is not None:
                    old = _oldest(texts_before, most, verdicts.c.text.is_not(None))
                    texts = connection.execute(update(verdicts).where(old).values(text=None)).rowcount
                if verdicts_before is not None:
                    delete_old = delete(verdicts).where(_oldest(verdicts_before, most))
                    drawn += connection.scalars(delete_old.returning(verdicts.c.audited))
                for name, number in (("deleted", len(drawn)), ("deleted drawn", sum(drawn))):
                    here = update(counters).where(counters.c.name == name)
                    connection.execute(here.values(value=counters.c.value + number))
                return texts, len(drawn)
        except SQLAlchemyError as e:
            raise _down(self.shown, e) from e

    def policy(self) -> Row | None:
        """The policy in force: the latest."""
        query = select(policies).order_by(policies.c.version.desc()).limit(1)
        return next(iter(self.read(query)), None)

    def policy_history(self, most: int = 100) -> list[Row]:
        """Policies, the latest first."""
        return self.read(select(policies).order_by(policies.c.version.desc()).limit(most))

    def put_policy(self, body: Row, *, origin: Literal["file", "api"], key: str) -> Row:
        """Make a policy the one in force, and return its row.

        One from the configuration file that was put before, by this or another replica, is not put again: what was
        changed through the API since stays in force until the file changes.
        """
        digest = value_digest(body)
        try:
            with self._writer.begin() as connection:
                last = _lock(connection, "policies")
                if origin == "file":
                    latest = select(policies).where(policies.c.origin == "file")
                    there = connection.execute(latest.order_by(policies.c.version.desc()).limit(1)).mappings()
                    before = there.first()
                    if before is not None and before["digest"] == digest:
                        newest = select(policies).order_by(policies.c.version.desc()).limit(1)
                        return dict(connection.execute(newest).mappings().one())
                row = {
                    "version": last + 1,
                    "created": self._clock(),
                    "origin": origin,
                    "key": key,
                    "digest": digest,
                    "body": body,
                }
                connection.execute(insert(policies), [row])
                connection.execute(
                    update(counters).where(counters.c.name == "policies").values(value=last + 1)
                )
                return row
        except SQLAlchemyError as e:
            raise _down(self.shown, e) from e

    def read(self, query: Any) -> list[Row]:
        """Rows of a query; raises StoreDownError."""
        try:
            with self._reader.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as e:
            raise _down(self.shown, e) from e


def _lock(connection: Connection, name: str) -> int:
    """The counter's value; nobody else can take it until this transaction ends."""
    assert name in COUNTERS
    touched = update(counters).where(counters.c.name == name).values(value=counters.c.value)
    return int(connection.execute(touched.returning(counters.c.value)).scalar_one())


def _counter(name: str) -> Any:
    return select(counters.c.value).where(counters.c.name == name).scalar_subquery()


def _oldest(before: float, most: int, *conditions: Any) -> Any:
    """Which verdicts are among so many of the oldest from before a time."""
    old = select(verdicts.c.id).where(verdicts.c.created < before, *conditions)
    return verdicts.c.id.in_(old.order_by(verdicts.c.created).limit(most))


def _put_verdicts(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert what is not there yet: rows are written again where nobody knows whether they were."""
    made: Any
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as put

        made = put(verdicts)
    else:
        from sqlalchemy.dialects.sqlite import insert as lite

        made = lite(verdicts)
    connection.execute(made.on_conflict_do_nothing(index_elements=["id"]), list(rows))


def _by(connection: Connection, table: Any, column: str, values: Sequence[str]) -> dict[str, Row]:
    """Rows by the value of a column, 500 at a time; of several with one value the last."""
    found: dict[str, Row] = {}
    for start in range(0, len(values), 500):
        query = select(table).where(table.c[column].in_(values[start : start + 500]))
        found.update((row[column], dict(row)) for row in connection.execute(query).mappings())
    return found


def _down(where: str, error: SQLAlchemyError) -> StoreDownError:
    """Which error it was; its text may quote what was written."""
    cause = getattr(error, "orig", None) or error
    refused = isinstance(error, DBAPIError) and not (
        isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    )
    return StoreDownError(
        f"{where}: the database cannot be used ({type(cause).__name__})",
        remedy="see to the database",
        passing=not refused,
    )
