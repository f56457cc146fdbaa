"""The release policy: what has to be shown before a model is let out, in TOML, registered before the runs it judges."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from guardkeel.dossier.canonical import digest
from guardkeel.dossier.kinds import Id, Part, Policy, Threshold
from guardkeel.dossier.kinds.base import Rate, plain_id
from guardkeel.dossier.kinds.evaluating import Bound, Form, Level
from guardkeel.errors import ConfigError

RISKS = ("low", "moderate", "high", "critical")


class Line(Part):
    """A threshold as a policy states it."""

    metric: str
    slice: str = "*"
    level: Level = "launch"
    min: float | None = None
    max: float | None = None
    whole_interval: bool = True
    specs: list[Id] = Field(default_factory=list)
    reason: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("give min or max, and one of them")
        return self


class Require(Part):
    """What must be there."""

    forms: list[Form] = Field(default=["assurance"], min_length=1)
    """A completed run of a specification of each form."""
    domains: list[Id] = Field(default_factory=list)
    """Risk domains that such runs must cover."""
    min_n: Annotated[int, Field(ge=1)] = 50
    """Items behind a number."""
    max_unscored: Rate = 0.05
    """Share of items without a verdict."""
    max_age_days: Annotated[float, Field(gt=0)] = 180.0
    """Age of a run."""
    assessment: bool = True
    """A risk assessment of this very model that has not expired."""
    max_residual: str = Field(default="moderate", pattern="^(low|moderate|high|critical)$")
    """Highest residual risk in it."""
    lineage: bool = True
    """Every parent registered."""
    audits: bool = True
    """No audit's own gate said deny."""
    judge_n: Annotated[int, Field(ge=0)] = 50
    """Human labels behind a judge."""
    monitor_plan: bool = False
    """A plan to watch it."""


class Release(Part):
    """How it is let out when not all is well."""

    safeguards: list[str] = Field(default_factory=list)
    """With these, alerts and waived rules let it out."""
    staged: bool = False
    """Too little data on a launch threshold lets it out in stages."""


class PolicyFile(Part):
    """A policy file."""

    name: Id
    description: str = ""
    threshold: list[Line] = Field(default_factory=list)
    require: Require = Require()
    release: Release = Release()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [t.id for t in self.thresholds()]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"two thresholds of one metric, slice, level and bound: {', '.join(twice)}")
        return self

    def thresholds(self) -> list[Threshold]:
        """Its thresholds as records."""
        made = []
        for line in self.threshold:
            bound: Bound = "min" if line.min is not None else "max"
            parts = [line.metric, *([line.slice] if line.slice != "*" else []), line.level, bound]
            said = line.model_dump(exclude={"min", "max"})
            value = line.min if line.min is not None else line.max
            assert value is not None  # one of them is given
            made.append(
                Threshold(id=plain_id(f"{self.name}/{' '.join(parts)}"), bound=bound, value=value, **said)
            )
        return made

    def records(self) -> list[Threshold | Policy]:
        """Thresholds and then the policy, to be registered together."""
        lines = self.thresholds()
        body = self.model_dump(mode="json")
        return [
            *lines,
            Policy(id=self.name, digest=digest(body), body=body, thresholds=[t.id for t in lines]),
        ]


def example() -> str:
    """The policy that ships, commented, to start one's own from."""
    return (files("guardkeel.dossier") / "policies.toml").read_text("utf-8")


def read_policy(path: Path) -> PolicyFile:
    """A policy file; ConfigError naming the file, the key and the value."""
    try:
        return parse_policy(path.read_text("utf-8"), str(path))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8", remedy="re-encode the file") from e


def parse_policy(text: str, where: str) -> PolicyFile:
    """A policy from its TOML text; `where` is how errors call it."""
    try:
        return PolicyFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{where}: not TOML: {e}", remedy="mend the line; see https://toml.io") from e
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{where}: unknown key {key!r}",
                remedy="guardkeel dossier register --policy-example has every key",
            ) from e
        raise ConfigError(
            f"{where}: {key} = {first['input']!r:.80}: {first['msg']}", remedy=f"mend {key!r}"
        ) from e
