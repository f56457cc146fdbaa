"""Every vote that was ever given, in one SQLite file: what was asked once is not asked, or paid for, again.

A vote is kept under who gave it (a digest of all that the verdict follows from) and what it is of (a digest of side
and messages), as soon as it arrived, so that a kill loses at most the answers that were on their way (write-ahead log;
only a power cut can lose the last moments too). The same conversation in another row, source or run is the same item.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock

from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.base import Verdict

_TABLE = """
CREATE TABLE IF NOT EXISTS votes (
    juror TEXT NOT NULL, item TEXT NOT NULL, unsafe REAL, reason TEXT NOT NULL, categories TEXT NOT NULL,
    dropped INTEGER NOT NULL, bytes INTEGER NOT NULL, input INTEGER, output INTEGER, seconds REAL,
    PRIMARY KEY (juror, item)
) WITHOUT ROWID
"""
_THRESHOLDS = "CREATE TABLE IF NOT EXISTS thresholds (juror TEXT PRIMARY KEY, threshold REAL NOT NULL)"
_PUT = "INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_GET = "SELECT unsafe, reason, categories, dropped FROM votes WHERE juror = ? AND item = ?"


MEMORY = Path(":memory:")
"""A cache that is gone when it is closed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A verdict, and what it took: bytes sent (0 where nothing was), tokens where the server counted them, seconds."""

    verdict: Verdict
    bytes: int = 0
    input: int | None = None
    output: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a juror's votes took so far. Sums are over the votes for which they are known."""

    votes: int
    bytes: int = 0
    input: int = 0
    output: int = 0
    seconds: float = 0.0


class VoteCache:
    """See the module's text. One process at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = filelock.FileLock(f"{self.path}.lock")
        try:
            if self.path != MEMORY:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE)
            self._db.execute(_THRESHOLDS)
        except filelock.Timeout as e:
            raise RunError(
                f"{self.path}: another process is asking jurors with this file",
                remedy="wait for it, or name another file as jury.cache",
            ) from e
        except (OSError, sqlite3.Error) as e:
            self._lock.release()
            raise ConfigError(
                f"{self.path}: cannot keep votes ({e})", remedy="name another file as jury.cache"
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._db.close()
        self._lock.release()

    def put(self, juror: str, given: Iterable[tuple[str, Kept]]) -> None:
        """Keep votes, all or none of them, for good. One that is there already stays as it was."""
        rows = [
            (
                juror,
                item,
                k.verdict.unsafe,
                k.verdict.unscored,
                json.dumps(list(k.verdict.categories)),
                k.verdict.dropped,
                k.bytes,
                k.input,
                k.output,
                k.seconds,
            )
            for item, k in given
        ]
        self._db.execute("BEGIN")
        self._db.executemany(_PUT, rows)
        self._db.execute("COMMIT")

    def get(self, juror: str, items: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts that there are, by item."""
        found: dict[str, Verdict] = {}
        for item in items:
            row = self._db.execute(_GET, (juror, item)).fetchone()
            if row is not None:
                found[item] = Verdict(row[0], row[1], tuple(json.loads(row[2])), row[3])
        return found

    def remember(self, juror: str, threshold: float) -> None:
        """Keep a juror's own threshold, so that its votes can be counted without loading it."""
        self._db.execute("INSERT OR REPLACE INTO thresholds VALUES (?, ?)", (juror, threshold))

    def threshold(self, juror: str, otherwise: float) -> float:
        """The threshold that was kept, if any."""
        row = self._db.execute("SELECT threshold FROM thresholds WHERE juror = ?", (juror,)).fetchone()
        return otherwise if row is None else float(row[0])

    def usage(self, juror: str) -> Usage:
        """What a juror's votes took: those that were asked of a server and say how many tokens they were."""
        row = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(bytes), 0), COALESCE(SUM(input), 0), COALESCE(SUM(output), 0), "
            "COALESCE(SUM(seconds), 0) FROM votes WHERE juror = ? AND bytes > 0 AND input IS NOT NULL",
            (juror,),
        ).fetchone()
        return Usage(*row)
