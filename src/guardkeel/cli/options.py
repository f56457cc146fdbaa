"""Options that many verbs have, said the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration."),
]
ConfigFile = Annotated[Path | None, typer.Option(help="All of this as TOML; options override it.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")]
RunFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Run directory; an unfinished one is resumed.")
]
