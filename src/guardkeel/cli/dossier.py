"""guardkeel dossier: what was evaluated, by whom, against what, who decided, and what happened after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from guardkeel.cli import dossier_decide, dossier_out
from guardkeel.cli.dossier_common import HERE, As, Folder, Json, needs, opened, told
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

ORDER = """A life in commands:

  guardkeel dossier init dossier --title "The guard of the bank"
  guardkeel dossier register --policy policy.toml       before anything is run
  guardkeel dossier register records.toml               models, prompt sets, evaluators, specifications
  guardkeel dossier import runs/audit-… --spec release-audit --evaluator assurance-team --model guard-1
  guardkeel dossier assess guard-1 assessment.toml
  guardkeel dossier gate guard-1 --policy release
  guardkeel dossier approve guard-1 --as bob            not by who trained it
  guardkeel dossier deploy guard-1 --place production
  guardkeel dossier monitor guard-1 --log sqlite:///moderation.db
  guardkeel dossier export bundle/                      a stranger checks it: dossier verify bundle/ --key KEY.pub
"""


def register(app: typer.Typer) -> None:
    """Add the verb, and its sub-commands."""
    group = typer.Typer(
        help="Evidence: what was evaluated, by whom, against what, who decided, what happened after.",
        epilog="The records are a chain: nothing in it can be changed, left out or moved without being seen.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("init")(init)
    group.command("key")(key)
    group.command("register")(record)
    group.command("import")(take_in)
    group.command("assess")(assess)
    group.command("evaluate")(evaluate)
    dossier_decide.register(group)
    group.command("show")(show)
    dossier_out.register(group)
    app.add_typer(group, name="dossier")


def init(
    folder: Annotated[Path, typer.Argument(help="Where it is to be; made where it is not there.")] = HERE,
    title: Annotated[str, typer.Option(help="What it is about.")] = "",
    purpose: Annotated[str, typer.Option(help="What it is for, in a sentence.")] = "",
    store: Annotated[
        str,
        typer.Option(
            help="SQLAlchemy URL, or env:NAME for one in the environment. Default: SQLite in the folder."
        ),
    ] = "",
    key: Annotated[
        Path | None, typer.Option(help="A private key to sign heads with. Default: a new one in the folder.")
    ] = None,
    sign: Annotated[
        bool, typer.Option(help="Sign heads. Without, an end that is cut off cannot be told.")
    ] = True,
    who: As = None,
) -> None:
    """Make a dossier: an append-only chain of records, and a key that signs its heads.

    Keep the private key where those who could change the dossier cannot read it, and give the public one to whoever is
    to check it. PostgreSQL lets several machines write: --store postgresql+psycopg://… or env:NAME.

    [bold]Examples[/bold]

      guardkeel dossier init dossier --title "The guard of the bank"
      guardkeel dossier init dossier --title bank --store env:DOSSIER_URL --key ~/keys/dossier.key
    """
    needs()
    from guardkeel.dossier.dossier import actor, create

    with create(
        folder, title or folder.resolve().name, actor(who), purpose=purpose, store=store, key=key, sign=sign
    ) as made:
        say(f"dossier  [bold]{literal(folder)}[/bold]  in {literal(made.store.shown)}")
        if sign and key is None:
            say(
                f"key      {literal(folder / 'dossier.key')}  (public: {literal(folder / 'dossier.key.pub')})"
            )
    say(f"\n{literal(ORDER)}")


def key(
    path: Annotated[Path, typer.Argument(help="File of the private key; the public one is beside it, .pub.")],
) -> None:
    """Make an ed25519 key: for a dossier's heads, or for a person whose approvals are to be signed.

    [bold]Examples[/bold]

      guardkeel dossier key ~/keys/bob.key
    """
    from guardkeel.dossier.dsse import new_key

    private, public = new_key(path)
    say(f"private  {literal(private)}  (keep it)\npublic   {literal(public)}  (give it away)")


def record(
    file: Annotated[
        Path | None, typer.Argument(help="Records (TOML). --example prints one to start from.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A release policy (TOML). --policy-example prints one.")
    ] = None,
    taxonomy: Annotated[
        list[str] | None, typer.Option(help="Risk domains of aegis-2, ailuminate or nist-ai-600-1. Repeat.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file of records to start from.")
    ] = False,
    policy_example: Annotated[
        bool, typer.Option("--policy-example", help="Print a policy to start from.")
    ] = False,
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Register models, prompt sets, evaluators, specifications, policies, … from a file.

    What is in the dossier already, word for word, is left out, so the command can be repeated. Register a policy and
    its thresholds before the runs that they are to judge: those that come later are flagged, and the gate holds.

    [bold]Examples[/bold]

      guardkeel dossier register --policy-example > policy.toml
      guardkeel dossier register --policy policy.toml
      guardkeel dossier register --example > records.toml
      guardkeel dossier register records.toml --taxonomy aegis-2
    """
    from guardkeel.errors import ConfigError

    if example or policy_example:
        from guardkeel.dossier import policy as policies
        from guardkeel.dossier import registering

        typer.echo(registering.example() if example else policies.example(), nl=False)
        return
    if file is None and policy is None and not taxonomy:
        raise ConfigError("nothing to register", remedy="guardkeel dossier register --example prints a file")
    hush()
    with opened(folder) as dossier, progress() as watch:
        from guardkeel.dossier import registering
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Record
        from guardkeel.dossier.policy import read_policy

        records: list[Record] = []
        for name in taxonomy or ():
            records += registering.taxonomy(name, dossier.state, dossier.now)
        if policy is not None:
            records += read_policy(policy).records()
        if file is not None:
            records += registering.read_file(file, dossier.state, dossier.now, watch)
        told(dossier.record(records, actor(who)))


def take_in(
    path: Annotated[
        Path, typer.Argument(help="Run directory of audit, tune or fuse; log or results of another tool.")
    ],
    spec: Annotated[str, typer.Option(help="Specification under which it was run.")] = "",
    evaluator: Annotated[str, typer.Option(help="Who ran it.")] = "",
    model: Annotated[
        str, typer.Option(help="Registered model; of tune and fuse: the name of the one they made.")
    ] = "",
    judge: Annotated[str, typer.Option(help="Who labelled the answers, where somebody did.")] = "",
    trainer: Annotated[list[str] | None, typer.Option(help="Of tune and fuse: who made it. Repeat.")] = None,
    reading: Annotated[
        Path | None,
        typer.Option(help="Of other tools: how to understand their files (TOML), docs/imports.md."),
    ] = None,
    name: Annotated[
        str, typer.Option("--id", help="Name of the run. Default: that of the folder or file.")
    ] = "",
    elicitation: Annotated[str, typer.Option(help="How hard was tried to bring the behaviour out.")] = "",
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Take a run in: an audit with its results, the model that a fine-tune or fuse made, or another tool's results.

    Files are held by digest and stay where they are. If they go or change, the evidence is missing, and the gate holds.
    inspect_ai logs (.eval, .json), lm-eval results and samples, geh runs and GuardBench predictions are told by what
    is in them.

    [bold]Examples[/bold]

      guardkeel dossier import runs/audit-… --spec release-audit --evaluator assurance-team --model guard-1
      guardkeel dossier import runs/tune-… --model guard-2 --trainer tom
      guardkeel dossier import logs/red-team.eval --spec red-team --evaluator lab --model guard-1
    """
    hush()
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.imports import foreign, run_directory
        from guardkeel.dossier.imports.common import Under
        from guardkeel.errors import ConfigError
        from guardkeel.records import read_record

        if not path.exists():
            raise ConfigError(f"{path}: is not there", remedy="check the path")
        own = run_directory.is_run(path)
        if own and read_record(path).verb in run_directory.MADE:
            if not model or not trainer:
                raise ConfigError(
                    "no --model or no --trainer", remedy="name the model that it made, and who made it"
                )
            found = run_directory.made_model(dossier.state, path, model, trainer)
        else:
            if not (spec and evaluator and model):
                raise ConfigError(
                    "--spec, --evaluator or --model is missing",
                    remedy="name the specification, who ran it and the model; dossier show lists what is registered",
                )
            under = Under(spec, evaluator, model, judge, name, elicitation)
            if own:
                found = run_directory.audit(dossier.state, path, under)
            else:
                found = foreign.read(dossier.state, path, under, _reading(reading))
        told(dossier.record(found.records, actor(who)))
        for note in found.notes:
            say(f"note     {literal(note)}")


def _reading(path: Path | None) -> Any:
    from guardkeel.configuration import read_configuration
    from guardkeel.evaluation.imports import Reading

    return None if path is None else read_configuration(Reading, "dossier import", path, {})


def assess(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    file: Annotated[
        Path, typer.Argument(help="The assessment (TOML): scope, specs, residual, opinions, expires_at, …")
    ],
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Record a risk assessment of a model as it is now.

    It is of this very model: another checkpoint, adapter, quantisation, policy or operating point re-opens it. It ends
    on expires_at, 180 days from now by default. Outside opinions go in with their dissent.

    [bold]Example file[/bold]

      scope = "The guard as it screens customers' chats"
      specs = ["release-audit"]
      controllability = "It only flags; a person decides."
      uncertainty = "Two languages only."
      residual = [ { domain = "missed-harm", risk = "moderate", why = "recall 0.93" } ]
      opinions = [ { who = "lab", independent = true, view = "dissent", text = "…" } ]
    """
    import tomllib

    from guardkeel.errors import ConfigError

    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import moment
        from guardkeel.dossier.registering import read_tables

        try:
            said = tomllib.loads(file.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{file}: cannot be read as TOML: {e}", remedy="see https://toml.io") from e
        row = {"id": f"{model} {moment(dossier.now)}", **said, "model": model}
        told(
            dossier.record(
                read_tables({"assessment": [row]}, dossier.state, dossier.now, str(file)), actor(who)
            )
        )


def evaluate(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    against: Annotated[
        str, typer.Option(help="Run to compare its last audit with, row by row, on the same prompt sets.")
    ] = "",
    mends: Annotated[
        str, typer.Option(help="Model whose open findings end where this one's last run keeps the threshold.")
    ] = "",
    how: Annotated[str, typer.Option(help="Of --mends: what was done.")] = "",
    folder: Folder = HERE,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Read thresholds on a model's last runs: what breaks one becomes a finding; show the findings that are open.

    With --against, two audits are compared on the same items with paired tests; two versions of a prompt set are
    refused. With --mends, a finding of another model, or of this one before, is closed by a mitigation with this
    model's run as its retest. Exit code 1 where a launch or critical threshold is broken.

    [bold]Examples[/bold]

      guardkeel dossier evaluate guard-2
      guardkeel dossier evaluate guard-2 --against audit-guard-1
      guardkeel dossier evaluate guard-3 --mends guard-2 --how "trained again with kl"
    """
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.findings import findings, mended
        from guardkeel.dossier.imports.rows import compared
        from guardkeel.dossier.kinds import Comparison, Finding, Model, Record
        from guardkeel.errors import ConfigError, EvidenceError

        state = dossier.state
        known = state.get(Model, model)
        made: list[Record] = [*findings(state, known)]
        if against:
            runs = [s.record.id for s in state.runs(known) if s.record.tool == "guardkeel audit"]
            if not runs:
                raise EvidenceError(f"model {model!r} has no audit", remedy="import one first")
            made += compared(state, against, runs[-1])
        if mends:
            if not how:
                raise ConfigError("--mends without --how", remedy="say what was done")
            made += mended(state, state.get(Model, mends), known, actor(who), how)
        entries = dossier.record(made, actor(who))
        open_ones = [
            f for f in state.each(Finding) if f.fingerprint == known.fingerprint and f.status == "open"
        ]
        if as_json:
            emit([f.model_dump(mode="json") for f in [*made, *(f for f in open_ones if f not in made)]])
        else:
            tests = [c for c in made if isinstance(c, Comparison)]
            others = [e for e in entries if e.kind != Comparison.kind]
            told(others, quiet=bool(tests) and not others)
            if tests:
                columns = ["on", "metric", "n", "worse", "better", "change", "outcome"]
                table(f"against {against}", columns, [_test(c) for c in tests if c.n])
            rows = [[f.id, f.level, f.what] for f in open_ones]
            table("open findings", ["finding", "level", "what"], rows) if rows else say("no open findings")
        bad = any(f.level != "alert" for f in open_ones)
    raise typer.Exit(1 if bad else 0)


def _test(c: Any) -> list[str]:
    interval = "" if c.low is None or c.high is None else f" [{c.low:+.3f}, {c.high:+.3f}]"
    change = "–" if c.difference is None else f"{c.difference:+.3f}{interval}"
    where = "all" if c.slice == "*" else c.slice
    return [literal(where), c.metric, str(c.n), str(c.worse), str(c.better), literal(change), c.outcome]


def show(
    kind: Annotated[str, typer.Argument(help="A kind, such as model or run. Default: all, counted.")] = "",
    name: Annotated[str, typer.Argument(metavar="[ID]", help="One record.")] = "",
    folder: Folder = HERE,
    as_json: Json = False,
) -> None:
    """Show what is in the dossier: counts, the records of a kind, or one with its history.

    [bold]Examples[/bold]

      guardkeel dossier show
      guardkeel dossier show run
      guardkeel dossier show gate-decision "guard-1 2026-…" --json
    """
    needs()
    from guardkeel.dossier.dossier import open_dossier
    from guardkeel.dossier.kinds import KINDS, Model, body_of
    from guardkeel.dossier.standing import standing
    from guardkeel.errors import ConfigError

    with open_dossier(folder) as dossier:
        state = dossier.state
        if kind and kind not in KINDS:
            raise ConfigError(f"unknown kind {kind!r}", remedy=f"kinds are {', '.join(KINDS)}")
        if not kind:
            counts = {k: len(state.every(c)) for k, c in KINDS.items() if state.every(c)}
            stands = [standing(state, m, dossier.now) for m in state.each(Model)]
            if as_json:
                emit(
                    {
                        "entries": state.last,
                        "records": counts,
                        "may_run": {s.model: s.may_run for s in stands},
                    }
                )
                return
            title, where = literal(dossier.settings.title), literal(dossier.store.shown)
            say(f"[bold]{title}[/bold]  {state.last} entries in {where}")
            table("records", ["kind", "records"], [[k, str(n)] for k, n in counts.items()])
            rows = [
                [s.model, "may run" if s.may_run else "may not run", "; ".join(s.reasons)] for s in stands
            ]
            if rows:
                table("models", ["model", "standing", "why"], rows)
            return
        found = state.every(KINDS[kind])
        if name:
            state.get(KINDS[kind], name)
            found = [s for s in state.all if (s.entry.kind, s.entry.id) == (kind, name)]
        if as_json or name:
            emit(
                [
                    {"entry": s.entry.sequence, "at": s.entry.at, "id": s.entry.id, **body_of(s.record)}
                    for s in found
                ]
            )
            return
        table(
            kind, ["id", "entry", "at"], [[s.entry.id, str(s.entry.sequence), s.entry.at[:16]] for s in found]
        )
