"""The two tables of a dossier, and the engine over them.

`entries` is append-only: triggers refuse updates and deletions, so that a slip of a hand ends in an error. They do not
stop who owns the database; the chain shows what such a one did.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from guardkeel.databases import sqlite_engine
from guardkeel.errors import ConfigError

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("id", String(200), nullable=False),
    Column("at", String(32), nullable=False),
    Column("salt", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Index("entries_kind_id", "kind", "id"),
)

heads = Table(
    "heads",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("envelope", Text, nullable=False),
)


def engine(url: str) -> Engine:
    """An engine; ConfigError where the URL is none, or of a database that is not served here."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError as e:
        raise ConfigError(
            "the store's URL is no SQLAlchemy URL", remedy="for example sqlite:///dossier.db"
        ) from e
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("the store's URL names no file", remedy="write sqlite:///dossier.db")
        return sqlite_engine(url, _begin)
    if backend != "postgresql":
        raise ConfigError(f"{backend} is not served", remedy="use sqlite or postgresql+psycopg")
    try:
        return create_engine(
            url, pool_size=2, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 5}
        )
    except ImportError as e:
        raise ConfigError(
            f"the driver {parsed.drivername} is not installed",
            remedy="pip install 'guardkeel[postgres]' and write postgresql+psycopg://…",
        ) from e


def _begin(connection: Connection) -> str:
    return "BEGIN IMMEDIATE" if connection.get_execution_options().get("writes", False) else "BEGIN"
