"""Templates and what they may call. Every value passes `_visible` (nothing that does not show) and then autoescape."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from guardkeel.moderation.page import figures
from guardkeel.moderation.page.history import Table
from guardkeel.moderation.page.texts import plain

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TABLES = 6
"""Contexts whose weights are drawn; of all others the weights of now are in a table."""


def render(name: str, **values: Any) -> str:
    """A template as HTML."""
    return environment().get_template(name).render(**values)


@cache
def environment() -> Environment:
    """The templates."""
    made = Environment(
        loader=PackageLoader("guardkeel.moderation.page", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(figures=figures, asset=versioned, by_rounds=by_rounds, shown_tables=TABLES)
    made.filters.update(
        percent=percent, count=count, ms=ms, decimal=decimal, signed=signed, when=when, text=escape
    )
    return made


@cache
def asset(name: str) -> bytes:
    """The style sheet or the script."""
    return (files("guardkeel.moderation.page") / "templates" / name).read_bytes()


def versioned(name: str) -> str:
    """Its address, another after every change of it."""
    return f"{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"


def by_rounds(tables: tuple[Table, ...]) -> list[Table]:
    """The table of all items first, then those that have seen most."""
    return sorted(tables, key=lambda t: (bool(t.context), -t.rounds, t.context))


def percent(part: float, whole: float = 1.0) -> str:
    """(3, 200) → '1.5%'; what is not 0 or all is never rounded to it."""
    if not whole:
        return "–"
    share = part / whole
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.0f}%" if share in (0, 1) else f"{100 * share:.1f}%"


def count(value: int) -> str:
    """12345 → '12,345'."""
    return f"{value:,}"


def ms(value: float) -> str:
    """12.34 → '12 ms'; 2345 → '2.3 s'."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def decimal(value: float | None, digits: int = 2) -> str:
    """0.98866 → '0.99'; '–' for what is not there."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """-5.83 → '−5.8', 5.83 → '+5.8'."""
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def when(seconds: float) -> Markup:
    """A time, in UTC."""
    try:
        said = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(
        said.isoformat(timespec="seconds"), said.strftime("%d %b %H:%M:%S UTC")
    )


def _visible(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Markup) else plain(str(value))
