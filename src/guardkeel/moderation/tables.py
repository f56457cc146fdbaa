"""The tables of the store, and its engines.

Times are seconds since 1970, for people; nothing is ordered by them. Feedback is ordered by `sequence`, which is given
out under a lock on the `counters` row until the commit: numbers rise in the order of commits and have no gaps, so
reading on from the last one that was seen misses nothing.

SQLite runs in WAL mode with synchronous = FULL: what was committed survives the process and the power. Writers begin
IMMEDIATE, so that a transaction never fails half-way for want of the lock. What is deleted is overwritten.

On PostgreSQL a replica that freezes while it holds the counter would hold up all others: a transaction that stands
still for PATIENCE seconds is ended by the server, and one that waits as long for a lock fails and is tried again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
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

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False),
    Column("request", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("side", String(16), nullable=False),
    Column("language", String(8), nullable=False),
    Column("context", JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("text", Text),
    Column("policy", String(64), nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("strictness", String(16), nullable=False),
    Column("unsafe", Double),
    Column("flagged", Boolean, nullable=False),
    Column("unscored", Text, nullable=False),
    Column("disagreement", Double, nullable=False),
    Column("vote", Double, nullable=False),
    Column("weights_version", BigInteger, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("audited", Boolean, nullable=False),
    Column("advice", JSON, nullable=False),
    Column("weights", JSON, nullable=False),
    Column("opinions", JSON, nullable=False),
    Column("categories", JSON, nullable=False),
    Column("windows", Integer, nullable=False),
    Column("seconds", Double, nullable=False),
    Index("verdicts_created", "created"),
    Index("verdicts_audited", "audited", "created"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(128), nullable=False, unique=True),
    Column("verdict", String(64), nullable=False, index=True),
    Column("unsafe", Boolean, nullable=False),
    Column("source", String(16), nullable=False),
    Column("reviewer", String(128), nullable=False),
    Column("received", Double, nullable=False),
    Column("key", String(64), nullable=False),
    # What the learner needs, as it was when the item was served: the log alone gives the weights.
    Column("first", Boolean, nullable=False),
    Column("propensity", Double),
    Column("context", JSON, nullable=False),
    Column("advice", JSON, nullable=False),
    Column("served", Double),
    Column("vote", Double, nullable=False),
    Column("flagged", Boolean, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created", Double, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("key", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("body", JSON, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

COUNTERS = ("feedback", "policies", "deleted", "deleted drawn")
"""The last numbers given out, and how many verdicts (and of those drawn for review) were deleted for their age."""
PATIENCE = 10.0


def engines(url: str) -> tuple[Engine, Engine]:
    """One to write with, one to read with.

    Raises:
        ConfigError: the URL is none, or of a database that is not served here.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError as e:
        raise ConfigError(
            "store.url is not a SQLAlchemy URL", remedy="for example sqlite:///moderation.db"
        ) from e
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(
                "store.url names no file", remedy="write sqlite:///moderation.db; memory keeps nothing"
            )
        return _sqlite(url, "IMMEDIATE", 1), _sqlite(url, "DEFERRED", 4)
    if backend != "postgresql":
        raise ConfigError(f"store.url: {backend} is not served", remedy="use sqlite or postgresql+psycopg")
    try:
        ms = round(1000 * PATIENCE)
        waits = f"-c lock_timeout={ms} -c idle_in_transaction_session_timeout={ms}"
        connect = {"connect_timeout": 5, "tcp_user_timeout": ms, "keepalives_idle": 15, "options": waits}
        options: dict[str, Any] = {
            "pool_pre_ping": True,
            "connect_args": {k: v for k, v in connect.items() if k not in parsed.query},
            "hide_parameters": True,
        }
        return create_engine(url, pool_size=1, max_overflow=1, **options), create_engine(
            url, pool_size=4, max_overflow=4, **options
        )
    except ImportError as e:
        raise ConfigError(
            f"store.url: the driver {parsed.drivername} is not installed",
            remedy="pip install 'guardkeel[postgres]' and write postgresql+psycopg://…",
        ) from e


def _sqlite(url: str, begin: str, pool: int) -> Engine:
    # What retention deletes is overwritten.
    return sqlite_engine(
        url, f"BEGIN {begin}", pragmas=("secure_delete = ON",), pool_size=pool, max_overflow=pool
    )
