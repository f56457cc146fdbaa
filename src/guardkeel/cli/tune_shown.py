"""What a fine-tune did, in a screenful of the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from guardkeel.cli.terminal import literal, say, table

if TYPE_CHECKING:
    from guardkeel.records import Estimate
    from guardkeel.tuning.config import TuneConfig
    from guardkeel.tuning.points import MonitorPoint
    from guardkeel.tuning.results import Learned, TuneResults


def report(results: TuneResults, config: TuneConfig, folder: Path) -> None:
    """What the fine-tune did, in a screenful."""
    from guardkeel.tuning.points import MonitorPoint
    from guardkeel.tuning.regularisers.registry import method

    points = [MonitorPoint.model_validate(p) for p in results.monitor]
    if points:
        now = next(p for p in reversed(points) if p.step <= results.steps)
        repaired = any(method(name).posthoc for name in results.method.split("+"))
        _show_monitor(points[0], now, " before the repair" if repaired else "")
    if results.before and results.after:
        say(f"learned    {_learned(results.before, results.after, results.after_shipped)}")
    moved = results.threshold != results.threshold_before
    say(
        f"threshold  {results.threshold_before:.3f} → {results.threshold:.3f}"
        if moved
        else f"threshold  {results.threshold:.3f}, as before"
    )
    for side, offset in results.offsets.items():
        say(f"           {offset:+.2f} log-odds for each {side}: its scores slid otherwise than the rest")
    if results.stopped:
        say(f"[bold yellow]stopped[/bold yellow]    {literal(results.stopped)}")
    for note in results.notes:
        say(f"note       {literal(note)}")
    say(f"run        {literal(folder)}  ({results.steps} steps, {results.step_seconds:.2f} s each)")
    say(f"next       guardkeel audit {literal(config.guard)} --against {literal(folder / 'tuned')}")


def _show_monitor(before: MonitorPoint, now: MonitorPoint, when: str) -> None:
    rows = [
        ["unsafe recall", _value(before.recall), _value(now.recall), _value(now.recall_recalibrated)],
        ["false positives", _value(before.fpr), _value(now.fpr), "as before"],
        ["AUROC", _value(before.auroc), _value(now.auroc), "[dim]same[/dim]"],
    ]
    if before.unscored.value or now.unscored.value:
        rows.append(["unscored", _value(before.unscored), _value(now.unscored), "[dim]same[/dim]"])
    title = f"monitor: {now.n} items, {now.n_unsafe} unsafe, at step {now.step}{when}"
    table(title, ["", "before", "after", "after, at the FPR before"], rows)


def _value(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.3f}"


def _learned(before: Learned, after: Learned, shipped: Learned | None) -> str:
    said = (
        f"loss {before.loss:.3f} → {after.loss:.3f}, accuracy {before.accuracy:.3f} → {after.accuracy:.3f}, "
        f"on {after.n} rows kept aside"
    )
    if shipped is not None and shipped.accuracy != after.accuracy:
        said += f" ({shipped.accuracy:.3f} at the operating point before)"
    return said
