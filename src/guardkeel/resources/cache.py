"""Where fetched and converted things are kept, whether the network may be used, locks between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from guardkeel.errors import ResourceError

Progress = Callable[[str, int, int | None], None]
"""Called with (what, done, total); total is None when unknown. Bytes, unless `what` says otherwise."""

_TRUE = {"1", "true", "yes", "on"}


def cache_dir() -> Path:
    """The cache folder: GUARDKEEL_CACHE, else `guardkeel` in the user's cache. It may not exist yet."""
    chosen = os.environ.get("GUARDKEEL_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("guardkeel", appauthor=False))


def is_offline(offline: bool | None = None) -> bool:
    """Whether the network is off: the argument, else GUARDKEEL_OFFLINE or HF_HUB_OFFLINE."""
    if offline is not None:
        return offline
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE"))


@contextlib.contextmanager
def lock(target: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock that belongs to `target` among all processes that share the cache.

    The operating system drops it when its holder dies, however it dies.
    """
    import filelock

    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError(
            f"{cache_dir()}: the cache folder cannot be written ({e.strerror or e})",
            remedy="set GUARDKEEL_CACHE to a folder that can be",
        ) from e
    name = hashlib.sha256(str(target.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    guard = filelock.FileLock(folder / f"{name}.lock")
    try:
        guard.acquire(timeout=0)
    except filelock.Timeout:
        if progress:
            progress(f"wait for another process that prepares {target.name}", 0, None)
        guard.acquire()
    try:
        yield
    finally:
        guard.release()
