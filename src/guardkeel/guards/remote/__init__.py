"""Guards behind a server, given as a small TOML file: what to ask, where, how often, and how to read the answer."""

from __future__ import annotations

from guardkeel.guards.remote.config import RemoteConfig, is_server, read_remote
from guardkeel.guards.remote.guard import RemoteGuard, load_remote, stated

__all__ = ["RemoteConfig", "RemoteGuard", "is_server", "load_remote", "read_remote", "stated"]
