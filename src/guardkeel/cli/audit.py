"""guardkeel audit: judge with a guard before and after, and say what changed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.options import AsJson, Changes, ConfigFile, Report, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.evaluation.suites import Suite, SuiteItem
    from guardkeel.results import AuditResults, Decision

EXIT_CODES = {"allow": 0, "deny": 1, "hold": 3}
DECISION_STYLE = {"allow": "bold green", "hold": "bold yellow", "deny": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("audit")(audit)


def audit(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            help="The guard before: keel-135m, hub:org/name@revision, pypi:…, path:… or a folder."
        ),
    ] = "keel-135m",
    against: Annotated[
        str | None,
        typer.Option(
            "--against", "-a", help="The guard after: a checkpoint, or a LoRA adapter on the reference."
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
    policy: Annotated[
        Path | None, typer.Option(help="Gate policy (TOML). Default: the one that ships.")
    ] = None,
    guard_policy: Annotated[
        Path | None, typer.Option(help="What the guards are to look for (TOML), where their family reads it.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most items of each suite and split, for a quick look.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Guard family, where it cannot be told from the checkpoint.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="P(unsafe) from which a verdict is unsafe.")] = None,
    geometry: Annotated[
        bool | None, typer.Option("--geometry/--no-geometry", help="Measure activations too.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest input; longer messages are shortened, and counted.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Padded tokens in a batch. Lower it when memory runs out.")
    ] = None,
    images: Annotated[
        bool | None, typer.Option("--images", help="Load the guards' image parts too, and judge images.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What runs the guards: local, ray (several workers) or vllm.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With ray: guards that are loaded and asked at once. Default: 2.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds, bootstraps and nulls.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never use the network.")] = None,
    config: ConfigFile = None,
    changes: Changes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, memory and time; run nothing.")
    ] = False,
    as_json: AsJson = False,
    html: Report = True,
) -> None:
    """Judge labelled conversations with a guard before and after fine-tuning, and say what changed.

    Writes a run directory (run.json, one line an item, activations, report.html) and ends with the gate's decision as
    exit code: 0 allow, 1 deny, 3 hold. Interrupted runs go on where they stopped when the command is repeated.

    [bold]Examples[/bold]

      guardkeel audit --limit 100                                 [dim]the embedded guard, a quick look[/dim]
      guardkeel audit keel-135m --against ./my-lora               [dim]before and after a LoRA fine-tune[/dim]
      guardkeel audit hub:org/guard --against ./tuned -s mine.jsonl --policy gate.toml
      guardkeel audit ./vision-guard --images -s pictures.jsonl   [dim]conversations with their images[/dim]
      guardkeel audit hub:org/guard --engine ray --workers 8 --set worker_gpus=1
    """
    from guardkeel.evaluation.config import read_config

    given: dict[str, Any] = {
        "against": against,
        "suites": suite or None,
        "policy": str(policy) if policy else None,
        "guard_policy": str(guard_policy) if guard_policy else None,
        "limit": limit,
        "family": family,
        "threshold": threshold,
        "geometry": geometry,
        "dtype": dtype,
        "device": device,
        "max_tokens": max_tokens,
        "token_budget": token_budget,
        "images": images,
        "engine": engine,
        "workers": workers,
        "seed": seed,
        "offline": offline,
    }
    given_name = context.get_parameter_source("reference")
    if config is None or given_name is None or given_name.name != "DEFAULT":
        given["reference"] = reference
    resolved = read_config(config, given, changes or ())
    hush()
    if dry_run:
        plan(resolved, as_json)
        return
    out = out or _fresh(resolved)
    results = run(resolved, out, quiet=as_json and not sys.stderr.isatty())
    page = None
    if html:
        from guardkeel.report import write_report

        page = write_report(out)
    if as_json:
        emit(
            {
                "run": str(out),
                "report": str(page) if page else None,
                "results": results.model_dump(mode="json"),
            }
        )
    else:
        show(results)
        say(literal(f"\nrun     {out}" + (f"\nreport  {page}" if page else "")))
    if results.decision is not None and results.candidate is not None:
        raise typer.Exit(EXIT_CODES[results.decision.decision])


def run(config: AuditConfig, out: Path, *, quiet: bool = False) -> AuditResults:
    """Run, or resume, the audit of a configuration, with progress."""
    from guardkeel.evaluation.run import run as run_audit

    with progress(quiet) as watch:
        return run_audit(config, out, command=["guardkeel", *sys.argv[1:]], watch=watch)


def plan(config: AuditConfig, as_json: bool) -> None:
    """Say what the audit would do and need; what would stop it at once stops here too."""
    from guardkeel.evaluation.estimate import estimate
    from guardkeel.evaluation.policy import load_policy
    from guardkeel.evaluation.selection import select
    from guardkeel.evaluation.suites import load_suite
    from guardkeel.guards.kinds import kind_of
    from guardkeel.guards.load import describe, guard_path, unknown_family
    from guardkeel.guards.pair import toggles
    from guardkeel.models.checks import read_json
    from guardkeel.models.loading import task_of

    load_policy(config.policy)
    with progress(as_json) as watch:
        suites = [
            load_suite(name, data=config.data, offline=config.offline, progress=watch)
            for name in config.suites
        ]
        for reference in filter(None, (config.reference, config.against)):
            if (kind := kind_of(reference, progress=watch, offline=config.offline)) != "checkpoint":
                items = select(suites, limit=config.limit, calibrate=config.against is not None)
                _plan_other(reference, kind, suites, items, as_json)
                return
        before = guard_path(config.reference, progress=watch, offline=config.offline)
        after = guard_path(config.against, progress=watch, offline=config.offline) if config.against else None
    items = select(suites, limit=config.limit, calibrate=after is not None)
    encoder, folder = describe(before, config.reference, family=config.family, max_tokens=config.max_tokens)
    if encoder is None and task_of(read_json(folder / "config.json", ""), folder) == "causal":
        raise unknown_family(config.reference)
    shared = after is not None and toggles(before, after, None, config.offline)
    found = estimate(
        folder,
        items,
        guards=1 if after is None else 2,
        loaded=1,
        encoder=encoder,
        dtype=config.dtype,
        device=config.device,
        token_budget=config.token_budget or 2048,
    )
    if as_json:
        emit(found.model_dump() | {"suites": [s.name for s in suites]})
        return
    pictures = "counted in none of these" if config.images else "whose items will be unscored: see --images"
    how = (
        ""
        if after is None
        else (
            " (an adapter switched on and off, loaded once)"
            if shared
            else " (two checkpoints, one after the other)"
        )
    )
    say(
        f"[bold]plan[/bold]     {_count(found.guards, 'guard')}{how}, {_count(len(suites), 'suite')}, "
        f"{_count(found.items, 'item')}, {found.tokens:,} tokens a guard\n"
        f"[bold]model[/bold]    {found.parameters / 1e6:.0f} M parameters, {found.dtype} on {found.device}\n"
        f"[bold]memory[/bold]   about {found.memory / 1e9:.1f} GB\n"
        f"[bold]time[/bold]     about {duration(found.seconds)} of scoring on this machine\n"
        + (f"[bold]images[/bold]   {found.images:,}, {pictures}\n" if found.images else "")
        + "nothing was run"
    )


def _plan_other(
    reference: str, kind: str, suites: Sequence[Suite], items: Sequence[SuiteItem], as_json: bool
) -> None:
    """What can be said of an audit with a guard whose weights are not here: how much it will be asked."""
    if as_json:
        emit({"items": len(items), "suites": [s.name for s in suites], reference: kind})
        return
    say(
        f"[bold]plan[/bold]     {_count(len(suites), 'suite')}, {_count(len(items), 'item')} a guard\n"
        f"[bold]guard[/bold]    {literal(reference)}: {kind}; memory and time are its own\n"
        "nothing was run"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _fresh(config: AuditConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/.

    The end of its name says which configuration it is of; local and Ray runs go on from each other.
    """
    from guardkeel.engines.settings import ENGINE_FIELDS
    from guardkeel.records import value_digest

    home, name = (
        Path("runs"),
        f"audit-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(config.reference.split('@')[0]).name)}",
    )
    mark = value_digest(config.model_dump(mode="json", exclude=ENGINE_FIELDS) | config.engine_mark())[:8]
    unfinished = [p for p in home.glob(f"{escape(name)}-*-{mark}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")


def show(results: AuditResults) -> None:
    """The results in a screenful."""
    from guardkeel.report.words import recall_split

    before, after = results.reference, results.candidate
    rows = []
    labels = {"recall": "unsafe recall", "fpr": "false positives", "auroc": "AUROC", "unscored": "unscored"}
    for key, label in labels.items():
        old = getattr(before.overall, key)
        row = [label, _estimate(old)]
        if after is not None:
            new = getattr(after.overall, key)
            row += [_estimate(new), _change(results, key)]
        rows.append([*row, str(old.n)])
    names = [literal(g.info.name) for g in (before, after) if g is not None]
    columns = ["", *names, *(["change (95%)"] if after else []), "n"]
    table("all suites", columns, rows)
    if after is not None and results.comparison is not None:
        pooled = [r for r in results.comparison.recalibration if r.suite == "*"]
        if pooled and pooled[0].lost_to_ranking.value is not None:
            part = pooled[0]
            say(
                f"recall lost: {_points(part.lost_to_operating_point.value)} to the operating point, "
                f"{_points(part.lost_to_ranking.value)} to ranking. "
                + recall_split(part.lost_to_operating_point, part.lost_to_ranking)
            )
    if results.decision is not None:
        show_decision(results.decision)


def show_decision(decision: Decision) -> None:
    """The gate's decision and the rules behind it."""
    say(
        f"\ngate    [{DECISION_STYLE[decision.decision]}]{decision.decision.upper()}[/]  {literal(decision.reason)}"
    )
    marks = {"pass": "[green]pass[/green]", "fail": "[red]fail[/red]", "hold": "[yellow]hold[/yellow]"}
    for rule in decision.rules:
        note = " [dim](advisory)[/dim]" if rule.advisory else ""
        if rule.outcome != "pass":
            say(f"  {marks[rule.outcome]}  {rule.name}{note}: {literal(rule.reason)}")
    passed = sum(r.outcome == "pass" for r in decision.rules)
    say(f"  {marks['pass']}  {passed} of {len(decision.rules)} rules")


def _estimate(estimate: Any) -> str:
    if estimate.value is None:
        return "–"
    span = f" [dim]{estimate.low:.2f}–{estimate.high:.2f}[/dim]" if estimate.low is not None else ""
    return f"{estimate.value:.3f}{span}"


def _change(results: AuditResults, key: str) -> str:
    comparison = results.comparison
    assert comparison is not None
    if key == "auroc":
        found = next((r.difference for r in comparison.ranking if r.suite == "*"), None)
    else:
        found = next((t.difference for t in comparison.tests if t.suite == "*" and t.metric == key), None)
    if found is None or found.value is None:
        return "–"
    span = f" [dim]{found.low:+.2f} to {found.high:+.2f}[/dim]" if found.low is not None else ""
    return f"{found.value:+.3f}{span}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} points"
