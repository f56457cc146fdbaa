"""guardkeel dossier monitor, export, verify, serve: watching what is out, and letting others check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from guardkeel.cli.dossier_common import HERE, As, Folder, Json, needs, opened, told
from guardkeel.cli.terminal import emit, hush, literal, say, table

REPORTS = ("model-report", "transparency-report", "risk-profile", "applicability")


def register(group: typer.Typer) -> None:
    """Add the sub-commands."""
    group.command("monitor")(monitor)
    group.command("export")(export)
    group.command("draft")(draft)
    group.command("verify")(verify)
    group.command("serve")(serve)


def monitor(
    plan: Annotated[
        str, typer.Argument(metavar="MODEL|PLAN", help="A registered monitor-plan, or its model.")
    ],
    log: Annotated[
        str, typer.Option(help="The service's store (SQLAlchemy URL), or a JSON lines export of it.")
    ] = "",
    audit: Annotated[
        list[Path] | None, typer.Option(help="Run directory of a fresh audit, oldest first. Repeat.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and record nothing.")] = False,
    folder: Folder = HERE,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Look at a released model: drift in unsafe rate, unscored rate, recall on reviewed samples, geometry.

    The tests are sequential: the chance of a false alarm stays below alpha however often one looks, so run this every
    hour. A stream that has changed opens a finding, or the draft of an incident. Exit code 1 where one has changed.

    [bold]A plan, in a file for dossier register[/bold]

      [\\[monitor-plan]]
      id = "guard-2 in production"
      model = "guard-2"
      streams = [
        { name = "flagged", measure = "unsafe rate", baseline = 0.08, tolerance = 0.02 },
        { name = "unscored", measure = "unscored rate", baseline = 0.01, direction = "rise" },
        { name = "recall", measure = "recall", source = "feedback", baseline = 0.93, opens = "incident" },
      ]

    [bold]Examples[/bold]

      guardkeel dossier monitor guard-2 --log sqlite:///moderation.db
      guardkeel dossier monitor "guard-2 in production" --log export.jsonl --audit runs/audit-…
    """
    hush()
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Model, MonitorPlan, Observation
        from guardkeel.dossier.monitoring import sources, watch
        from guardkeel.errors import DataError

        state = dossier.refresh()
        known = state.find(MonitorPlan, plan)
        if known is None:
            model = state.get(Model, plan)
            mine = [p for p in state.each(MonitorPlan) if p.fingerprint == model.fingerprint]
            if not mine:
                raise DataError(f"model {plan!r} has no monitor-plan", remedy="register one: see --help")
            known = mine[-1]
        seen = sources.read(log, known.since) if log else None
        made = watch.look(state, known, seen, audit or (), dossier.now)
        looks = [m for m in made if isinstance(m, Observation)]
        entries = [] if dry_run else dossier.record(made, actor(who))
        if as_json:
            emit([m.model_dump(mode="json") for m in made])
        else:
            table("streams", ["stream", "rows", "estimate", "e-value", ""], [_row(o) for o in looks])
            told(
                [e for e in entries if e.kind != "observation"] if entries else [],
                quiet=len(made) == len(looks),
            )
    raise typer.Exit(1 if any(o.changed for o in looks) else 0)


def _row(seen: Any) -> list[str]:
    import math

    interval = "" if seen.low is None else f" [{seen.low:.3f}, {seen.high:.3f}]"
    estimate = "–" if seen.estimate is None else f"{seen.estimate:.3f}{interval}"
    words = filter(None, ("[red]changed[/]" if seen.changed else "", literal(seen.why)))
    word = ", ".join(words) or "as it was"
    return [literal(seen.stream), f"{seen.n:,}", estimate, f"{math.exp(min(seen.log_e, 700)):.3g}", word]


def export(
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; new or empty.")],
    redacted: Annotated[
        bool,
        typer.Option(
            "--redacted", help="Withhold people, paths and free text; the chain closes all the same."
        ),
    ] = False,
    texts: Annotated[bool, typer.Option("--texts", help="Take files in that hold messages.")] = False,
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with. Default: the dossier's.")
    ] = None,
    sign_model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Sign its weights (OpenSSF Model Signing). Repeat."),
    ] = None,
    model_key: Annotated[
        Path | None,
        typer.Option(
            help="Private key for weights: an elliptic curve's (P-256), which is what that format takes."
        ),
    ] = None,
    sigstore: Annotated[
        bool,
        typer.Option("--sigstore", help="Sign statements by Sigstore as well; makes your identity public."),
    ] = False,
    folder: Folder = HERE,
) -> None:
    """Write a bundle that a stranger can check with only the public key.

    In it: the chain and its signed heads, run files by digest, the dossier as one page (index.html), in-toto statements
    (test result, verification summary; DSSE), Every Eval Ever 0.3, CycloneDX ML-BOM, Hugging Face model cards and
    .eval_results, drafts of reports. Weights are signed if they are still what was registered.

    [bold]Examples[/bold]

      guardkeel dossier export bundle/
      guardkeel dossier export public/ --redacted

      openssl ecparam -name prime256v1 -genkey -noout -out models.key
      guardkeel dossier export bundle/ --sign-model guard-1 --model-key models.key
    """
    with opened(folder) as dossier:
        from guardkeel.dossier.bundle import write
        from guardkeel.report.dossier import page

        now = dossier.now
        made = write(
            dossier, out, lambda state: page(state, now, redacted), redact=redacted, texts=texts, key=key,
            signed_models=sign_model or (), model_key=model_key, sigstore=sigstore,
        )  # fmt: skip
        say(f"bundle   [bold]{literal(out)}[/bold]  {made.files} files")
        for line in made.left_out:
            say(f"left out {literal(line)}")
        say(f"check    guardkeel dossier verify {literal(out)} --key KEY.pub")


def draft(
    report: Annotated[str, typer.Argument(help=f"{', '.join(REPORTS)}.")],
    model: Annotated[str, typer.Argument(help="Registered model.")] = "",
    folder: Folder = HERE,
    record: Annotated[
        bool, typer.Option("--record", help="Of applicability: record what was found.")
    ] = False,
    who: As = None,
) -> None:
    """Print a draft in Markdown from what is recorded, with what is missing marked; or say which regimes seem to apply.

    [bold]Examples[/bold]

      guardkeel dossier draft model-report guard-2 > model-report.md
      guardkeel dossier draft applicability guard-2
    """
    from guardkeel.errors import ConfigError

    if report not in REPORTS:
        raise ConfigError(f"unknown report {report!r}", remedy=f"there is {', '.join(REPORTS)}")
    if report != "risk-profile" and not model:
        raise ConfigError(f"{report} is about a model", remedy="name a registered model")
    needs()
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Model
        from guardkeel.dossier.regimes import DISCLAIMER, applicability, drafts, regimes

        state = dossier.refresh()
        if report == "risk-profile":
            typer.echo(drafts.risk_profile(state, dossier.now), nl=False)
            return
        known = state.get(Model, model)
        if report == "applicability":
            found = [applicability(state, r, known, dossier.now) for r in regimes()]
            for one in found:
                say(f"[bold]{literal(one.regime)}[/bold]  {one.verdict}")
                for reason in one.reasons:
                    say(f"  {literal(reason)}")
            say(f"\n{DISCLAIMER}")
            if record:
                dossier.record(found, actor(who))
            return
        form = {"model-report": drafts.model_report, "transparency-report": drafts.transparency}[report]
        typer.echo(form(state, known, dossier.now), nl=False)


def verify(
    where: Annotated[Path, typer.Argument(help="A dossier's folder, or a bundle.")] = HERE,
    key: Annotated[list[Path] | None, typer.Option(help="Public key (.pub) of who signs. Repeat.")] = None,
    head: Annotated[
        list[Path] | None,
        typer.Option(help="A signed head that was kept elsewhere, such as another bundle's heads.jsonl."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=PATH", help="Weights to check against their signature in a bundle. Repeat."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a dossier or a bundle: finds any changed byte, missing, inserted or moved record, and names the first.

    A bundle needs nothing but the public key, which you should have from the signer. An end that was cut off, heads and
    all, is found by a head that was kept elsewhere: --head. Exit code 1 where something is wrong.

    [bold]Examples[/bold]

      guardkeel dossier verify bundle/ --key bank.pub
      guardkeel dossier verify bundle/ --key bank.pub --weights guard-1=downloads/guard-1
      guardkeel dossier verify dossier --key bank.pub --head bundle-of-may/heads.jsonl
    """
    needs()
    from guardkeel.dossier import bundle, dsse, heads
    from guardkeel.dossier.dossier import FILE, open_dossier
    from guardkeel.dossier.verifying import verify as checked
    from guardkeel.errors import ConfigError, DataError

    keys = [dsse.read_public(k) for k in key or ()]
    if head and not keys:
        raise ConfigError("--head without --key", remedy="give the public key that signed it")
    models = dict(_placed(w) for w in weights or ())
    if models and (where / FILE).is_file():
        raise ConfigError(f"{where}: signatures of weights are in bundles", remedy="give a bundle's folder")
    elsewhere = []
    for path in head or ():
        try:
            envelopes = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as e:
            raise DataError(f"{path}: no signed heads", remedy="give the heads.jsonl of a bundle") from e
        elsewhere += [heads.read(e, keys, str(path)) for e in envelopes]
    if (where / FILE).is_file():
        with open_dossier(where) as dossier:
            own = keys
            entries = list(dossier.store.entries())
            if not own and entries and entries[0].kind == "dossier":
                own = [dsse.public_key(p, "the dossier") for p in entries[0].body.get("keys", {}).values()]
            found = checked(entries, dossier.store.heads(), own, elsewhere)
            if not keys:
                found.notes.append("checked by keys that the dossier itself names")
    else:
        found = bundle.check(where, keys, elsewhere, models)
    if as_json:
        said = {"sound": found.sound, "entries": found.entries, "signed": found.signed, "head": found.head}
        fault = found.fault
        emit(
            said
            | {"fault": fault and {"entry": fault.sequence, "problem": fault.problem}, "notes": found.notes}
        )
    elif found.fault is None:
        say(f"[bold]sound[/bold]  {found.entries} entries, signed up to {found.signed}, head {found.head}")
    else:
        at = f"entry {found.fault.sequence}: " if found.fault.sequence else ""
        say(f"[bold red]not sound[/]  {literal(at + found.fault.problem)}")
        say(f"remedy     {literal(found.fault.remedy)}")
    if not as_json:
        for note in dict.fromkeys(found.notes):
            say(f"note   {literal(note)}")
    raise typer.Exit(0 if found.sound else 1)


def _placed(text: str) -> tuple[str, Path]:
    from guardkeel.errors import ConfigError

    name, found, path = text.partition("=")
    if not (name and found and path):
        raise ConfigError(f"--weights {text}: not MODEL=PATH", remedy="such as guard-1=downloads/guard-1")
    return name, Path(path)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8300,
    token: Annotated[
        str, typer.Option(envvar="GUARDKEEL_DOSSIER_TOKEN", help="Needed to approve. Default: nobody can.")
    ] = "",
    folder: Folder = HERE,
) -> None:
    """Serve the dossier: the page as it is now, and approvals of decisions.

    Pages are read-only. With a token, decisions can be approved or rejected in the browser, under the same rules as on
    the command line; people who are registered with a key have to use the command line, where the key is. Listens on
    this machine alone unless told otherwise; put a proxy that knows people in front of it to open it up.

    [bold]Examples[/bold]

      guardkeel dossier serve
      GUARDKEEL_DOSSIER_TOKEN=… guardkeel dossier serve --port 8300
    """
    needs()
    from guardkeel.errors import ConfigError

    try:
        import uvicorn

        from guardkeel.report.dossier_app import app
    except ImportError as e:
        raise ConfigError(
            "serving needs FastAPI and uvicorn", remedy="pip install 'guardkeel[dossier]'"
        ) from e
    from guardkeel.dossier.dossier import open_dossier

    with open_dossier(folder) as dossier:
        say(f"dossier  http://{literal(host)}:{port}/")
        uvicorn.run(app(dossier, token), host=host, port=port, log_level="warning")
