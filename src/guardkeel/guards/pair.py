"""A reference and a candidate, opened one after the other; an adapter is put on the loaded reference."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.guards.base import Guard
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.kinds import kind_of
from guardkeel.guards.load import AnyGuard, base_path, guard_path, load_guard, with_adapter
from guardkeel.models.adapters import adapter_base, is_adapter
from guardkeel.resources import Progress


def toggles(
    reference: Path, candidate: Path, progress: Progress | None = None, offline: bool | None = None
) -> bool:
    """Whether the candidate is an adapter that sits on the reference (or does not say on what)."""
    if not is_adapter(candidate) or is_adapter(reference):
        return False
    return (
        not adapter_base(candidate)
        or base_path(candidate, progress, offline).resolve() == reference.resolve()
    )


def pair(reference: str, against: str | None, **options: Any) -> Iterator[tuple[str, Guard]]:
    """("reference", guard), then ("candidate", guard). Each is valid until the next is asked for.

    `options` are those of load_guard and hold for both. Either may be of any kind: a server, a rule list, ….
    """
    guard = load_guard(reference, **options)
    if against is None:
        yield "reference", guard
        return
    adapter = _on_top(reference, against, options.get("progress"), options.get("offline"))
    if adapter is None:
        yield "reference", guard
        del guard
        gc.collect()  # the caller may still hold it; what can go, goes before two are loaded
        yield "candidate", load_guard(against, **options)
        return
    assert isinstance(guard, AnyGuard)
    with with_adapter(guard, adapter):
        pass  # an adapter that does not fit is found out before the reference is scored
    yield "reference", guard
    grammar = guard.grammar if isinstance(guard, CausalGuard) else None
    with with_adapter(guard, adapter) as tuned:
        if options.get("threshold") is not None:  # what the user says holds for both
            tuned.threshold = options["threshold"]
        if options.get("policy") is not None and isinstance(tuned, CausalGuard) and grammar is not None:
            tuned.grammar = grammar
        yield "candidate", tuned


def _on_top(reference: str, against: str, progress: Progress | None, offline: bool | None) -> Path | None:
    """The candidate's folder where it is an adapter that sits on the reference."""
    if any(
        kind_of(text, progress=progress, offline=offline) != "checkpoint" for text in (reference, against)
    ):
        return None
    before = guard_path(reference, progress=progress, offline=offline)
    after = guard_path(against, progress=progress, offline=offline)
    return after if toggles(before, after, progress, offline) else None
