"""guardkeel dossier gate, approve, waive, deploy, incident: decisions, and what follows from them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.dossier_common import HERE, As, Folder, Json, needs, opened, told
from guardkeel.cli.terminal import emit, literal, say, table

if TYPE_CHECKING:
    from guardkeel.dossier.kinds import GateDecision

EXIT = {"allow": 0, "allow-with-safeguards": 0, "staged": 3, "hold": 3, "deny": 1, "roll-back": 1}
COLOURS = {
    "pass": "green",
    "fail": "red",
    "hold": "yellow",
    "safeguard": "yellow",
    "waived": "yellow",
    "advice": "dim",
}


def register(group: typer.Typer) -> None:
    """Add the sub-commands."""
    group.command("gate")(gate)
    group.command("approve")(approve)
    group.command("waive")(waive)
    group.command("deploy")(deploy)
    group.command("incident")(incident)


def gate(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    policy: Annotated[str, typer.Option(help="Registered policy.")] = "release",
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 here.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Append Markdown here, such as $GITHUB_STEP_SUMMARY.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, and record nothing.")] = False,
    accept_staged: Annotated[
        bool, typer.Option("--accept-staged", help="Exit 0 for a staged release.")
    ] = False,
    folder: Folder = HERE,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Decide on a model as it is now by a registered policy, rule by rule: allow, hold, deny, …

    A rule that is broken denies, or rolls back where the model is in use. Evidence that is missing, errored, stale,
    spoiled or flagged holds. The decision is recorded with the hash of every record that it read; somebody who did not
    train the model then approves it. Exit codes: 0 allow or allow-with-safeguards, 1 deny or roll-back, 3 hold, staged.

    [bold]In a pull request[/bold]

      guardkeel dossier gate guard-2 --junit gate.xml --sarif gate.sarif --summary "$GITHUB_STEP_SUMMARY"
    """
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.exports import ci
        from guardkeel.dossier.gate import decide
        from guardkeel.dossier.kinds import Model
        from guardkeel.records import write_json, write_text

        decision = decide(dossier.refresh(), dossier.state.get(Model, model), policy, dossier.now)
        if not dry_run:
            dossier.record([decision], actor(who))
        if junit:
            write_text(junit, ci.junit(decision))
        if sarif:
            write_json(sarif, ci.sarif(decision, (folder / "dossier.toml").as_posix()))
        if summary:
            with summary.open("a", encoding="utf-8") as out:
                out.write(ci.summary(decision))
        if as_json:
            emit(decision.model_dump(mode="json"))
        else:
            _show(decision)
    raise typer.Exit(0 if decision.outcome == "staged" and accept_staged else EXIT[decision.outcome])


def _show(decision: GateDecision) -> None:
    for t in decision.trace:
        say(f"[{COLOURS[t.outcome]}]{t.outcome:<9}[/] [bold]{literal(t.rule)}[/bold]  {literal(t.observed)}")
        if t.outcome != "pass":
            say(f"          asked {literal(t.requirement)}; {literal(t.reason)}")
    say(f"\n[bold]{decision.outcome}[/bold]  {literal(decision.reason)}")
    say(f"decision {literal(decision.id)}")


def approve(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|DECISION", help="A model: its last decision; or a decision.")
    ],
    reject: Annotated[bool, typer.Option("--reject", help="Say no.")] = False,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with; needed where you are registered with one.")
    ] = None,
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Approve a decision, or reject it. Nobody approves what they trained, or what was held or denied.

    A name is a claim. Register a person with a public key, and what they approve has to be signed by it.

    [bold]Examples[/bold]

      guardkeel dossier approve guard-2 --as bob --reason "read the trace and the assessment"
      guardkeel dossier approve guard-2 --as bob --key bob.key
    """
    with opened(folder) as dossier:
        from guardkeel.dossier import dsse
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Approval, GateDecision, Model, moment
        from guardkeel.dossier.rules import APPROVAL, approval_payload
        from guardkeel.errors import EvidenceError

        state = dossier.refresh()
        decision = state.find(GateDecision, what)
        if decision is None:
            found = state.decisions(state.get(Model, what))
            if not found:
                raise EvidenceError(
                    f"there is no decision on {what!r} as it is now", remedy="dossier gate first"
                )
            decision = found[-1]
        me = actor(who)
        said = Approval(
            id=f"{decision.id} {moment(dossier.now)}"[:200],
            decision=decision.id,
            approver=me,
            verdict="reject" if reject else "approve",
            reason=reason,
            at=dossier.now,
        )
        if key is not None:
            payload = approval_payload(state.stamped(GateDecision, decision.id).entry.hash, said)
            said = said.model_copy(update={"signature": dsse.sign(APPROVAL, payload, dsse.private_key(key))})
        told(dossier.record([said], me))


def waive(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    rule: Annotated[str, typer.Argument(help="The rule, as the gate's trace names it.")],
    until: Annotated[str, typer.Option(help="When it ends: a date, a time with its offset, or 14d.")],
    reason: Annotated[str, typer.Option(help="Why it may be set aside.")],
    instead: Annotated[str, typer.Option(help="What is done instead.")] = "",
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Set one rule aside for one model as it is now, until a day. Critical rules cannot be waived.

    [bold]Examples[/bold]

      guardkeel dossier waive guard-2 "release/fpr launch max on audit" --until 14d --reason "being moved" --as eve
    """
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Model, Waiver
        from guardkeel.dossier.kinds.base import plain_id

        known = dossier.state.get(Model, model)
        me = actor(who)
        told(
            dossier.record(
                [
                    Waiver(
                        id=plain_id(f"{model} {rule} {dossier.now:%Y-%m-%d}"),
                        rule=rule,
                        model=model,
                        fingerprint=known.fingerprint,
                        granted_by=me,
                        reason=reason,
                        compensation=instead,
                        expires_at=when(until, dossier.now),
                    )
                ],
                me,
            )
        )


def when(text: str, now: datetime) -> datetime:
    """A time from a date, an ISO time with its offset, or a span from now such as 14d or 12h."""
    from guardkeel.errors import ConfigError

    span = re.fullmatch(r"(\d+)([dh])", text)
    if span:
        return now + timedelta(**{"days" if span[2] == "d" else "hours": int(span[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError as e:
        raise ConfigError(
            f"{text!r} is no time", remedy="write 2026-01-31, 2026-01-31T12:00:00Z or 14d"
        ) from e
    if len(text) == 10:
        return found.replace(tzinfo=UTC)
    if found.tzinfo is None:
        raise ConfigError(f"{text!r} has no offset", remedy="write 2026-01-31T12:00:00Z")
    return found


def deploy(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    place: Annotated[str, typer.Option(help="Where, such as production.")] = "production",
    staged: Annotated[bool, typer.Option("--staged", help="To a part of the traffic only.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="It is taken out of use.")] = False,
    back: Annotated[bool, typer.Option("--roll-back", help="It is taken out for the one before.")] = False,
    folder: Folder = HERE,
    who: As = None,
) -> None:
    """Record that a model came into use, or went out of it. Without an approved decision in force that is refused.

    [bold]Examples[/bold]

      guardkeel dossier deploy guard-2 --place production
      guardkeel dossier deploy guard-2 --roll-back && guardkeel dossier deploy guard-1
    """
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Deployment, Model, moment

        known = dossier.refresh().get(Model, model)
        decisions = dossier.state.decisions(known)
        status: Any = (
            "withdrawn" if withdraw else "rolled-back" if back else "staged" if staged else "deployed"
        )
        one = Deployment(
            id=f"{place} {moment(dossier.now)}",
            model=model,
            fingerprint=known.fingerprint,
            place=place,
            status=status,
            at=dossier.now,
            decision=decisions[-1].id if decisions and status in ("deployed", "staged") else "",
        )
        told(dossier.record([one], actor(who)))


def incident(
    file: Annotated[
        Path | None,
        typer.Argument(help="The incident (TOML): id, title, model, aware_at, harm, description, …"),
    ] = None,
    draft: Annotated[
        str, typer.Option(metavar="ID", help="Print the draft of a report on this incident.")
    ] = "",
    regime: Annotated[
        str, typer.Option(help="For which regime: eu-gpai-code, us-ca-sb53, us-ny-raise.")
    ] = "eu-gpai-code",
    form: Annotated[str, typer.Option(help="initial, intermediate or final.")] = "initial",
    sent: Annotated[
        str,
        typer.Option(metavar="ID", help="Record that the report of --regime and --form was sent just now."),
    ] = "",
    folder: Folder = HERE,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Record an incident or what is new about it; show the clocks of open ones; draft reports.

    A file about an incident that is known need only say what is new: a draft that a monitor opened is made one with
    status = "open", and ended with "contained", "resolved" (now, if resolved_at is left out) or "not-an-incident".
    Clocks run from aware_at, which can never be set later. Whether a regime applies is shown with its reasons; nothing
    here says that a duty was met.

    [bold]Examples[/bold]

      guardkeel dossier incident incident.toml
      guardkeel dossier incident                            clocks of all incidents
      guardkeel dossier incident --draft drift-1 --regime us-ca-sb53 > report.md
      guardkeel dossier incident --sent drift-1 --regime us-ca-sb53 --form initial

    [bold]Example file[/bold]

      id = "drift-1"
      title = "Recall fell after the update"
      model = "guard-2"
      occurred_at = 2026-05-01T06:00:00Z
      aware_at = 2026-05-01T09:30:00Z
      harm = "near-miss"
      description = "…"
    """
    needs()
    with opened(folder) as dossier:
        from guardkeel.dossier.dossier import actor
        from guardkeel.dossier.kinds import Incident, Report, body_of, moment
        from guardkeel.dossier.regimes import clocks, drafts, load

        state = dossier.refresh()
        if draft:
            typer.echo(
                drafts.incident(state, state.get(Incident, draft), load(regime), form, dossier.now), nl=False
            )
            return
        if sent:
            known = state.get(Incident, sent)
            one = Report(
                id=f"{sent} {regime} {form} {moment(dossier.now)}"[:200],
                regime=load(regime).id,
                form=form,
                incident=known.id,
                model=known.model,
                sent_at=dossier.now,
            )
            told(dossier.record([one], actor(who)))
        if file is not None:
            import tomllib

            from guardkeel.dossier.registering import read_tables
            from guardkeel.errors import ConfigError

            try:
                said = tomllib.loads(file.read_text("utf-8"))
            except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
                raise ConfigError(f"{file}: cannot be read as TOML: {e}", remedy="see https://toml.io") from e
            row = {"id": file.stem, **said}
            before = state.find(Incident, str(row["id"]))
            if before is not None:  # what the file does not say stays as it was
                row = {**body_of(before), **row}
            if row.get("status") == "resolved" and not row.get("resolved_at"):
                row["resolved_at"] = dossier.now
            told(dossier.record(read_tables({"incident": [row]}, state, dossier.now, str(file)), actor(who)))
        running = clocks.clocks(dossier.state, dossier.now)
        if as_json:
            emit([c.as_json() for c in running])
            return
        rows = [[c.incident, c.regime, c.what, c.state, c.due_text, c.applies] for c in running]
        columns = ["incident", "regime", "what", "state", "due", "does it apply"]
        table("clocks", columns, rows) if rows else say("no clock is running")
