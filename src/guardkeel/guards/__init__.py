"""Guards: conversations in, verdicts out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from guardkeel.guards.base import Family, Guard, Judgement, Rendered, Verdict

__all__ = ["Family", "Guard", "Judgement", "Rendered", "Verdict", "load_guard"]


def __getattr__(name: str) -> Any:
    if name == "load_guard":  # loading imports torch; words about guards do not
        return import_module("guardkeel.guards.load").load_guard
    raise AttributeError(f"module 'guardkeel.guards' has no attribute {name!r}")
