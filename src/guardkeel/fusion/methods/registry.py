"""Fusion methods by name, from here and from other packages (entry-point group `guardkeel.fusion_methods`).

An entry point's name is the method's, its value a subclass of Method.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from guardkeel.errors import ConfigError
from guardkeel.fusion.methods.antidote import Antidote
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.methods.dare import Dare
from guardkeel.fusion.methods.endpoints import Candidate, Reference
from guardkeel.fusion.methods.interpolation import Interpolation
from guardkeel.fusion.methods.linear import Linear
from guardkeel.fusion.methods.model_stock import ModelStock
from guardkeel.fusion.methods.random_mask import RandomMask
from guardkeel.fusion.methods.resta import Resta
from guardkeel.fusion.methods.safe_delta import SafeDelta
from guardkeel.fusion.methods.safe_lora import SafeLora
from guardkeel.fusion.methods.safe_merge import SafeMerge
from guardkeel.fusion.methods.slerp import Slerp
from guardkeel.fusion.methods.somf import Somf
from guardkeel.fusion.methods.task_arithmetic import TaskArithmetic
from guardkeel.fusion.methods.ties import Ties

GROUP = "guardkeel.fusion_methods"
OWN: tuple[type[Method], ...] = (
    Interpolation,
    Linear,
    TaskArithmetic,
    Ties,
    Dare,
    Slerp,
    ModelStock,
    Resta,
    SafeLora,
    SafeMerge,
    SafeDelta,
    Antidote,
    Somf,
    RandomMask,
    Reference,
    Candidate,
)
"""guardkeel's own, in the order in which they are listed."""


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by name. ConfigError where an entry point takes a name in use or is no Method."""
    found = {method.name: method for method in OWN}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        origin = f"the entry point {point.name} = {point.value} of the group {GROUP}"
        if point.name in found:
            raise ConfigError(
                f"{origin} takes a name that is in use", remedy="rename it, or uninstall its package"
            )
        value: Any = point.load()
        if not (isinstance(value, type) and issubclass(value, Method)):
            raise ConfigError(
                f"{origin} is no subclass of Method", remedy="correct it, or uninstall its package"
            )
        found[point.name] = value
    return found


def method_named(name: str) -> type[Method]:
    """The method of that name; ConfigError with near names where there is none."""
    known = methods()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    raise ConfigError(
        f"unknown fusion method {name!r}",
        remedy=f"did you mean {' or '.join(near)}?" if near else f"methods are {', '.join(known)}",
    )


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """The method of that name with these options; ConfigError names every one that cannot be used."""
    method = method_named(name)
    try:
        settings = method.Settings.model_validate(dict(options or {}))
    except ValidationError as e:
        known = list(method.Settings.model_fields)
        problems = [_problem(name, error, known) for error in e.errors()]
        raise ConfigError(
            "; ".join(problem for problem, _ in problems),
            remedy="; ".join(dict.fromkeys(remedy for _, remedy in problems)),
        ) from e
    return method(settings)


def _problem(method: str, error: Any, known: list[str]) -> tuple[str, str]:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, known, 1)
        hint = f"write {near[0]!r}" if near else f"its options are {', '.join(known) or 'none at all'}"
        return f"fusion method {method!r} has no option {where!r}", hint
    return (
        f"fusion method {method!r}: {where} is {error['input']!r:.80}: {error['msg']}",
        f"correct {where!r}",
    )
