"""guardkeel serve: an ensemble of guards behind HTTP, which learns from feedback whom to trust.

A group whose own form has a hidden name, as `guardkeel fuse`: `guardkeel serve --config FILE`, beside `serve key` and
`serve calibrate`.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardkeel.cli.group import OWN, OwnForm
from guardkeel.cli.options import AsJson
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.moderation.config import ServeConfig
    from guardkeel.moderation.experts import Expert


_Config = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="The service as TOML: experts, learner, policy, server, proxy, store, logs."
    ),
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in server.port=8080."),
]


class Action(StrEnum):
    """What is done with keys."""

    new = "new"
    list = "list"
    revoke = "revoke"


def register(app: typer.Typer) -> None:
    """Add the verb, and its sub-commands."""
    group = typer.Typer(cls=OwnForm, help="Serve an ensemble of guards that learns from feedback.")
    group.command(OWN, hidden=True)(serve)
    group.command("key")(key)
    group.command("calibrate")(calibrate)
    app.add_typer(group, name="serve")


def serve(
    config: _Config,
    changes: _Set = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, over server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, over server.port.")] = None,
    check: Annotated[
        bool, typer.Option("--check", "--dry-run", help="Load everything, say what would be served, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What --check found as JSON on stdout.")] = False,
) -> None:
    """Serve an ensemble of guards over HTTP, which learns from feedback whom to trust.

    /v1/moderations speaks OpenAI's schema: clients change their base_url and nothing else. /v1/verdicts says what every
    expert said and what weight it had; /v1/feedback takes reviewers' verdicts, from which the weights are learnt;
    /v1/chat/completions passes chats on to an upstream and judges both directions. An expert that is slow, fails or
    gives garbage abstains, and an item that nobody judged is unscored: never safe.

    Needs pip install 'guardkeel\\[serve]'. See docs/serve.md.

    [bold]Examples[/bold]

      guardkeel serve --config moderation.toml
      guardkeel serve --config moderation.toml --check
      guardkeel serve key new --keys keys.json --role moderate --name shop
      guardkeel serve calibrate --config moderation.toml --suite mine.jsonl --out calibration.json
    """
    settings = _read(config, [*(changes or ()), *_listening(host, port)])
    _installed()
    hush()
    from guardkeel.moderation.serving import load
    from guardkeel.moderation.serving import serve as run

    with progress(as_json) as watch:
        experts, metrics = load(settings, watch)
    if check:
        _show(settings, experts, as_json)
        return
    say(f"{len(experts)} experts loaded; the log goes to stderr", as_json=True)
    run(settings, experts, metrics)


def key(
    action: Annotated[Action, typer.Argument(help="new, list or revoke.")],
    identity: Annotated[str | None, typer.Argument(metavar="ID", help="Of the key to revoke.")] = None,
    keys: Annotated[Path, typer.Option("--keys", "-k", help="The file that server.keys names.")] = Path(
        "keys.json"
    ),
    name: Annotated[str, typer.Option(help="Who the new key is for.")] = "",
    role: Annotated[
        list[str] | None, typer.Option("--role", help="moderate, feedback or admin. Repeat for several.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--requests-per-minute", help="The most that the new key may ask.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Make, list or revoke API keys.

    A new key is printed once; the file holds its hash. A running service reads the file again when it changes.

    [bold]Examples[/bold]

      guardkeel serve key new --keys keys.json --role moderate --role feedback --name shop
      guardkeel serve key list --keys keys.json
      guardkeel serve key revoke 1f0c9a2b --keys keys.json
    """
    from guardkeel.moderation import keys as store

    if action is Action.new:
        roles = tuple(r for r in store.ROLES if r in (role or ()))
        if not roles or len(roles) < len(set(role or ())):
            raise typer.BadParameter(f"one or more of {', '.join(store.ROLES)}", param_hint="--role")
        if not name:
            raise typer.BadParameter("say who the key is for", param_hint="--name")
        if rate is not None and not rate > 0:
            raise typer.BadParameter("must be positive", param_hint="--requests-per-minute")
        made = store.new_key(keys, name, roles, rate)
        if as_json:
            emit({"key": made, "roles": list(roles), "name": name})
        else:
            typer.echo(made)
            say("shown this once: keep it", as_json=True)
        return
    if action is Action.revoke:
        if identity is None:
            raise typer.BadParameter("give the id of the key", param_hint="ID")
        gone = store.revoke_key(keys, identity)
        say(f"revoked {literal(gone.id)} ({literal(gone.name)})", as_json=True)
        return
    known = store.read_keys(keys).keys
    if as_json:
        emit([k.model_dump(mode="json", exclude={"sha256"}) for k in known])
        return
    table(
        "keys",
        ["id", "name", "roles", "requests a minute", "made"],
        [
            [k.id, literal(k.name), ", ".join(k.roles), f"{k.requests_per_minute or '–'}", k.created]
            for k in known
        ],
    )


def calibrate(
    config: _Config,
    suite: Annotated[
        list[str],
        typer.Option("--suite", "-s", help="A suite's name, JSONL file or card. Repeat for several."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the calibrations go.")] = Path(
        "calibration.json"
    ),
    kind: Annotated[
        str, typer.Option(metavar="MAP", help="temperature, platt or isotonic. Default: platt.")
    ] = "platt",
    limit: Annotated[int | None, typer.Option(help="Most items.")] = None,
    changes: _Set = None,
    as_json: AsJson = False,
) -> None:
    """Fit each expert's calibration on the calibrate split of labelled suites.

    Mixed probabilities must mean the same from every expert. Name the file with calibration = in each [[expert]].

    [bold]Examples[/bold]

      guardkeel serve calibrate --config moderation.toml --suite mine.jsonl --out calibration.json
    """
    if kind not in ("temperature", "platt", "isotonic"):
        raise typer.BadParameter("temperature, platt or isotonic", param_hint="--kind")
    settings = _read(config, changes or ())
    hush()
    from guardkeel.moderation.calibrating import calibrate_items, fit_experts, write_calibrations
    from guardkeel.moderation.experts import load_experts

    items = calibrate_items(suite, limit)
    with progress(as_json and not sys.stderr.isatty()) as watch:
        fits = fit_experts(
            load_experts(settings, progress=watch, calibrated=False),
            items,
            kind,  # type: ignore[arg-type]
            watch,
        )
    write_calibrations(out, fits)
    if as_json:
        emit(
            {
                "out": str(out),
                "experts": [
                    {
                        "expert": f.expert,
                        "items": f.items,
                        "unscored": f.unscored,
                        "before": f.before,
                        "after": f.after,
                    }
                    for f in fits
                ],
            }
        )
        return
    table(
        "calibration: log loss on the items that it was fitted on",
        ["expert", "items", "unscored", "before", "after"],
        [
            [literal(f.expert), f"{f.items:,}", f"{f.unscored:,}", f"{f.before:.3f}", f"{f.after:.3f}"]
            for f in fits
        ],
    )
    say(f'\nnext    calibration = "{literal(out)}" in each \\[\\[expert]] of {literal(config)}')


def _read(path: Path, changes: list[str] | tuple[str, ...]) -> ServeConfig:
    from guardkeel.moderation.config import read_config

    return read_config(path, changes=changes)


def _listening(host: str | None, port: int | None) -> list[str]:
    given = {"server.host": None if host is None else f'"{host}"', "server.port": port}
    return [f"{k}={v}" for k, v in given.items() if v is not None]


def _installed() -> None:
    from importlib.util import find_spec

    from guardkeel.errors import ConfigError

    missing = [
        m for m in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "prometheus_client") if not find_spec(m)
    ]
    if missing:
        raise ConfigError(
            f"guardkeel serve needs {', '.join(missing)}", remedy="pip install 'guardkeel[serve]'"
        )


def _show(config: ServeConfig, experts: list[Expert], as_json: bool) -> None:
    """What would be served. What would stop the service at once stops this too: keys, upstream, store's URL."""
    from guardkeel.databases import shown
    from guardkeel.moderation.config import store_url
    from guardkeel.moderation.keys import Keys
    from guardkeel.moderation.learning import Learner
    from guardkeel.moderation.proxy import Upstream
    from guardkeel.moderation.tables import engines

    learner = Learner([e.name for e in experts], config.learner)
    server, policy = config.server, config.policy
    if server.keys:
        Keys(config.path(server.keys))
    if config.proxy.upstream:
        Upstream(config.proxy)
    url = store_url(config.store, config.folder)
    engines(url)
    found = {
        "experts": [
            {
                "name": e.name,
                "guard": e.config.guard,
                "family": e.guard.family,
                "threshold": e.guard.threshold,
                "calibration": e.calibration.kind,
                "cost": e.config.cost,
                "timeout": e.config.timeout,
            }
            for e in experts
        ],
        "learner": {
            "rule": config.learner.rule,
            "loss": config.learner.loss,
            "contexts": list(config.learner.contexts),
        },
        "policy": {
            "name": policy.name,
            "strictness": policy.strictness,
            "threshold": policy.threshold_at(learner.costs.threshold),
            "unscored": policy.unscored,
            "categories": len(policy.categories),
        },
        "listen": f"{server.host}:{server.port}",
        "keys": server.keys or "none: whoever reaches it is admin",
        "upstream": config.proxy.upstream or "none",
        "store": shown(url),
        "texts": config.store.texts,
    }
    if as_json:
        emit(found)
        return
    table(
        "experts",
        ["name", "guard", "family", "threshold", "calibration", "cost", "timeout"],
        [
            [
                literal(e.name),
                literal(e.config.guard),
                e.guard.family,
                f"{e.guard.threshold:g}",
                e.calibration.kind,
                f"{e.config.cost:g}",
                f"{e.config.timeout:g} s",
            ]
            for e in experts
        ],
    )
    contexts = " / ".join(config.learner.contexts) or "none"
    say(f"\nlearner   {config.learner.rule}, {config.learner.loss} loss, contexts {contexts}")
    at = policy.threshold_at(learner.costs.threshold)
    say(f"policy    {policy.name}: {policy.strictness}, flags from {at:.3g}, unscored is {policy.unscored}")
    say(literal(f"listen    {found['listen']}\nkeys      {found['keys']}\nupstream  {found['upstream']}"))
    say(literal(f"store     {found['store']}, {'with' if config.store.texts else 'without'} texts"))
    say("nothing is served: this was a check")
