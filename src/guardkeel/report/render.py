"""Turns the data of a report into one HTML file: no request leaves it, and no text in it can become markup.

Every value that a template prints passes `_visible` (nothing invisible, nothing endless) and then autoescape.
The content security policy allows the one style sheet and the one script by their digests, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from guardkeel.records import Estimate
from guardkeel.report import charts, plots, words
from guardkeel.report.digest import SMALL, ReportData
from guardkeel.report.layers import lowlights, panels
from guardkeel.report.texts import plain

if TYPE_CHECKING:
    from jinja2 import Environment


def render(data: ReportData) -> str:
    """The report as one HTML page."""
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    geometry = data.results.geometry
    page = (
        environment()
        .get_template("report.html")
        .render(
            d=data,
            r=data.results,
            rules=_rules(data),
            panels=panels(geometry),
            lowlights=lowlights(geometry),
            ranks=sorted({g.rank for g in geometry}),
            tops=_top(data),
            command=shlex.join(data.record.command),
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=policy,
            few=SMALL,
        )
    )
    return page + "\n"


def environment() -> Environment:
    """The templates and what they may call."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("guardkeel.report", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        plots=plots, charts=charts, words=words, interval=interval, roles=("ref", "cand")
    )
    environment.filters.update(
        percent=words.percent,
        points=words.points,
        decimal=words.decimal,
        change=words.change,
        p=words.probability,
        count=words.count,
        seconds=words.seconds,
        suite=words.suite_name,
        escaped=escape,
    )
    return environment


def _visible(value: Any) -> Any:
    """What is printed for a value: our own markup as it is, all else as visible text."""
    if value is None:
        return ""
    return value if isinstance(value, Markup) else plain(str(value))


def interval(estimate: Estimate | None, kind: str = "percent") -> str:
    """'59.0 to 71.0' in the unit of `kind`: percent, points, decimal or change; '–' where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return words.NOTHING
    form = getattr(words, kind)
    return f"{form(estimate.low)} to {form(estimate.high)}"


@cache
def asset(name: str) -> str:
    """A style sheet or script."""
    return (files("guardkeel.report") / "templates" / name).read_text("utf-8").strip()


def source(text: str) -> str:
    """A CSP source for an inline element whose whole content is `text`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rules(data: ReportData) -> dict[str, list[Any]]:
    """The gate's rules: what binds and did not pass, what advises and did not, what passed."""
    rules = data.results.decision.rules if data.results.decision else []
    order = {"fail": 0, "hold": 1, "pass": 2}
    open_rules = sorted((r for r in rules if r.outcome != "pass"), key=lambda r: order[r.outcome])
    return {
        "binding": [r for r in open_rules if not r.advisory],
        "advisory": [r for r in open_rules if r.advisory],
        "passed": [r for r in rules if r.outcome == "pass"],
    }


def _top(data: ReportData) -> float:
    """The largest share of a class in any bin of any histogram: their common scale."""
    curves = [data.reference_curves, *([data.candidate_curves] if data.candidate_curves else [])]
    shares = [
        max(counts) / sum(counts)
        for c in curves
        for counts in (c.spread.unsafe, c.spread.safe)
        if sum(counts)
    ]
    return max(shares, default=1.0)
