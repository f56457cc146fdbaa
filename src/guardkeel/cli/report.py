"""guardkeel report: write the HTML page of a run again, from its directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardkeel.cli.terminal import literal, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(report)


def report(
    run: Annotated[
        Path, typer.Argument(help="Run directory of an audit, a leaderboard, a fuse sweep or heads.")
    ],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write report.html from a run directory: one file, no scripts needed, printable; no model is loaded."""
    from guardkeel.records import read_record
    from guardkeel.report import write_report
    from guardkeel.report.fuse import write_sweep_report
    from guardkeel.report.heads import write_heads_report
    from guardkeel.report.leaderboard import write_leaderboard_report
    from guardkeel.report.vision import write_vision_report

    pages = {
        "leaderboard": write_leaderboard_report,
        "fuse-sweep": write_sweep_report,
        "heads": write_heads_report,
        "vision adapt": write_vision_report,
        "vision mis": write_vision_report,
    }
    path = pages.get(read_record(run).verb, write_report)(run)
    say(literal(path))
    if open_it:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
