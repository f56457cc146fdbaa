"""A reference and a candidate, opened one after the other; an adapter is put on the loaded reference."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def pair(reference: str, against: str | None, **options: Any) -> Iterator[tuple[str, AnyGuard]]:
    """("reference", guard), then ("candidate", guard). Each is valid until the next is asked for.

    `options` are those of load_guard and hold for both.
    """
    progress, offline = options.get("progress"), options.get("offline")
    guard: AnyGuard | None = load_guard(reference, **options)
    assert guard is not None
    if against is None:
        yield "reference", guard
        return
    before = guard_path(reference, progress=progress, offline=offline)
    after = guard_path(against, progress=progress, offline=offline)
    toggled = toggles(before, after, progress, offline)
    if toggled:
        with with_adapter(guard, after):
            pass  # an adapter that does not fit is found out before the reference is scored
    yield "reference", guard
    if toggled:
        with with_adapter(guard, after) as tuned:
            if options.get("threshold") is not None:  # what the user says holds for both
                tuned.threshold = options["threshold"]
            yield "candidate", tuned
        return
    guard = None
    gc.collect()  # the caller may still hold it; what can go, goes before two are loaded
    yield "candidate", load_guard(against, **options)
