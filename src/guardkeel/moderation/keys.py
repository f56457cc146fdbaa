"""API keys: hashed in a file, shown once, with roles.

    gk_<id>_<secret>        43 characters of secret, 256 bits: a plain sha256 of it cannot be searched

The file holds id, name, roles, sha256 and rate of each key, and is read again when it changes: a key that is made or
revoked counts at once, without a restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.errors import ConfigError, DataError
from guardkeel.records import write_json

Role = Literal["moderate", "feedback", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "gk"


class ApiKey(BaseModel):
    """A key as it is kept. `admin` may do everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str = Field(min_length=1, max_length=64)
    roles: tuple[Role, ...] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: str
    requests_per_minute: float | None = Field(default=None, gt=0)

    def may(self, role: Role) -> bool:
        """Whether the key has a role."""
        return role in self.roles or "admin" in self.roles


class KeyFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = Field(default_factory=list)


ANYONE = ApiKey(id="anyone", name="anyone", roles=("admin",), sha256="0" * 64, created="")
"""Who asks a service without keys."""


class Keys:
    """The keys of a file, as it is now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._refresh()

    def find(self, given: str) -> ApiKey | None:
        """The key, or None. Takes the same time for every wrong secret of one id."""
        self._refresh()
        parts = given.split("_", 2)
        if len(parts) != 3 or parts[0] != PREFIX:
            return None
        key = self._keys.get(parts[1])
        said = digest(given)
        right = hmac.compare_digest(said, key.sha256 if key is not None else "0" * 64)
        return key if right else None

    def _refresh(self) -> None:
        """Read the file where it has changed; one that cannot be read now leaves the keys as they were."""
        try:
            stat = self.path.stat()
        except OSError as e:
            if self._stamp is None:
                raise ConfigError(
                    f"{self.path}: cannot be read ({e.strerror})",
                    remedy="make the first key with guardkeel serve key new",
                ) from e
            return
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        with self._lock:
            if stamp == self._stamp:
                return
            try:
                self._keys = {key.id: key for key in read_keys(self.path).keys}
            except DataError:
                if self._stamp is None:
                    raise
            self._stamp = stamp


def digest(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def new_key(path: Path, name: str, roles: tuple[Role, ...], requests_per_minute: float | None = None) -> str:
    """Make a key, keep its hash, and return it: it is shown this once."""
    identity = secrets.token_hex(4)
    secret = f"{PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=identity,
        name=name,
        roles=roles,
        sha256=digest(secret),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        requests_per_minute=requests_per_minute,
    )
    with _locked(path):
        _write(path, KeyFile(keys=[*(read_keys(path).keys if path.exists() else []), key]))
    return secret


def revoke_key(path: Path, identity: str) -> ApiKey:
    """Take a key away; raises ConfigError where there is none of that id."""
    with _locked(path):
        keys = read_keys(path).keys
        found = next((k for k in keys if k.id == identity), None)
        if found is None:
            raise ConfigError(
                f"{path}: no key {identity!r}", remedy="list the keys with guardkeel serve key list"
            )
        _write(path, KeyFile(keys=[k for k in keys if k is not found]))
    return found


def read_keys(path: Path) -> KeyFile:
    """The file; raises DataError where it is none, without showing what it holds."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="make a key with guardkeel serve key new"
        ) from e
    except ValidationError:
        raise DataError(
            f"{path}: is no file of API keys", remedy="make it with guardkeel serve key new"
        ) from None


def _locked(path: Path) -> contextlib.AbstractContextManager[Any]:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def _write(path: Path, file: KeyFile) -> None:
    write_json(path, file.model_dump(mode="json"))
    os.chmod(path, 0o600)  # noqa: PTH101
