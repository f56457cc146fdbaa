"""Regimes as data: what each asks, of whom, by when, and where it says so. Read them as notes, not as legal advice."""

from __future__ import annotations

import re
import tomllib
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from guardkeel.dossier.canonical import digest
from guardkeel.dossier.kinds.base import Part
from guardkeel.errors import ConfigError

FILES = {
    "eu-gpai-code": "eu_gpai_code.toml",
    "us-ca-sb53": "us_ca_sb53.toml",
    "us-ny-raise": "us_ny_raise.toml",
    "nist-ai-rmf": "nist_ai_rmf.toml",
}
DISCLAIMER = (
    "Drafted from the records of a dossier. It is no legal advice, and claims neither that a regime applies nor that "
    "anything in it was complied with."
)


def _span(text: Any) -> Any:
    found = re.fullmatch(r"(\d+)([dh])", text) if isinstance(text, str) else None
    if found is None:
        return text
    return timedelta(**{"days" if found[2] == "d" else "hours": int(found[1])})


Span = Annotated[timedelta, BeforeValidator(_span)]


class Condition(Part):
    """Something that must hold, and what is said when it does, does not, or is not known."""

    fact: str
    op: Literal["is", "above", "includes", "any of"]
    value: Any
    met: str
    unmet: str
    unknown: str = ""


class Clock(Part):
    """A report is due within a time."""

    id: str
    report: Literal["initial", "intermediate", "final"]
    harm: list[str]
    within: Span
    after: Literal["aware", "initial", "resolved"] = "aware"
    imminent: bool = False
    repeats: bool = False
    to: str = ""
    source: str


class Asked(Part):
    """A field of a report, and where it comes from."""

    title: str
    source_field: str = Field(alias="from")
    reports: list[str]
    source: str


class Function(Part):
    """A function of a framework, and the kinds of records that belong under it."""

    name: str
    asks: str
    kinds: list[str]


class Regime(Part):
    """A regime."""

    id: str
    name: str
    kind: Literal["law", "code", "framework"]
    as_of: date
    effective: date | None = None
    summary: str
    sources: list[str]
    reports: list[str]
    recipient: str
    applies: list[Condition] = Field(default_factory=list)
    note: list[Condition] = Field(default_factory=list)
    clock: list[Clock] = Field(default_factory=list)
    field: list[Asked] = Field(default_factory=list)
    function: list[Function] = Field(default_factory=list)
    digest: str = ""


@cache
def load(name: str) -> Regime:
    """A regime by its id; ConfigError naming those there are."""
    if name not in FILES:
        raise ConfigError(f"unknown regime {name!r}", remedy=f"there is {', '.join(FILES)}")
    text = (files("guardkeel.dossier.regimes") / FILES[name]).read_text("utf-8")
    return Regime.model_validate({**tomllib.loads(text), "digest": digest(text)})


def regimes() -> list[Regime]:
    """All regimes."""
    return [load(name) for name in FILES]
