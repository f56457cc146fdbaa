"""guardkeel bench: experiments that answer a question, from a grid of ordinary runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import duration
from guardkeel.cli.options import Report
from guardkeel.cli.terminal import Progress as Watch
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.errors import InputError
    from guardkeel.results import AuditResults
    from guardkeel.tuning.collapse.cell import Cell
    from guardkeel.tuning.collapse.figures import CollapseTable, Figure
    from guardkeel.tuning.collapse.grid import Grid
    from guardkeel.tuning.collapse.run import Progress


def register(app: typer.Typer) -> None:
    """Add the group of verbs."""
    group = typer.Typer(help="Experiments: a grid of ordinary runs, one table.", no_args_is_help=True)
    group.command("collapse")(collapse)
    app.add_typer(group, name="bench")


def collapse(
    grid: Annotated[
        Path | None, typer.Option("--grid", "-g", help="The grid (TOML). Default: the one that ships.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the bench; what is there is not made again.")
    ] = Path("runs/collapse"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCENARIO/ARM", help="Only these cells, with * for any, as in 'medical/fwssr*'. Repeat."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in tune.steps=20."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Make failed cells again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and their time; run nothing.")
    ] = False,
    print_grid: Annotated[
        bool, typer.Option("--print-grid", help="Print the grid that ships, to start your own from.")
    ] = False,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never use the network.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Table and paths as JSON on stdout.")] = False,
    html: Report = True,
) -> None:
    """Fine-tune a guard on harmless data under every method, audit each result, and say what kept its safety.

    Every cell of scenarios × arms × seeds is an ordinary fine-tune and an ordinary audit in a folder of its own. Repeat
    the command after any stop: finished cells stay, the others go on where they were. Several processes may work on
    one folder. Main arms come first, so that a table can be read long before the last cell.

    [bold]Examples[/bold]

      guardkeel bench collapse --dry-run
      guardkeel bench collapse --only 'bank/plain' --only 'bank/fwssr*' --set grid.seeds=[0]
      guardkeel bench collapse --grid benchmarks/collapse/grid.toml --out runs/full
    """
    from guardkeel.tuning.collapse.gridfile import read_grid, shipped_text

    if print_grid:
        typer.echo(shipped_text(), nl=False)
        return
    chosen = read_grid(grid, changes or ())
    hush()
    if dry_run:
        plan(chosen, out, only or [], offline, as_json)
        return
    quiet = as_json and not sys.stderr.isatty()
    done = run(chosen, out, only or [], retry=retry, offline=offline, quiet=quiet)
    found, page = _table(out, html) if done.done else (None, None)
    if as_json:
        emit(
            {
                "out": str(out),
                "cells": len(done.done),
                "made": done.made,
                "failed": {cell.name: cell.error for cell in done.done if cell.error},
                "elsewhere": done.elsewhere,
                "refused": {name: str(e) for name, e in done.refused.items()},
                "table": found.model_dump(mode="json") if found else None,
                "report": str(page) if page else None,
            }
        )
    else:
        if found:
            show(found)
        _tell(done, out, page)
    if done.refused:
        raise typer.Exit(2)


def run(
    grid: Grid, out: Path, only: list[str], *, retry: bool, offline: bool | None, quiet: bool
) -> Progress:
    """Run, or go on with, a bench, with a bar and a line for each finished cell."""
    from guardkeel.tuning.collapse.run import run as run_bench

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)  # above a live bar, which typer.echo would write into

    def on_cell(cell: Cell, audit: AuditResults | None) -> None:
        tell(line(cell, audit))

    def on_refused(name: str, error: InputError) -> None:
        tell(f"{name}  cannot be made: {error}")

    with progress(quiet) as watch:
        return run_bench(
            grid,
            out,
            only=only,
            retry=retry,
            offline=offline,
            command=["guardkeel", *sys.argv[1:]],
            watch=_few(watch),
            on_cell=on_cell,
            on_refused=on_refused,
        )


def _few(watch: Watch) -> Watch:
    """One bar for all fine-tunes, whatever their method."""
    return lambda what, done, total: watch(what.partition(" (")[0], done, total)


def line(cell: Cell, audit: AuditResults | None) -> str:
    """What a cell came to, in a line."""
    name = f"{cell.scenario}  {cell.arm}  {cell.variant + '  ' if cell.variant else ''}seed {cell.seed}"
    if cell.error or audit is None or audit.comparison is None:
        return f"{name}  failed: {cell.error}  {cell.seconds:.0f} s"
    found = next(r for r in audit.comparison.recalibration if r.suite == "*")
    return (
        f"{name}  recall {_rate(found.recall_reference.value)} → {_rate(found.recall_shipped.value)}, "
        f"{_rate(found.recall_recalibrated.value)} at the FPR before  {cell.seconds:.0f} s"
    )


def plan(grid: Grid, out: Path, only: list[str], offline: bool | None, as_json: bool) -> None:
    """List the cells, their time, and what each scenario reads; what would stop the bench stops here too."""
    from guardkeel.tuning.collapse.cell import read_cell, read_cells
    from guardkeel.tuning.collapse.grid import plans
    from guardkeel.tuning.collapse.material import material
    from guardkeel.tuning.collapse.run import expected

    chosen = plans(grid, only)
    done = [cell for _, cell in read_cells(out)]
    cells: list[dict[str, Any]] = []
    for one in chosen:
        cell = read_cell(out / "cells" / one.name)
        state = "to do" if cell is None else "failed" if cell.error else "done"
        cells.append(
            {"cell": one.name, "state": state, "seconds": cell.seconds if cell else expected(one, done)}
        )
    counts: dict[str, dict[str, int]] = {}
    with progress(as_json) as watch:
        for one in chosen:
            if one.scenario.name not in counts:
                counts[one.scenario.name] = material(one, one.config(offline), watch).counts
    if as_json:
        emit({"cells": cells, "scenarios": counts})
        return
    columns = list(next(iter(counts.values())))
    table(
        "scenarios",
        ["", *columns],
        [[literal(n), *(f"{v:,}" for v in c.values())] for n, c in counts.items()],
    )
    say("")
    table(
        "cells, in the order in which they are made",
        ["cell", "state", "time"],
        [[literal(c["cell"]), c["state"], duration(c["seconds"]) if c["seconds"] else "–"] for c in cells],
    )
    left = [c for c in cells if c["state"] == "to do"]
    known = [c["seconds"] for c in left if c["seconds"]]
    time = f"about {duration(sum(known) * len(left) / len(known))} in one process" if known else "unknown yet"
    say(f"\n{len(cells)} cells, {len(left)} to do: {time if left else 'nothing'}\nnothing was run")


def show(found: CollapseTable) -> None:
    """The table in short: all suites together, arm by arm."""
    for scenario, variant in dict.fromkeys((row.scenario, row.variant) for row in found.rows):
        rows = [
            [
                literal(row.arm),
                str(len(row.seeds)),
                _shown(row.pooled.shipped),
                _shown(row.pooled.recalibrated),
                _shown(row.pooled.auroc),
                _shown(row.task.kept),
                row.verdict.target if row.verdict else "",
            ]
            for row in found.rows
            if (row.scenario, row.variant) == (scenario, variant)
        ]
        columns = ["", "seeds", "recall as shipped", "recall at the FPR before", "AUROC", "task gain kept"]
        table(scenario + (f", {variant}" if variant else ""), [*columns, "meets the target"], rows)
        say("")


def _table(out: Path, html: bool) -> tuple[CollapseTable, Path | None]:
    from guardkeel.tuning.collapse.table import summarise

    found = summarise(out)
    if not html:
        return found, None
    from guardkeel.report.collapse import write_collapse_report

    return found, write_collapse_report(out)


def _tell(done: Progress, out: Path, page: Path | None) -> None:
    failed = [cell for cell in done.done if cell.error]
    say(
        f"cells   {len(done.done)} done, {done.made} of them now"
        + (f", {len(failed)} failed" if failed else "")
    )
    if done.elsewhere:
        say(f"        {len(done.elsewhere)} are with other processes, or wait for theirs")
    if done.refused:
        say(f"        {len(done.refused)} cannot be made as the grid says")
    say(f"table   {literal(out / 'table.csv')}" if done.done else "table   none yet")
    if page:
        say(f"report  [bold]{literal(page)}[/bold]")


def _shown(figure: Figure) -> str:
    return _rate(figure.value)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
