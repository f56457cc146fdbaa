"""The points of a sweep: controls first, then every combination of what its groups list."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import product
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.methods.registry import make, method_named
from guardkeel.fusion.sweep.config import PointGroup, SweepConfig
from guardkeel.fusion.sweep.results import Control, Failed
from guardkeel.guards.embedded import NAME
from guardkeel.records import value_digest

REFERENCE = "reference"


@dataclass(frozen=True)
class Asked:
    """A point before it is scored. `extras` are files by what the method calls them."""

    name: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    control: Control = ""
    candidate: int | None = None

    def build(self) -> Method:
        """The method with its settings; ConfigError where they do not fit it."""
        return make(self.method, self.settings)

    @property
    def unaligned(self) -> bool:
        """Whether it needs the model before the reference."""
        return bool(self.method) and method_named(self.method).needs_unaligned

    @property
    def resolved(self) -> dict[str, Any]:
        """Its settings with what they leave to the method's defaults; none where nothing is fused."""
        return self.build().settings.model_dump(mode="json") if self.method else {}

    def identity(self, digests: Mapping[str, str]) -> str:
        """What names the point in a run directory; `digests` are those of the files of its extras."""
        extras = {name: digests[file] for name, file in self.extras.items()}
        said = [self.method or self.control, self.candidate, self.resolved, extras, self.seed]
        return value_digest(said)[:12]


def shipped_text() -> str:
    """The grid that ships, as TOML."""
    return (files("guardkeel.fusion.sweep") / "default.toml").read_text("utf-8")


def shipped() -> list[PointGroup]:
    """The grid that ships."""
    return [PointGroup.model_validate(p) for p in tomllib.loads(shipped_text())["point"]]


def points(config: SweepConfig, candidates: Sequence[str]) -> tuple[list[Asked], list[Failed]]:
    """The points in the order in which they are scored, and what of the shipped grid cannot be tried and why.

    Raises:
        ConfigError: a point of the user's own grid lacks something, or its settings do not fit its method.
    """
    found = [Asked(REFERENCE, control="reference")]
    found += [Asked(name, control="candidate", candidate=k) for k, name in enumerate(candidates)]
    skipped: list[Failed] = []
    asked = [*_interpolation(config, len(candidates)), *_random(config)]
    for group in config.point or shipped():
        if not group.least <= len(candidates) <= (group.most or len(candidates)):
            continue
        lacks = _lacks(group, config, len(candidates))
        if lacks and config.point:
            raise ConfigError(
                f"point with method {group.method!r}: {lacks}", remedy="leave it out, or give that"
            )
        if lacks:
            missed = Failed(name=group.method, reason=lacks)
            skipped += [missed] if missed not in skipped else []
        else:
            asked += _expanded(group, config)
    return [*found, *_distinct(asked)], skipped


def knows_unaligned(config: SweepConfig) -> bool:
    """Whether the reference is the embedded guard, which knows what it was made from."""
    return config.reference in (NAME, "keel")


def _expanded(group: PointGroup, config: SweepConfig, control: Control = "") -> Iterator[Asked]:
    if group.method == "random-mask":  # whoever asks for it, it is one
        control = "random mask"
    kind = method_named(group.method)
    named = {n: [config.extras[n]] for n in kind.extras if n in config.extras} | group.extras
    for values in product(*group.grid.values()):
        settings = group.settings | dict(zip(group.grid, values, strict=True))
        drawing = make(group.method, settings).drawing()
        seeds: Sequence[int | None] = (group.seeds or config.seeds) if drawing else [None]
        for chosen in product(*named.values()):
            extras = dict(zip(named, chosen, strict=True))
            several = {n: f for n, f in extras.items() if len(named[n]) > 1}
            for seed in seeds:
                yield Asked(
                    _name(group.method, settings, several, seed),
                    group.method,
                    settings,
                    extras,
                    seed,
                    control,
                )


def _name(method: str, settings: Mapping[str, Any], extras: Mapping[str, str], seed: int | None) -> str:
    said = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items()]
    said += [f"{k}={file.rpartition('/')[2]}" for k, file in extras.items()]
    return " ".join([method, *said, *([] if seed is None else [f"seed={seed}"])])


def _lacks(group: PointGroup, config: SweepConfig, candidates: int) -> str:
    """What a group needs and has not, in words; empty where it can run."""
    kind = method_named(group.method)
    if candidates < kind.least:
        return f"it takes {kind.least} candidates at least, there is {candidates}"
    if kind.most is not None and candidates > kind.most:
        return (
            f"it takes {kind.most} candidate{'' if kind.most == 1 else 's'} at most, there are {candidates}"
        )
    if kind.needs_unaligned and config.unaligned is None and not knows_unaligned(config):
        return "it needs the model that the reference was made from (--unaligned)"
    missing = [n for n in kind.extras if n not in config.extras and n not in group.extras]
    return f"it needs {missing[0]} (--extra {missing[0]}=FILE)" if missing else ""


def _interpolation(config: SweepConfig, candidates: int) -> Iterator[Asked]:
    """Plain interpolation; of several candidates, with the mean of their changes."""
    method, setting, share = ("interpolation", "alpha", 1.0)
    if candidates > 1:
        method, setting, share = ("task-arithmetic", "scale", 1.0 / candidates)
    grid = {setting: [round(a * share, 6) for a in config.alphas]}
    yield from _expanded(PointGroup(method=method, grid=grid), config, "interpolation")


def _random(config: SweepConfig) -> Iterator[Asked]:
    """Random masks, rescaled and merged as a learned mask is."""
    yield from _expanded(PointGroup(method="random-mask", grid={"keep": config.keeps}), config)


def _distinct(asked: Iterable[Asked]) -> list[Asked]:
    """Each point once; the first, which may be a control, stands for the others."""
    found: dict[str, Asked] = {}
    for a in asked:
        found.setdefault(repr((a.method, sorted(a.resolved.items()), sorted(a.extras.items()), a.seed)), a)
    return list(found.values())
