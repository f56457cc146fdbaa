"""Templates. Every value is made visible (nothing hidden in it) and then escaped."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from guardkeel.curation.adjudication.desk import QUESTIONS
from guardkeel.curation.adjudication.guidelines import ANSWERS
from guardkeel.curation.adjudication.texts import plain

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
WORDS = {"safe": "Safe", "caution": "Needs caution", "unsafe": "Unsafe", "unclear": "Cannot tell"}
KEYS = {"safe": "s", "caution": "c", "unsafe": "u", "unclear": "x"}


def render(name: str, **values: Any) -> str:
    """A template as HTML."""
    return environment().get_template(name).render(**values)


@cache
def environment() -> Environment:
    """The templates."""
    made = Environment(
        loader=PackageLoader("guardkeel.curation.adjudication", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(asset=versioned, words=WORDS, keys=KEYS, answers=ANSWERS, questions=QUESTIONS)
    made.filters.update(percent=percent, text=escape, breakable=breakable)
    return made


@cache
def asset(name: str) -> bytes:
    """The style sheet or the script."""
    return (files("guardkeel.curation.adjudication") / "templates" / name).read_bytes()


def versioned(name: str) -> str:
    """Its address, another after every change of it."""
    return f"{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"


def percent(part: float, whole: float = 1.0) -> str:
    """(3, 8) → '38%'; what is not 0 or all is never rounded to it."""
    if not whole:
        return "–"
    share = 100 * part / whole
    rounded = round(share)
    if rounded in (0, 100) and share != rounded:
        return "<1%" if rounded == 0 else ">99%"
    return f"{rounded}%"


def breakable(name: str) -> Markup:
    """A name that may be broken after its slashes."""
    return Markup("<wbr>").join(escape(plain(part)) for part in re.split(r"(?<=/)", name))


def _visible(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Markup) else plain(str(value))
