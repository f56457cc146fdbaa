"""Guard families by name, from here and from other packages (entry-point group `guardkeel.families`)."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.aegis import Aegis, AegisPermissive
from guardkeel.guards.base import Family
from guardkeel.guards.granite_guardian import GraniteGuardian3, GraniteGuardian33
from guardkeel.guards.keel import Keel
from guardkeel.guards.keel_policy import KeelPolicy
from guardkeel.guards.llama_guard import (
    LlamaGuard1,
    LlamaGuard2,
    LlamaGuard3,
    LlamaGuard3Small,
    LlamaGuard4,
)
from guardkeel.guards.nemoguard import NemoGuard
from guardkeel.guards.polyguard import PolyGuard
from guardkeel.guards.qwen3guard import Qwen3Guard
from guardkeel.guards.shieldgemma import ShieldGemma
from guardkeel.guards.wildguard import WildGuard

CLASSIFIER = "classifier"  # any sequence classifier; it has no template
# Whole words of the last part of a name: "/srv/guardkeel/my-llama" is not a keel guard. The first that fits counts.
_LLAMA_GUARD = r"(?<![a-z0-9])llama[-_ ]?guard[-_ ]?"
_HINTS = {
    "aegis-permissive": re.compile(r"(?<![a-z0-9])aegis(?![a-z0-9]).*permissive"),
    "aegis": re.compile(r"(?<![a-z0-9])aegis(?![a-z0-9])"),
    "nemoguard": re.compile(r"nemo[-_ ]?guard.*content[-_ ]?safety|nemotron[-_ ]safety[-_ ]guard"),
    "llama-guard-3-1b": re.compile(_LLAMA_GUARD + r"3[-_ ]?(?:1b|11b)(?![a-z0-9])"),
    "llama-guard-2": re.compile(_LLAMA_GUARD + r"2(?![0-9])"),
    "llama-guard-3": re.compile(_LLAMA_GUARD + r"3(?![0-9])"),
    "llama-guard-4": re.compile(_LLAMA_GUARD + r"4(?![0-9])"),
    "llama-guard-1": re.compile(_LLAMA_GUARD + r"(?:7b|1)(?![a-z0-9])"),
    "wildguard": re.compile(r"(?<![a-z0-9])wild[-_ ]?guard(?![a-z0-9])"),
    "granite-guardian-3.3": re.compile(r"(?<![a-z0-9])granite[-_ ]?guardian[-_ ]?3[._-]3(?![0-9])"),
    "granite-guardian-3": re.compile(
        r"(?<![a-z0-9])granite[-_ ]?guardian[-_ ]?3(?:[._-][012](?![0-9]))?(?![._]?[0-9])"
    ),
    "shieldgemma": re.compile(r"(?<![a-z0-9])shield[-_ ]?gemma(?![-_ ]?2(?![0-9]*b))"),  # 2 judges images
    "qwen3guard": re.compile(r"(?<![a-z0-9])qwen3[-_ ]?guard"),  # Stream too, which it refuses in words
    "polyguard": re.compile(r"(?<![a-z0-9])poly[-_ ]?guard(?![a-z0-9])"),
    "keel-policy": re.compile(r"(?<![a-z0-9])keel[-_ ]?policy(?![a-z0-9])"),
    "keel": re.compile(r"(?<![a-z0-9])keel(?![a-z0-9])"),
}


@cache
def families() -> dict[str, Family]:
    """Every causal family that is known, by name."""
    known: tuple[Family, ...] = (
        Keel(),
        KeelPolicy(),
        LlamaGuard1(),
        LlamaGuard2(),
        LlamaGuard3(),
        LlamaGuard3Small(),
        LlamaGuard4(),
        Aegis(),
        AegisPermissive(),
        NemoGuard(),
        WildGuard(),
        GraniteGuardian3(),
        GraniteGuardian33(),
        GraniteGuardian33(think=True),
        ShieldGemma(),
        Qwen3Guard(),
        PolyGuard(),
    )
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
