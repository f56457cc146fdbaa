"""SQLite as every store here wants it: on the disk before it is acknowledged, in transactions of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url

_LASTING = ("journal_mode = WAL", "synchronous = FULL")


def sqlite_engine(
    url: str | URL, begin: str | Callable[[Connection], str], *, pragmas: tuple[str, ...] = (), **options: Any
) -> Engine:
    """An engine of a SQLite file.

    Args:
        url: of the file.
        begin: what a transaction begins with, as "BEGIN IMMEDIATE", always or by its connection.
        pragmas: of each connection, besides those that make commits last.
        options: of create_engine.
    """
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": 30.0, "check_same_thread": False}, **options
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself
        for pragma in (*_LASTING, *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin if isinstance(begin, str) else begin(connection))

    return engine


def shown(url: str) -> str:
    """A URL without its password."""
    return make_url(url).render_as_string(hide_password=True)
