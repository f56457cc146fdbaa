"""guardkeel curate: build a set of guard data from a pipeline file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardkeel.cli import curate_adjudicate
from guardkeel.cli.audit import duration
from guardkeel.cli.group import OWN, OwnForm
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.curation.config import CurateConfig
    from guardkeel.curation.jury.cost import CostEstimate
    from guardkeel.curation.pipeline import Curated, Planned
    from guardkeel.curation.steps import Done
    from guardkeel.curation.steps.base import OnCost

EXAMPLE = """\
# pipeline.toml: a step runs where its table stands. Every key: docs/curate.md.
name = "bank"

[[source]]
name = "logs"
data = "logs/*.jsonl"           # OpenAI messages; released sets are known by their columns
licence = "internal"

[[source]]
name = "public"
suite = "toxicchat-train@local"
part = "fit"
label_source = "human"

[limits]
max_tokens = 2048               # longer rows are counted, never cut

[dedup]

[redact]
regions = ["US", "GB"]

[map]
categories = { "Account takeover" = "Fraud/Deception" }

[jury]
quorum = 2
budget = 20.0                   # USD; the estimate is shown before anybody is asked
calibration = ["toxicchat-train@local"]   # labelled by people: each juror is measured on it

[[jury.juror]]
guard = "judge-a.toml"          # a server: see docs/guards.md
price = { input = 0.15, output = 0.6 }

[[jury.juror]]
guard = "keel-135m"

[[jury.juror]]
recorded = "votes.jsonl"

# [adjudicate]                  # people decide what the jury left open: guardkeel curate adjudicate
# people = 2                    # labels that have to agree

[split]
against = ["all"]

[export]
formats = ["parquet"]
also = ["aegis-2"]
"""


def register(app: typer.Typer) -> None:
    """Add the verb, and its sub-command."""
    group = typer.Typer(cls=OwnForm, help="Build guard data from a pipeline file.")
    group.command(OWN, hidden=True)(curate)
    curate_adjudicate.register(group)
    app.add_typer(group, name="curate")


def curate(
    pipeline: Annotated[
        Path | None, typer.Argument(help="The pipeline (TOML). --example prints one to start from.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Its folder; what is done there stays. Default: runs/NAME."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in jury.budget=5. Repeat."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="Make this step again although nothing changed. Repeat."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what the jury would cost.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask jurors that cost money although no budget is set.")
    ] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a pipeline to start from.")] = False,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never use the network.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="What every step found, as JSON on stdout.")
    ] = False,
) -> None:
    """Build guard data: read, deduplicate, redact, map, have a jury label, split and export, with a data card.

    Each step is kept in the pipeline's folder and made once: repeat the command after any stop, or after a change of
    the file, and only what follows from the change is made again. Jurors are asked nothing twice: every vote is kept.

    [bold]Examples[/bold]

      guardkeel curate --example > pipeline.toml
      guardkeel curate pipeline.toml --dry-run
      guardkeel curate pipeline.toml --out data/bank --until dedup
      guardkeel curate pipeline.toml --out data/bank --set jury.budget=5
    """
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    from guardkeel.curation.config import read_config
    from guardkeel.errors import ConfigError

    if pipeline is None:
        raise ConfigError("no pipeline", remedy="guardkeel curate --example prints one to start from")
    config = read_config(pipeline, {"offline": offline}, changes or ())
    place = out or Path("runs") / config.name
    hush()
    if dry_run:
        _plan(config, place, as_json)
        return
    curated = _run(config, place, until, redo or [], yes, as_json)
    if as_json:
        emit(
            {
                "out": str(place),
                "dataset": str(curated.dataset) if until is None else None,
                "made": curated.made,
                "steps": [s.model_dump(mode="json") for s in curated.steps],
            }
        )
        return
    if until is None:
        say(f"\ndataset  [bold]{literal(curated.dataset)}[/bold]  (its card is README.md)")
    else:
        say(f"\nrows     [bold]{literal(place / 'steps' / until / 'rows.jsonl')}[/bold]")


def _run(
    config: CurateConfig, out: Path, until: str | None, redo: Sequence[str], yes: bool, as_json: bool
) -> Curated:
    from guardkeel.curation.pipeline import run

    quiet = as_json and not sys.stderr.isatty()

    def on_step(done: Done, now: bool) -> None:
        if not quiet:
            print(line(done, now), file=sys.stderr)  # above a live bar, which typer.echo would write into

    with progress(quiet) as watch:
        return run(
            config,
            out,
            command=["guardkeel", *sys.argv[1:]],
            until=until,
            redo=redo,
            watch=watch,
            on_cost=_on_cost(config, yes, quiet),
            on_step=on_step,
        )


def line(done: Done, now: bool) -> str:
    """What a step came to, in a line."""
    left = f", {done.left_out:,} left out" if done.left_out else ""
    found = "; ".join(f"{k} {v:,}" for k, v in done.counts.items() if not k.startswith("rows"))
    took = duration(done.seconds) if now else "as it was"
    return f"{done.step}  {done.rows:,} rows{left}  {found}{'  ' if found else ''}{took}"


def _on_cost(config: CurateConfig, yes: bool, quiet: bool) -> OnCost:
    from guardkeel.curation.pipeline import accept, refuse_unbounded

    budget = config.jury.budget if config.jury else None
    check = accept if yes and budget is None else refuse_unbounded(budget)

    def told(estimates: Sequence[CostEstimate], currency: str) -> None:
        if not quiet:
            for one in estimates:
                print(cost_line(one, currency), file=sys.stderr)
        check(estimates, currency)

    return told


def cost_line(one: CostEstimate, currency: str) -> str:
    """What one juror will take, in a line."""
    said = f"juror {one.juror}: {one.items:,} items, {one.known:,} known, {one.to_ask:,} to ask"
    if one.seconds is None or not one.to_ask:
        return said
    basis = "as measured so far" if one.measured else "a guess"
    money = "free" if one.money is None else f"{one.money:.2f} {currency}"
    return f"{said}: about {one.input + one.output:,.0f} tokens, {money}, {duration(one.seconds)} ({basis})"


def _plan(config: CurateConfig, out: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from guardkeel.curation.pipeline import planned

    with progress(as_json) as watch:
        found = planned(config, out, watch=watch)
    if as_json:
        emit(
            [
                {"step": p.step, "state": p.state, "estimates": [asdict(e) for e in p.estimates]}
                | {"rows": p.done.rows if p.done else None}
                for p in found
            ]
        )
        return
    table("steps", ["step", "state", "rows"], [_planned_row(p) for p in found])
    currency = config.jury.currency if config.jury else ""
    for one in (e for p in found for e in p.estimates):
        say(literal(cost_line(one, currency)))
    if any(p.step == "jury" and p.state == "depends" for p in found):
        say("what the jury costs can be said when the steps before it are done: --until map, then --dry-run")
    say("nothing was run")


def _planned_row(found: Planned) -> list[str]:
    words = {"done": "done", "to do": "to do", "depends": "depends on the steps before"}
    return [found.step, words[found.state], f"{found.done.rows:,}" if found.done else ""]
