"""guardkeel leaderboard: several guards on several suites, one table."""

from __future__ import annotations

import sys
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import duration
from guardkeel.cli.options import AsJson, Changes, Report, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.evaluation.leaderboard.config import LeaderboardConfig
    from guardkeel.evaluation.leaderboard.planning import LeaderboardPlan
    from guardkeel.evaluation.leaderboard.results import Column, GuardRow, LeaderboardResults, Metric
    from guardkeel.records import Estimate

MOST_COLUMNS = 8
CLASSES = {"both": "F1", "unsafe": "recall", "safe": "FPR"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("leaderboard")(leaderboard)


def leaderboard(
    guards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GUARD",
            help="Guards: keel-135m, hub:org/name@revision, a folder, …; or names of guards in the --config.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            "-s",
            help="A suite's name (see guardkeel suites), JSONL file or card. Repeat for several.",
        ),
    ] = None,
    out: RunFolder = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Guards, suites and settings as TOML; options override it."),
    ] = None,
    changes: Changes = None,
    limit: Annotated[
        int | None, typer.Option(help="Most items of each suite and split, for a quick look.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The guard that the others are compared with. Default: the first in rank."),
    ] = None,
    fixed_fpr: Annotated[
        float | None, typer.Option(help="False-positive rate at which recall is compared. Default: 0.05.")
    ] = None,
    probe: Annotated[
        int | None,
        typer.Option(help="Judge this many items one by one too, for their latency. Default: none."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What runs the guards: local, ray (several workers) or vllm.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With ray: guards that are loaded and asked at once. Default: 2.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of bootstraps and of the probe.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never use the network.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print items, guards and time; run nothing.")
    ] = False,
    as_json: AsJson = False,
    html: Report = True,
) -> None:
    """Judge labelled conversations with several guards, and put them into one table.

    One guard is in memory at a time. A guard that cannot be loaded, or fails, is in the table with its reason; the
    others go on, and the exit code is 2. Repeat the command after any stop: finished guards and batches stay, failed
    guards are asked again.

    Writes a run directory: run.json, table.csv, speed.csv, one verdict a line for each guard, report.html.

    [bold]Examples[/bold]

      guardkeel leaderboard keel-135m ./my-guard --limit 100          [dim]two guards, a quick look[/dim]
      guardkeel leaderboard --config leaderboard.toml --dry-run       [dim]what would be run, and for how long[/dim]
      guardkeel leaderboard --config leaderboard.toml strict --out runs/strict   [dim]one guard of the file[/dim]
    """
    from guardkeel.evaluation.leaderboard.config import read_config
    from guardkeel.evaluation.leaderboard.running import failed

    given: dict[str, Any] = {
        "suites": suite or None,
        "limit": limit,
        "against": against,
        "fixed_fpr": fixed_fpr,
        "probe": probe,
        "engine": engine,
        "workers": workers,
        "seed": seed,
        "offline": offline,
    }
    resolved = read_config(config, guards or (), given, changes or ())
    hush()
    if dry_run:
        plan(resolved, as_json)
        return
    out = out or _fresh(resolved)
    results = run(resolved, out, quiet=as_json and not sys.stderr.isatty())
    page = None
    if html:
        from guardkeel.report.leaderboard import write_leaderboard_report

        page = write_leaderboard_report(out)
    lost = failed(results)
    if as_json:
        emit(
            {
                "run": str(out),
                "report": str(page) if page else None,
                "failed": {g.name: g.reason for g in results.guards if g.name in lost},
                "results": results.model_dump(mode="json"),
            }
        )
    else:
        show(results)
        _tell(results, out, page, lost)
    if lost:
        raise typer.Exit(2)


def run(config: LeaderboardConfig, out: Path, *, quiet: bool = False) -> LeaderboardResults:
    """Run, or resume, a leaderboard, with progress."""
    from guardkeel.evaluation.leaderboard.running import run as run_leaderboard

    with progress(quiet) as watch:
        return run_leaderboard(config, out, command=["guardkeel", *sys.argv[1:]], watch=watch)


def _fresh(config: LeaderboardConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/."""
    from guardkeel.records import value_digest

    home, mark = Path("runs"), value_digest(config.record())[:8]
    unfinished = [p for p in home.glob(f"leaderboard-*-{escape(mark)}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"leaderboard-{datetime.now():%Y%m%d-%H%M%S}-{mark}")


def plan(config: LeaderboardConfig, as_json: bool) -> None:
    """Say what the leaderboard would do and need; what would stop it at once stops here too."""
    from guardkeel.evaluation.leaderboard.planning import plan as foresee

    with progress(as_json) as watch:
        found = foresee(config, watch)
    if as_json:
        emit(found.model_dump())
        return
    _show_plan(found)


def _show_plan(found: LeaderboardPlan) -> None:
    table(
        "items",
        ["suite", "side", "test", "unsafe", "calibrate"],
        [
            [literal(c.suite), c.side, f"{c.test:,}", f"{c.test_unsafe:,}", f"{c.calibrate:,}"]
            for c in found.columns
        ],
    )
    say("")
    rows = []
    for g in found.guards:
        if g.seconds is None:
            rows.append([literal(g.name), "–", "–", "–", f"[yellow]not foretold: {literal(g.note)}[/yellow]"])
        else:
            rows.append(
                [
                    literal(g.name),
                    f"{(g.parameters or 0) / 1e6:.0f} M, {g.dtype} on {g.device}",
                    f"{g.tokens or 0:,}",
                    f"{(g.memory or 0) / 1e9:.1f} GB",
                    duration(g.seconds),
                ]
            )
    rows += [[literal(name), "imported", "–", "–", "–"] for name in found.imported]
    table("guards, one after the other", ["guard", "model", "tokens", "memory", "time"], rows)
    more = f", and {_count(found.unknown, 'guard')} of unknown time" if found.unknown else ""
    say(
        f"\n{found.items:,} items for each of {_count(len(found.guards), 'guard')}: "
        f"about {found.seconds / 60:.1f} minutes{more}\nnothing was run"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def show(results: LeaderboardResults) -> None:
    """The means, then the suites."""
    pooled = results.ranked_on == "pooled"
    rows = []
    for g in results.guards:
        if g.status == "failed":
            rows.append(["–", literal(g.name), f"[red]failed[/red] {literal(g.reason[:120])}"])
            continue
        speed = g.speed
        rows.append(
            [
                str(g.rank or "–"),
                literal(g.name) + ("" if g.origin == "guardkeel" else f" [dim]{literal(g.origin)}[/dim]"),
                _shown(_pooled(g) if pooled else _mean(g, "f1_strict")),
                *(
                    _shown(_mean(g, m))
                    for m in ("recall", "fpr", "recall_at_fpr", "auroc", "ece", "unscored")
                ),
                "–" if speed is None else f"{1000 * (speed.amortised.p50.value or 0):.3g}",
                _against(results, g),
            ]
        )
    names = [
        "",
        "guard",
        "F1, pooled" if pooled else "F1",
        "recall",
        "FPR",
        f"recall at {results.fixed_fpr:.3g} FPR",
        "AUROC",
        "ECE",
    ]
    table(
        "means over suites",
        [*names, "unscored", "ms an item", f"F1 against {literal(results.against)}"],
        rows,
    )
    for first in range(0, len(results.columns), MOST_COLUMNS):
        _show_columns(results, results.columns[first : first + MOST_COLUMNS])


def _show_columns(results: LeaderboardResults, columns: list[Column]) -> None:
    heads = [f"{literal(c.name)} [dim]{CLASSES[c.classes]}[/dim]" for c in columns]
    rows = [
        [literal(g.name), *(_cell(g, c) for c in columns)] for g in results.guards if g.status == "scored"
    ]
    say("")
    table("suite by suite (suites of one class have no F1)", ["guard", *heads], rows)


def _cell(guard: GuardRow, column: Column) -> str:
    from guardkeel.evaluation.leaderboard.cells import estimate_of

    metric: Metric = {"both": "f1_strict", "unsafe": "recall", "safe": "fpr"}[column.classes]  # type: ignore[assignment]
    found = next((c for c in guard.cells if (c.suite, c.side) == (column.suite, column.side)), None)
    return "–" if found is None else _shown(estimate_of(found, metric))


def _mean(guard: GuardRow, metric: str) -> Estimate | None:
    return next((m.estimate for m in guard.macro if (m.metric, m.side) == (metric, "*")), None)


def _pooled(guard: GuardRow) -> Estimate | None:
    return next((c.f1_strict for c in guard.cells if (c.suite, c.side) == ("*", "*")), None)


def _shown(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    span = (
        f" [dim]{estimate.low:.2f}–{estimate.high:.2f}[/dim]"
        if None not in (estimate.low, estimate.high)
        else ""
    )
    return f"{estimate.value:.3f}{span}"


def _against(results: LeaderboardResults, guard: GuardRow) -> str:
    styles = {"better": "green", "worse": "red"}
    for d in results.differences:
        if (d.guard, d.suite, d.metric) == (guard.name, "*", "f1_strict") and d.difference.value is not None:
            style = styles.get(d.word, "dim")
            return f"{d.difference.value:+.3f} [{style}]{d.word}[/{style}]"
    return ""


def _tell(results: LeaderboardResults, out: Path, page: Path | None, lost: list[str]) -> None:
    for note in results.notes:
        say(f"[dim]{literal(note)}[/dim]")
    say(literal(f"\nrun     {out}\ntable   {out / 'table.csv'}" + (f"\nreport  {page}" if page else "")))
    if lost:
        say("next    repeat the command to ask the failed guards again; the others are kept")
    elif len(results.guards) == 1:
        say("next    name a second guard, and they are compared item by item")
    else:
        say("next    guardkeel audit GUARD --against OTHER tells two of them apart in detail")
