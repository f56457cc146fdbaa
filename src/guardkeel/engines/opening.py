"""A guard, or a reference and a candidate, opened by the engine that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from guardkeel.engines.settings import EngineSettings
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Guard
from guardkeel.guards.bridge import is_bridge
from guardkeel.guards.embedded import NAME
from guardkeel.guards.guard_policy import read_policy
from guardkeel.guards.kinds import kind_of
from guardkeel.guards.load import guard_path, load_guard
from guardkeel.guards.pair import pair, toggles
from guardkeel.resources import Progress, parse

Role = Literal["reference", "candidate"]


@dataclass(frozen=True)
class Opening:
    """How a process of its own opens a guard. It can be pickled; paths in it are absolute.

    With `against`, an adapter that is switched on over the reference, it is one of two roles.
    """

    reference: str
    against: str | None = None
    role: Role = "reference"
    options: dict[str, Any] = field(default_factory=dict)

    def roles(self) -> Iterator[tuple[str, Guard]]:
        """See guards.pair: each guard is valid until the next is asked for."""
        return pair(self.reference, self.against, **self.options)

    def paths(self) -> list[str]:
        """What must be on the disk of whoever opens it."""
        named = [t.removeprefix("path:") for t in (self.reference, self.against) if t is not None]
        return [text.partition("#sha256=")[0] for text in named if text.startswith(os.sep)]


def open_guard(
    settings: EngineSettings, reference: str, *, progress: Progress | None = None, **options: Any
) -> Guard:
    """A guard by an engine; `options` are those of load_guard.

    Raises:
        ConfigError: the engine is not installed, or cannot run such a guard.
        GuardkeelError: as load_guard.
    """
    kind = kind_of(reference, progress=progress, offline=options.get("offline"))
    if settings.engine == "local" or kind == "server":
        return load_guard(reference, progress=progress, **options)
    if settings.engine == "vllm":
        return _in_vllm(settings, reference, kind, options, progress)
    return _on_ray(settings, opening_of(reference, None, options))


def open_pair(
    settings: EngineSettings,
    reference: str,
    against: str | None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[tuple[str, Guard]]:
    """("reference", guard), then ("candidate", guard) by an engine, as guards.pair does in this process."""
    if settings.engine == "local":
        yield from pair(reference, against, progress=progress, **options)
        return
    yield "reference", open_guard(settings, reference, progress=progress, **options)
    if against is None:
        return
    if settings.engine == "ray" and on_top(reference, against, progress, options.get("offline")):
        yield "candidate", _on_ray(settings, opening_of(reference, against, options, progress))
        return
    yield "candidate", open_guard(settings, against, progress=progress, **options)


def opening_of(
    reference: str, against: str | None, options: dict[str, Any], progress: Progress | None = None
) -> Opening:
    """How a process opens the reference or, where `against` is given, the candidate."""
    said = _portable(options)
    if against is None:
        return Opening(_located(reference), options=said)
    if on_top(reference, against, progress, options.get("offline")):
        return Opening(_located(reference), _located(against), "candidate", said)
    return Opening(_located(against), options=said)


def on_top(
    reference: str, against: str, progress: Progress | None = None, offline: bool | None = None
) -> bool:
    """Whether the candidate is an adapter that is switched on over the reference."""
    if any(kind_of(t, progress=progress, offline=offline) != "checkpoint" for t in (reference, against)):
        return False
    before = guard_path(reference, progress=progress, offline=offline)
    after = guard_path(against, progress=progress, offline=offline)
    return toggles(before, after, progress, offline)


def _on_ray(settings: EngineSettings, opening: Opening) -> Guard:
    from guardkeel.engines.on_ray import RayGuard

    return RayGuard(opening, settings)


def _in_vllm(
    settings: EngineSettings, reference: str, kind: str, options: dict[str, Any], progress: Progress | None
) -> Guard:
    from guardkeel.guards.remote.offline import load_offline

    if options.get("images"):
        raise ConfigError(
            f"{reference}: guards that judge images are not run in vLLM",
            remedy="leave images out, or take --engine local or ray",
        )
    if kind != "checkpoint":  # rules and linear guards have nothing that vLLM could run
        return load_guard(reference, progress=progress, **options)
    return load_offline(reference, arguments=settings.vllm, progress=progress, **options)


def _located(reference: str) -> str:
    """A reference that means the same in another process: a local path made absolute."""
    if reference in (NAME, "keel") or is_bridge(reference):
        return reference
    parsed = parse(reference)
    path = Path(parsed.name).expanduser()
    if parsed.kind != "path" or not path.exists():
        return reference
    return str(replace(parsed, name=str(path.absolute())))


def _portable(options: dict[str, Any]) -> dict[str, Any]:
    """Options that mean the same in another process: a policy's file is read here."""
    policy = options.get("policy")
    return options | ({"policy": read_policy(policy)} if isinstance(policy, str | Path) else {})
