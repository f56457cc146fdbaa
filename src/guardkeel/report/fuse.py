"""The report of a sweep: one HTML page, made from its run directory alone; it shows no texts."""

from __future__ import annotations

import shlex
from pathlib import Path

from markupsafe import Markup

from guardkeel.fusion.sweep.reading import read_sweep
from guardkeel.fusion.sweep.results import SweepResults
from guardkeel.records import RunRecord, write_text
from guardkeel.report import fuse_words as sayings
from guardkeel.report.fuse_charts import layers, trade
from guardkeel.report.render import asset, environment, source

PAGE = "report.html"


def write_sweep_report(out: str | Path) -> Path:
    """Write out/report.html, whole or not at all, and return its path; DataError where the run is unfinished."""
    out = Path(out)
    record, results = read_sweep(out)
    write_text(out / PAGE, render(record, results))
    return out / PAGE


def render(record: RunRecord, results: SweepResults) -> str:
    """The report as one HTML page."""
    style = "\n".join(asset(name) for name in ("report.css", "collapse.css", "leaderboard.css", "fuse.css"))
    script = asset("leaderboard.js")
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    points = sayings.ordered(results.points)
    numbers = {p.id: k for k, p in enumerate(points, 1)}
    found = results.diagnostics
    page = (
        environment()
        .get_template("fuse.html")
        .render(
            d=record,
            r=results,
            headline=sayings.headline(results),
            say=sayings,
            points=points,
            numbers=numbers,
            chosen=results.point(results.choice.chosen),
            twin=sayings.twin(results),
            recall=trade("recall", results, numbers, of="recall"),
            alarms=trade("fpr", results, numbers, of="fpr"),
            layers=layers("layers", found.layers, results.candidates) if found else None,
            command=shlex.join(record.command),
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=policy,
        )
    )
    return page + "\n"
