"""guardkeel heads: which attention heads carry a guard's verdict, and what becomes of it without them."""

from __future__ import annotations

import sys
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import duration
from guardkeel.cli.fields import says
from guardkeel.cli.options import AsJson, Report, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table
from guardkeel.heads.config import HeadsConfig

if TYPE_CHECKING:
    from guardkeel.heads.results import Change, Effect, HeadsResults

_says = says(HeadsConfig)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("heads")(heads)


def heads(
    context: typer.Context,
    guard: Annotated[str, typer.Argument(help=_says("guard"))] = "keel-135m",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", "-a", metavar="[NAME=]GUARD", help=_says("against", after="; repeat for several")
        ),
    ] = None,
    chat: Annotated[bool | None, typer.Option("--chat/--guard", help=_says("chat"))] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", "-s", help=_says("suites", "suites: ", "; repeat for several")),
    ] = None,
    side: Annotated[str | None, typer.Option(metavar="SIDE", help=_says("side"))] = None,
    items: Annotated[int | None, typer.Option("--items", "-n", help=_says("items"))] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option("--mode", "-m", metavar="MODE", help=_says("modes", after="; repeat for several")),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help=_says("epsilon"))] = None,
    measure: Annotated[str | None, typer.Option(metavar="MEASURE", help=_says("measure"))] = None,
    rank: Annotated[int | None, typer.Option(help=_says("rank"))] = None,
    screen: Annotated[str | None, typer.Option(metavar="HOW", help=_says("screen"))] = None,
    rescore: Annotated[int | None, typer.Option(help=_says("rescore"))] = None,
    top: Annotated[int | None, typer.Option("--top", "-k", help=_says("top"))] = None,
    size: Annotated[int | None, typer.Option(help=_says("size"))] = None,
    effect: Annotated[bool | None, typer.Option("--effect/--no-effect", help=_says("effect"))] = None,
    effect_items: Annotated[int | None, typer.Option("--effect-items", help=_says("effect_items"))] = None,
    controls: Annotated[int | None, typer.Option(help=_says("controls"))] = None,
    reply_tokens: Annotated[int | None, typer.Option("--reply-tokens", help=_says("reply_tokens"))] = None,
    refusals: Annotated[str | None, typer.Option(help=_says("refusals"))] = None,
    memory: Annotated[float | None, typer.Option(metavar="GB", help=_says("memory"))] = None,
    family: Annotated[str | None, typer.Option(help=_says("family"))] = None,
    seed: Annotated[int | None, typer.Option(help=_says("seed"))] = None,
    dtype: Annotated[str | None, typer.Option(help=_says("dtype", "number format: "))] = None,
    device: Annotated[str | None, typer.Option(help=_says("device", "where it runs: "))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_says("offline"))] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="All of this as TOML; options override it.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in max_tokens=512."),
    ] = None,
    out: RunFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, in memory and time; sweep nothing.")
    ] = False,
    as_json: AsJson = False,
    html: Report = True,
) -> None:
    """Which attention heads carry a guard's verdict: ablate every head once, exactly, and see what moves.

    Heads are ranked on unsafe items (Ships, arXiv:2410.13708) and, as a control, on as many safe ones. A group is found
    greedily (Sahara), and its loss is felt on test items: recall, false positives and items without a verdict, beside
    as many random heads and heads of the same layers. Writes heads.npz, heads.csv, heads.json, heatmap.svg and
    report.html. Repeat the command after any stop: what was swept stays.

    [bold]Examples[/bold]

      guardkeel heads --dry-run                                  [dim]the embedded guard: memory and time[/dim]
      guardkeel heads ./guard --suite mine.jsonl --mode q --mode v
      guardkeel heads keel-135m --against tuned=runs/tune-bank --against repaired=runs/sweep/fused
      guardkeel heads ./guard --measure dataset --rank 2 --size 5 --controls 20
      guardkeel heads ./chat-model --chat --suite advbench --suite keel-domain
    """
    given: dict[str, Any] = {
        "against": against or None,
        "chat": chat,
        "suites": suite or None,
        "side": side,
        "items": items,
        "modes": mode or None,
        "epsilon": epsilon,
        "measure": measure,
        "rank": rank,
        "screen": screen,
        "rescore": rescore,
        "top": top,
        "size": size,
        "effect": effect,
        "effect_items": effect_items,
        "controls": controls,
        "reply_tokens": reply_tokens,
        "refusals": refusals,
        "memory": memory,
        "family": family,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "offline": offline,
    }
    given_name = context.get_parameter_source("guard")
    if config is None or given_name is None or given_name.name != "DEFAULT":
        given["guard"] = guard
    from guardkeel.heads.config import read_config

    resolved = read_config(config, given, changes or ())
    hush()
    if dry_run:
        plan(resolved, as_json)
        return
    folder = out or _fresh(resolved)
    results = run(resolved, folder, quiet=as_json and not sys.stderr.isatty())
    from guardkeel.report.heads import write_heads_report, write_heatmap

    write_heatmap(folder)
    page = write_heads_report(folder) if html else None
    if as_json:
        emit(
            {
                "run": str(folder),
                "report": str(page) if page else None,
                "results": results.model_dump(mode="json"),
            }
        )
        return
    show(results)
    say(literal(f"\nrun      {folder}" + (f"\nreport   {page}" if page else "")))


def run(config: HeadsConfig, folder: Path, *, quiet: bool = False) -> HeadsResults:
    """Run, or resume, a study, with progress."""
    from guardkeel.heads.studies import run as run_study

    with progress(quiet) as watch:
        return run_study(config, folder, command=["guardkeel", *sys.argv[1:]], watch=watch)


def plan(config: HeadsConfig, as_json: bool) -> None:
    """Say what a study would take; what would stop it at once stops here too."""
    from guardkeel.heads.planning import plan as foresee

    with progress(as_json) as watch:
        found = foresee(config, watch)
    if as_json:
        emit(found.model_dump(mode="json") | {"seconds": found.seconds})
        return
    heads_said = f"{found.layers} layers × {found.query_heads} heads ({found.key_heads} with keys)"
    prompts = ", ".join(f"{n} {of}" for of, n in found.prompts.items())
    effect = (
        f"{found.trials} groups ablated on {found.effect_items} items: {duration(found.effect_seconds)}"
        if found.trials
        else "no effect"
    )
    say(
        f"[bold]model[/bold]    {literal(found.model)}: {heads_said}, {found.dtype} on {found.device}"
        + (f", and {found.models - 1} more" if found.models > 1 else "")
        + f"\n[bold]plan[/bold]     heads ranked on {prompts} prompts: {duration(found.sweep_seconds)}; {effect}"
    )
    for sweep in found.sweeps:
        say(f"[bold]sweep[/bold]    {literal(sweep)}")
    say(
        f"[bold]memory[/bold]   about {found.memory / 1e9:.2f} GB beside the model\n"
        f"[bold]time[/bold]     about {duration(found.seconds)} on this machine"
    )
    for note in found.notes:
        say(f"note     {literal(note)}")
    say("nothing was swept")


def show(results: HeadsResults) -> None:
    """The best heads, the group and what its loss does, in a screenful."""
    unit = {"kl": "KL, nats", "dataset": "angle, °", "verdict": "fall of log-odds"}[results.measure]
    for mode in results.modes:
        rows = [
            [
                h.head,
                f"{h.unsafe[results.measure]:.4g}",
                f"{h.benign[results.measure]:.4g}" if results.measure in h.benign else "–",
                "–" if h.benign_rank is None else str(h.benign_rank),
                "–" if h.stability is None else f"{h.stability:.0%}",
            ]
            for h in results.top[mode]
        ]
        columns = ["layer-head", f"{unit}, unsafe", "benign", "rank on benign", "steady"]
        table(f"best heads of {literal(results.model.name)}, mode {mode}", columns, rows)
    say("")
    for o in results.overlaps:
        if o.what in ("sets", "models") and o.spearman is not None:
            ten = next((t for t in o.top if t.k == 10), None)
            of = f", {ten.count} of the 10 best the same ({ten.chance:.1f} by chance)" if ten else ""
            most = f" (of {o.ceiling:.2f} that their noise allows)" if o.ceiling is not None else ""
            where = f" on {o.set}" if o.what == "models" else ""
            say(
                f"alike    {literal(o.a)} and {literal(o.b)}{where}, {o.mode}: ρ = {o.spearman:.2f}{most}{of}"
            )
    if results.group is not None:
        say(f"group    {' '.join(results.group.heads)}  (mode {results.group.mode})")
    if results.effect is not None:
        _show_effect(results)
    for j in results.judge:
        if j.sensitivity.value is not None and j.specificity.value is not None:
            say(
                f"judge    {j.of}, against people: sensitivity {j.sensitivity.value:.2f} (n {j.sensitivity.n}), "
                f"specificity {j.specificity.value:.2f} (n {j.specificity.n})"
            )
    for note in results.notes:
        say(f"note     {literal(note)}")


def _show_effect(results: HeadsResults) -> None:
    found = results.effect
    assert found is not None
    rows = [
        [
            " ".join(trial.heads),
            _points(trial.recall),
            _band(found, trial.size, "random"),
            _band(found, trial.size, "matched"),
            _points(trial.fpr),
            _points(trial.unscored),
        ]
        for trial in found.trials
        if trial.kind == "found"
    ]
    what, other = ("refused", "refused benign") if results.chat else ("recall", "FPR")
    first = found.trials[0].recall.before
    start = "–" if first is None else f"{first:.3f}"
    table(
        f"\nablated, in points (95%), on {found.unsafe} unsafe and {found.benign} safe items; {what} as it is {start}",
        ["heads", what, "random heads", "same layers", other, "unscored"],
        rows,
    )


def _points(change: Change) -> str:
    d = change.difference
    if d.value is None or d.low is None or d.high is None:
        return "–"
    return f"{100 * d.value:+.0f} [dim]{100 * d.low:+.0f} to {100 * d.high:+.0f}[/dim]"


def _band(found: Effect, size: int, kind: str) -> str:
    """Lowest to highest change of recall without as many control heads."""
    rows = [b for b in found.beside if (b.size, b.kind, b.metric) == (size, kind, "recall")]
    return f"{100 * rows[0].low:+.0f} to {100 * rows[0].high:+.0f}" if rows else "–"


def _fresh(config: HeadsConfig) -> Path:
    """An unfinished run of the same configuration, else a new folder under runs/; its name's end says which."""
    from guardkeel.records import value_digest

    home, name = Path("runs"), f"heads-{Path(config.guard.split('@', 1)[0]).name}"
    mark = value_digest(config.model_dump(mode="json", exclude={"offline", "memory"}))[:8]
    unfinished = [p for p in home.glob(f"{escape(name)}-*-{mark}") if (p / "plan.json").exists()]
    return max(unfinished, default=home / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{mark}")
