"""The store of a chain, in SQLite (WAL) or PostgreSQL.

An append is one transaction that holds the writers' lock from reading the last entry to the commit: BEGIN IMMEDIATE in
SQLite, an advisory lock in PostgreSQL. So writers take turns, what `append` returns has been committed, and a process
that is killed in the middle leaves nothing. Times are the store's clock, never before the last entry's: a clock that is
behind by more than `SKEW` seconds is refused, by less it waits at the last entry's time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from guardkeel.databases import shown
from guardkeel.dossier import chain, dsse, tables
from guardkeel.dossier.canonical import canonical, loads
from guardkeel.dossier.chain import Entry
from guardkeel.dossier.kinds import Record, body_of, moment
from guardkeel.errors import DataError, RunError

MIGRATIONS = Path(__file__).parent / "migrations"
SKEW = 300.0
MOST_BYTES = 1 << 20
_LOCK = 0x646F_7373  # "doss", of the advisory lock under which PostgreSQL is written


class Store:
    """See above.

    Args:
        url: SQLAlchemy's.
        clock: the time now, with its offset.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = tables.engine(url)
        self.shown = shown(url)
        self.clock = clock

    def migrate(self) -> None:
        """Bring the schema up to this version; of several processes that start at once one does it.

        Raises:
            RunError: the database cannot be used, or is of a later version.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self._writing() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as e:
            raise RunError(
                f"{self.shown}: its schema is not known to this version", remedy="update guardkeel"
            ) from e
        except SQLAlchemyError as e:
            raise self._down(e) from e

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def append(self, records: Sequence[Record], catch_up: Callable[[Sequence[Entry]], None], after: int,
               admit: Callable[[Record, datetime, Entry], None]) -> list[Entry]:  # fmt: skip
        """Put records at the end, all or none.

        Args:
            records: in order.
            catch_up: is given what others wrote after entry `after`, before anything is admitted.
            after: the last entry that the caller knows.
            admit: is asked for every record, under the lock; raises to refuse it, and everything with it.

        Raises:
            DataError: a record beyond 1 MiB.
            RunError: the database cannot be used, or the clock is behind; nothing was written.
        """
        try:
            with self._writing() as connection:
                news = list(_read(connection, after))
                catch_up(news)
                query = select(tables.entries.c.sequence, tables.entries.c.hash, tables.entries.c.at)
                row = connection.execute(query.order_by(tables.entries.c.sequence.desc()).limit(1)).first()
                number, previous, at = (0, chain.GENESIS, "") if row is None else (row[0], row[1], row[2])
                now = self._now(at)
                made = []
                for record in records:
                    number += 1
                    body = body_of(record)
                    entry = chain.sealed(
                        number, previous, record.kind, record.id, moment(now), body, secrets.token_hex(16)
                    )
                    admit(record, now, entry)
                    connection.execute(insert(tables.entries).values(**_row(entry)))
                    previous = entry.hash
                    made.append(entry)
                return made
        except SQLAlchemyError as e:
            raise self._down(e) from e

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Entries after a number, in order, as they stand in the table."""
        try:
            with self._engine.connect() as connection:
                yield from _read(connection, after)
        except SQLAlchemyError as e:
            raise self._down(e) from e

    def heads(self) -> list[dsse.Envelope]:
        """Signed heads, the oldest first."""
        try:
            with self._engine.connect() as connection:
                found = connection.execute(select(tables.heads.c.envelope).order_by(tables.heads.c.number))
                return [json.loads(one) for one in found.scalars()]
        except SQLAlchemyError as e:
            raise self._down(e) from e
        except ValueError as e:
            raise DataError(
                f"{self.shown}: a head in it is no JSON", remedy="restore the store from a copy"
            ) from e

    def keep(self, envelope: dsse.Envelope, sequence: int) -> None:
        """Keep a signed head."""
        try:
            with self._writing() as connection:
                said = {"sequence": sequence, "envelope": canonical(envelope).decode()}
                connection.execute(insert(tables.heads).values(**said))
        except SQLAlchemyError as e:
            raise self._down(e) from e

    def _writing(self) -> Any:
        return _Writing(self._engine)

    def _now(self, last: str) -> datetime:
        now = self.clock().astimezone(UTC)
        if not last:
            return now
        before = datetime.fromisoformat(last)
        behind = (before - now).total_seconds()
        if behind > SKEW:
            raise RunError(
                f"{self.shown}: the last entry is of {last}, {timedelta(seconds=round(behind))} from now: "
                "this machine's clock is behind, or the one that wrote it was ahead",
                remedy="set the clock right; if the other one was ahead, wait until then",
            )
        return max(now, before)

    def _down(self, error: SQLAlchemyError) -> RunError:
        """Which error it was; its own text may quote what was written."""
        cause = getattr(error, "orig", None) or error
        return RunError(
            f"{self.shown}: the database cannot be used ({type(cause).__name__})",
            remedy="see to the database; nothing was written",
        )


class _Writing:
    """A transaction that no other writer can be in."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine.execution_options(writes=True)

    def __enter__(self) -> Connection:
        self._began = self._engine.begin()
        connection: Connection = self._began.__enter__()
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        return connection

    def __exit__(self, *error: Any) -> None:
        self._began.__exit__(*error)


def _row(entry: Entry) -> dict[str, Any]:
    body = canonical(dict(entry.body))
    if len(body) > MOST_BYTES:
        raise DataError(
            f"{entry.kind} {entry.id!r}: {len(body):,} bytes; the limit is {MOST_BYTES:,}",
            remedy="keep it in a file of a run directory: files are held by digest, of any size",
        )
    fields = ("sequence", "previous", "hash", "kind", "id", "at", "salt")
    return {name: getattr(entry, name) for name in fields} | {"body": body.decode()}


def _read(connection: Connection, after: int) -> Iterator[Entry]:
    query = (
        select(tables.entries).where(tables.entries.c.sequence > after).order_by(tables.entries.c.sequence)
    )
    for row in connection.execute(query, execution_options={"yield_per": 1000}).mappings():
        said = dict(row)
        raw = said.pop("body")
        try:
            body = loads(raw)
        except ValueError:
            body = {}
        yield Entry(**said, body=body if isinstance(body, dict) else {}, text=raw)
