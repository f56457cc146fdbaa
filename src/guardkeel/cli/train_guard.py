"""guardkeel train-guard: train a guard from curated data."""

from __future__ import annotations

import sys
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import duration
from guardkeel.cli.fields import says
from guardkeel.cli.options import AsJson, ConfigFile, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table
from guardkeel.tuning.guard_training.config import TrainConfig

if TYPE_CHECKING:
    from guardkeel.records import Estimate
    from guardkeel.results import Behaviour
    from guardkeel.tuning.guard_training.results import TrainResults
    from guardkeel.tuning.points import MonitorPoint

_says = says(TrainConfig)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train-guard")(train_guard)


def train_guard(
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help=_says("data", after="; repeat for several"))
    ] = None,
    base: Annotated[str | None, typer.Option("--base", "-b", help=_says("base"))] = None,
    accept_terms: Annotated[
        bool | None, typer.Option("--accept-terms", help="The base's terms have been read and are accepted.")
    ] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    policy: Annotated[str | None, typer.Option(help=_says("policy"))] = None,
    strictness: Annotated[str | None, typer.Option(metavar="HOW", help=_says("strictness"))] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option("--hold-out", metavar="CATEGORY", help=_says("hold_out", after="; repeat for several")),
    ] = None,
    topic_share: Annotated[float | None, typer.Option(help=_says("topic_share"))] = None,
    source_weight: Annotated[
        list[str] | None,
        typer.Option(
            "--source-weight", metavar="SOURCE=WEIGHT", help=_says("source_weights", after="; repeat")
        ),
    ] = None,
    class_weights: Annotated[str | None, typer.Option(metavar="HOW", help=_says("class_weights"))] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help=_says("method"))] = None,
    guard_data: Annotated[
        list[str] | None,
        typer.Option("--guard-data", "-g", help=_says("guard_data", after="; repeat for several")),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="KIND", help=_says("adapter", after=": lora, dora or full"))
    ] = None,
    rank: Annotated[int | None, typer.Option(help=_says("rank"))] = None,
    steps: Annotated[int | None, typer.Option(help=_says("steps"))] = None,
    epochs: Annotated[float | None, typer.Option(help=_says("epochs"))] = None,
    batch: Annotated[int | None, typer.Option(help=_says("batch"))] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help=_says("learning_rate"))] = None,
    false_alarms: Annotated[float | None, typer.Option(help=_says("false_alarms"))] = None,
    every: Annotated[int | None, typer.Option(help=_says("every"))] = None,
    seed: Annotated[int | None, typer.Option(help=_says("seed"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype"))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device"))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: ConfigFile = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in varied=0.3. Repeat."),
    ] = None,
    out: RunFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, memory and time; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a guard from curated data: any language model or classifier becomes one, a guard becomes a better one.

    A language model learns to judge by the policy that it is shown: categories are left out and shuffled while it
    learns, so that others can be given to it later (--hold-out measures that). The threshold is chosen on calibrate
    rows, the guard is measured on test rows, by side and by who labelled them. Writes a run directory with the guard
    and its model card in guard/. An interrupted run goes on where it stopped when the command is repeated.

    [bold]Examples[/bold]

      guardkeel train-guard --data data/bank --base smollm2-135m --out runs/guard
      guardkeel train-guard --data data/bank --hold-out Malware --hold-out Threat
      guardkeel train-guard --data data/bank --source-weight human=1 --source-weight jury=0.5 --dry-run
      guardkeel train-guard --data data/bank --base keel-135m --method fwssr --lr 1e-4
    """
    given: dict[str, Any] = {
        "data": data or None,
        "base": base,
        "accept_terms": accept_terms,
        "family": family,
        "policy": policy,
        "strictness": strictness,
        "hold_out": hold_out or None,
        "topic_share": topic_share,
        "source_weights": _weights(source_weight) if source_weight else None,
        "class_weights": class_weights,
        "method": method,
        "guard_data": guard_data or None,
        "adapter": adapter,
        "rank": rank,
        "steps": steps,
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "false_alarms": false_alarms,
        "every": every,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "offline": offline,
    }
    if not (data or config or any(c.startswith("data=") for c in changes or ())):
        raise typer.BadParameter("give curated data", param_hint="--data")
    from guardkeel.tuning.guard_training.config import read_config

    resolved = read_config(config, given, changes or ())
    hush()
    if dry_run:
        _plan(resolved, as_json)
        return
    folder = out or _fresh(resolved)
    results = _run(resolved, folder, as_json)
    if as_json:
        emit(
            {
                "run": str(folder),
                "guard": str(folder / "guard"),
                "results": results.model_dump(mode="json"),
            }
        )
        return
    report(results, folder)


def _weights(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise typer.BadParameter(f"{text!r} is not SOURCE=WEIGHT", param_hint="--source-weight")
    return found


def _run(config: TrainConfig, folder: Path, as_json: bool) -> TrainResults:
    from guardkeel.tuning.guard_training.run import run
    from guardkeel.tuning.points import line

    quiet = as_json and not sys.stderr.isatty()

    def told(point: MonitorPoint, reference: MonitorPoint) -> None:
        if not quiet:  # print goes above a live bar, typer.echo would write into it
            print(line(point, reference), file=sys.stderr)

    with progress(quiet) as watch:
        return run(config, folder, command=["guardkeel", *sys.argv[1:]], watch=watch, on_point=told)


def _plan(config: TrainConfig, as_json: bool) -> None:
    from guardkeel.tuning.guard_training.estimate import estimate

    with progress(as_json) as watch:
        found = estimate(config, watch)
    if as_json:
        emit(found.model_dump())
        return
    table("items to learn", ["label", "items"], [[k, f"{n:,}"] for k, n in found.labels.items()])
    for why, n in found.left_out.items():
        say(f"[bold]not learned[/bold]  {n:,} {literal(why)}")
    shown = f"{found.categories} categories, {found.policies} policies" if found.categories else "no policy"
    held = f"; held out: {literal(', '.join(found.held_out))}" if found.held_out else ""
    say(
        f"[bold]guard[/bold]    {literal(found.base)} as {found.family}, {shown}{held}\n"
        f"[bold]plan[/bold]     {found.method}: {found.steps:,} steps, about {found.tokens:,} tokens each\n"
        f"[bold]model[/bold]    {found.parameters / 1e6:,.0f} M parameters, {found.trained / 1e6:,.2f} M trained "
        f"({found.adapter}), {found.dtype} on {found.device}\n"
        f"[bold]memory[/bold]   about {found.memory / 1e9:.1f} GB\n"
        f"[bold]time[/bold]     about {duration(found.seconds)} on this machine\n"
        "nothing was run"
    )


def report(results: TrainResults, folder: Path) -> None:
    """What the training did, in a screenful."""
    rows = [["all", *_figures(results.test)]] if results.test else []
    rows += [
        [f"{s.by} {s.value}", *_figures(s.behaviour)] for s in results.slices if s.by in ("side", "source")
    ]
    rows += [["topics' rules", *_figures(results.topics)]] if results.topics else []
    if rows:
        table("test items", ["", "unsafe", "safe", "recall", "FPR", "AUROC"], rows)
    if results.novel:
        novel = results.novel
        say(
            f"held out   {literal(', '.join(novel.categories))}: recall {_value(novel.recall.given)} when the policy "
            f"names them, {_value(novel.recall.absent)} when it does not; false alarms "
            f"{_value(novel.false_alarms.given)} and {_value(novel.false_alarms.absent)}"
        )
    at = results.calibration
    say(
        f"threshold  {at.threshold:.4g}"
        + (
            f"  ({literal(at.note)})"
            if at.note
            else f", at most {at.target:.0%} false alarms on {at.safe} items"
        )
    )
    for side, offset in at.offsets.items():
        say(f"           {offset:+.2f} log-odds for each {side}")
    for note in results.notes:
        say(f"note       {literal(note)}")
    say(f"run        {literal(folder)}  ({results.steps} steps, {results.step_seconds:.2f} s each)")
    say(f"guard      [bold]{literal(folder / 'guard')}[/bold]  (its card is README.md)")
    say(f"next       guardkeel audit {literal(folder / 'guard')}")


def _figures(found: Behaviour) -> list[str]:
    rates = (found.recall, found.fpr, found.auroc)
    return [str(found.n_unsafe), str(found.n_safe), *map(_value, rates)]


def _value(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.3f}"


def _fresh(config: TrainConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/; the end of its name says which."""
    from guardkeel.records import value_digest

    home, name = Path("runs"), f"guard-{Path(config.base.split('@')[0]).name}"
    mark = value_digest(config.model_dump(mode="json", exclude={"offline"}))[:8]
    unfinished = [p for p in home.glob(f"{escape(name)}-*-{mark}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")
