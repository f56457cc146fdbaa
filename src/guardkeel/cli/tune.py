"""guardkeel tune: fine-tune a guard on your own data without losing its safety."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import EXIT_CODES, duration, show
from guardkeel.cli.audit import run as run_audit
from guardkeel.cli.fields import says
from guardkeel.cli.options import AsJson, ConfigFile, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say
from guardkeel.cli.tune_shown import report
from guardkeel.errors import GuardkeelError
from guardkeel.tuning.config import WHERE, TuneConfig

if TYPE_CHECKING:
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.tuning.estimate import TunePlan
    from guardkeel.tuning.gather import Gathered
    from guardkeel.tuning.points import MonitorPoint
    from guardkeel.tuning.results import TuneResults

AUDIT = "audit"

_says = says(TuneConfig)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("tune")(tune)


def tune(
    context: typer.Context,
    guard: Annotated[str, typer.Argument(help=_says("guard"))] = "keel-135m",
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help=_says("data", after="; repeat for several"))
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help=_says("kind", after=": auto, guard or instructions"))
    ] = None,
    source: Annotated[str | None, typer.Option(help=_says("source"))] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help=_says("method", after="; see --list-methods"))
    ] = None,
    guard_data: Annotated[
        list[str] | None,
        typer.Option("--guard-data", "-g", help=_says("guard_data", after="; repeat for several")),
    ] = None,
    steps: Annotated[int | None, typer.Option(help=_says("steps"))] = None,
    epochs: Annotated[float | None, typer.Option(help=_says("epochs"))] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help=_says("learning_rate", "learning rate "))
    ] = None,
    batch: Annotated[int | None, typer.Option(help=_says("batch"))] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="KIND", help=_says("adapter", after=": lora, dora or full"))
    ] = None,
    rank: Annotated[int | None, typer.Option(help=_says("rank"))] = None,
    monitor: Annotated[
        list[str] | None,
        typer.Option("--monitor", help=_says("monitor", after=" (--set monitor=[]); repeat for several")),
    ] = None,
    every: Annotated[int | None, typer.Option(help=_says("every"))] = None,
    margin: Annotated[float | None, typer.Option(help=_says("margin"))] = None,
    tripwire: Annotated[bool | None, typer.Option("--tripwire/--no-tripwire", help=_says("tripwire"))] = None,
    recalibrate: Annotated[
        bool | None, typer.Option("--recalibrate/--no-recalibrate", help=_says("recalibrate"))
    ] = None,
    unaligned: Annotated[str | None, typer.Option(help=_says("unaligned"))] = None,
    report_to: Annotated[
        list[str] | None, typer.Option("--report-to", help=_says("report_to", after="; repeat for several"))
    ] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    seed: Annotated[int | None, typer.Option(help=_says("seed"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype", "number format: "))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device", "where it runs: "))] = None,
    sharding: Annotated[str | None, typer.Option(metavar="KIND", help=_says("sharding"))] = None,
    offload: Annotated[bool | None, typer.Option("--offload", help=_says("offload"))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: ConfigFile = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one key of the configuration, as in options.fwssr.strength=2.",
        ),
    ] = None,
    out: RunFolder = None,
    audited: Annotated[
        bool, typer.Option("--audit", help="Audit the tuned guard then; the exit code is the gate's.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", "-s", help="Suites of --audit. Default: the audit's own. Repeat for several."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Gate policy of --audit (TOML).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, memory and time; run nothing.")
    ] = False,
    as_json: AsJson = False,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="Print what --method takes, a line each.")
    ] = False,
) -> None:
    """Fine-tune a guard on your own data, keep what it knew, and see that while it trains.

    Data are labelled guard conversations (rows with labels) or instructions with answers. The method keeps the
    guard's safety on guard data; a monitor looks at recall, false positives and ranking on other items and the
    threshold is moved to where false alarms are as before. Writes a run directory with the tuned guard in tuned/. An
    interrupted run goes on where it stopped when the command is repeated.

    [bold]Examples[/bold]

      guardkeel tune --data bank.jsonl                       [dim]the embedded guard, the default method[/dim]
      guardkeel tune --data bank.jsonl --audit               [dim]and ask the gate whether it may ship[/dim]
      guardkeel tune ./guard --data qa.jsonl --method replay --steps 200 --tripwire
      guardkeel tune --config tune.toml --set options.fwssr.strength=2 --dry-run
      torchrun --nproc-per-node 8 -m guardkeel tune ./guard-8b --data qa.jsonl --sharding fsdp
    """
    if list_methods:
        _list(as_json)
        return
    given: dict[str, Any] = {
        "data": data or None,
        "kind": kind,
        "source": source,
        "method": method,
        "guard_data": guard_data or None,
        "steps": steps,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch": batch,
        "adapter": adapter,
        "rank": rank,
        "monitor": monitor or None,
        "every": every,
        "tripwire": tripwire,
        "margin": margin,
        "recalibrate": recalibrate,
        "unaligned": unaligned,
        "report_to": report_to or None,
        "family": family,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "sharding": sharding,
        "offload": offload,
        "offline": offline,
    }
    given_name = context.get_parameter_source("guard")
    if config is None or given_name is None or given_name.name != "DEFAULT":
        given["guard"] = guard
    if not (data or config or any(c.startswith("data=") for c in changes or ())):
        raise typer.BadParameter("give what the guard is to learn", param_hint="--data")
    if (suite or policy) and not audited:
        raise typer.BadParameter("says how to audit, which --audit asks for", param_hint="--suite, --policy")
    from guardkeel.tuning.config import read_config

    with _one_voice():
        resolved = read_config(config, given, changes or ())
        hush()
        _command(resolved, out, audited, suite, policy, dry_run, as_json)


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """What goes wrong in all processes is said once: the others wait with it until the launcher has ended them."""
    try:
        yield
    except GuardkeelError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        raise


def _command(
    resolved: TuneConfig,
    out: Path | None,
    audited: bool,
    suite: list[str] | None,
    policy: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """The command in one process of those that there are; the first one speaks, and audits."""
    from guardkeel.tuning.check import check
    from guardkeel.tuning.ranks import here

    check(resolved)
    ranks = here(resolved.sharding, resolved.offload, resolved.device)
    if dry_run and not ranks.first:
        return
    quiet = (as_json and not sys.stderr.isatty()) or not ranks.first
    if not dry_run:
        ranks.join()
    folder = out or (_fresh(resolved, audited) if dry_run else ranks.same(_fresh(resolved, audited)))
    auditing = _auditing(resolved, folder, suite, policy) if audited else None
    rows = _beside(resolved, auditing.suites, quiet) if auditing else None
    if dry_run:
        plan(resolved, as_json, rows)
        return
    results = ranks.same(_taken_up(resolved, folder, rows, quiet)) if rows else None
    if results is None:
        results = run(resolved, folder, quiet=quiet, gathered=rows)
    ranks.leave()
    if not ranks.first:
        return
    found: dict[str, Any] = {
        "run": str(folder),
        "tuned": str(folder / "tuned"),
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


def run(
    config: TuneConfig, folder: Path, *, quiet: bool = False, gathered: Gathered | None = None
) -> TuneResults:
    """Run, or resume, a fine-tune with progress and a line for each look of the monitor."""
    from guardkeel.tuning.points import line
    from guardkeel.tuning.run import run as run_tuning

    def told(point: MonitorPoint, reference: MonitorPoint) -> None:
        if not quiet:  # print goes above a live bar, typer.echo would write into it
            print(line(point, reference), file=sys.stderr)

    command = ["guardkeel", *sys.argv[1:]]
    with progress(quiet) as watch:
        return run_tuning(config, folder, gathered=gathered, command=command, watch=watch, on_point=told)


def _beside(config: TuneConfig, audited: Sequence[str], quiet: bool) -> Gathered:
    from guardkeel.tuning.gather import gather_beside

    with progress(quiet) as watch:
        return gather_beside(config, audited, watch)


def plan(config: TuneConfig, as_json: bool, gathered: Gathered | None = None) -> None:
    """Say what the fine-tune would do and need; what would stop it at once stops here too."""
    from guardkeel.tuning.estimate import estimate

    with progress(as_json) as watch:
        found = estimate(config, watch, gathered)
    if as_json:
        emit(found.model_dump())
        return
    aside = f" ({found.kept_aside} more kept aside)" if found.kept_aside else ""
    watched = f"{found.guard_data} guard conversations, " if found.guard_data else ""
    monitored = f"{found.monitor_items} items looked at {found.looks} times" if found.looks else "no monitor"
    say(
        f"[bold]plan[/bold]     {found.method} on {found.rows:,} rows{aside}: {found.steps:,} steps, "
        f"{found.passes:.3g} passes\n"
        f"[bold]safety[/bold]   {watched}{monitored}\n"
        f"[bold]model[/bold]    {_size(found.parameters)} parameters, {_size(found.trained)} trained "
        f"({found.adapter}), {found.dtype} on {found.device}\n"
        f"[bold]memory[/bold]   about {found.memory / 1e9:.1f} GB{_each(found)}\n"
        f"[bold]time[/bold]     about {duration(found.seconds)} on this machine\n"
        "nothing was run"
    )


def _each(found: TunePlan) -> str:
    """Of what the memory is that."""
    if found.processes == 1 and not found.sharded:
        return ""
    beside = f", and {found.host_memory / 1e9:.1f} GB in CPU memory" if found.host_memory else ""
    whose = "which have a shard of each weight" if found.sharded else "which have all weights"
    return f" in each of {found.processes} processes, {whose}{beside}"


def _size(count: int) -> str:
    """134515008 → '135 M'."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _auditing(config: TuneConfig, folder: Path, suites: list[str] | None, policy: Path | None) -> AuditConfig:
    """The ordinary audit of the tuned guard against the guard; a policy that cannot be used is refused now."""
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.evaluation.policy import load_policy

    given: dict[str, Any] = {"suites": suites} if suites else {}
    load_policy(str(policy) if policy else None)
    return AuditConfig(
        reference=config.guard,
        against=str(folder / "tuned"),
        policy=str(policy) if policy else None,
        data=config.data_folder,
        family=config.family,
        dtype=config.dtype,
        device=config.device,
        offline=config.offline,
        **given,
    )


def _fresh(config: TuneConfig, audited: bool) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/.

    A run whose audit is asked for and not there is unfinished too. The end of its name says which configuration it
    is of.
    """
    from guardkeel.records import value_digest

    home, name = Path("runs"), f"tune-{Path(config.guard.split('@')[0]).name}"
    mark = value_digest(config.model_dump(mode="json", exclude=WHERE))[:8]
    unfinished = [
        p
        for p in home.glob(f"{escape(name)}-*-{mark}")
        if (p / "plan.json").exists() or (audited and not (p / AUDIT / "run.json").exists())
    ]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")


def _taken_up(config: TuneConfig, folder: Path, rows: Gathered, quiet: bool) -> TuneResults | None:
    """The results of a fine-tune of this configuration and these very data that has ended without its audit."""
    if not (folder / "run.json").exists() or (folder / AUDIT / "run.json").exists():
        return None
    from guardkeel.guards.load import guard_path
    from guardkeel.models.loading import checkpoint_digest
    from guardkeel.records import read_record
    from guardkeel.tuning.results import TuneResults

    record = read_record(folder)
    asked = config.model_dump(mode="json")
    if record.verb != "tune" or record.config | {key: asked[key] for key in WHERE} != asked:
        return None
    with progress(quiet) as watch:
        guard = checkpoint_digest(guard_path(config.guard, progress=watch, offline=config.offline))
    same = record.inputs == {"guard": guard} | rows.digests
    return TuneResults.model_validate(record.results) if same else None


def _list(as_json: bool) -> None:
    """What --method takes."""
    from guardkeel.tuning.config import DEFAULT_METHOD
    from guardkeel.tuning.regularisers.registry import methods

    known = methods()
    if as_json:
        emit(
            [
                {"name": name, "summary": m.summary, "default": name == DEFAULT_METHOD}
                for name, m in known.items()
            ]
        )
        return
    for name, found in known.items():
        default = " [dim](default)[/dim]" if name == DEFAULT_METHOD else ""
        say(f"[bold]{name:20}[/bold] {literal(found.summary)}{default}")
    say("\nseveral are joined with +, as in fwssr+replay; settings of a part: --set options.fwssr.strength=2")
