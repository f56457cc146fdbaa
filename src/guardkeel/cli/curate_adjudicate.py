"""guardkeel curate adjudicate: the page on which people decide, and its decisions in and out as files."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.terminal import emit, literal, say, table

if TYPE_CHECKING:
    from guardkeel.curation.adjudication.desk import Desk
    from guardkeel.curation.adjudication.store import Store
    from guardkeel.curation.config import CurateConfig

_LOCAL = ("127.0.0.1", "localhost", "::1")


def register(group: typer.Typer) -> None:
    """Add the sub-command to the group of `guardkeel curate`."""
    group.command("adjudicate")(adjudicate)


def adjudicate(
    run: Annotated[Path, typer.Argument(help="The folder of a pipeline that holds for people: its --out.")],
    annotator: Annotated[
        list[str] | None,
        typer.Option(
            "--annotator", "-a", metavar="NAME", help="Who labels; repeat for several. Default: you."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8765,
    policy: Annotated[
        Path | None,
        typer.Option(help="A guard policy (TOML) whose categories are picked from, with its words."),
    ] = None,
    show_votes: Annotated[
        bool,
        typer.Option("--show-votes", help="Show jurors' votes before a decision. Such labels are marked."),
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far the queue is, and end.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write all decisions as JSONL, and end.")
    ] = None,
    bring: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Take in exported decisions, and end.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as JSON on stdout.")] = False,
) -> None:
    """Decide by hand what the jury of a pipeline left open, on a page that is worked by keyboard.

    Items come one at a time, those first from which most is learnt. Texts are covered until you look, jurors' votes
    until you have decided. Every decision is kept as you make it, under your name, and can be taken back. Several
    people can label at once: each has a link of their own, and nobody is given what somebody else has.

    Needs pip install 'guardkeel\\[serve]'. See docs/adjudicate.md.

    [bold]Examples[/bold]

      guardkeel curate adjudicate data/bank
      guardkeel curate adjudicate data/bank --annotator ann --annotator bob --port 9000
      guardkeel curate adjudicate data/bank --status
      guardkeel curate adjudicate data/bank --export decisions.jsonl
    """
    from guardkeel.curation.adjudication import needs_serve

    needs_serve()
    from guardkeel.curation.adjudication.serving import config_of, open_desk, open_store, serve

    config = config_of(run)
    if status or export or bring:
        store = open_store(run, config)
        try:
            emit_or_say(_files(store, config, export, bring), as_json)
        finally:
            store.close()
        return
    names = _names(annotator)
    desk = open_desk(run, config, names, policy=policy, show_votes=show_votes)
    if host not in _LOCAL:
        say(
            "[yellow]listening beyond this machine: links and texts go over plain HTTP[/yellow]", as_json=True
        )
    before = len(desk.store.records())
    serve(desk, host, port, lambda at: _links(desk, host, at))
    store = open_store(run, config)
    try:
        after = store.records()[before:]
        say(f"{len(after)} records were added; {_line(_status(store))}", as_json=True)
    finally:
        store.close()
    say("repeat guardkeel curate to go on with the pipeline", as_json=True)


def _names(given: list[str] | None) -> list[str]:
    from guardkeel.curation.adjudication.decisions import ANNOTATOR

    names = list(dict.fromkeys(given or [re.sub(r"[^A-Za-z0-9._-]", "-", getpass.getuser()) or "me"]))
    wrong = next((n for n in names if not re.fullmatch(ANNOTATOR, n)), None)
    if wrong is not None:
        raise typer.BadParameter(f"{wrong!r}: letters, digits, . _ -", param_hint="--annotator")
    return names


def _links(desk: Desk, host: str, port: int) -> None:
    """Everybody's link, once the page listens."""
    shown = f"[{host}]" if ":" in host else host
    for name, key in desk.annotators.keys().items():
        typer.echo(f"{name}: http://{shown}:{port}/enter?key={key}", err=True)
    typer.echo("Ctrl-C ends it; decisions are kept as they are made", err=True)


def _files(store: Store, config: CurateConfig, export: Path | None, bring: Path | None) -> dict[str, Any]:
    from guardkeel.curation.adjudication.decisions import read_decisions, write_decisions

    found: dict[str, Any] = {}
    if bring is not None:
        found["imported"] = dict(store.bring(list(read_decisions(bring))))
    if export is not None:
        found["exported"] = write_decisions(export, store.records())
    return found | _status(store)


def _status(store: Store) -> dict[str, Any]:
    from guardkeel.curation.adjudication.quality import annotators

    progress = store.progress("", store.clock())
    return {
        "items": progress.total,
        "decided": progress.decided,
        "people at work": store.holders(store.clock()),
        "annotators": [a.model_dump(mode="json") for a in annotators(store.standing())],
    }


def _line(found: dict[str, Any]) -> str:
    return f"{found['decided']:,} of {found['items']:,} items are decided"


def emit_or_say(found: dict[str, Any], as_json: bool) -> None:
    """What was found, for scripts or for people."""
    if as_json:
        emit(found)
        return
    if "imported" in found:
        said = ", ".join(f"{n:,} {status}" for status, n in sorted(found["imported"].items())) or "nothing"
        say(f"imported: {literal(said)}")
    if "exported" in found:
        say(f"exported: {found['exported']:,} records")
    say(_line(found))
    rows = [
        [literal(a["name"]), *(f"{a['answers'].get(c, 0)}" for c in ("safe", "caution", "unsafe", "unclear"))]
        for a in found["annotators"]
    ]
    if rows:
        table("people", ["name", "safe", "needs caution", "unsafe", "cannot tell"], rows)
