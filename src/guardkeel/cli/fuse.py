"""guardkeel fuse: give a damaged guard its safety back by weights alone.

A group whose own form has a hidden name: `guardkeel fuse A …` is `guardkeel fuse merge A …`, beside `fuse sweep` and
`fuse mask`.
"""

from __future__ import annotations

import sys
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli import fuse_learn, fuse_sweep
from guardkeel.cli.audit import EXIT_CODES, duration, show
from guardkeel.cli.audit import run as run_audit
from guardkeel.cli.fields import named_files, says
from guardkeel.cli.group import OWN, OwnForm
from guardkeel.cli.options import AsJson, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table, uncollected
from guardkeel.fusion.config import DEFAULT_METHOD, HOW, FuseConfig

if TYPE_CHECKING:
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.fusion.results import FuseResults, Measured

AUDIT = "audit"


_says = says(FuseConfig)


def register(app: typer.Typer) -> None:
    """Add the verb, and its sub-commands."""
    group = typer.Typer(cls=OwnForm, help="Give a damaged guard its safety back, by weights alone.")
    group.command(OWN, hidden=True)(fuse)
    for beside in (fuse_sweep, fuse_learn):
        beside.register(group)
    app.add_typer(group, name="fuse")


def fuse(
    candidates: Annotated[
        list[str] | None, typer.Argument(metavar="CANDIDATE", help=_says("candidates"))
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", "-r", help=_says("reference"))] = None,
    unaligned: Annotated[str | None, typer.Option(help=_says("unaligned"))] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help=_says("method", after="; see --list-methods"))
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="NAME=FILE", help=_says("extras", after="; repeat for several")),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help=_says("only", after="; repeat for several")),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="PATTERN", help=_says("skip", after="; repeat for several")),
    ] = None,
    rest: Annotated[str | None, typer.Option(metavar="WHOSE", help=_says("rest"))] = None,
    output: Annotated[
        str | None, typer.Option(metavar="KIND", help=_says("output", "checkpoint or adapter: "))
    ] = None,
    rank: Annotated[int | None, typer.Option(help=_says("rank"))] = None,
    tolerance: Annotated[float | None, typer.Option(help=_says("tolerance"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype"))] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", metavar="SIZE", help=_says("shard_size"))
    ] = None,
    name: Annotated[str | None, typer.Option(help=_says("name"))] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    diagnostics: Annotated[
        bool | None, typer.Option("--diagnostics/--no-diagnostics", help=_says("diagnostics"))
    ] = None,
    seed: Annotated[int | None, typer.Option(help=_says("seed"))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device"))] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help=_says("processes"))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="All of this as TOML; options override it.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one key of the configuration, as in options.interpolation.alpha=0.5.",
        ),
    ] = None,
    out: RunFolder = None,
    audited: Annotated[
        bool, typer.Option("--audit", help="Audit the fused guard then; the exit code is the gate's.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", "-s", help="Suites of --audit. Default: the audit's own. Repeat for several."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Gate policy of --audit (TOML).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be read, held and written; run nothing.")
    ] = False,
    as_json: AsJson = False,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="Print what --method takes, with the settings.")
    ] = False,
) -> None:
    """Give a damaged guard its safety back by weights alone, without training.

    The reference is the guard as it was, the candidates are what fine-tuning made of it: whole checkpoints, LoRA
    adapters, GGUF files, or run directories of guardkeel tune. A method puts their weights together tensor by tensor,
    in float32 and in little memory. Writes a run directory with the fused guard in fused/, and says layer by layer how
    much of the change was kept. An interrupted run goes on where it stopped when the command is repeated.

    Which method and which strength? guardkeel fuse sweep tries many and audits each. guardkeel fuse mask learns the
    mask of SOMF, guardkeel fuse measure takes what safe-delta and antidote need. (A candidate in a folder of such a
    name is ./sweep, ./mask or ./measure.)

    [bold]Examples[/bold]

      guardkeel fuse runs/tune-bank                     [dim]half way back to the embedded guard[/dim]
      guardkeel fuse ./tuned --reference ./guard --set options.interpolation.alpha=0.3 --audit
      guardkeel fuse ./bank ./medical ./maths --reference ./guard --method ties --out runs/fused
      guardkeel fuse ./adapter --output adapter --tolerance 0.001
      guardkeel fuse ./tuned --reference ./guard --processes 4 --out runs/fused
      guardkeel fuse --config fuse.toml --dry-run
    """
    if list_methods:
        _list(as_json)
        return
    given: dict[str, Any] = {
        "candidates": candidates or None,
        "reference": reference,
        "unaligned": unaligned,
        "method": method,
        "extras": named_files(extra) if extra else None,
        "only": only or None,
        "skip": skip or None,
        "rest": rest,
        "output": output,
        "rank": rank,
        "tolerance": tolerance,
        "dtype": dtype,
        "shard_size": shard_size,
        "name": name,
        "family": family,
        "diagnostics": diagnostics,
        "seed": seed,
        "device": device,
        "processes": processes,
        "offline": offline,
    }
    if not (candidates or config or any(c.startswith("candidates=") for c in changes or ())):
        raise typer.BadParameter("name the damaged guard", param_hint="CANDIDATE")
    if (suite or policy) and not audited:
        raise typer.BadParameter("says how to audit, which --audit asks for", param_hint="--suite, --policy")
    from guardkeel.fusion.config import read_config

    resolved = read_config(config, given, changes or ())
    hush()
    quiet = as_json and not sys.stderr.isatty()
    folder = out or _fresh(resolved, audited)
    auditing = _auditing(resolved, folder, suite, policy) if audited else None
    if dry_run:
        plan(resolved, as_json)
        return
    results = run(resolved, folder, audited=audited, quiet=quiet)
    found: dict[str, Any] = {
        "run": str(folder),
        "fused": str(folder / "fused"),
        "results": results.model_dump(mode="json"),
    }
    if not as_json:
        report(results, resolved, folder)
    if auditing is None:
        if as_json:
            emit(found)
        return
    from guardkeel.report import write_report

    judged = run_audit(auditing, folder / AUDIT, quiet=quiet)
    page = write_report(folder / AUDIT)
    if as_json:
        told = {"run": str(folder / AUDIT), "report": str(page), "results": judged.model_dump(mode="json")}
        emit(found | {"audit": told})
    else:
        say("")
        show(judged)
        say(literal(f"\nrun     {folder / AUDIT}\nreport  {page}"))
    assert judged.decision is not None
    raise typer.Exit(EXIT_CODES[judged.decision.decision])


def run(config: FuseConfig, folder: Path, *, audited: bool = False, quiet: bool = False) -> FuseResults:
    """Run, resume, or with an audit to come take up, a fuse."""
    from guardkeel.resources.digests import digest_ahead

    named = [Path(m) for m in (config.reference, *config.candidates, config.unaligned) if m]
    digest_ahead([folder for folder in named if (folder / "config.json").is_file()])
    with uncollected():
        from guardkeel.fusion.run import run as run_fuse
        from guardkeel.fusion.run import taken_up

    command = ["guardkeel", *sys.argv[1:]]
    with progress(quiet) as watch:
        found = (
            taken_up(config, folder, watch)
            if audited and not (folder / AUDIT / "run.json").exists()
            else None
        )
        return found or run_fuse(config, folder, command=command, watch=watch)


def plan(config: FuseConfig, as_json: bool) -> None:
    """Say what the fuse would read, hold and write; what would stop it at once stops here too."""
    from guardkeel.fusion.prepare import planned

    with progress(as_json) as watch:
        found = planned(config, watch)
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    others = f", {found.copied} taken over as they are" if found.copied else ""
    names = literal(", ".join(config.candidates))
    say(f"[bold]plan[/bold]     {found.method} of {names} on {literal(config.reference)}")
    say(f"[bold]tensors[/bold]  {found.fused} fused{others}")
    say(f"[bold]read[/bold]     {size(found.bytes_read)}")
    shards = f" in {found.shards} files" if found.shards > 1 else ""
    most = "at most " if config.output == "adapter" else ""
    say(f"[bold]write[/bold]    {most}{size(found.bytes_written)}{shards}, {found.output} in {found.dtype}")
    if found.files:
        say(f"[bold]copy[/bold]     {literal(', '.join(found.files))}")
    say(f"[bold]memory[/bold]   at most {size(found.memory)}")
    say(f"[bold]time[/bold]     about {duration(found.seconds)} on this machine")
    for warning in found.warnings:
        say(f"[bold yellow]warning[/bold yellow]  {literal(warning)}")
    say("nothing was run")


def size(count: float) -> str:
    """1234567 → '1.23 MB'."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"


def report(results: FuseResults, config: FuseConfig, folder: Path) -> None:
    """What the fuse did, in a screenful."""
    from guardkeel.fusion.inputs import located

    for note in results.notes:
        say(f"note     {literal(note)}")
    found = results.diagnostics
    if found is not None:
        names = [Path(c.split("@")[0]).name for c in config.candidates]
        changed = [m for m in found.layers if any(m.changes) or m.change]
        rows = [_row(m, len(names)) for m in (found.whole, *_few(changed))]
        head = ["", "distance", *(f"{what} {name}" for name in names for what in ("share of", "cosine with"))]
        table("what was kept of the change, by layer", head, rows)
    fit = results.adapter
    if fit is not None:
        ranks = sorted(m.rank for m in fit.modules)
        rank = f"{ranks[0]}" if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
        whole = f", {len(fit.whole)} kept whole" if fit.whole else ""
        say(
            f"adapter  {len(ranks)} modules of rank {rank}{whole}; it misses {100 * fit.error:.2g}% of the change"
        )
    say(
        f"wrote    {size(results.bytes_written)} in {duration(results.seconds)}, {results.fused} tensors fused and "
        f"{results.copied} taken over, at most {size(results.peak_memory)} of memory"
    )
    say(f"run      {literal(folder)}")
    say(
        f"next     guardkeel audit {literal(located(config.reference))} --against {literal(folder / 'fused')}"
    )


def _row(measured: Measured, candidates: int) -> list[str]:
    pairs = zip(measured.shares, measured.cosines, strict=True)
    values = [f"{v:.3f}" if v is not None else "–" for pair in pairs for v in pair]
    return [literal(measured.name), "–" if measured.distance is None else f"{measured.distance:.2g}", *values]


def _few(layers: list[Measured], most: int = 8) -> list[Measured]:
    """All of a few layers, or some of many, the first and the last among them."""
    if len(layers) <= most:
        return layers
    return [layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)]


def _auditing(config: FuseConfig, folder: Path, suites: list[str] | None, policy: Path | None) -> AuditConfig:
    """The ordinary audit of the fused guard against the reference; a policy that cannot be used is refused now."""
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.evaluation.policy import load_policy
    from guardkeel.fusion.inputs import located

    given: dict[str, Any] = {"suites": suites} if suites else {}
    load_policy(str(policy) if policy else None)
    return AuditConfig(
        reference=located(config.reference),
        against=str(folder / "fused"),
        policy=str(policy) if policy else None,
        family=config.family,
        offline=config.offline,
        **given,
    )


def _fresh(config: FuseConfig, audited: bool) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/.

    A run whose audit is asked for and not there is unfinished too. The end of its name says which configuration it
    is of.
    """
    from guardkeel.records import value_digest

    home, name = Path("runs"), f"fuse-{config.method}"
    mark = value_digest(config.model_dump(mode="json", exclude=set(HOW)))[:8]
    unfinished = [
        p
        for p in home.glob(f"{escape(name)}-*-{mark}")
        if (p / "plan.json").exists() or (audited and not (p / AUDIT / "run.json").exists())
    ]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")


def _list(as_json: bool) -> None:
    """What --method takes."""
    from guardkeel.fusion.methods.registry import methods

    known = methods()
    if as_json:
        emit(
            [
                {
                    "name": name,
                    "summary": m.summary,
                    "candidates": [m.least, m.most],
                    "unaligned": m.needs_unaligned,
                    "extras": list(m.extras),
                    "draws": m.draws,
                    "settings": {k: f.description for k, f in m.Settings.model_fields.items()},
                    "default": name == DEFAULT_METHOD,
                }
                for name, m in known.items()
            ]
        )
        return
    for name, m in known.items():
        default = " [dim](default)[/dim]" if name == DEFAULT_METHOD else ""
        needs = [
            *(["several candidates"] if m.least > 1 else []),
            *(["--unaligned"] if m.needs_unaligned else []),
        ]
        needs += [f"--extra {e}=FILE" for e in m.extras]
        say(f"[bold]{name:16}[/bold] {literal(m.summary)}{default}")
        if m.Settings.model_fields:
            settings = ", ".join(f"{k} {f.default}" for k, f in m.Settings.model_fields.items())
            say(f"[dim]{'':16} settings: {literal(settings)}[/dim]")
        if needs:
            say(f"[dim]{'':16} needs: {literal(', '.join(needs))}[/dim]")
    say("\nsettings of a method: --set options.interpolation.alpha=0.3")
