"""Guard families by name, from here and from other packages (entry-point group `guardkeel.families`)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family
from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3

CLASSIFIER = "classifier"  # any sequence classifier; it has no template
_HINTS = {"llama-guard-3": ("llama-guard-3", "llamaguard-3", "llama_guard_3"), "keel": ("keel",)}


@cache
def families() -> dict[str, Family]:
    """Every causal family that is known, by name."""
    found: dict[str, Family] = {f.name: f for f in (Keel(), LlamaGuard3())}
    for entry in sorted(entry_points(group="guardkeel.families"), key=lambda e: e.name):
        family: Any = entry.load()
        found[entry.name] = family() if isinstance(family, type) else family
    return found


def family_named(name: str) -> Family:
    """The family of that name; raises ConfigError listing what there is."""
    try:
        return families()[name]
    except KeyError:
        raise ConfigError(
            f"unknown guard family {name!r}", remedy=f"families are {', '.join([*families(), CLASSIFIER])}"
        ) from None


def guess(*names: str) -> str | None:
    """The family that a repository or folder name speaks of, or None."""
    text = " ".join(names).lower()
    return next((family for family, hints in _HINTS.items() if any(h in text for h in hints)), None)
