"""Guard families by name, from here and from other packages (entry-point group `guardkeel.families`)."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family
from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3

CLASSIFIER = "classifier"  # any sequence classifier; it has no template
# Whole words of the last part of a name: "/srv/guardkeel/my-llama" is not a keel guard.
_HINTS = {
    "llama-guard-3": re.compile(r"(?<![a-z0-9])llama[-_ ]?guard[-_ ]?3(?![0-9])"),
    "keel": re.compile(r"(?<![a-z0-9])keel(?![a-z0-9])"),
}


@cache
def families() -> dict[str, Family]:
    """Every causal family that is known, by name."""
    known: tuple[Family, ...] = (Keel(), LlamaGuard3())
    found = {family.name: family for family in known}
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
    last = [name.rstrip("/").rpartition("/")[2].lower() for name in names]
    return next((family for family, hint in _HINTS.items() if any(map(hint.search, last))), None)
