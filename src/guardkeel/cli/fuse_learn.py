"""guardkeel fuse mask and fuse measure: what fusion methods need beside weights, learned or measured."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.fields import says
from guardkeel.cli.options import AsJson, Changes, ConfigFile, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table
from guardkeel.fusion.somf.config import MaskConfig

if TYPE_CHECKING:
    from guardkeel.fusion.somf.plan import MaskPlan
    from guardkeel.fusion.somf.results import MaskResults

_says = says(MaskConfig)


def register(group: typer.Typer) -> None:
    """Add the sub-commands of `fuse`."""
    group.command("mask")(mask)
    group.command("measure")(measure)


def mask(
    candidates: Annotated[
        list[str] | None, typer.Argument(metavar="CANDIDATE", help=_says("candidates"))
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", "-r", help=_says("reference"))] = None,
    objective: Annotated[str | None, typer.Option(metavar="KIND", help=_says("objective"))] = None,
    guard_data: Annotated[
        list[str] | None,
        typer.Option("--guard-data", "-g", help=_says("guard_data", after="; repeat for several")),
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--pairs", help=_says("pairs", after="; repeat for several"))
    ] = None,
    task_data: Annotated[
        list[str] | None, typer.Option("--task-data", help=_says("task_data", after="; repeat for several"))
    ] = None,
    task_weight: Annotated[float | None, typer.Option(help=_says("task_weight"))] = None,
    kl_weight: Annotated[float | None, typer.Option(help=_says("kl_weight"))] = None,
    granularity: Annotated[str | None, typer.Option(metavar="WHAT", help=_says("granularity"))] = None,
    space: Annotated[str | None, typer.Option(metavar="WHICH", help=_says("space"))] = None,
    merge: Annotated[str | None, typer.Option(metavar="HOW", help=_says("merge"))] = None,
    export: Annotated[str | None, typer.Option(metavar="KIND", help=_says("export"))] = None,
    steps: Annotated[int | None, typer.Option(help=_says("steps"))] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help=_says("learning_rate", "learning rate "))
    ] = None,
    batch: Annotated[int | None, typer.Option(help=_says("batch"))] = None,
    force: Annotated[bool | None, typer.Option("--force", help=_says("force"))] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    seed: Annotated[int | None, typer.Option(help=_says("seed"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype", "number format "))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device", "where it runs: "))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: ConfigFile = None,
    changes: Changes = None,
    out: RunFolder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the memory plan; learn nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn which part of a fine-tuning may stay: a safety mask over the change (SOMF).

    Only the masks are learned, through the guard's own verdict or through preference pairs; no weight is trained.
    Writes a run directory with mask.safetensors, for `guardkeel fuse --method somf`. An interrupted run goes on where
    it stopped when the command is repeated.

    [bold]Examples[/bold]

      guardkeel fuse mask runs/bank/tuned --granularity row -o runs/mask

      guardkeel fuse runs/bank/tuned --method somf --extra mask=runs/mask/mask.safetensors
    """
    from guardkeel.fusion.somf.config import read_config
    from guardkeel.fusion.somf.run import plan, run

    hush()
    if not (candidates or config or any(c.startswith("candidates=") for c in changes or ())):
        raise typer.BadParameter("name the damaged guard", param_hint="CANDIDATE")
    given = {
        "candidates": candidates or None,
        "reference": reference,
        "objective": objective,
        "guard_data": guard_data or None,
        "pairs": pairs or None,
        "task_data": task_data or None,
        "task_weight": task_weight,
        "kl_weight": kl_weight,
        "granularity": granularity,
        "space": space,
        "merge": merge,
        "export": export,
        "steps": steps,
        "learning_rate": learning_rate,
        "batch": batch,
        "force": force,
        "family": family,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "offline": offline,
    }
    read = read_config(config, given, changes or ())
    with progress(as_json) as watch:
        if dry_run:
            _tell_plan(plan(read, watch), as_json)
            return
        folder = out or _fresh(read)
        if not as_json:
            say(f"{literal(plan(read, watch).words)}")
        results = run(read, folder, command=sys.argv, watch=watch)
    _tell(results, folder, read.seed, as_json)


def measure(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="safe-hessian or harmful-norms.")],
    guard: Annotated[
        str,
        typer.Argument(help="The guard to look at: of safe-delta the reference, of antidote the candidate."),
    ] = "keel-135m",
    guard_data: Annotated[
        list[str] | None,
        typer.Option(
            "--guard-data",
            "-g",
            help="Labelled guard conversations. Default: keel-anchor. Repeat for several.",
        ),
    ] = None,
    most: Annotated[int, typer.Option(help="Use at most this many conversations, labels in balance.")] = 200,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="What the sums may take at once. Default: half of what is free."),
    ] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    dtype: Annotated[str, typer.Option(help=_says("dtype", "number format "))] = "auto",
    device: Annotated[str, typer.Option(help=_says("device", "where it runs: "))] = "auto",
    data: Annotated[str | None, typer.Option(help=_says("data_folder"))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file. Default: runs/KIND.safetensors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written as JSON on stdout.")] = False,
) -> None:
    """Measure what safe-delta and antidote need to know of a guard's activations.

    One pass over guard conversations in the guard's own template. An interrupted measurement goes on where it stopped.

    [bold]Examples[/bold]

      guardkeel fuse measure safe-hessian keel-135m -o runs/safe-hessian.safetensors

      guardkeel fuse runs/bank/tuned --method safe-delta --extra safe-hessian=runs/safe-hessian.safetensors
    """
    from guardkeel.fusion.extras import measured

    hush()
    path = out or Path("runs") / f"{kind}.safetensors"
    with progress(as_json) as watch:
        said = measured(
            kind,
            guard,
            guard_data or ["keel-anchor"],
            path,
            most=most,
            memory=None if memory is None else int(memory * 1e9),
            family=family,
            dtype=dtype,
            device=device,
            data=data,
            offline=offline,
            watch=watch,
        )
    if as_json:
        emit(said)
        return
    say(
        f"{literal(kind)} of {said['tensors']} weights over {said['conversations']} conversations, "
        f"{said['tokens']:,} tokens → {literal(path)}"
    )


def _fresh(config: MaskConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/."""
    from guardkeel.records import value_digest

    home, mark = Path("runs"), value_digest(config.model_dump(mode="json", exclude={"offline", "force"}))[:8]
    unfinished = [p for p in home.glob(f"mask-*-{mark}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"mask-{datetime.now():%Y%m%d-%H%M%S}-{mark}")


def _tell_plan(plan: MaskPlan, as_json: bool) -> None:
    from guardkeel.fusion.somf.plan import size

    if as_json:
        emit(plan.model_dump(mode="json") | {"memory": plan.memory})
        return
    rows = [
        ["masks", f"{plan.masks:,} ({plan.granularity})"],
        ["weights", f"{plan.weights:,}"],
        ["masked numbers", f"{plan.values:,}"],
        ["memory of the masks", plan.arithmetic],
        ["memory of the changes", f"{size(plan.change_bytes)}"],
        ["memory of the model", f"{size(plan.model_bytes)} ({plan.dtype})"],
        ["memory of the work", f"{size(plan.work_bytes)}"],
        ["memory in all", f"{size(plan.memory)} and the activations of one batch"],
        ["free", f"{size(plan.free)} on {plan.device}"],
    ]
    table("mask learning", ["", ""], rows)


def _tell(results: MaskResults, folder: Path, seed: int, as_json: bool) -> None:
    if as_json:
        emit(results.model_dump(mode="json"))
        return
    seen = results.objective
    rows = [
        ["the safe guard", f"{seen.reference:.4f}"],
        ["no mask", f"{seen.unmasked:.4f}"],
        [f"one mask for all, {results.density:.3f}", f"{seen.uniform:.4f}"],
        ["the learned masks", f"{seen.learned:.4f}"],
    ]
    if seen.draws:
        rows.append([f"{seen.draws.draws} draws of them", f"{seen.draws.mean:.4f} ± {seen.draws.sd:.4f}"])
    table(f"objective on {seen.rows} rows (lower is better)", ["", ""], rows)
    shares = ", ".join("none" if s is None else f"{s:.1%}" for s in results.diagnostics.whole.shares)
    say(f"left of each candidate’s change: {shares}")
    for note in results.notes:
        say(f"[yellow]{literal(note)}[/yellow]")
    written = literal(folder / "mask.safetensors")
    if not results.options:  # masks of factors
        say(f"mask: {written}; the adapter under it: {literal(folder / 'fused')}")
        return
    told = [f"--set options.somf.{k}={_plain(v)}" for k, v in results.options.items()]
    told += [f"--seed {seed}"] if results.options["merge"] == "dare" else []
    say(f"mask: {written}; fuse with --method somf --extra mask={written} {literal(' '.join(told))}")


def _plain(value: Any) -> str:
    """A value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
