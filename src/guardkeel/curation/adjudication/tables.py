"""The tables of an adjudication, in one SQLite file.

`log` is what counts: who said what, when, about which item; taking it back is a record of its own. Triggers refuse to
change or delete a record. `standing` (what of it holds now) and the counts of `items` follow from the log and are
written in the same transaction; the key of `standing` keeps anybody from labelling an item twice. Times are seconds
since 1970.

WAL mode with synchronous = FULL: what was committed survives the process and the power. Writers begin IMMEDIATE, so
they come one after another, and none fails half-way.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    DDL,
    JSON,
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
    event,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from guardkeel.databases import sqlite_engine
from guardkeel.errors import ConfigError

VERSION = 1
"""Of the schema, as PRAGMA user_version has it."""

metadata = MetaData()

items = Table(
    "items",
    metadata,
    Column("key", String(40), primary_key=True),
    Column("row", Text, nullable=False),
    Column("side", String(16), nullable=False),
    Column("source", Text, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("votes", JSON, nullable=False),
    Column("label", JSON, nullable=False),  # of the jury: label, source, scores
    Column("reasons", JSON, nullable=False),
    Column("information", Double, nullable=False),
    Column("audit", Boolean, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("rank", Double, nullable=False),
    Column("queued", Boolean, nullable=False),
    Column("given", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("open", Boolean, nullable=False),  # queued and given < wanted
    Index("items_open", "open", "rank", "key"),
    Index("items_queued", "queued", "open"),
)

log = Table(
    "log",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("item", String(40), nullable=False, index=True),
    Column("annotator", String(64), nullable=False),
    Column("kind", String(8), nullable=False),  # label, skip or undo
    Column("choice", String(8)),
    Column("categories", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("seconds", Double),  # since the item was taken
    Column("undoes", String(64), unique=True),  # the id of what is taken back, once
    Column("blind", Boolean, nullable=False),
    # The item as it stood, so that the log can be read without it.
    Column("row", Text, nullable=False),
    Column("side", String(16), nullable=False),
    Column("audit", Boolean, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("reasons", JSON, nullable=False),
    sqlite_autoincrement=True,
)

standing = Table(
    "standing",
    metadata,
    Column("item", String(40), primary_key=True),
    Column("annotator", String(64), primary_key=True),
    Column("sequence", Integer, nullable=False, unique=True),
    Column("kind", String(8), nullable=False),
    Index("standing_by", "annotator", "kind", "sequence"),
)

leases = Table(
    "leases",
    metadata,
    Column("annotator", String(64), primary_key=True),
    Column("item", String(40), nullable=False, index=True),
    Column("token", String(64), nullable=False, unique=True),
    Column("taken", Double, nullable=False),
    Column("expires", Double, nullable=False),
)

rules = Table(
    "rules",
    metadata,
    Column("only", Integer, primary_key=True),
    Column("people", Integer, nullable=False),
    Column("strictness", String(16), nullable=False),
)

for _what in ("UPDATE", "DELETE"):
    event.listen(
        log,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER log_no_{_what.lower()} BEFORE {_what} ON log "
            "BEGIN SELECT RAISE(ABORT, 'the log is only added to'); END"
        ),
    )


def opened(path: Path, *, create: bool) -> tuple[Engine, Engine]:
    """The file, to write and to read.

    Raises:
        ConfigError: it is not there and is not to be made, cannot be used, or is of another version.
    """
    if not create and not path.exists():
        raise ConfigError(
            f"{path}: no adjudication there",
            remedy="run guardkeel curate with [adjudicate] first: it makes the queue, and holds for people",
        )
    writer, reader = _engine(path, "IMMEDIATE", 1), _engine(path, "DEFERRED", 4)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writer.begin() as connection:
            version = int(connection.execute(text("PRAGMA user_version")).scalar_one())
            if version == 0:
                metadata.create_all(connection)
                connection.execute(text(f"PRAGMA user_version = {VERSION}"))
    except (OSError, SQLAlchemyError) as e:
        cause = getattr(e, "orig", None) or e
        raise ConfigError(
            f"{path}: cannot keep decisions ({cause})", remedy="name another adjudicate.file"
        ) from e
    if version not in (0, VERSION):
        raise ConfigError(
            f"{path}: has schema {version}, this guardkeel knows {VERSION}", remedy="update guardkeel"
        )
    return writer, reader


def _engine(path: Path, begin: str, pool: int) -> Engine:
    url = URL.create("sqlite", database=str(path))
    return sqlite_engine(url, f"BEGIN {begin}", pool_size=pool, max_overflow=pool)
