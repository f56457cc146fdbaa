"""Who labels: named annotators, each with a link of their own, the key in a cookie that scripts cannot read.

A key is an HMAC of the name under a secret beside the store (mode 0600): links stay the same over restarts, and end all
at once when that file is deleted. A form must come from the page itself: `Sec-Fetch-Site` says so, or the `Origin` is
our own host where a browser does not send it. SameSite=Lax and the lease's token stand behind that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from guardkeel.errors import ConfigError


class Annotators:
    """Those who may come in.

    Args:
        names: who.
        secret: from which their keys are made.
    """

    def __init__(self, names: Iterable[str], secret: bytes) -> None:
        self._keys = {name: self._key(secret, name) for name in names}

    @staticmethod
    def _key(secret: bytes, name: str) -> str:
        return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()[:32]

    def keys(self) -> dict[str, str]:
        """The key of each name."""
        return dict(self._keys)

    def find(self, key: str) -> str | None:
        """Whose key it is; as long for a wrong one as for a right one."""
        given = key.strip().encode()
        found = [name for name, own in self._keys.items() if hmac.compare_digest(own.encode(), given)]
        return found[0] if found else None


def secret_of(path: Path) -> bytes:
    """The secret in a file that nobody else can read, made where it is not there; raises ConfigError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as e:
        raise ConfigError(f"{path}: cannot be made ({e.strerror})", remedy="see to the folder") from e
    else:
        with os.fdopen(handle, "wb") as out:
            out.write(secrets.token_bytes(32))
    try:
        found = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})", remedy="see to the file") from e
    if len(found) < 32:
        raise ConfigError(f"{path}: is no secret of 32 bytes", remedy="delete it; links are made anew")
    return found


def own_form(site: str | None, origin: str, host: str) -> bool:
    """Whether a form comes from the page itself, by three headers of the request."""
    if site is not None:
        return site == "same-origin"
    return bool(urlsplit(origin).netloc) and urlsplit(origin).netloc == host
