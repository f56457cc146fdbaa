"""A dossier: a folder that names its store, the records in it, and the rules on the way in.

    dossier.toml   title, store, key
    dossier.db     the store, unless it is a PostgreSQL

`record` is the only way in. It takes records all or none, skips those that are there already word for word, and asks
`rules.admit` under the writers' lock.
"""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from guardkeel.dossier import dsse, heads
from guardkeel.dossier.chain import Entry
from guardkeel.dossier.heads import Head
from guardkeel.dossier.kinds import Opening, Record, body_of, moment
from guardkeel.dossier.rules import admit
from guardkeel.dossier.state import State
from guardkeel.dossier.store import Store
from guardkeel.errors import ConfigError
from guardkeel.records import toml_text, write_text

FILE = "dossier.toml"
KEY = "dossier.key"
ENVIRONMENT = "GUARDKEEL_ACTOR"
Clock = Callable[[], datetime]


class Settings(BaseModel):
    """dossier.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    store: str = "sqlite:///dossier.db"
    key: str = ""


def actor(given: str | None = None) -> str:
    """Who acts: as given, or GUARDKEEL_ACTOR, or the login name."""
    return given or os.environ.get(ENVIRONMENT) or getpass.getuser()


class Dossier:
    """See above. `with open_dossier(folder) as dossier:` closes the store in the end."""

    def __init__(self, folder: Path, settings: Settings, store: Store) -> None:
        self.folder, self.settings, self.store = folder, settings, store
        self._state: State | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()

    @property
    def state(self) -> State:
        """What the chain says, as of the last call of `refresh` or `record`."""
        if self._state is None:
            self._state = State(self.store.entries())
        return self._state

    def refresh(self) -> State:
        """The state with what others have written since."""
        state = self.state
        for entry in self.store.entries(state.last):
            state.take(entry)
        return state

    @property
    def now(self) -> datetime:
        """The store's clock."""
        return self.store.clock().astimezone(UTC)

    def record(self, records: Iterable[Record], by: str) -> list[Entry]:
        """Put records in, all or none, and return the entries that were made; what is there already is left out.

        Raises:
            RuleError: a rule refuses one of them.
            RunError: the store cannot be used.
        """
        state = self.state
        wanted = [r if r.by else r.model_copy(update={"by": by}) for r in records]
        news = list(self._new(state, wanted))
        if not news:
            return []

        def catch_up(entries: Sequence[Entry]) -> None:
            for entry in entries:
                state.take(entry)

        def ask(record: Record, now: datetime, entry: Entry) -> None:
            admit(state, record, now)
            state.take(entry, record)

        try:
            return self.store.append(news, catch_up, state.last, ask)
        except BaseException:
            self._state = None  # it may hold what was not committed
            raise

    @staticmethod
    def _new(state: State, records: Iterable[Record]) -> Iterable[Record]:
        pending: dict[tuple[str, str], Record] = {}
        for record in records:
            there = pending.get((record.kind, record.id)) or state.find(type(record), record.id)
            if there is None or _said(there) != _said(record):
                pending[record.kind, record.id] = record
                yield record

    def sign(self, key: Path | None = None) -> Head | None:
        """Sign the head of the chain, unless it is signed; None where there is no key or nothing new."""
        path = key or self.key
        entries = self.refresh().all
        if path is None or not entries:
            return None
        last = entries[-1].entry
        if any(h.sequence == last.sequence for h in self.signed()):
            return None
        head = Head(entries[0].entry.hash, last.sequence, last.hash, moment(self.now))
        self.store.keep(heads.signed(head, dsse.private_key(path)), last.sequence)
        return head

    def signed(self) -> list[Head]:
        """Heads in the store that keys of the dossier have signed."""
        opening = self.state.all[0].record if self.state.all else None
        keys = [dsse.public_key(p, "the dossier") for p in opening.keys.values()] if opening else []
        return [heads.read(e, keys, self.store.shown) for e in self.store.heads()] if keys else []

    @property
    def key(self) -> Path | None:
        """The private key that signs heads here, where there is one."""
        path = self.folder / self.settings.key if self.settings.key else None
        return path if path is not None and path.is_file() else None


def _said(record: Record) -> dict[str, object]:
    """What a record says, whoever wrote it."""
    return {k: v for k, v in body_of(record).items() if k != "by"}


def create(
    folder: Path,
    title: str,
    by: str,
    *,
    purpose: str = "",
    store: str = "",
    key: Path | None = None,
    sign: bool = True,
    clock: Clock | None = None,
) -> Dossier:
    """Make a dossier in a folder and open it.

    Args:
        folder: made where it is not there; one that has a dossier is refused.
        title: what it is about.
        by: who makes it.
        purpose: a sentence.
        store: SQLAlchemy URL, `env:NAME` for one from the environment; default a SQLite file in the folder.
        key: a private key that is there; without it one is made in the folder.
        sign: without it there is no key, and a chain cut off at its end cannot be told.
        clock: for tests.
    """
    if (folder / FILE).exists():
        raise ConfigError(f"{folder}: has a dossier", remedy="choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    named, keys = "", {}
    if sign:
        path = key or dsse.new_key(folder / KEY)[0]
        public = dsse.private_key(path).public_key()
        keys = {dsse.key_id(public): dsse.pem(public)}
        named = KEY if key is None else str(key.resolve())
    settings = Settings(title=title, key=named, **({"store": store} if store else {}))
    write_text(folder / FILE, toml_text(settings.model_dump()))
    made = _opened(folder, settings, clock)
    made.store.migrate()
    if made.state.last:
        raise ConfigError(f"{made.store.shown}: holds a dossier", remedy="name another database or schema")
    made.record([Opening(id="dossier", title=title, purpose=purpose, keys=keys)], by)
    made.sign()
    return made


def open_dossier(folder: Path, clock: Clock | None = None) -> Dossier:
    """Open the dossier in a folder; ConfigError where there is none."""
    path = folder / FILE
    try:
        settings = Settings.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError as e:
        raise ConfigError(
            f"{folder}: has no dossier", remedy="guardkeel dossier init FOLDER makes one"
        ) from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as e:
        raise ConfigError(f"{path}: not as `dossier init` writes it", remedy="restore it from a copy") from e
    found = _opened(folder, settings, clock)
    found.store.migrate()
    return found


def _opened(folder: Path, settings: Settings, clock: Clock | None) -> Dossier:
    url = settings.store
    if url.startswith("env:"):
        name = url.removeprefix("env:")
        if not os.environ.get(name):
            raise ConfigError(f"{folder / FILE}: {name} is not set", remedy=f"set {name} to the store's URL")
        url = os.environ[name]
    short = "sqlite:///"
    if url.startswith(short) and not Path(url.removeprefix(short)).is_absolute():
        url = f"{short}{(folder / url.removeprefix(short)).resolve()}"
    return Dossier(folder, settings, Store(url, clock) if clock else Store(url))
