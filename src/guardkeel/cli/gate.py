"""guardkeel gate: decide again, from a run directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardkeel.cli.audit import EXIT_CODES, show_decision
from guardkeel.cli.terminal import emit, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("gate")(gate)


def gate(
    run: Annotated[Path | None, typer.Argument(help="Run directory of an audit.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Gate policy (TOML). Default: the one that ships.")
    ] = None,
    print_policy: Annotated[
        bool, typer.Option("--print-policy", help="Print the default policy, to start your own from.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The decision as JSON on stdout.")] = False,
) -> None:
    """Decide allow, hold or deny from a finished audit; no model is loaded.

    The exit code is the decision: 0 allow, 1 deny, 3 hold for missing evidence. The audit's own files are not changed.

    [bold]Examples[/bold]

      guardkeel gate runs/audit-keel-135m-20260101-120000
      guardkeel gate --print-policy > gate.toml
      guardkeel gate runs/… --policy gate.toml --json
    """
    from guardkeel.evaluation.policy import default_policy_text

    if print_policy:
        typer.echo(default_policy_text(), nl=False)
        return
    if run is None:
        raise typer.BadParameter("give the run directory of an audit", param_hint="RUN")
    from guardkeel.evaluation.gate import decide
    from guardkeel.evaluation.policy import load_policy
    from guardkeel.evaluation.runs import read_audit

    decision = decide(read_audit(run), load_policy(policy))
    if as_json:
        emit(decision.model_dump(mode="json"))
    else:
        show_decision(decision)
        say("")
    raise typer.Exit(EXIT_CODES[decision.decision])
