"""Methods by name: what `--method` takes, alone or joined with "+".

Other packages add theirs by an entry point in the group `guardkeel.regularisers` whose value is a Regulariser subclass
or a Method; its name is the method's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from guardkeel.errors import ConfigError
from guardkeel.tuning.posthoc import Interpolation, PostHoc, SafeLoRA
from guardkeel.tuning.regularisers.asft import AsFT
from guardkeel.tuning.regularisers.base import Regulariser, Settings
from guardkeel.tuning.regularisers.ewc import EWC
from guardkeel.tuning.regularisers.fwssr import FWSSR, LADDER
from guardkeel.tuning.regularisers.heads import Heads
from guardkeel.tuning.regularisers.kl import KL
from guardkeel.tuning.regularisers.l2sp import L2SP
from guardkeel.tuning.regularisers.lisa import Lisa
from guardkeel.tuning.regularisers.replay import Replay
from guardkeel.tuning.regularisers.safegrad import SafeGrad
from guardkeel.tuning.regularisers.several import Several

GROUP = "guardkeel.regularisers"


@dataclass(frozen=True)
class Method:
    """A way to tune: a regulariser with its options."""

    regulariser: type[Regulariser]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Where they differ from the defaults of the regulariser's settings."""

    @property
    def posthoc(self) -> bool:
        """Whether it trains as plain and repairs the model afterwards."""
        return issubclass(self.regulariser, PostHoc)

    @property
    def needs(self) -> tuple[str, ...]:
        """What else the caller must provide ("unaligned": the model that the guard was aligned from)."""
        return tuple(getattr(self.regulariser, "needs", ()))

    def settings(self, name: str, options: Mapping[str, Any]) -> Settings:
        """The settings with these options on top; ConfigError names every option that cannot be used."""
        model = self.regulariser.Settings
        try:
            return model.model_validate({**self.options, **options})
        except ValidationError as e:
            known = list(model.model_fields)
            problems = [_problem(name, error, known) for error in e.errors()]
            raise ConfigError(
                "; ".join(p for p, _ in problems), remedy="; ".join(dict.fromkeys(r for _, r in problems))
            ) from e


_RUNGS = {
    "ssr-noop": "FW-SSR as its released code computes it: logged, and without any effect",
    "ssr-uniform": "safety subspace held, all directions alike",
    "ssr-proxy": "safety subspace held, directions weighted by energy as in the released code",
    "fwssr": "safety subspace held, directions weighted by true Fisher information",
    "fwssr-adaptive": "fwssr, stronger where task and guard conflict",
    "fwssr-released-rule": "fwssr, its strength moved by the released code's rule",
    "fwssr-sharpen": "fwssr-adaptive, rewarded for parting safe from unsafe better than before",
    "ssr-random": "control: a random subspace held",
    "ssr-full": "control: the whole hidden state held",
}

METHODS: dict[str, Method] = {
    "plain": Method(Regulariser, "the task alone"),
    "replay": Method(Replay, "guard conversations answered next to the task"),
    "kl": Method(KL, "the reference's distribution held on guard conversations"),
    "ewc": Method(EWC, "parameters held by their Fisher information"),
    "l2sp": Method(L2SP, "weights pulled back to the reference"),
    "safegrad": Method(SafeGrad, "task gradients projected where they conflict with the guard's, plus KL"),
    "lisa": Method(Lisa, "turns of task and guard steps, held near each other"),
    "asft": Method(AsFT, "updates kept along the alignment direction"),
    "heads": Method(Heads, "the attention heads that carry the verdict left as they are"),
    "heads-random": Method(Heads, "control: as many other heads left as they are", {"random": 0}),
    **{name: Method(FWSSR, _RUNGS.get(name, name), options) for name, options in LADDER.items()},
    "interpolation": Method(Interpolation, "plain, then a step back towards the reference"),
    "safe-lora": Method(SafeLoRA, "plain, then updates projected onto the alignment direction"),
}
"""guardkeel's own, in the order in which they are listed."""


@cache
def methods() -> dict[str, Method]:
    """Every method, from here and from other packages. ConfigError where a name is taken or a value is no method."""
    found = dict(METHODS)
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        origin = f"the entry point {point.name} = {point.value} of the group {GROUP}"
        if point.name in found or "+" in point.name:
            raise ConfigError(
                f"{origin} takes a name that is in use or holds a '+'",
                remedy="rename it, or uninstall its package",
            )
        value: Any = point.load()
        if isinstance(value, type) and issubclass(value, Regulariser):
            value = Method(value, (value.__doc__ or point.name).strip().splitlines()[0])
        if not isinstance(value, Method):
            raise ConfigError(
                f"{origin} is neither a Regulariser subclass nor a Method",
                remedy="correct it, or uninstall its package",
            )
        found[point.name] = value
    return found


def method(name: str) -> Method:
    """The method of that name; ConfigError with near names where there is none."""
    known = methods()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    raise ConfigError(
        f"unknown method {name!r}",
        remedy=f"did you mean {' or '.join(near)}?"
        if near
        else f"methods are {', '.join(known)}; join several with '+'",
    )


def build(text: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Regulariser:
    """The regulariser of "name" or "name+name…", with options by part name.

    Raises:
        ConfigError: a method or option is unknown, a value cannot be used, or a part is named twice.
    """
    names = [name.strip() for name in text.split("+")]
    chosen = {name: method(name) for name in names}
    if len(chosen) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"method {text!r} names {twice!r} twice", remedy="name every part once")
    options = options or {}
    for name in options:
        if name not in chosen:
            raise ConfigError(
                f"there are options for {name!r}, which is no part of method {text!r}",
                remedy=f"remove them, or give them under {' or '.join(chosen)}",
            )
    parts = {name: m.regulariser(m.settings(name, options.get(name, {}))) for name, m in chosen.items()}
    return parts[names[0]] if len(parts) == 1 else Several(parts)


def _problem(method_name: str, error: Any, known: list[str]) -> tuple[str, str]:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, known, 1)
        hint = f"write {near[0]!r}" if near else f"options are {', '.join(known) or 'none at all'}"
        return f"method {method_name!r} has no option {where!r}", hint
    if not where:
        return f"method {method_name!r}: {error['msg']}", "change one of these options"
    return (
        f"method {method_name!r}: {where} is {error['input']!r:.80}: {error['msg']}",
        f"correct {where!r}",
    )
