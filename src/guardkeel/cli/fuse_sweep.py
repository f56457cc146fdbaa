"""guardkeel fuse sweep: try many repairs, score each as an audit would, and confirm the one that a rule chooses."""

from __future__ import annotations

import sys
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import EXIT_CODES, duration
from guardkeel.cli.fields import named_files, says
from guardkeel.cli.options import AsJson, Report, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table
from guardkeel.fusion.sweep.config import SweepConfig

if TYPE_CHECKING:
    from guardkeel.fusion.sweep.results import Confirmation, Point, SweepResults
    from guardkeel.records import Estimate

SHOWN = 12
"""Points that stand in the terminal's table; all are in the report."""

_says = says(SweepConfig)


def register(group: typer.Typer) -> None:
    """Add the verb to the group `fuse`."""
    group.command("sweep")(sweep)


def sweep(
    candidates: Annotated[
        list[str] | None, typer.Argument(metavar="CANDIDATE", help=_says("candidates"))
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", "-r", help=_says("reference"))] = None,
    unaligned: Annotated[str | None, typer.Option(help=_says("unaligned"))] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="NAME=FILE", help=_says("extras", after="; repeat for several")),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="DATA", help=_says("task", after="; repeat for several")),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="Of the grid only these methods, beside the controls. Repeat for several.",
        ),
    ] = None,
    floor: Annotated[float | None, typer.Option(help=_says("floor"))] = None,
    fpr_margin: Annotated[float | None, typer.Option("--fpr-margin", help=_says("fpr_margin"))] = None,
    gain: Annotated[
        str | None, typer.Option(metavar="MEASURE", help=_says("gain", after=": loss or accuracy"))
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(metavar="WHAT", help=_says("fallback", after=": nearest or none"))
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", "-s", help=_says("suites", "suites to judge on: ", "; repeat for several")),
    ] = None,
    limit: Annotated[int | None, typer.Option(help=_says("limit"))] = None,
    confirm: Annotated[bool | None, typer.Option("--confirm/--no-confirm", help=_says("confirm"))] = None,
    recalibrate: Annotated[
        bool | None, typer.Option("--recalibrate/--no-recalibrate", help=_says("recalibrate"))
    ] = None,
    adapter: Annotated[bool | None, typer.Option("--adapter/--checkpoint", help=_says("adapter"))] = None,
    policy: Annotated[str | None, typer.Option(help=_says("policy"))] = None,
    geometry: Annotated[bool | None, typer.Option("--geometry/--no-geometry", help=_says("geometry"))] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype", "number format: "))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device", "where it runs: "))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="All of this as TOML, the grid too; options override it."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in seeds=[0,1,2,3,4]."),
    ] = None,
    out: RunFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points, with time and memory; run nothing.")
    ] = False,
    print_grid: Annotated[
        bool, typer.Option("--print-grid", help="Print the grid that ships, to start your own from.")
    ] = False,
    as_json: AsJson = False,
    html: Report = True,
) -> None:
    """Try many repairs of a damaged guard, show what each trades, and confirm the one that a rule chooses.

    Every point (a method with its settings) is put into the loaded guard's weights and judged on calibrate items, and
    on rows of the task that were not learned. The rule, written down before: the highest recall at the reference's
    false-positive rate among points that keep the floor of the task gain. Its choice is written to fused/ and audited
    on test items beside the damaged guard; the exit code is that gate's, and 1 where no point satisfies the rule.
    Reference, candidates, plain interpolation and random masks are always tried too. Repeat the command after any
    stop: what was judged stays.

    [bold]Examples[/bold]

      guardkeel fuse sweep runs/tune-bank --dry-run                  [dim]the points, and how long they take[/dim]
      guardkeel fuse sweep runs/tune-bank -m ties -m safe-lora --limit 100
      guardkeel fuse sweep ./bank ./medical --task bank.jsonl --task medical.jsonl --reference ./guard
      guardkeel fuse sweep --config sweep.toml --set floor=0.95 --out runs/repair
    """
    from guardkeel.fusion.sweep.grid import shipped, shipped_text

    if print_grid:
        typer.echo(shipped_text(), nl=False)
        return
    given: dict[str, Any] = {
        "candidates": candidates or None,
        "reference": reference,
        "unaligned": unaligned,
        "extras": named_files(extra) if extra else None,
        "task": task or None,
        "floor": floor,
        "fpr_margin": fpr_margin,
        "gain": gain,
        "fallback": fallback,
        "suites": suite or None,
        "limit": limit,
        "confirm": confirm,
        "recalibrate": recalibrate,
        "adapter": adapter,
        "policy": policy,
        "geometry": geometry,
        "family": family,
        "dtype": dtype,
        "device": device,
        "offline": offline,
    }
    if not (candidates or config or any(c.startswith("candidates=") for c in changes or ())):
        raise typer.BadParameter("name the damaged guard", param_hint="CANDIDATE")
    from guardkeel.fusion.sweep.config import read_config

    resolved = read_config(config, given, changes or ())
    if method:
        chosen = [p for p in resolved.point or shipped() if p.method in method]
        if absent := sorted(set(method) - {p.method for p in chosen}):
            raise typer.BadParameter(f"the grid has no {absent[0]!r}", param_hint="--method")
        resolved = resolved.model_copy(update={"point": chosen})
    hush()
    if dry_run:
        plan(resolved, as_json)
        return
    folder = out or _fresh(resolved)
    results = run(resolved, folder, quiet=as_json and not sys.stderr.isatty())
    page = None
    if html:
        from guardkeel.report.fuse import write_sweep_report

        page = write_sweep_report(folder)
    if as_json:
        emit(
            {
                "run": str(folder),
                "fused": str(folder / "fused") if results.confirmation else None,
                "report": str(page) if page else None,
                "results": results.model_dump(mode="json"),
            }
        )
    else:
        show(results)
        _tell(results, folder, page)
    raise typer.Exit(exit_code(results))


def run(config: SweepConfig, folder: Path, *, quiet: bool = False) -> SweepResults:
    """Run, or resume, a sweep, with progress."""
    from guardkeel.fusion.sweep.run import run as run_sweep

    with progress(quiet) as watch:
        return run_sweep(config, folder, command=["guardkeel", *sys.argv[1:]], watch=watch)


def exit_code(results: SweepResults) -> int:
    """The gate's answer on the confirmed choice; 1 where no point satisfies the rule; 0 where nothing was confirmed."""
    if not results.choice.satisfied:
        return 1
    return EXIT_CODES[results.confirmation.repaired.decision] if results.confirmation else 0


def plan(config: SweepConfig, as_json: bool) -> None:
    """List what would be tried, and what it takes; what would stop it at once stops here too."""
    from guardkeel.fusion.sweep.estimate import plan as foresee

    with progress(as_json) as watch:
        found = foresee(config, watch)
    if as_json:
        emit(found.model_dump(mode="json") | {"seconds": found.seconds})
        return
    rows = [[str(k), literal(p.name), p.control] for k, p in enumerate(found.points, 1)]
    table("points, in the order in which they are judged", ["", "point", "control"], rows)
    for f in found.skipped:
        say(f"[dim]not tried: {literal(f.name)}, {literal(f.reason)}[/dim]")
    kept = f", {found.kept / 1e9:.1f} GB of it tensors kept between points" if found.kept else ""
    audits = f", then {found.audits} audits: {duration(found.audit_seconds)}" if found.audits else ""
    say(
        f"\n[bold]plan[/bold]     {len(found.points)} points on {found.items:,} calibrate items and "
        f"{found.task_rows:,} task rows{audits}\n"
        f"[bold]model[/bold]    {found.parameters / 1e6:.0f} M parameters, {found.dtype} on {found.device}\n"
        f"[bold]memory[/bold]   about {found.memory / 1e9:.1f} GB{kept}\n"
        f"[bold]time[/bold]     about {duration(found.seconds)} on this machine, "
        f"{duration(found.point_seconds)} a point\n"
        "nothing was run"
    )


def show(results: SweepResults) -> None:
    """The best points, the controls and the choice, in a screenful."""
    from guardkeel.report.fuse_words import ordered

    points = ordered(results.points)
    kept = [
        p
        for p in points
        if p.control in ("reference", "candidate") or p.front or p.id == results.choice.chosen
    ]
    rest = [p for p in points if p not in kept]
    few = sorted([*kept, *rest[: max(0, SHOWN - len(kept))]], key=points.index)
    rows = [
        [
            literal(p.name),
            _rate(p.recall_matched),
            _rate(p.gain),
            _rate(p.fpr),
            _rate(p.unscored),
            ""
            if p.weights is None
            else ", ".join("–" if s is None else f"{s:.2f}" for s in p.weights.shares),
            _mark(p, results),
        ]
        for p in few
    ]
    columns = [
        "",
        "recall at the FPR before",
        "task gain kept",
        "FPR as shipped",
        "unscored",
        "change left",
        "",
    ]
    table(f"{len(few)} of {len(points)} points, on calibrate items", columns, rows)
    say(f"\nrule     {literal(results.choice.rule)}")
    style = "green" if results.choice.satisfied else "bold yellow"
    say(f"choice   [{style}]{literal(results.choice.reason)}[/]")
    if results.confirmation is not None:
        _show_confirmed(results.confirmation)


def _show_confirmed(found: Confirmation) -> None:
    say("")
    rows = [
        [
            "all suites" if s.suite == "*" else literal(s.suite),
            _number(s.reference),
            *(_number(v) for v in s.damaged.values()),
            _number(s.repaired),
            _points(s.change),
            s.outcome or "",
        ]
        for s in found.suites
        if s.n
    ]
    damaged = [literal(d.name) for d in found.damaged]
    table(
        "recall on test items, as shipped",
        [
            "",
            "reference",
            *damaged,
            "repaired",
            "change, points (95%)",
            f"within {100 * found.margin:g} points",
        ],
        rows,
    )
    say(f"\nverdict  {found.verdict} on the suites together")
    say(f"gate     {found.repaired.decision.upper()}  {literal(found.repaired.reason)}")


def _tell(results: SweepResults, folder: Path, page: Path | None) -> None:
    from guardkeel.report.fuse_words import undone

    if said := undone(results):
        say(f"undone?  {literal(said)}")
    for note in results.notes:
        say(f"note     {literal(note)}")
    for f in results.failed:
        say(f"[yellow]failed[/yellow]   {literal(f.name)}: {literal(f.reason)}")
    for f in results.skipped:
        say(f"[dim]not tried: {literal(f.name)}, {literal(f.reason)}[/dim]")
    say(literal(f"\nrun      {folder}" + (f"\nreport   {page}" if page else "")))
    if results.confirmation is not None:
        say(literal(f"fused    {folder / results.confirmation.checkpoint}"))


def _mark(p: Point, results: SweepResults) -> str:
    said: list[str] = [p.control] if p.control else []
    if p.front:
        said.append("not beaten")
    if p.id == results.choice.chosen:
        said.append("[bold]chosen[/bold]" if results.choice.satisfied else "[bold]nearest[/bold]")
    return ", ".join(said)


def _rate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    span = f" [dim]{estimate.low:.2f}–{estimate.high:.2f}[/dim]" if estimate.low is not None else ""
    return f"{estimate.value:.3f}{span}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _points(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{100 * estimate.value:+.1f} [dim]{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}[/dim]"


def _fresh(config: SweepConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/; its name's end says which."""
    from guardkeel.records import value_digest

    home, name = Path("runs"), f"sweep-{Path(config.reference.split('@')[0]).name}"
    mark = value_digest(config.model_dump(mode="json", exclude={"offline"}))[:8]
    unfinished = [p for p in home.glob(f"{escape(name)}-*-{mark}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")
