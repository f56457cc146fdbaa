"""guardkeel plan: memory, time and cost of a verb, for a model and hardware that need not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guardkeel.cli.audit import duration
from guardkeel.cli.fuse import size
from guardkeel.cli.group import OWN, OwnForm
from guardkeel.cli.terminal import emit, hush, literal, say, table

if TYPE_CHECKING:
    from guardkeel.planning.hardware import Hardware
    from guardkeel.planning.planned import Planned
    from guardkeel.planning.scoring import Texts

_Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL", help="A size (see --list), a folder, a config.json or hub:org/name."
    ),
]
_On = Annotated[
    str | None,
    typer.Option(
        "--hardware", metavar="NAME", help="As in h200x8 (see --list), or a TOML file. Default: this machine."
    ),
]
_Here = Annotated[
    bool,
    typer.Option(
        "--here", help="This machine, its rate measured now; what is left out of --hardware means too."
    ),
]
_With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="KEY=VALUE",
        help="Another number of the hardware: price=2.5, share=0.5, memory=80e9.",
    ),
]
_Dtype = Annotated[str, typer.Option(help="bfloat16 or float32; auto: what the hardware multiplies fastest.")]
_Tokens = Annotated[float, typer.Option(help="Tokens of an item or row beside the policy, on average.")]
_Policy = Annotated[float, typer.Option("--policy-tokens", help="Tokens of the policy that all share.")]
_Offline = Annotated[bool | None, typer.Option("--offline", help="Never use the network.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the verb's group."""
    group = typer.Typer(cls=OwnForm, help="Memory, time and cost of a verb, before anything is there.")
    group.command(OWN, hidden=True)(plan)
    for verb in (audit, tune, fuse, serve):
        group.command(verb.__name__)(verb)
    app.add_typer(group, name="plan")


def plan(
    context: typer.Context,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the models and the hardware that have names.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Memory, time and cost of a verb, for a model and hardware that need not be there.

    All of it is arithmetic on the model's shape, which docs/scale.md does by hand; nothing is loaded or fetched but a
    config.json. Prices are what somebody quoted on the day that is named with them: give yours. What a run on data that
    are there will take, guardkeel audit, tune and fuse say with --dry-run.

    Exit code 1 where it does not fit in memory.

    [bold]Examples[/bold]

      guardkeel plan tune --model 8B --method kl --rows 100000 --hardware h200x8
      guardkeel plan audit --model 70B --rows 1000000 --hardware h100x8 --with price=2.2
      guardkeel plan fuse --model 70B --candidates 2 --method ties --processes 4
      guardkeel plan serve --model 8B --per-day 1e9 --hardware h200
    """
    if not listed:
        assert context.parent is not None
        typer.echo(context.parent.get_help())
        return
    from guardkeel.planning.architecture import presets
    from guardkeel.planning.hardware import known

    models = {name: shape.parameters for name, shape in presets().items()}
    if as_json:
        emit({"models": models, "hardware": known()})
        return
    table("models", ["name", "parameters"], [[name, f"{count:,}"] for name, count in models.items()])
    rows = [
        [
            name,
            size(float(said["memory"])),  # type: ignore[arg-type]
            f"{said['flops']['bfloat16'] / 1e12:,.0f}",  # type: ignore[index]
            f"{said['price']} in {said['price_date']}" if "price" in said else "–",
        ]
        for name, said in known().items()
    ]
    table("\nhardware", ["name", "memory", "TFLOP/s in bfloat16", "USD an hour, quoted"], rows)


def audit(
    model: _Model = "8B",
    rows: Annotated[int, typer.Option(min=1, help="Items that are judged.")] = 10_000,
    guards: Annotated[int, typer.Option(min=1, help="Guards that judge them: reference and candidate.")] = 2,
    tokens: _Tokens = 60,
    policy: _Policy = 550,
    budget: Annotated[int, typer.Option("--token-budget", min=64, help="Tokens of a batch.")] = 2048,
    hardware: _On = None,
    measured: _Here = False,
    numbers: _With = None,
    dtype: _Dtype = "auto",
    offline: _Offline = None,
    as_json: _Json = False,
) -> None:
    """Plan an audit: items judged by a reference and a candidate.

    [bold]Examples[/bold]

      guardkeel plan audit --model 8B --rows 1000000 --hardware h200x8
      guardkeel plan audit --model keel-135m --rows 5000 --here
    """
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.scoring import audit as planned

    shape, on = architecture(model, offline), _hardware(hardware, measured, dtype, numbers)
    texts = _texts(tokens, policy, budget)
    _end(
        planned(shape, on, name=model, dtype=_dtype(dtype, on), rows=rows, guards=guards, texts=texts),
        as_json,
    )


def tune(
    model: _Model = "8B",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the task.")] = 10_000,
    method: Annotated[
        str, typer.Option("--method", "-m", help="What keeps the guard's safety; see guardkeel tune.")
    ] = "kl",
    adapter: Annotated[str, typer.Option(help="Which weights are trained: lora, dora or full.")] = "lora",
    tokens: _Tokens = 120,
    policy: _Policy = 550,
    hardware: _On = None,
    measured: _Here = False,
    numbers: _With = None,
    dtype: _Dtype = "auto",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of guardkeel tune, as in batch=64, checkpointing=true.",
        ),
    ] = None,
    offline: _Offline = None,
    as_json: _Json = False,
) -> None:
    """Plan a fine-tune.

    [bold]Examples[/bold]

      guardkeel plan tune --model 70B --rows 100000 --hardware h200x8 --set batch=64 --set checkpointing=true
      guardkeel plan tune --model 8B --adapter full --hardware h200x8
    """
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.tuning import tune as planned
    from guardkeel.tuning.config import read_config

    given = {"guard": model, "data": ["planned"], "method": method, "adapter": adapter}
    config = read_config(None, given, changes or ())
    shape, on = architecture(model, offline), _hardware(hardware, measured, dtype, numbers)
    texts = _texts(tokens, policy, 2048)
    _end(planned(shape, on, config, name=model, dtype=_dtype(dtype, on), rows=rows, texts=texts), as_json)


def fuse(
    model: _Model = "8B",
    candidates: Annotated[
        int, typer.Option(min=1, help="Damaged guards that are fused with the reference.")
    ] = 1,
    method: Annotated[
        str, typer.Option("--method", "-m", help="See guardkeel fuse --list-methods.")
    ] = "interpolation",
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    hardware: _On = None,
    measured: _Here = False,
    numbers: _With = None,
    dtype: _Dtype = "bfloat16",
    offline: _Offline = None,
    as_json: _Json = False,
) -> None:
    """Plan a fuse of whole checkpoints. It runs on the processor: this machine's is measured.

    [bold]Examples[/bold]

      guardkeel plan fuse --model 70B --candidates 2 --method ties
      guardkeel plan fuse --model 8B --processes 4 --with disk=3e9
    """
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.fusing import fuse as planned

    shape, on = architecture(model, offline), _hardware(hardware, measured, "auto", numbers)
    kind = "bfloat16" if dtype == "auto" else dtype
    _end(
        planned(shape, on, name=model, dtype=kind, method=method, candidates=candidates, processes=processes),
        as_json,
    )


def serve(
    model: _Model = "8B",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Verdicts a second, on average.")] = None,
    per_day: Annotated[float | None, typer.Option(min=1, help="Verdicts a day, instead of --rate.")] = None,
    busy: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the time that devices may work.")
    ] = 0.6,
    tokens: _Tokens = 60,
    policy: _Policy = 550,
    hardware: _On = None,
    measured: _Here = False,
    numbers: _With = None,
    dtype: _Dtype = "auto",
    offline: _Offline = None,
    as_json: _Json = False,
) -> None:
    """Plan a service of one guard: how many devices a rate of verdicts takes. (An ensemble is the sum of its guards.)

    [bold]Examples[/bold]

      guardkeel plan serve --model 8B --per-day 1e9 --hardware h200
      guardkeel plan serve --model keel-135m --rate 20 --here
    """
    from guardkeel.planning.architecture import architecture
    from guardkeel.planning.scoring import DAY
    from guardkeel.planning.scoring import serve as planned

    if rate is not None and per_day is not None:
        raise typer.BadParameter("give one of --rate and --per-day", param_hint="--rate, --per-day")
    a_second = rate if rate is not None else (per_day or 1e6) / DAY
    shape, on = architecture(model, offline), _hardware(hardware, measured, dtype, numbers)
    texts = _texts(tokens, policy, 2048)
    found = planned(
        shape, on, name=model, dtype=_dtype(dtype, on), per_second=a_second, busy=busy, texts=texts
    )
    _end(found, as_json)


def _texts(tokens: float, policy: float, budget: int) -> Texts:
    from guardkeel.planning.scoring import Texts

    return Texts(tokens=tokens, policy=policy, budget=budget)


def _hardware(name: str | None, measured: bool, dtype: str, numbers: list[str] | None) -> Hardware:
    from guardkeel.planning.hardware import hardware, here

    if name is not None and measured:
        raise typer.BadParameter("give one of --hardware and --here", param_hint="--hardware, --here")
    hush()
    return here(dtype, numbers or ()) if name is None else hardware(name, numbers or ())


def _dtype(dtype: str, on: Hardware) -> str:
    """The number format: as given, or the fastest that there is."""
    from guardkeel.models.devices import pick_dtype

    return max(on.flops, key=lambda kind: on.flops[kind]) if dtype == "auto" else pick_dtype(dtype)


def _end(found: Planned, as_json: bool) -> None:
    """Print the plan; exit code 1 where it does not fit."""
    if as_json:
        emit(found.as_json())
    else:
        _show(found)
    if not found.fits:
        raise typer.Exit(1)


def _show(found: Planned) -> None:
    on = found.hardware
    each = f"{on.devices} × {on.name}" if on.devices > 1 else on.name
    rows = [["parameters", f"{found.parameters / 1e9:,.3f} billion in {found.dtype}"]]
    rows += [[what, _number(what, value)] for what, value in found.numbers.items()]
    rows += [[f"memory: {what}", size(value)] for what, value in found.memory.items() if value]
    rows += [["memory of a device", f"{size(found.needed)} of {size(on.memory)}"]]
    rows += [[f"time: {what}", duration(value)] for what, value in found.seconds.items()]
    rows += [["time", duration(found.time)]] if found.seconds else []
    table(f"{found.verb} of {literal(found.model)} on {literal(each)}", ["", ""], rows)
    if found.cost is not None:
        say(f"\ncost     {found.cost:,.2f} {on.currency}{_price(on)}")
    elif "cost a day" in found.numbers:
        say(f"\nprices   in {on.currency}{_price(on)}")
    for assumed in found.assumed:
        say(f"[dim]assumed  {literal(assumed)}[/dim]")
    if not found.fits:
        say(
            f"\n[bold red]does not fit[/bold red]: {size(found.needed)} are needed, {size(on.memory)} are there"
            f"\n  remedy: {literal('; '.join(found.remedies))}"
        )


def _price(on: Hardware) -> str:
    said = [s for s in (on.price_source, on.price_date) if s]
    return literal(f", at {on.price:g} a device and hour" + (f" ({', '.join(said)})" if said else ""))


def _number(what: str, value: float) -> str:
    if what.startswith("bytes"):
        return size(value)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
