"""Reports of run directories: `digest` (files → data) and `render` (data → one HTML page)."""

from __future__ import annotations

from pathlib import Path

from guardkeel.records import write_text
from guardkeel.report.digest import ReportData, digest
from guardkeel.report.render import render

__all__ = ["ReportData", "digest", "render", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write report.html into a finished run's directory, whole or not at all, and return its path.

    Raises DataError where the run is unfinished or its files are missing, broken or do not fit together.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, render(digest(run_dir)))
    return path
